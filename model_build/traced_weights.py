"""Has torch's exporter leave a model's large weights in a file beside the graph, whatever their size.

By itself it makes three more copies of the weights of a model below 2 GiB, as one message in memory. It
does not know architectures, or what is done with the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from model_build.graphs import SMALL, constants_of


@contextmanager
def weights_beside(path: Path) -> Iterator[None]:
    """In the block, `torch.onnx.export` to `path` writes large weights to NAME.data, one by one.

    The graph is otherwise the same. torch hands its last step, which encodes the graph, all weights by
    name; it takes those that it is not given for inputs.
    """
    encode = torch._C.Graph._export_onnx  # type: ignore[attr-defined]

    def encode_without_weights(graph: Any, weights: dict[str, torch.Tensor], *options: Any) -> Any:
        small = {name: each for name, each in weights.items() if each.nbytes <= SMALL}
        encoded, *others = encode(graph, small, *options)
        model = onnx.load_model_from_string(encoded)
        _take_back(model.graph, weights, [each.debugName() for each in graph.inputs()], path)
        return model.SerializeToString(), *others

    torch._C.Graph._export_onnx = encode_without_weights  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C.Graph._export_onnx = encode  # type: ignore[attr-defined]


def _take_back(
    graph: onnx.GraphProto, weights: dict[str, torch.Tensor], order: list[str], path: Path
) -> None:
    """Make of inputs the constants that they are, in torch's order, with their numbers beside `path`."""
    inputs = [each for each in graph.input if each.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    constants = {each.name: each for each in graph.initializer}
    with constants_of(path).open("wb") as stream:
        for name, weight in weights.items():
            if name not in constants:
                constants[name] = _written(name, weight, stream)
    del graph.initializer[:]
    graph.initializer.extend(constants[name] for name in order if name in constants)


def _written(name: str, weight: torch.Tensor, stream: Any) -> TensorProto:
    numbers = weight.detach().cpu().contiguous().numpy()
    kind = helper.np_dtype_to_tensor_dtype(numbers.dtype)
    constant = TensorProto(name=name, dims=numbers.shape, data_type=kind, raw_data=b"")
    offset = stream.tell()
    stream.write(numbers.data)
    set_external_data(constant, Path(stream.name).name, offset, numbers.nbytes)
    constant.ClearField("raw_data")
    return constant
