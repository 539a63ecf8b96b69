"""Writes DeBERTa's disentangled attention: scores by content, and by how far a key is from a query.

It does not know architectures, buckets of positions, quantisation or how graphs run.

See docs/decisions/078-shifted-position-scores.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

import onnx
from onnx import NodeProto, helper

from model_build.own_operators import DOMAIN, parsed, replace_nodes

DISENTANGLED = "DisentangledAttention"
"""Query, key and value (B, T, heads * D); which tokens are real, (B, T) int64; which row of the next
two each distance has, (2 * farthest + 1,) int64, from -farthest to farthest, further ones having those
of the ends; what queries, and what keys, are multiplied with at a distance, (heads, rows, D), one of
them absent or none -> (B, T, heads * D). Tokens and distances are the same in all layers. Attributes:
num_heads; scale, of the product of query and key alone; farthest."""
_TENSORS = "query", "key", "value", "real", "rows_of", "of_queries", "of_keys"

_ROWS = 64
"""Queries (or keys) of a block, at most. A block of R queries and T keys has T + R - 1 distances, not
2 T - 1. Texts up to here have one block, and all heads at once; longer ones a head at a time, whose
scores stay in the processor's cache."""

# A query's distances to keys 0, 1, 2 ... go down by one, and start one higher than its neighbour's. So
# of products with a block's distances, in descending order, row i begins one number further left than
# row i - 1: read as one row, without its first numbers, and cut into rows that are shorter by one, they
# stand below each other. Keys' products with distances are the same, of keys by queries.
# Names end with how many dimensions a tensor of sizes has. Constants are nodes: what only an inner graph
# reads, other passes would take for unused: so tables pass a node that the optimiser takes away.
_ONCE = Template("""
once () => () {
  apart_shape = Shape ("$real")
  apart_zero_0 = Constant <value = int64 {0}> ()
  apart_one_0 = Constant <value = int64 {1}> ()
  apart_zero_1 = Constant <value = int64[1] {0}> ()
  apart_one_1 = Constant <value = int64[1] {1}> ()
  apart_two_1 = Constant <value = int64[1] {2}> ()
  apart_three_1 = Constant <value = int64[1] {3}> ()
  apart_rest_1 = Constant <value = int64[1] {-1}> ()
  apart_zero_3 = Constant <value = int64[3] {0, 0, 0}> ()
  apart_rows_1 = Constant <value = int64[1] {$rows}> ()
  apart_farthest_0 = Constant <value = int64 {$farthest}> ()
  apart_nearest_0 = Constant <value = int64 {-$farthest}> ()
  apart_texts_1 = Gather (apart_shape, apart_zero_1)
  apart_tokens_1 = Gather (apart_shape, apart_one_1)
  apart_before_1 = Sub (apart_tokens_1, apart_one_1)
  apart_full_1 = Div (apart_before_1, apart_rows_1)
  apart_blocks_1 = Add (apart_full_1, apart_one_1)
  apart_long_1 = Greater (apart_tokens_1, apart_rows_1)
  apart_is_long = Squeeze (apart_long_1)
  apart_more_1 = Add (apart_before_1, apart_blocks_1)
  apart_block_1 = Div (apart_more_1, apart_blocks_1)
  apart_whole_1 = Mul (apart_blocks_1, apart_block_1)
  apart_missing_1 = Sub (apart_whole_1, apart_tokens_1)
  apart_width_1 = Add (apart_whole_1, apart_block_1)
  apart_narrow_1 = Sub (apart_width_1, apart_one_1)
  apart_first_1 = Sub (apart_block_1, apart_one_1)
  apart_length_1 = Mul (apart_block_1, apart_narrow_1)
  apart_last_1 = Add (apart_first_1, apart_length_1)
  apart_blocks_0 = Squeeze (apart_blocks_1)
  apart_width_0 = Squeeze (apart_width_1)
  apart_number_1 = Range (apart_zero_0, apart_blocks_0, apart_one_0)
  apart_starts_1 = Mul (apart_number_1, apart_block_1)
  apart_ends_1 = Add (apart_starts_1, apart_first_1)
  apart_ends_2 = Unsqueeze (apart_ends_1, apart_one_1)
  apart_columns_1 = Range (apart_zero_0, apart_width_0, apart_one_0)
  apart_distance = Sub (apart_ends_2, apart_columns_1)
  apart_near = Clip (apart_distance, apart_nearest_0, apart_farthest_0)
  apart_ahead = Add (apart_farthest_0, apart_near)
  apart_behind = Sub (apart_farthest_0, apart_near)
  apart_query_rows = Gather ("$rows_of", apart_ahead)
  apart_key_rows = Gather ("$rows_of", apart_behind)
  apart_query_row = Reshape (apart_query_rows, apart_rest_1)
  apart_key_row = Reshape (apart_key_rows, apart_rest_1)
  apart_pads_2 = Concat <axis = 0> (apart_zero_3, apart_missing_1)
  apart_real_32 = Cast <to = 6> ("$real")
  apart_real = Pad (apart_real_32, apart_pads_2)
  apart_pads_3 = Concat <axis = 0> (apart_zero_3, apart_zero_1, apart_missing_1, apart_zero_1)
  apart_apart = Constant <value = int64[4] {0, 0, $num_heads, -1}> ()
  apart_joined = Constant <value = int64[3] {0, 0, -1}> ()
  apart_in_blocks = Concat <axis = 0> (apart_texts_1, apart_blocks_1, apart_block_1, apart_rest_1)
  apart_in_rows = Concat <axis = 0> (apart_zero_1, apart_zero_1, apart_rest_1, apart_narrow_1)
  apart_square = Concat <axis = 0> (apart_texts_1, apart_one_1, apart_whole_1, apart_whole_1)
}
""")

_SHIFTED = Template("""
          ${at}_unshifted = com.microsoft.FusedMatMul <transB = 1> ($x, ${at}_table)
          ${at}_one_row = Reshape (${at}_unshifted, apart_joined)
          ${at}_shifted = Slice (${at}_one_row, apart_first_1, apart_last_1, apart_two_1)
          ${at}_rows = Reshape (${at}_shifted, apart_in_rows)
          ${at}_scores = Slice (${at}_rows, apart_zero_1, apart_whole_1, apart_three_1)
""")

_SHORT_SCORES = Template("""
          ${at}_4 = Reshape ("$tokens", apart_apart)
          ${at}_heads = Transpose <perm = [0, 2, 1, 3]> (${at}_4)
          ${at}_table = Gather <axis = 1> ($table, apart_${side}_row)
$shifted
""")

_LONG_SCORES = Template("""
          ${at}_blocks = Reshape (${layer}_${side}_padded, apart_in_blocks)
          ${at}_table = Gather (${at}_rows_of, apart_${side}_rows)
$shifted
          ${at}_square = Reshape (${at}_scores, apart_square)
""")

_LAYER = Template("""
layer () => () {
$kept
  "$y" = If (apart_is_long) <
    then_branch = ${at}_by_head () => (float[?, ?, ?] ${at}_long) {
$scanned
      ${at}_stacked = Scan <
        num_scan_inputs = $inputs,
        body = ${at}_head ($arguments) => (float[?, ?, ?] ${at}_part) {
          ${at}_query_padded = Pad (${at}_query_n, apart_pads_3)
          ${at}_key_padded = Pad (${at}_key_n, apart_pads_3)
          ${at}_value_padded = Pad (${at}_value_n, apart_pads_3)
$long_bias
          ${at}_whole = com.microsoft.MultiHeadAttention <num_heads = 1, scale = $scale> (
            ${at}_query_padded, ${at}_key_padded, ${at}_value_padded, "", apart_real, ${at}_bias)
          ${at}_part = Slice (${at}_whole, apart_zero_1, apart_tokens_1, apart_one_1)
        }
      > (${at}_query_h, ${at}_key_h, ${at}_value_h$tables)
      ${at}_turned = Transpose <perm = [1, 2, 0, 3]> (${at}_stacked)
      ${at}_long = Reshape (${at}_turned, apart_joined)
    },
    else_branch = ${at}_at_once () => (float[?, ?, ?] ${at}_short) {
$short_bias
      ${at}_short = com.microsoft.MultiHeadAttention <num_heads = $num_heads, scale = $scale>
        ("$query", "$key", "$value", "", apart_real, ${at}_short_bias)
    }
  >
}
""")

_BY_HEAD = Template("""
      ${at}_${x}_4 = Reshape ("$tokens", apart_apart)
      ${at}_${x}_h = Transpose <perm = [2, 0, 1, 3]> (${at}_${x}_4)
""")


def write_disentangled(model: onnx.ModelProto) -> int:
    """Replace each DISENTANGLED in place by standard operators and ONNX Runtime's; how many.

    A text's numbers depend neither on the block's size nor on whether heads run at once: each is a sum
    over the same coordinates in the same order.
    """
    written: list[NodeProto] = []
    layers = 0
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, DISENTANGLED):
            written.append(node)
            continue
        names = dict.fromkeys(_TENSORS, "") | dict(zip(_TENSORS, node.input, strict=False))
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if not layers:
            written += parsed(_ONCE, names, attributes, rows=_ROWS)
        layers += 1
        written += _layer(f"apart_{layers}", names, attributes, node.output[0])
    if layers:
        replace_nodes(model, written)
    return layers


def _layer(
    at: str, names: Mapping[str, str], attributes: Mapping[str, object], y: str
) -> list[NodeProto]:
    tables = {"query": names["of_queries"], "key": names["of_keys"]}
    tables = {side: table for side, table in tables.items() if table}
    kept = [f'{at}_of_{side} = Identity ("{table}")\n' for side, table in tables.items()]
    short, long = [], []
    for side in tables:
        here = f"{at}_{side}_short"
        shifted = _SHIFTED.substitute(at=here, x=f"{here}_heads")
        short.append(
            _SHORT_SCORES.substitute(
                at=here, tokens=names[side], table=f"{at}_of_{side}", side=side, shifted=shifted
            )
        )
        here = f"{at}_{side}_far"
        shifted = _SHIFTED.substitute(at=here, x=f"{here}_blocks")
        long.append(_LONG_SCORES.substitute(at=here, layer=at, side=side, shifted=shifted))
    scanned = [_BY_HEAD.substitute(at=at, x=x, tokens=names[x]) for x in ("query", "key", "value")]
    arguments = [f"float[?, ?, ?] {at}_{x}_n" for x in ("query", "key", "value")]
    arguments += [f"float[?, ?] {at}_{side}_far_rows_of" for side in tables]
    return parsed(
        _LAYER,
        attributes,
        names,
        at=at,
        y=y,
        scanned="".join(scanned),
        inputs=len(arguments),
        arguments=", ".join(arguments),
        tables="".join(f", {at}_of_{side}" for side in tables),
        kept="".join(kept),
        long_bias="".join(long) + _sum(f"{at}_bias", f"{at}_{{}}_far_square", list(tables)),
        short_bias="".join(short) + _sum(f"{at}_short_bias", f"{at}_{{}}_short_scores", list(tables)),
    )


def _sum(bias: str, scores: str, sides: list[str]) -> str:
    """The bias of scores, queries by keys. scores: the name of a side's."""
    turned = f"{bias}_turned = Transpose <perm = [0, 1, 3, 2]> ({scores.format('key')})\n"
    if sides == ["query"]:
        return f"{bias} = Identity ({scores.format('query')})\n"
    if sides == ["key"]:
        return f"{turned} {bias} = Identity ({bias}_turned)\n"
    return f"{turned} {bias} = Add ({scores.format('query')}, {bias}_turned)\n"
