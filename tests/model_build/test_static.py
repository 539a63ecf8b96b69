"""Static embeddings through the build and the service, against the libraries that they come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from shared.models.manifest import MANIFEST_FILE, decode_manifest
from tests.model_build.built import embed, served
from tests.model_build.command import VOCABULARY, Run
from tests.tiny_torch import edit_json

WORDS = ["[PAD]", "[UNK]", "red", "green", "blue", "sky"]
TEXTS = ["red", "red green blue", "sky nowhere red", "nowhere", "red sky " * 299 + "red green"]
TABLE = np.array([[n * 0.5 - 1, n % 3, -n * 0.25, 1] for n in range(6)], np.float32)
SMALL = np.array([[1, 0, 0, 0], [0.5, -1, 2, 0.25], [-2, 1, 0, 1]], np.float32)
MAPPING = np.array([0, 0, 1, 2, 1, 2])
WEIGHTS = np.array([1, 1, 0.5, 2, 1.5, 0.25], np.float32)


def words_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def letters_tokenizer() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Neither library adds what a post-processor would.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def model2vec(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    """A folder as model2vec 0.10 saves it, but for modules.json."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    words_tokenizer().save(str(folder / "tokenizer.json"))
    edit_json(folder / "config.json", model_type="model2vec", **config)
    return folder


# What model2vec 0.10.0 answers for TEXTS: no unknown words, and 512 tokens of the last one.
RECORDED: dict[str, tuple[dict[str, Any], dict[str, Any], list[list[float]]]] = {
    "plain": (
        {"embeddings": TABLE},
        {"normalize": True},
        [
            [0.0, 0.872872, -0.218218, 0.436436],
            [0.298142, 0.596285, -0.447214, 0.596285],
            [0.298142, 0.795046, -0.347833, 0.397523],
            [0.0, 0.0, 0.0, 0.0],
            [0.298142, 0.795046, -0.347833, 0.397523],
        ],
    ),
    "half": (
        {"embeddings": TABLE.astype(np.float16)},
        {"max_length": 512},
        [
            [0.0, 2.0, -0.5, 1.0],
            [0.5, 1.0, -0.75, 1.0],
            [0.75, 2.0, -0.875, 1.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.75, 2.0, -0.875, 1.0],
        ],
    ),
    "int8": (
        {"embeddings": (TABLE * 4).astype(np.int8)},
        {},
        [
            [0.0, 8.0, -2.0, 4.0],
            [2.0, 4.0, -3.0, 4.0],
            [3.0, 8.0, -3.5, 4.0],
            [0.0, 0.0, 0.0, 0.0],
            [3.0, 8.0, -3.5, 4.0],
        ],
    ),
    "weights": (
        {"embeddings": TABLE, "weights": WEIGHTS},
        {},
        [
            [0.0, 1.0, -0.25, 0.5],
            [0.833333, 0.833333, -1.083333, 1.333333],
            [0.1875, 0.75, -0.28125, 0.375],
            [0.0, 0.0, 0.0, 0.0],
            [0.1875, 0.75, -0.28125, 0.375],
        ],
    ),
    "mapping": (
        {"embeddings": SMALL, "mapping": MAPPING, "weights": WEIGHTS},
        {"normalize": False},
        [
            [0.25, -0.5, 1.0, 0.125],
            [-1.0, 0.0, 1.333333, 0.833333],
            [-0.125, -0.125, 0.5, 0.1875],
            [0.0, 0.0, 0.0, 0.0],
            [-0.125, -0.125, 0.5, 0.1875],
        ],
    ),
}


@pytest.mark.parametrize("case", RECORDED)
def test_a_model2vec_folder_answers_as_model2vec(case: str, tmp_path: Path) -> None:
    tensors, config, expected = RECORDED[case]
    model = served(model2vec(tmp_path / "model", tensors, **config), "cpu-static", tmp_path / "out")
    # model2vec means in FP16 where its table is.
    np.testing.assert_allclose(embed(model, TEXTS), expected, atol=2e-3 if case == "half" else 1e-6)


def modules(*kinds: str) -> list[dict[str, Any]]:
    package = "sentence_transformers.models."
    return [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else ".", "type": package + kind}
        for n, kind in enumerate(kinds)
    ]


OURS = ["abc", "a quick brown fox", "UPPER", "ümlaut 日本", "   ", "[CLS] [UNK] x", "abc " * 400]


def _saved(*after: Any) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        torch.manual_seed(0)
        static = StaticEmbedding(letters_tokenizer(), embedding_dim=24)
        SentenceTransformer(modules=[static, *after]).save(str(folder))
        return folder

    return save


def _in_modules(**tensors: Any) -> Callable[[Path], Path]:
    """A model2vec folder that has sentence-transformers' modules too, as most have."""

    def save(folder: Path) -> Path:
        model2vec(folder, tensors)
        letters_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "modules.json").write_text(json.dumps(modules("StaticEmbedding", "Normalize")))
        return folder

    return save


def _truncating(folder: Path) -> Path:
    """Its tokenizer.json truncates, which the library leaves on."""
    tokenizer = letters_tokenizer()
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    torch.manual_seed(0)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


_RANDOM = np.random.default_rng(0)
_LETTERS = _RANDOM.standard_normal((len(VOCABULARY), 16)).astype(np.float32)
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "alone": _saved(),
    "normalised": _saved(Normalize()),
    "a dense layer": _saved(Dense(24, 7, activation_function=torch.nn.GELU()), Normalize()),
    "truncating": _truncating,
    "model2vec's": _in_modules(embeddings=_LETTERS),
    "float64": _in_modules(embeddings=_LETTERS.astype(np.float64)),
    "mapped and weighted": _in_modules(
        embeddings=_LETTERS[:9],
        mapping=np.arange(len(VOCABULARY)) % 9,
        weights=np.linspace(0, 2, len(VOCABULARY), dtype=np.float32),
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_static_embedding_answers_as_sentence_transformers(case: str, tmp_path: Path) -> None:
    """With unknown tokens, without special ones, cut only where its tokenizer cuts."""
    folder = FOLDERS[case](tmp_path / "model")
    expected = SentenceTransformer(str(folder), device="cpu").encode(OURS, show_progress_bar=False)
    model = served(folder, "cpu-static", tmp_path / "out")
    np.testing.assert_allclose(embed(model, OURS), expected, atol=1e-5)


@pytest.mark.parametrize("case", ["a dense layer", "model2vec's", "plain"])
def test_a_table_passes_the_builds_gates(case: str, run: Run, tmp_path: Path) -> None:
    """Measured against its original; and a text of any length takes a few megabytes."""
    if case in FOLDERS:
        folder = FOLDERS[case](tmp_path / "model")
    else:
        folder = model2vec(tmp_path / "model", {"embeddings": _LETTERS}, normalize=True)
        letters_tokenizer().save(str(folder / "tokenizer.json"))
    out = tmp_path / "out"
    ran = run(folder, "--target", "cpu-static", "--out", out, "--min-cosine", "0.9999")
    assert ran.returncode == 0, ran.stderr
    manifest = decode_manifest((out / MANIFEST_FILE).read_bytes())
    assert (manifest.target, manifest.device, manifest.pooling) == ("cpu-static", "cpu", "mean")
    assert manifest.max_tokens == (512 if case == "plain" else 8_192)
    assert manifest.text_memory.bytes_of(manifest.max_tokens) < 16 << 20


def _tensors(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors") | changes
        save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")

    return change


def _modules(*kinds: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "modules.json").write_text(json.dumps(modules(*kinds)))

    return change


def _int8_without_config(folder: Path) -> None:
    _tensors(embeddings=TABLE.astype(np.int8))(folder)
    _modules("StaticEmbedding")(folder)
    (folder / "config.json").unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NAN = np.full_like(TABLE, np.nan)
REFUSED: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "no table": (_tensors(embeddings=None, other=TABLE), 2, "needs embedding.weight or embeddings"),
    "a vector": (_tensors(embeddings=TABLE[0]), 2, "needs embedding.weight or embeddings"),
    "too few rows": (
        _tensors(embeddings=TABLE[:4]),
        2,
        "ids up to 5, but the table has rows for 4",
    ),
    "a short mapping": (_tensors(mapping=MAPPING[:3]), 2, "rows for 3 tokens"),
    "a mapping out of the table": (
        _tensors(mapping=MAPPING + 4),
        2,
        "rows that the table does not have",
    ),
    "a mapping of fractions": (
        _tensors(mapping=MAPPING.astype(np.float32)),
        2,
        "rows that the table does not have",
    ),
    "few weights": (_tensors(weights=WEIGHTS[:2]), 2, "one number for each token"),
    "NaN": (_tensors(embeddings=NAN), 3, "the weight table has NaN"),
    "pickles": (_pickled, 2, "only there as pickles (*.bin)"),
    "an odd limit": (lambda f: edit_json(f / "config.json", max_length="all"), 2, "config.json is not"),
    "a pooling after it": (_modules("StaticEmbedding", "Pooling"), 2, "1_Pooling/config.json"),
    "a table in the middle": (_modules("Normalize", "StaticEmbedding"), 2, "the modules are not"),
    "an int8 table of no model2vec": (
        _int8_without_config,
        2,
        "the table is int8, which sentence-transformers cannot run: save it as float16",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_served_is_refused(case: str, run: Run, tmp_path: Path) -> None:
    change, code, message = REFUSED[case]
    folder = model2vec(tmp_path / "model", {"embeddings": TABLE})
    change(folder)
    ran = run(folder, "--target", "cpu-static", "--push", f"file://{tmp_path}/store")
    assert (ran.returncode, message in ran.stderr) == (code, True), ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("target", ["cpu-int8", "cpu-fp32", "gpu-fp16"])
def test_a_table_is_built_for_no_other_target(target: str, run: Run, tmp_path: Path) -> None:
    """A GPU would not read it faster; the router sends it to the CPU app."""
    ran = run(model2vec(tmp_path / "model", {"embeddings": TABLE}), "--target", target)
    assert ran.returncode == 2
    assert f"{target} is for transformers" in ran.stderr
    assert "build it for cpu-static" in ran.stderr


def test_a_transformer_is_no_table(run: Run, tiny: Path) -> None:
    ran = run(tiny, "--target", "cpu-static")
    assert ran.returncode == 2
    assert "cpu-static is for tables of static embeddings: build a BertModel for cpu-int8" in ran.stderr
