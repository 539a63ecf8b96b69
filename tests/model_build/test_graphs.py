"""A graph larger than an ONNX file is built as any other, and too large a model is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoModel

from model_build import graphs
from model_build.make import convert
from model_build.progress import Progressing
from model_build.sensitivity import Sensitivity
from model_build.source import inspect_source
from shared.errors import InvalidInput
from shared.models.manifest import Target
from tests.tiny_torch import ENCODERS, tiny_cross_encoder, tiny_model

M3 = 566_706_176
"""Weights of bge-m3 without its pooler: 2.27 GB in FP32."""


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("bert", "cpu-int8"),
        ("mpnet", "cpu-int8"),
        ("cross-encoder", "cpu-int8"),
        ("bert", "cpu-fp32"),
    ],
)
def test_constants_beside_the_graph_change_nothing(
    kind: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published file has the same bytes, and the layers are ranked alike."""
    make = tiny_cross_encoder if kind == "cross-encoder" else tiny_model
    source = inspect_source(make(tmp_path / "model", kind if kind in ENCODERS else "bert"))
    published, ranked = {}, {}
    for small in (1 << 30, 64):
        monkeypatch.setattr(graphs, "SMALL", small)
        out = tmp_path / str(small)
        out.mkdir()
        convert(out, source, target, Progressing(1))
        fp32, int8 = out / "graphs" / "fp32.onnx", out / "graphs" / "int8.onnx"
        assert (out / "graphs" / "fp32.onnx.data").exists() == (small == 64)
        assert [path.name for path in out.iterdir() if path.is_file()] == ["model.onnx"]
        published[small] = (out / "model.onnx").read_bytes()
        if target == "cpu-int8" and kind in ("bert", "cross-encoder"):
            sensitivity = Sensitivity(fp32, int8, source)
            ranked[small] = [each.layers for each in sensitivity.kept_sets(lambda *_: True, 0.5)]
    assert len(set(published.values())) == 1
    assert len({str(each) for each in ranked.values()}) <= 1


def test_a_graph_is_read_as_it_was_written(tmp_path: Path) -> None:
    """However often; also without its constants, until they are asked for."""
    path, beside = tmp_path / "g.onnx", tmp_path / "g.onnx.data"
    for write, value in ((onnx.save, 1.0), (graphs.save_graph, 2.0), (graphs.save_graph, 3.0)):
        write(_graph(value), path)
        with graphs.reading_constants(path) as model:
            assert model.ByteSize() < 1_000
            assert numpy_helper.to_array(model.graph.initializer[0])[7] == value
        assert beside.stat().st_size == 2_000
        graphs.load_constants(model, tmp_path)
        for whole in (model, graphs.load_graph(path)):
            assert numpy_helper.to_array(whole.graph.initializer[0])[7] == value


def test_a_graph_is_opened_with_constants_of_two_files(tmp_path: Path) -> None:
    """Its own and another's; nothing is left of it."""
    graphs.save_graph(_graph(1.0), tmp_path / "g.onnx")
    model = graphs.load_nodes(tmp_path / "g.onnx")
    model.graph.initializer.extend(_graph(2.0).graph.initializer)
    model.graph.initializer[1].name = "more"
    before = sorted(tmp_path.iterdir())
    graphs.open_graph(model, tmp_path)
    assert sorted(tmp_path.iterdir()) == before


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"]


@pytest.mark.parametrize(
    "node",
    [
        *(f"y = Reduce{each} <axes = [-1], keepdims = 1> (x)" for each in _REDUCTIONS),
        "y = ReduceMax <axes = [0, 1]> (x)",
        "y = ReduceMean <keepdims = 0> (x)",
        "y, _ = Split <axis = 1> (x)",
        "y, _ = Split <axis = 1> (x, sizes)",
        "flat_x = Reshape (x, flat) y = If (yes) <then_branch ="
        " a () => (float[k] z) { z = ReduceMin <axes = [0]> (flat_x) },"
        " else_branch = b () => (float[k] z) { z, _ = Split (flat_x) }>",
    ],
)
def test_a_graph_of_a_newer_opset_computes_the_same(node: str) -> None:
    """By ONNX Runtime, and well formed by ONNX's own checker: the form of each operator in its opset."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[2, 6] x) => (float[n] all)'
        " <bool yes = {1}, int64[2] sizes = {2, 4}, int64[1] flat = {-1}>"
        f" {{ {node}\n all = Reshape (y, flat) }}"
    )
    x = {"x": np.linspace(0.5, 3, 12, dtype=np.float32).reshape(2, 6)}
    before = ort.InferenceSession(model.SerializeToString()).run(None, x)
    graphs.raise_opset(model)
    assert model.opset_import[0].version == 21
    onnx.checker.check_model(model, full_check=True)
    after = ort.InferenceSession(model.SerializeToString()).run(None, x)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("elements", "target", "instead"),
    [
        (M3, "cpu-fp32", "cpu-int8"),
        (M3, "cpu-bf16", "cpu-int8"),
        (M3, "cpu-int8-static", "cpu-int8"),
        (4_021_774_336, "cpu-int8", "gpu-fp16"),
        (4_021_774_336, "cpu-fp32", "gpu-fp16"),
    ],
)
def test_what_no_file_would_hold_is_refused_at_once(
    elements: int, target: Target, instead: str, tmp_path: Path
) -> None:
    """By its name, before anything is written."""
    source = dataclasses.replace(inspect_source(tiny_model(tmp_path / "model")), elements=elements)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InvalidInput, match=f"{target}: .*: use {instead}") as refused:
        convert(out, source, target, Progressing(1))
    assert refused.value.field == "target"
    assert not list(out.iterdir())


def test_an_int8_graph_that_turns_out_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is written, with what would be right."""
    monkeypatch.setattr(graphs, "LARGEST_FILE", 1_000)
    with pytest.raises(InvalidInput, match="use gpu-fp16"):
        graphs.save_whole(_graph(1.0), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_weights_that_count_are_those_of_the_model(architecture: str, tmp_path: Path) -> None:
    """As torch counts them."""
    folder = tiny_model(tmp_path / "model", architecture)
    expected = sum(each.numel() for each in AutoModel.from_pretrained(folder).parameters())
    assert inspect_source(folder).elements == expected


def _graph(value: float) -> onnx.ModelProto:
    """x + 500 numbers."""
    constant = helper.make_tensor("c", TensorProto.FLOAT, [500], [value] * 500)
    constant = numpy_helper.from_array(numpy_helper.to_array(constant), "c")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [500]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", [x], [y], [constant])
    return helper.make_model(graph)
