"""The build command from end to end, on a tiny BERT with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from model_build.__main__ import app
from model_build.sources import read_catalogue
from shared.manifest import decode_manifest, decode_pointer, encode_manifest
from shared.model_store import ModelStore, open_store_url

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *"0123456789.,:;!?'"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: 2 layers of 32, a WordPiece of single letters, 64 positions."""
    folder = tmp_path_factory.mktemp("source") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@dataclass(frozen=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which imports torch once; --json writes to the real stdout."""

    def command(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="model_build")
        return Ran(int(ended.value.code or 0), *capfd.readouterr())

    return command


def open_folder(path: Path) -> ModelStore:
    return open_store_url(f"file://{path}", cache_dir=path / "cache", cache_disk_bytes=1)


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
    assert manifest.quality is not None
    assert manifest.quality.cosine_mean > 0.99
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-model", "--target", "cpu-int8"), "all-MiniLM-L6-v2"),
        (("no-such-model", "--target", "tpu"), "cpu-int8"),
        (("all-MiniLM-L6-v2", "--target", "cpu-int8", "--min-cosine", "1.1"), "min-cosine"),
        (("all-MiniLM-L6-v2", "--target", "cpu-int8", "--push", "ftp://x"), "model store"),
        (("all-MiniLM-L6-v2", "--target", "cpu-int8", "--name", "../x"), "model name"),
        (("all-MiniLM-L6-v2", "--target", "cpu-int8", "--revision", "main"), "revisions"),
    ],
)
def test_bad_input_is_exit_2_and_says_what_is_wrong(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    """One sentence on stderr, and no traceback."""
    refused = run(*arguments)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_catalogue_entries_are_complete() -> None:
    """A package with its folder, or a hub id pinned to a commit."""
    for name, entry in read_catalogue().items():
        packaged = bool(entry.package and entry.module and entry.folder)
        pinned = bool(entry.hub) and len(entry.revision) == 40
        assert packaged != pinned, name
