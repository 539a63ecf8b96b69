"""Quantises an FP32 graph to static INT8 (QDQ) with NNCF, for OpenVINO.

It does not know where calibration texts come from, or how good the result is. nncf is optional: it is
imported by this module alone, when it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from model_build.folder import refusing
from shared.contracts import Tokens
from shared.engines.base import pad

_SMOOTHING = 0.7
"""SmoothQuant's share of an input channel's outliers that goes into the weights. NNCF's own is 0.95."""


def quantize_static(src: Path, out: Path, inputs: Sequence[Tokens], pad_token_id: int) -> None:
    """Write `src`, a graph from `export_plain`, with INT8 weights and activations in fixed ranges.

    inputs: calibration texts, whose activations' ranges are the ranges. Raises InvalidInput if NNCF
    cannot quantise the graph.
    """
    import nncf
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    nncf.set_log_level(logging.ERROR)
    model = onnx.load(src)
    names = {each.name for each in model.graph.input}

    def feeds(tokens: Tokens) -> dict[str, NDArray[np.int64]]:
        batch = pad([tokens], pad_token_id)
        return {name: getattr(batch, name) for name in sorted(names)}

    with refusing("NNCF cannot quantise the graph"):
        quantized = nncf.quantize(
            model,
            nncf.Dataset(list(inputs), feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(inputs),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTHING),
                # By default a range ends at the mean of the texts' extremes, which cuts half of them.
                activations_range_estimator_params=RangeEstimatorParameters(
                    min=StatisticsCollectorParameters(StatisticsType.MIN, AggregatorType.MIN),
                    max=StatisticsCollectorParameters(StatisticsType.MAX, AggregatorType.MAX),
                ),
            ),
        )
    onnx.save(quantized, out)
