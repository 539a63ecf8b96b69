"""What is changed in a graph before OpenVINO compiles it: how attention sees keys, and pooling.

Does not know files, manifests or requests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

WEIGHTS = "pooling_weights"
KEYS = "attention_keys"

LANES = 16
"""Numbers of float32 in the longest vector register."""


def attention_keys(longest: int) -> NDArray[np.int32]:
    """(K,) what KEYS is fed: the longest text's tokens, then masked ones up to whole registers."""
    keys = np.zeros(padded(longest), np.int32)
    keys[:longest] = np.arange(longest)
    return keys


def padded(tokens: int) -> int:
    """The next multiple of LANES."""
    return -(-tokens // LANES) * LANES


def with_sums(model: ov.Model) -> ov.Model:
    """(B, T, H) -> (B, P, H): one weighted sum over tokens for each row of the new input (B, P, T)."""
    tokens = model.output(0).get_node().input_value(0)
    weights = _parameter(WEIGHTS, ov.PartialShape([-1, -1, -1]), np.float32)
    sums = ops.matmul(weights, tokens, False, False)
    return ov.Model([sums], [*model.get_parameters(), weights], "pooled")


def with_keys(model: ov.Model) -> ov.Model | None:
    """Attention over the tokens that the new input KEYS names instead of all; None where none is found.

    Only keys, values and masks grow; the rows of all other layers stay as many as there are tokens. A
    key past the tokens may name any of them: it is masked.
    """
    pieces: list[_Piece] = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Softmax" and _last(node.output(0)).is_dynamic:
            found = _attention(node)
            if found is None:
                return None
            pieces += found
    if not pieces:
        return None
    keys = _parameter(KEYS, ov.PartialShape([-1]), np.int32)
    count = ops.shape_of(keys, "i32")
    masks: dict[str, ov.Output] = {}
    for piece in pieces:
        source = piece.place.get_source_output()
        if piece.is_mask:  # all layers share one
            name = f"{source.get_node().get_name()} {source.get_index()}"
            masks[name] = masks.get(name) or _masked(source, count)
            grown = masks[name]
        else:
            grown = ops.gather(source, keys, ops.constant(np.int32(piece.axis))).output(0)
        piece.place.replace_source_output(grown)
    return ov.Model(model.get_results(), [*model.get_parameters(), keys], "keyed")


class _Piece(NamedTuple):
    """An operator's input that is as long as there are keys in one of its axes."""

    place: ov.Input
    axis: int
    is_mask: bool = False


def _attention(softmax: ov.Node) -> list[_Piece] | None:
    """What grows with the keys around a softmax; None where it is not attention as it is known here."""
    scores = _terms(softmax.input(0))
    if softmax.get_attributes()["axis"] not in (-1, _rank(softmax) - 1):
        return None
    if {piece.is_mask for piece in scores} != {True, False}:
        return None
    shares = softmax
    reader = _only_reader(shares)
    while reader is not None and reader.get_type_name() == "Convert":
        shares, reader = reader, _only_reader(reader)
    if reader is None or not _multiplies(reader):
        return None
    if reader.input_value(0).get_node().get_name() != shares.get_name():
        return None
    return [*scores, _operand(reader, transposed=True)]


def _only_reader(node: ov.Node) -> ov.Node | None:
    readers = list(node.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def _terms(place: ov.Input) -> list[_Piece]:
    """The addends of scores: products of queries and keys, and what masks them."""
    node = place.get_source_output().get_node()
    if node.get_type_name() == "Add":
        return [piece for each in node.inputs() for piece in _terms(each)]
    product = node
    while product.get_type_name() in ("Multiply", "Divide"):  # by their scale
        sides = [
            each for each in product.input_values() if each.get_node().get_type_name() != "Constant"
        ]
        if len(sides) != 1:
            break
        product = sides[0].get_node()
    if _multiplies(product):
        return [_operand(product, transposed=False)]
    is_everywhere = _last(place.get_source_output()) == ov.Dimension(1)
    return [] if is_everywhere else [_Piece(place, -1, is_mask=True)]


def _multiplies(node: ov.Node) -> bool:
    return node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_a"]


def _operand(product: ov.Node, *, transposed: bool) -> _Piece:
    """The second factor, (..., D, K) or transposed, before OpenVINO's fusable transposition of it."""
    place, rank = product.input(1), product.input_value(1).get_partial_shape().rank.get_length()
    axis = rank - 2 if product.get_attributes()["transpose_b"] != transposed else rank - 1
    node = place.get_source_output().get_node()
    if node.get_type_name() == "Transpose":
        order = node.input_value(1).get_node()
        if order.get_type_name() == "Constant":
            return _Piece(node.input(0), int(order.get_data()[axis]))
    return _Piece(place, axis)


def _masked(mask: ov.Output, count: ov.Node) -> ov.Output:
    """A mask that is added, (..., K): what it lacks to `count` (1,) keys are masked."""
    rank = mask.get_partial_shape().rank.get_length()
    last = ops.constant(np.array([rank - 1], np.int32))
    length = ops.gather(ops.shape_of(mask, "i32"), last, ops.constant(np.int32(0)))
    nothing = np.zeros(rank - 1, np.int32)
    ends = ops.concat([ops.constant(nothing), ops.subtract(count, length)], 0)
    least = ops.constant(np.finfo(np.float32).min)
    grown = ops.pad(mask, ops.constant(np.zeros(rank, np.int32)), ends, "constant", least)
    return grown.output(0)


def _parameter(name: str, shape: ov.PartialShape, dtype: type[np.generic]) -> ov.Node:
    parameter = ops.parameter(shape, dtype, name=name)
    parameter.output(0).set_names({name})
    return parameter


def _rank(node: ov.Node) -> int:
    rank: int = node.output(0).get_partial_shape().rank.get_length()
    return rank


def _last(output: ov.Output) -> ov.Dimension:
    shape = output.get_partial_shape()
    return shape[shape.rank.get_length() - 1]
