"""The FP16 artefacts: what is in them, that they are always the same, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from model_build.fp16 import export_fp16
from model_build.source import inspect_source
from shared.engines.torch import read_transformer
from shared.errors import InvalidArtefact, InvalidInput
from tests.tiny_torch import SMALL, edit_json, tiny_cross_encoder, tiny_model


def export(folder: Path, out: Path) -> dict[str, torch.Tensor]:
    out.mkdir()
    export_fp16(inspect_source(folder), out)
    tensors: dict[str, torch.Tensor] = load_file(out / "model.safetensors")
    return tensors


def edit_weight(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_are_the_rounded_originals_without_the_pooler(tmp_path: Path) -> None:
    """FP16 tensors under the names that the engine loads; nothing else is in the folder."""
    folder = tiny_model(tmp_path / "model")
    exported = export(folder, tmp_path / "out")
    original = load_file(folder / "model.safetensors")
    assert {name for name in original if not name.startswith("pooler.")} == set(exported)
    for name, tensor in exported.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, original[name].to(torch.float16))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


def test_a_language_models_head_is_left_out(tmp_path: Path) -> None:
    """A checkpoint of BertForMaskedLM becomes a plain encoder, its architecture still stated."""
    folder = tiny_model(tmp_path / "model")
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(folder)
    exported = export(folder, tmp_path / "out")
    assert not any(name.startswith(("cls.", "bert.")) for name in exported)
    assert "encoder.layer.1.output.dense.weight" in exported
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]


def test_shards_become_one_file(tmp_path: Path) -> None:
    """The same content, however the source was cut."""
    folder = tiny_model(tmp_path / "model")
    whole = export(folder, tmp_path / "whole")
    BertModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    joined = export(folder, tmp_path / "joined")
    assert whole.keys() == joined.keys()
    assert all(torch.equal(whole[name], joined[name]) for name in whole)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    """The revision is a hash of the files; which transformers saved the source does not matter."""
    folder = tiny_model(tmp_path / "model")
    export(folder, tmp_path / "one")
    edit_json(folder / "config.json", transformers_version="4.0.0", _name_or_path="/home/me/model")
    export(folder, tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_cross_encoder_keeps_head_and_labels(tmp_path: Path) -> None:
    """Classifier, pooler and id2label are part of it."""
    folder = tiny_cross_encoder(tmp_path / "model")
    labels = {0: "no", 1: "yes"}
    config = BertConfig(**SMALL, id2label=labels, label2id={"no": 0, "yes": 1})
    BertForSequenceClassification(config).save_pretrained(folder)
    exported = export(folder, tmp_path / "out")
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= exported.keys()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["id2label"], config["dtype"]) == ({"0": "no", "1": "yes"}, "float16")
    read_transformer(tmp_path / "out", with_head=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [(70_000.0, "65,504"), (-70_000.0, "65,504"), (float("inf"), "infinite"), (float("nan"), "NaN")],
)
def test_weights_that_do_not_fit_are_refused(value: float, message: str, tmp_path: Path) -> None:
    """The error names the weight, and FP16's limit where that is what it broke."""
    folder = tiny_model(tmp_path / "model")
    edit_weight(folder, "encoder.layer.0.output.dense.weight", value)
    with pytest.raises(InvalidArtefact, match=rf"encoder\.layer\.0\.output\.dense\.weight.*{message}"):
        export(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """Nothing is filled up with random numbers."""
    folder = tiny_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match="lack tensors") as error:
        export(folder, tmp_path / "out")
    assert error.value.field == "model"


def test_a_pickle_beside_the_weights_is_never_read(tmp_path: Path) -> None:
    """Not even when the safetensors are gone by the time they are loaded."""
    folder = tiny_model(tmp_path / "model")
    source = inspect_source(folder)
    (folder / "model.safetensors").rename(tmp_path / "kept")
    torch.save(load_file(tmp_path / "kept"), folder / "pytorch_model.bin")
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidInput):
        export_fp16(source, tmp_path / "out")
