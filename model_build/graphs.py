"""Reads, writes and opens the graphs between a build's steps.

Their large constants lie in a file beside them: an ONNX file ends at 2 GiB, and is written and read by
way of copies of its weights. It does not know what a graph computes, or which targets there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from shared.errors import InvalidInput

LARGEST_FILE = (2 << 30) - (16 << 20)
"""Bytes of constants that one ONNX file holds, with room for its nodes."""
_OPSET_OF_BLOCKS, _IR_OF_BLOCKS = 21, 10
_REDUCTIONS = {
    f"Reduce{each}"
    for each in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}

SMALL = 1024
"""Bytes of a constant that stays in the graph, where optimisers look for shapes and axes."""


def load_graph(path: Path) -> ModelProto:
    """The graph with all its constants, wherever they were written."""
    return onnx.load(path)


def load_nodes(path: Path) -> ModelProto:
    """The graph without its large constants, which stay in files beside it; copies of it are small."""
    model: ModelProto = onnx.load(path, load_external_data=False)
    if not any(map(uses_external_data, model.graph.initializer)):  # as the head of a sparse model is
        save_graph(model, path)
        # The memory of a message's fields is freed with the message.
        del model
        model = onnx.load(path, load_external_data=False)
    return model


@contextmanager
def reading_constants(path: Path) -> Iterator[ModelProto]:
    """As `load_nodes`; in the block `numpy_helper.to_array` reads a constant from its file.

    It looks in the current directory, which is the graph's until the block ends.
    """
    model = load_nodes(path)
    with chdir(path.parent):
        yield model


def load_constants(model: ModelProto, folder: Path) -> None:
    """Read what `load_nodes` left in files in `folder`."""
    load_external_data_for_model(model, str(folder))


def constants_of(path: Path) -> Path:
    """The file beside a graph that has its large constants."""
    return path.with_name(f"{path.name}.data")


def save_graph(model: ModelProto, path: Path) -> None:
    """Write a graph, and its large constants into the file beside it, NAME.data.

    One file would be made in memory, as two copies of the weights. `model` is not to be used afterwards:
    its large constants have left it.
    """
    beside = constants_of(path)
    beside.unlink(missing_ok=True)  # onnx would append to it
    onnx.save(model, path, save_as_external_data=True, location=beside.name, size_threshold=SMALL)


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


def bytes_of(model: ModelProto) -> int:
    """Of its constants. ModelProto.ByteSize fails above 2 GiB, and a tensor's makes a copy."""
    return sum(
        math.prod(each.dims) * helper.tensor_dtype_to_np_dtype(each.data_type).itemsize
        for each in model.graph.initializer
    )


def raise_opset(model: ModelProto) -> None:
    """Make a graph of opset 17 one of opset 21, whose QuantizeLinear has a scale for each block.

    Of the operators that an export has, these are written in another way since: a reduction's axes are
    an input, and Split says how many parts it makes. onnx's converter knows neither operators of ONNX
    Runtime nor what an If reads from around it.
    """
    axes: dict[tuple[int, ...], str] = {}
    _raise_nodes(model.graph, axes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(each, np.int64), name) for each, name in axes.items()
    )
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = _OPSET_OF_BLOCKS
    model.ir_version = max(model.ir_version, _IR_OF_BLOCKS)


def _raise_nodes(graph: GraphProto, axes: dict[tuple[int, ...], str]) -> None:
    """axes: -> the name of the constant that they become; of the outermost graph."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _raise_nodes(attribute.g, axes)
        if node.op_type in _REDUCTIONS and not node.domain:
            for attribute in list(node.attribute):
                if attribute.name == "axes":
                    over = tuple(attribute.ints)
                    node.input.append(axes.setdefault(over, f"axes_{'_'.join(map(str, over))}"))
                    node.attribute.remove(attribute)
        elif node.op_type == "Split" and not node.domain and len(node.input) == 1:
            node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))


def open_graph(model: ModelProto, folder: Path) -> ort.InferenceSession:
    """A session without graph optimisation: it runs only a few texts. As of `save_graph` for `model`.

    folder: where constants are that `model` does not hold.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    path = folder / "opened.onnx"
    try:
        save_graph(model, path)
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    finally:
        for each in folder.glob(f"{path.name}*"):
            each.unlink()
