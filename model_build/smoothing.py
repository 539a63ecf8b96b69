"""Chooses the divisors of a layer's input channels before quantisation.

By x W = (x / d) (d W) outliers of a few channels move into the weights, which have one scale per column.
They then no longer enlarge the scale of a whole input row (SmoothQuant, Xiao et al. 2023). It does not
know how graphs run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from model_build.linears import Linear, linears, matrices, weight_of

Channels = NDArray[np.float32]
"""(K,) float32, one element per input channel."""

_SHARE = 0.6
"""Share of an outlier that moves into the weights. Other values: docs/measurements/int8-cpu.md."""


def choose_divisors(graph: onnx.GraphProto, largest: Mapping[str, Channels]) -> dict[str, Channels]:
    """Name of a layer's input -> divisors of its channels, for inputs with any divisor above 1.

    largest: name of an input -> largest magnitude of each channel. Layers that share weights get the
    same divisors, because the weights would otherwise be stored twice.
    """
    constants = matrices(graph)
    found = {}
    for group in _sharing(linears(graph)):
        inputs = {layer.x for layer in group}
        if not inputs <= largest.keys():
            continue
        weights = {(layer.weight, layer.transposed): layer for layer in group}
        rows = [np.abs(weight_of(each, constants)).max(axis=1) for each in weights.values()]
        divisors = divisors_of(
            np.max([largest[x] for x in inputs], axis=0), np.max(rows, axis=0).astype(np.float32)
        )
        if divisors.max() > 1:
            found.update(dict.fromkeys(inputs, divisors))
    return found


def divisors_of(largest: Channels, weights: Channels) -> Channels:
    """(K,) float32 powers of two, 1 or more.

    largest, weights: largest magnitudes, per channel, of the input and of the weights' rows. Division by
    a power of two is exact, and differences between processors in the last bits of `largest` rarely
    change the rounded exponent.

    >>> divisors_of(np.float32([1, 1, 1, 20]), np.float32([1, 1, 1, 1]))
    array([1., 1., 1., 8.], dtype=float32)
    """
    tiny = np.float32(1e-6)
    ratio = np.maximum(largest, tiny) ** _SHARE / np.maximum(weights, tiny) ** (1 - _SHARE)
    exponents = np.rint(np.log2(ratio / np.median(ratio)))
    return np.exp2(np.maximum(exponents, 0)).astype(np.float32)


def _sharing(layers: Sequence[Linear]) -> list[list[Linear]]:
    """Groups of layers that share inputs or weights, directly or through other layers."""
    groups: list[tuple[set[str], list[Linear]]] = []
    for layer in layers:
        names, members = {f"x {layer.x}", f"weight {layer.weight}"}, [layer]
        apart = []
        for group in groups:
            if group[0] & names:
                names |= group[0]
                members = [*group[1], *members]
            else:
                apart.append(group)
        groups = [*apart, (names, members)]
    return [members for _, members in groups]
