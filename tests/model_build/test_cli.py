"""The build command from end to end, on tiny BERTs with random weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import onnx
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from model_build import __main__ as command
from model_build.locate import read_catalogue
from model_build.recipe import decode_recipe, follow_recipe
from shared.errors import InvalidArtefact
from shared.models.manifest import Manifest, Quality, decode_manifest, decode_pointer, encode_manifest
from shared.models.store import ModelStore, open_store_url
from tests.model_build.command import CONFIG, Run, save_letters
from tests.tiny import Tiny


def cross_encoder() -> Any:
    """`tiny` with a classifier and more positions; attention so uneven that scores are well apart."""
    torch.manual_seed(0)
    config = BertConfig(**CONFIG.to_dict() | {"max_position_embeddings": 160, "num_labels": 1})
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.6 if ".query." in name or ".key." in name else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


@pytest.fixture(scope="module")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_letters(cross_encoder(), tmp_path_factory.mktemp("source") / "tiny-reranker")


def outliers(folder: Path, *, everywhere: bool) -> Path:
    """`tiny_reranker` with two large value channels a layer that the next weights take from each other.

    In FP32 little is lost. In INT8 a row's scale is theirs, and dividing them moves it into weights that
    are as large, so that all other channels are rounded away. everywhere: in the feed-forward layers
    too, which with the others are over a third of the model.
    """
    model = cross_encoder()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            hidden = [(layer.attention.self.value, layer.attention.output.dense)]
            if everywhere:
                hidden.append((layer.intermediate.dense, layer.output.dense))
            for one, following in hidden:
                one.weight[:2] += 1e3 * torch.ones_like(one.weight[0]).cumsum(0)
                following.weight[:, 1] = -following.weight[:, 0]
    return save_letters(model, folder / "outliers")


def open_folder(path: Path) -> ModelStore:
    return open_store_url(f"file://{path}", cache_dir=path / "cache", cache_disk_bytes=1)


def test_what_is_held_is_published_and_not_served(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what goes on being served; without that it is refused before anything is built."""
    built = Tiny("m")

    class Kept:
        """Takes a tiny model's files, as the build leaves them."""

        def publish(self, folder: Path, manifest: Manifest) -> None:
            quality = Quality(
                batch_max_abs_diff=0.0,
                load_s=0.1,
                inputs_per_s=1.0,
                cosine_mean=1.0,
                cosine_p01=1.0,
                cosine_min=1.0,
                cosine_low_share=0.0,
                cosine_centred=1.0,
                limits={"cosine_low": 0.99},
            )
            self.manifest = msgspec.structs.replace(manifest, quality=quality)
            shutil.copytree(folder, tmp_path / "built", dirs_exist_ok=True)

    kept = Kept()
    built.publish(cast(ModelStore, kept), "cpu-int8")

    def make(folder: Path, *_: object) -> tuple[Manifest, dict[str, str], list[str]]:
        shutil.copytree(tmp_path / "built", folder, dirs_exist_ok=True)
        return kept.manifest, {}, []

    monkeypatch.setattr(command, "make", make)
    store = tmp_path / "store"
    options = (tiny, "--target", "cpu-int8", "--name", "m", "--hold")
    for refused, reason in (
        (run(*options), "--hold is for --push"),
        (run(*options, "--push", f"file://{store}"), "the model store"),
    ):
        assert refused.returncode == 2
        assert reason in refused.stderr
    built.publish(open_folder(store), "cpu-fp32")
    held = run(*options, "--push", f"file://{store}")
    assert held.returncode == 0, held.stderr
    assert "published, not served" in held.stdout
    assert open_folder(store).current("m", "cpu") == "cpu-fp32"
    assert {each.revision for each in open_folder(store).published("m")} == {"cpu-fp32", "cpu-int8"}


def test_publishing_the_same_content_twice_changes_nothing(run: Run, tiny: Path, tmp_path: Path) -> None:
    """Layout, pointer, manifest, card and JSON; the same content again is a no-op that says so."""
    store = tmp_path / "store"
    command = (tiny, "--target", "cpu-int8", "--push", f"file://{store}")
    first = run(*command, "--json")
    assert first.returncode == 0, first.stderr
    report: dict[str, Any] = json.loads(first.stdout)
    assert report["status"] == "published"
    revision = report["manifest"]["revision"]
    assert decode_pointer((store / "tiny-bert" / "current").read_bytes()) == {"cpu": revision}
    folder = store / "tiny-bert" / revision
    manifest = decode_manifest((folder / "manifest.json").read_bytes())
    assert {path.name for path in folder.iterdir()} == {f.name for f in manifest.files} | {
        "manifest.json"
    }
    assert "README.md" in {file.name for file in manifest.files}
    assert (manifest.target, manifest.pooling, manifest.dimensions) == ("cpu-int8", "mean", 32)
    assert (manifest.max_tokens, manifest.source.name) == (64, "tiny-bert")
    assert (manifest.memory is not None) == (sys.platform == "linux")
    assert manifest.quality is not None
    assert manifest.quality.cosine_mean is not None
    assert manifest.quality.cosine_mean > 0.99
    assert manifest.quality.rank_agreement_mean is None
    assert manifest.quality.batch_max_abs_diff < 1e-6
    assert {"torch", "onnxruntime"} <= manifest.tools.keys()
    open_folder(store).fetch("tiny-bert", revision)
    second = run(*command)
    assert second.returncode == 0, second.stderr
    assert "published already" in second.stdout
    assert (folder / "manifest.json").read_bytes() == encode_manifest(manifest)


def test_a_model_below_the_gate_is_not_published(run: Run, tiny: Path, tmp_path: Path) -> None:
    """Exit 3, the gate is named, and the store stays empty."""
    store = tmp_path / "store"
    gate = ("--min-cosine", "0.9999999", "--push", f"file://{store}", "--name", "strict")
    refused = run(tiny, "--target", "cpu-int8", *gate)
    assert refused.returncode == 3, refused.stderr
    assert "--min-cosine" in refused.stderr
    assert not store.exists()


def test_a_cross_encoder_is_published_with_its_agreement(
    run: Run, tiny_reranker: Path, tmp_path: Path
) -> None:
    """Task, labels and rank agreement are in the manifest; the card says what it is."""
    store = tmp_path / "store"
    answers = tmp_path / "qa.csv"
    answers.write_text('qtext,label,atext\nWho?,0,a b c\nWho?,1,"d, e"\n')
    ran = run(tiny_reranker, "--target", "cpu-int8", "--push", f"file://{store}", "--eval", answers)
    assert ran.returncode == 0, ran.stderr
    assert "rank agreement" in ran.stdout
    (folder,) = (store / "tiny-reranker").glob("*/")
    manifest = decode_manifest((folder / "manifest.json").read_bytes())
    assert (manifest.task, manifest.labels, manifest.dimensions) == ("cross-encoder", ("LABEL_0",), 1)
    assert (manifest.pooling, manifest.max_tokens) == (None, 160)
    quality = manifest.quality
    assert quality is not None
    assert quality.rank_agreement_mean is not None
    assert quality.rank_agreement_mean >= 0.95
    assert quality.batch_max_abs_diff < 1e-6
    assert quality.cosine_mean is None
    assert set(quality.evaluations) == {"qa MAP", "qa MRR", "qa MAP (original)", "qa MRR (original)"}
    card = (folder / "README.md").read_text()
    assert "Cross-encoder" in card
    assert "pooling" not in card


def test_a_cross_encoder_that_int8_ruins_is_not_published(run: Run, tmp_path: Path) -> None:
    """The real gate at its default: exit 3 and an empty store; the same model in FP32 passes."""
    model, store = outliers(tmp_path, everywhere=True), tmp_path / "store"
    push = ("--push", f"file://{store}")
    ruined = run(model, "--target", "cpu-int8", *push)
    assert ruined.returncode == 3, ruined.stderr
    assert "--min-rank-agreement" in ruined.stderr
    assert "--target cpu-fp32" in ruined.stderr
    assert not store.exists()
    kept = run(model, "--target", "cpu-fp32", *push, "--min-rank-agreement", "0.99")
    assert kept.returncode == 0, kept.stderr


def test_the_few_layers_that_int8_ruins_stay_in_fp32(run: Run, tmp_path: Path) -> None:
    """Those that make and read the planted outliers and no others: told in report, manifest and card."""
    out = tmp_path / "out"
    ran = run(outliers(tmp_path, everywhere=False), "--target", "cpu-int8", "--out", out)
    assert ran.returncode == 0, ran.stderr
    manifest = decode_manifest((out / "manifest.json").read_bytes())
    quality = manifest.quality
    assert quality is not None
    attention = [f"bert.encoder.layer.{n}.attention" for n in (0, 1)]
    planted = {f"{each}.{layer}" for each in attention for layer in ("self.value", "output.dense")}
    assert set(quality.kept_fp32) == planted
    assert quality.kept_fp32_share == pytest.approx(4096 / (16384 + 512), abs=1e-4)
    assert quality.rank_agreement_mean is not None
    assert quality.rank_agreement_mean >= 0.95
    assert all(name in ran.stdout for name in planted)
    floats = [each for each in onnx.load(out / "model.onnx").graph.initializer if len(each.dims) == 2]
    exact = [list(each.dims) for each in floats if each.data_type == onnx.TensorProto.FLOAT]
    assert exact.count([32, 32]) == 4 + 1  # and BERT's pooler


@pytest.mark.parametrize("source", ["tiny", "tiny_reranker"])
def test_a_gpu_build_is_weights_and_their_configuration(
    run: Run, source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Published for the GPU beside the CPU's revision, and as close as FP16 weights are."""
    folder, store = request.getfixturevalue(source), tmp_path / "store"
    options = ("--push", f"file://{store}", "--name", "m", "--json")
    cpu = run(folder, "--target", "cpu-fp32", *options)
    gates = ("--min-cosine", "0.9999", "--min-rank-agreement", "0.99")
    gpu = run(folder, "--target", "gpu-fp16", *options, *gates)
    assert (cpu.returncode, gpu.returncode) == (0, 0), gpu.stderr
    revisions = {
        device: json.loads(ran.stdout)["manifest"]["revision"]
        for device, ran in (("cpu", cpu), ("gpu", gpu))
    }
    assert decode_pointer((store / "m" / "current").read_bytes()) == revisions
    manifest = decode_manifest((store / "m" / revisions["gpu"] / "manifest.json").read_bytes())
    assert (manifest.device, manifest.model_file) == ("gpu", "model.safetensors")
    assert {file.name for file in manifest.files} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
    }


def test_a_model_that_its_target_cannot_run_is_exit_3(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that overflow while it is measured are a failed gate, not bad input."""

    def overflow(*_: object) -> None:
        raise InvalidArtefact("the model's numbers overflow")

    monkeypatch.setattr("model_build.evaluate.evaluate", overflow)
    store = tmp_path / "store"
    failed = run(tiny, "--target", "gpu-fp16", "--push", f"file://{store}")
    assert failed.returncode == 3, failed.stderr
    assert "overflow" in failed.stderr
    assert not store.exists()


def test_a_retrieval_benchmark_of_a_cross_encoder_is_refused(
    run: Run, tiny_reranker: Path, tmp_path: Path
) -> None:
    """Before anything is exported: exit 2 and what to give instead."""
    nano = tmp_path / "nano"
    (nano / "qrels").mkdir(parents=True)
    (nano / "corpus.jsonl").write_text('{"_id": "d", "text": "x"}')
    (nano / "queries.jsonl").write_text('{"_id": "q", "text": "x"}')
    (nano / "qrels" / "test.tsv").write_text("q\td\t1\n")
    refused = run(tiny_reranker, "--target", "cpu-int8", "--eval", nano)
    assert refused.returncode == 2
    assert "nano is for embedding models" in refused.stderr
    assert "export" not in refused.stderr


def test_a_store_that_cannot_be_written_is_exit_4(run: Run, tiny: Path, tmp_path: Path) -> None:
    """The build itself is fine: --out keeps it."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    options = ("--min-cosine", "0.9999", "--out", tmp_path / "kept", "--json")
    failed = run(tiny, "--target", "cpu-fp32", "--push", f"file://{blocked}/store", *options)
    assert failed.returncode == 4, failed.stderr
    assert json.loads(failed.stdout)["exit_code"] == 4
    manifest = decode_manifest((tmp_path / "kept" / "manifest.json").read_bytes())
    assert manifest.target == "cpu-fp32"
    assert str(tmp_path) not in failed.stderr


@pytest.mark.parametrize("target", ["cpu-int8", "gpu-fp16"])
def test_a_build_writes_the_recipe_that_makes_its_files(
    run: Run, tiny: Path, tmp_path: Path, target: str
) -> None:
    """With the manifest that was measured, and smaller than what it makes."""
    kept, recipe = tmp_path / "kept", tmp_path / "recipe.json"
    ran = run(tiny, "--target", target, "--out", kept, "--recipe", recipe)
    assert ran.returncode == 0, ran.stderr
    written = decode_recipe(recipe.read_bytes())
    assert written.manifest == decode_manifest((kept / "manifest.json").read_bytes())
    assert recipe.stat().st_size < written.manifest.size / 2
    made = tmp_path / "made"
    made.mkdir()
    follow_recipe(written, tiny, made)
    for file in written.manifest.files:
        assert (made / file.name).read_bytes() == (kept / file.name).read_bytes(), file.name


def test_a_recipe_that_cannot_be_written_is_exit_2(run: Run, tiny: Path, tmp_path: Path) -> None:
    """And nothing is published: whoever asked for it would miss it later."""
    store = tmp_path / "store"
    options = ("--recipe", tmp_path / "no-folder" / "recipe.json", "--push", f"file://{store}")
    refused = run(tiny, "--target", "cpu-int8", *options)
    assert refused.returncode == 2
    assert "the file given by --recipe is not writable" in refused.stderr
    assert not store.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("all-MiniLM-L6-v3", "--target", "cpu-int8"), "all-MiniLM-L6-v2"),
        (("no-such-model", "--target", "tpu"), "cpu-int8"),
        (("all-MiniLM-L6-v2", "--target", "cpu-int8", "--min-cosine", "1.1"), "min-cosine"),
        (("all-MiniLM-L6-v2", "--target", "cpu-int8", "--push", "ftp://x"), "model store"),
        (("all-MiniLM-L6-v2", "--target", "cpu-int8", "--calibration", "x"), "cpu-int8-static"),
        (("all-MiniLM-L6-v2", "--target", "cpu-int8", "--name", "../x"), "model name"),
        (
            ("all-MiniLM-L6-v2", "--target", "cpu-int8", "--revision", "main"),
            "--revision is for models of the hub",
        ),
    ],
)
def test_bad_input_is_exit_2_and_says_what_is_wrong(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    """One sentence on stderr, and no traceback."""
    refused = run(*arguments)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_packages_that_only_building_takes_are_named_when_they_are_missing(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `make run` there is no torch: a sentence with what installs it, and no traceback."""
    monkeypatch.setattr(command, "find_spec", {"torch": None, "onnx": None}.get)
    monkeypatch.setattr(command, "_PACKAGES", ("torch", "onnx"))
    refused = run(tiny, "--target", "cpu-int8")
    assert refused.returncode == 2
    assert "(torch, onnx); make .venv/build installs them" in refused.stderr


def test_catalogue_entries_are_complete() -> None:
    """A package with its folder, or a hub id pinned to a commit."""
    for name, entry in read_catalogue().items():
        packaged = bool(entry.package and entry.module and entry.folder)
        pinned = bool(entry.hub) and len(entry.revision) == 40
        assert packaged != pinned, name


@pytest.mark.parametrize(
    ("target", "missing"), [("cpu-int8-static", "openvino, nncf"), ("cpu-bf16", "openvino")]
)
def test_optional_packages_are_asked_for_by_name(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, target: str, missing: str
) -> None:
    """Before the model is read; the other targets need none of them."""
    monkeypatch.setattr(
        "model_build.__main__.find_spec",
        lambda name: None if name in ("openvino", "nncf") else object(),
    )
    ran = run(tiny, "--target", target)
    assert ran.returncode == 2
    assert f"needs packages that are not installed ({missing}); make .venv/openvino" in ran.stderr
