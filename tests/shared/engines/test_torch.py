"""Tiny random models through Model and TorchEngine on the CPU, against the libraries they come from."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from shared import vectors
from shared.contracts import EmbedRequest, TokenPair
from shared.engines import torch as torch_engine
from shared.engines.torch import BYTES_PER_TOKEN, TorchEngine, capacity, pool_on_device, split_by_length
from shared.errors import InvalidArtefact, Unavailable
from shared.inference.model import load_model
from shared.inference.steps import completed
from shared.models.manifest import Manifest
from shared.vectors import Pooling
from tests.tiny_torch import (
    DECODER,
    ENCODERS,
    POOLINGS,
    SMALL,
    as_fp16,
    manifest_of_folder,
    save_sentence_model,
    save_tiny,
)

CROSS_ENCODERS: dict[str, tuple[Any, Any]] = {
    "bert": (BertForSequenceClassification, BertConfig(**SMALL, num_labels=1)),
    # As the real ones, with one token type: an id of 1 would be out of range.
    "roberta": (
        RobertaForSequenceClassification,
        RobertaConfig(**SMALL, num_labels=3, type_vocab_size=1),
    ),
    # Without a padding token, which its classifier needs to find the last token.
    "qwen2": (
        Qwen2ForSequenceClassification,
        Qwen2Config(**DECODER | {"pad_token_id": None}, num_labels=1),
    ),
}
# Single letters, which every tokenizer of transformers splits alike.
TEXTS = [
    "a",
    "q w e r t y u i o p a s d f g h j k l z x c v b",
    "h e l l o w",
    "b a c",
    "t h e e n d o f i t",
    "z z z z z z z z z",
]


def open_engine(dtype: torch.dtype = torch.float32) -> Callable[[Path, Manifest], TorchEngine]:
    return partial(TorchEngine, device="cpu", dtype=dtype)


def cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_sentence_model(tmp_path / "bert", "bert", "mean")


@pytest.fixture
def engine(bert: Path) -> TorchEngine:
    return open_engine()(bert, manifest_of_folder(bert))


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [
        *((name, "mean") for name in ENCODERS),
        *(("bert", name) for name in POOLINGS if name != "mean"),
        *((name, "last") for name in ("qwen2", "qwen3", "mistral")),
    ],
)
def test_vectors_are_those_of_sentence_transformers(
    architecture: str, pooling: Pooling, tmp_path: Path
) -> None:
    """With and without a prompt: from FP32 weights, from FP16 weights, and computed in FP16."""
    folder = save_sentence_model(tmp_path / "model", architecture, pooling)
    theirs = SentenceTransformer(str(folder), device="cpu")
    half = as_fp16(folder, tmp_path / "half")
    manifest = manifest_of_folder(folder)
    for path, dtype, least, tolerance in (
        (folder, torch.float32, 0.9999, 1e-4),
        (half, torch.float32, 0.999, 0.05),
        (half, torch.float16, 0.999, 0.05),
    ):
        model = load_model(path, manifest, open_engine(dtype))
        for prompt in (None, "query"):
            expected = theirs.encode(TEXTS, prompt_name=prompt, show_progress_bar=False)
            rows = model.run(
                completed(model.tokenize(EmbedRequest("tiny", tuple(TEXTS), prompt_name=prompt)))
            )
            assert rows.dtype == np.float32
            assert cosines(rows, expected).min() > least
            # Not the cosines alone: the lengths agree too.
            np.testing.assert_allclose(rows, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", CROSS_ENCODERS)
def test_logits_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    """Pairs with their token types, in one batch, against transformers one pair at a time."""
    folder = save_tiny(tmp_path / "model", *CROSS_ENCODERS[architecture])
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    manifest = manifest_of_folder(folder)
    half = as_fp16(folder, tmp_path / "half")
    for path, tolerance in ((folder, 1e-4), (half, 0.02)):
        model = load_model(path, manifest, open_engine())
        pairs = completed(model.tokenizer.encode_pairs("h o w", TEXTS))
        assert any(1 in pair.type_ids for pair in pairs)
        rows = model.run(pairs)
        assert rows.shape == (len(TEXTS), manifest.dimensions)
        for row, pair in zip(rows, pairs, strict=True):
            types = {"token_type_ids": torch.tensor([pair.type_ids])} if architecture == "bert" else {}
            with torch.no_grad():
                expected = theirs(input_ids=torch.tensor([pair.ids]), **types).logits[0].numpy()
            np.testing.assert_allclose(row, expected, rtol=0, atol=tolerance)


def test_token_types_change_a_score(tmp_path: Path) -> None:
    """They reach the model: the same ids with other types give another logit."""
    folder = save_tiny(tmp_path / "model", *CROSS_ENCODERS["bert"])
    engine = open_engine()(folder, manifest_of_folder(folder))
    ids = [0, 5, 2, 6, 2]
    typed, untyped, plain = engine.run([TokenPair(ids, [0, 0, 0, 1, 1]), TokenPair(ids, [0] * 5), ids])
    assert abs(typed - untyped).max() > 1e-3
    np.testing.assert_allclose(untyped, plain, atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "qwen3"])
def test_a_row_does_not_depend_on_its_batch_mates(architecture: str, tmp_path: Path) -> None:
    """Alone (no padding, no mask), among others and in another order: the same vector."""
    folder = save_sentence_model(tmp_path / "model", architecture, "mean")
    engine = open_engine()(folder, manifest_of_folder(folder))
    sequences = [[0, 5, 9, 7, 2], [0, 4, 2], [0, 6, 8, 11, 20, 21, 22, 13, 2], [0, 2]]
    together = engine.run(sequences)
    alone = np.vstack([engine.run([ids]) for ids in sequences])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(engine.run(sequences[::-1])[::-1], together, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_on_the_device_is_that_of_vectors(pooling: Pooling, dtype: torch.dtype) -> None:
    """In FP32 whatever the hidden states are, and blind to what stands on padding."""
    numbers = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)
    hidden = torch.from_numpy(numbers).to(dtype)
    lengths = [6, 1, 3]
    mask = torch.tensor([[1] * length + [0] * (6 - length) for length in lengths])
    expected = vectors.pool(hidden.float().numpy(), lengths, pooling)
    hidden[mask == 0] = torch.inf
    pooled = pool_on_device(hidden, mask, pooling)
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-6, atol=1e-6)


def _cost(lengths: list[int], buckets: list[list[int]], pass_tokens: int) -> int:
    return sum(pass_tokens + len(b) * max(lengths[i] for i in b) for b in buckets)


@pytest.mark.parametrize("pass_tokens", [0, 3, 20, 1000])
def test_no_other_buckets_cost_less(pass_tokens: int) -> None:
    """Every text once, and no way of cutting the sorted lengths is cheaper."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = generator.integers(1, 30, generator.integers(1, 9)).tolist()
        buckets = split_by_length(lengths, pass_tokens)
        order = [index for bucket in buckets for index in bucket]
        assert sorted(order) == list(range(len(lengths)))
        longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        cuts = itertools.product([False, True], repeat=len(lengths) - 1)
        others = [
            [part.tolist() for part in np.split(longest_first, np.flatnonzero(cut) + 1)] for cut in cuts
        ]
        assert _cost(lengths, buckets, pass_tokens) == min(
            _cost(lengths, other, pass_tokens) for other in others
        )


def test_padding_that_costs_less_than_a_pass_stays() -> None:
    """Few short texts are not worth a pass of their own; the same shape at ten times the size is."""
    assert split_by_length([5, 20, 6], 10) == [[1], [2, 0]]
    assert split_by_length([5, 20, 6], 30) == [[1, 2, 0]]
    assert split_by_length([50, 200, 60], 30) == [[1], [2, 0]]
    assert split_by_length([7], 30) == [[0]]


def test_a_mixed_batch_runs_in_buckets(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long text does not pad all the short ones, and rows come back in the order asked."""
    sequences = [[0, 2], *[[0, 4 + n, 2] for n in range(20)], [0, *[5] * 28, 2]]
    alone = np.vstack([engine.run([ids]) for ids in sequences])
    monkeypatch.setitem(torch_engine._PASS_TOKENS, "cpu", 10)
    shapes: list[tuple[int, ...]] = []
    inner = engine._model

    def watch(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return inner(**inputs)

    monkeypatch.setattr(engine, "_model", watch)
    rows = engine.run(sequences)
    assert shapes == [(1, 30), (21, 3)]
    np.testing.assert_allclose(rows, alone, atol=1e-5)


class Crowded:
    """A model whose GPU takes at most `most` texts; the vector of a text is its first two ids."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> Any:
        self.sizes.append(len(input_ids))
        if len(input_ids) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        hidden = torch.nn.functional.pad(input_ids[..., None].float(), (0, 31))
        return SimpleNamespace(last_hidden_state=hidden)


def test_out_of_memory_halves_the_batch(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to what fits; every text has its own row, and the next batch is tried whole again."""
    crowded = Crowded(3)
    monkeypatch.setattr(engine, "_model", crowded)
    rows = engine.run([[n, n] for n in range(10)])
    assert rows[:, 0].tolist() == list(range(10))
    assert crowded.sizes == [10, 5, 2, 3, 5, 2, 3]
    engine.run([[1], [2], [3]])
    assert crowded.sizes[7:] == [3]


def test_one_text_too_many_is_unavailable(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even one text fits, callers are told to come again."""
    monkeypatch.setattr(engine, "_model", Crowded(0))
    with pytest.raises(Unavailable, match="memory") as refusal:
        engine.run([[1], [2]])
    assert refusal.value.retry_after_s == 1


def test_a_gpu_without_room_for_the_weights_is_unavailable(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an artefact's fault: another model's end makes it load."""

    def full(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("shared.engines.torch._place", full)
    with pytest.raises(Unavailable, match="memory"):
        open_engine()(bert, manifest_of_folder(bert))


def test_a_model_whose_numbers_overflow_is_not_loaded(bert: Path) -> None:
    """Weights that fit FP16 with activations that do not: it never serves, and says why."""
    path = bert / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.1.output.LayerNorm.weight"].fill_(6e4)
    save_file(tensors, path, {"format": "pt"})
    sequences = [[0, 5, 9, 7, 2]]
    assert np.isfinite(open_engine()(bert, manifest_of_folder(bert)).run(sequences)).all()
    with pytest.raises(InvalidArtefact, match="NaN or infinite"):
        load_model(bert, manifest_of_folder(bert), open_engine(torch.float16))


def test_memory_is_that_of_the_weights_and_close_frees_it(bert: Path) -> None:
    """FP16 takes half of FP32; an unused pooler is not loaded; nothing keeps the model alive."""
    manifest = manifest_of_folder(bert)
    half, full = open_engine(torch.float16)(bert, manifest), open_engine()(bert, manifest)
    weights = load_file(bert / "model.safetensors")
    used = sum(v.numel() for k, v in weights.items() if not k.startswith("pooler."))
    assert used < sum(v.numel() for v in weights.values())
    buffers = half.memory_bytes - 2 * used
    assert 0 < buffers < 2000
    assert full.memory_bytes == 4 * used + buffers
    model = weakref.ref(full._model)
    full.close()
    gc.collect()
    assert model() is None


def test_rotary_frequencies_stay_fp32(tmp_path: Path) -> None:
    """In FP16 they would turn distant positions by wrong angles."""
    folder = save_sentence_model(tmp_path / "model", "qwen3", "last")
    engine = open_engine(torch.float16)(folder, manifest_of_folder(folder))
    buffers = dict(engine._model.named_buffers())
    assert buffers["rotary_emb.inv_freq"].dtype == torch.float32
    assert {p.dtype for p in engine._model.parameters()} == {torch.float16}


def test_loading_leaves_torch_as_it_was(bert: Path) -> None:
    """The default dtype belongs to the batches that run meanwhile."""
    open_engine(torch.float16)(bert, manifest_of_folder(bert))
    assert torch.get_default_dtype() == torch.float32


def test_compiling_is_an_option(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only when asked, for any shape, and what was compiled is what runs."""
    calls: list[dict[str, Any]] = []

    def compiled(model: Any, **options: Any) -> Any:
        calls.append(options)
        return lambda **inputs: SimpleNamespace(
            last_hidden_state=model(**inputs).last_hidden_state * 0 + 7
        )

    monkeypatch.setattr(torch, "compile", compiled)
    open_engine()(bert, manifest_of_folder(bert))
    assert calls == []
    engine = TorchEngine(bert, manifest_of_folder(bert), device="cpu", dtype=torch.float32, compile=True)
    assert calls == [{"dynamic": True}]
    np.testing.assert_allclose(engine.run([[0, 5, 2]]), 7)


def _edit_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def _lose_a_tensor(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["encoder.layer.1.output.dense.weight"]


def _cut_a_tensor(tensors: dict[str, torch.Tensor]) -> None:
    name = "encoder.layer.1.output.dense.weight"
    tensors[name] = tensors[name][:5].contiguous()


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"garbage"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").unlink(),
        _edit_config(model_type="unheard-of"),
        _edit_config(auto_map={"AutoModel": "modeling.Own"}),
        _edit_config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        _edit_config(vocab_size=7),
        _edit_weights(_lose_a_tensor),
        _edit_weights(_cut_a_tensor),
        _pickle,
    ],
)
def test_broken_files_are_invalid_artefacts(change: Callable[[Path], Any], bert: Path) -> None:
    """Whatever torch and transformers raise; nothing is filled up with random numbers."""
    manifest = manifest_of_folder(bert)
    change(bert)
    with pytest.raises(InvalidArtefact) as refusal:
        open_engine()(bert, manifest)
    assert str(bert) not in str(refusal.value)


@pytest.mark.parametrize(
    ("free_bytes", "tokens"),
    [
        (None, 2_048),
        (0, 1_024),
        (4 * 2**30, 16_384),
        (13 * 2**30, 53_248),
        (75 * 2**30, 65_536),
    ],
)
def test_the_token_budget_follows_the_free_memory(free_bytes: int | None, tokens: int) -> None:
    """256 KiB a token between a floor and a ceiling, 1,024 texts, one thread."""
    assert BYTES_PER_TOKEN == 2**18
    given = capacity(free_bytes)
    assert (given.threads, given.batch_tokens, given.batch_texts) == (1, tokens, 1024)
