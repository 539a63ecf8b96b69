"""torch's exporter writes the same graph with its weights beside it, for a model of any size."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import onnx
import pytest
import torch
from onnx.external_data_helper import uses_external_data

from model_build.traced_weights import weights_beside


class _Model(torch.nn.Module):
    """Has a table, layers whose weights torch transposes, one weight of two layers, and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 32)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))
        self.layers[2].weight = self.layers[0].weight
        self.places: torch.Tensor
        self.register_buffer("places", torch.arange(400)[None])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.table(ids + self.places[:, : ids.shape[1]] % 3)
        for layer in self.layers:
            x = layer(x)
        return x


def _export(path: Path, *, beside: bool) -> onnx.ModelProto:
    torch.manual_seed(0)
    with weights_beside(path) if beside else nullcontext():
        torch.onnx.export(
            _Model().eval(),
            (torch.ones((2, 7), dtype=torch.int64),),
            str(path),
            input_names=["ids"],
            output_names=["x"],
            dynamic_axes={"ids": {0: "batch", 1: "sequence"}},
            opset_version=17,
            dynamo=False,
        )
    return onnx.load(path, load_external_data=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_graph_with_weights_beside_it_is_the_same(tmp_path: Path) -> None:
    """Names, order, types and numbers are those that torch writes into one file."""
    alone = _export(tmp_path / "alone.onnx", beside=False)
    beside = _export(tmp_path / "beside.onnx", beside=True)
    left = [each for each in beside.graph.initializer if not uses_external_data(each)]
    assert len(left) < len(beside.graph.initializer)
    assert all(len(each.raw_data) <= 1024 for each in left)
    assert beside.ByteSize() < alone.ByteSize() / 2
    whole = onnx.load(tmp_path / "beside.onnx")
    for each in whole.graph.initializer:
        each.ClearField("data_location")
    assert whole.SerializeToString() == alone.SerializeToString()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_exports_are_as_before(tmp_path: Path) -> None:
    """Also after an export that failed."""
    with pytest.raises(ValueError, match="stop"), weights_beside(tmp_path / "x.onnx"):
        raise ValueError("stop")
    _export(tmp_path / "alone.onnx", beside=False)
    assert [path.name for path in tmp_path.iterdir()] == ["alone.onnx"]
