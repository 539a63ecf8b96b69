"""Reads, writes and opens the graphs between a build's steps, also those larger than an ONNX file.

An ONNX file ends at 2 GiB. The constants of a larger graph lie in a file beside it. It does not know
what a graph computes, or which targets there are.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import ModelProto, helper

from shared.errors import InvalidInput

LARGEST_FILE = (2 << 30) - (16 << 20)
"""Bytes of constants that one ONNX file holds, with room for its nodes."""
_HELD = LARGEST_FILE
"""Bytes of constants above which they are written beside the graph."""
_SMALL = 1024
"""Bytes of a constant that stays in the graph, where optimisers look for shapes and axes."""


def load_graph(path: Path) -> ModelProto:
    """The graph with all its constants, wherever they were written."""
    return onnx.load(path)


def save_graph(model: ModelProto, path: Path) -> None:
    """Write a graph, and what it cannot hold into the file beside it, NAME.data.

    `model` is not to be used afterwards: constants that were written beside it have left it.
    """
    beside = path.with_name(f"{path.name}.data")
    beside.unlink(missing_ok=True)  # onnx would append to it
    if is_large(model):
        onnx.save(model, path, save_as_external_data=True, location=beside.name, size_threshold=_SMALL)
    else:
        onnx.save(model, path)


def save_whole(model: ModelProto, path: Path) -> None:
    """Write a graph that is published, as one file.

    Raises InvalidInput (field "target") if it is larger than that.
    """
    if (size := bytes_of(model)) > LARGEST_FILE:
        raise InvalidInput(
            f"the graph's constants have {size} bytes, and an ONNX file holds {LARGEST_FILE}: "
            "use gpu-fp16",
            field="target",
        )
    onnx.save(model, path)


def is_large(model: ModelProto) -> bool:
    """Whether its constants go into a file beside it."""
    return bytes_of(model) > _HELD


def bytes_of(model: ModelProto) -> int:
    """Of its constants. ModelProto.ByteSize fails above 2 GiB, and a tensor's makes a copy."""
    return sum(
        math.prod(each.dims) * helper.tensor_dtype_to_np_dtype(each.data_type).itemsize
        for each in model.graph.initializer
    )


def open_graph(model: ModelProto) -> ort.InferenceSession:
    """A session without graph optimisation: it runs only a few texts. As of `save_graph` for `model`."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "graph.onnx"
        save_graph(model, path)
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
