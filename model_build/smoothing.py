"""Chooses by what a layer's input channels are divided before they are quantised.

In x W = (x / d) (d W) the outliers of a few channels move into the weights, which have a scale a
column, and no longer coarsen the scale of a whole row (SmoothQuant, Xiao et al. 2023). It does not know
how graphs run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from model_build.linears import Linear, linears, matrices, weight_of

Channels = NDArray[np.float32]
"""(K,) float32, an element an input channel."""

_SHARE = 0.6
"""Of an outlier that moves into the weights. What others gave: docs/measurements/int8-cpu.md."""


def choose_divisors(graph: onnx.GraphProto, largest: Mapping[str, Channels]) -> dict[str, Channels]:
    """Layers' input -> what its channels are divided by, where any is.

    largest: input -> largest magnitude of each channel. Layers that share weights get the same divisors,
    or the weights would be stored twice.
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
    """Powers of two, 1 or more. largest: magnitudes of the input; weights: of the weights' rows.

    Dividing by them is exact, and the last bits of `largest`, which differ from processor to processor,
    change nothing but where it stands right between two of them.

    >>> divisors_of(np.float32([1, 1, 1, 20]), np.float32([1, 1, 1, 1]))
    array([1., 1., 1., 8.], dtype=float32)
    """
    tiny = np.float32(1e-6)
    ratio = np.maximum(largest, tiny) ** _SHARE / np.maximum(weights, tiny) ** (1 - _SHARE)
    exponents = np.rint(np.log2(ratio / np.median(ratio)))
    return np.exp2(np.maximum(exponents, 0)).astype(np.float32)


def _sharing(layers: Sequence[Linear]) -> list[list[Linear]]:
    """Layers in groups that share inputs or weights, directly or through others."""
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
