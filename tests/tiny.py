"""Tiny real models without torch whose every answer numpy can compute: tables of random rows.

A token's embedding is its row of a table, whatever stands around it, so a text's vector is the mean of
its tokens' rows. For the CPU that is an ONNX graph of one Gather; for the GPU a BERT without layers.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from shared.cards import Task
from shared.contracts import FloatMatrix
from shared.models.manifest import (
    SCHEMA_VERSION,
    File,
    LateInteraction,
    Manifest,
    Source,
    SparseHead,
    Target,
)
from shared.models.store import ModelStore, open_store_url

WORDS = 400
MAX_TOKENS = 512
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_PAD, _UNK, _CLS, _SEP = range(len(_SPECIAL))
_VOCABULARY = {word: index for index, word in enumerate((*_SPECIAL, *(f"w{n}" for n in range(WORDS))))}


@dataclass(frozen=True)
class Tiny:
    """A model's name and what makes it. Two of different names give different answers.

    dimensions: of an embedding model. work: so many multiplications of each token's embedding with an
    identity matrix of `dimensions` make the CPU's model slow, and change nothing.
    prompts: by name, as the manifest has them.
    broken: words whose numbers are NaN; "[CLS]" is in every text. int8_ranges: as the manifest has them.
    ballast_bytes: of a file beside the others that nobody reads; it makes the model large for the store
    and for routing.
    """

    name: str
    task: Task = "embedding"
    dimensions: int = 16
    work: int = 0
    prompts: Mapping[str, str] = field(default_factory=dict, hash=False)
    ballast_bytes: int = 0
    broken: tuple[str, ...] = ()
    int8_ranges: Mapping[int, float] = field(default_factory=dict, hash=False)

    def vectors(self, texts: Sequence[str], dimensions: int | None = None) -> NDArray[np.float64]:
        """What the service must answer: (N, dimensions), of unit length."""
        rows = np.stack([self._table[_ids(text)].mean(axis=0) for text in texts])[:, :dimensions]
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def weights(self, text: str) -> NDArray[np.float64]:
        """What a sparse model must answer: (dimensions,), of which words are the table's columns."""
        return np.asarray(np.log1p(np.maximum(self._table[_ids(text)].max(axis=0), 0)))

    def tokens(self, text: str) -> NDArray[np.float64]:
        """What a multi-vector model must answer: (T, dimensions), of unit length, without w0's."""
        rows = self._table[[each for each in _ids(text) if each != _VOCABULARY["w0"]]]
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def scores(self, query: str, documents: Sequence[str]) -> NDArray[np.float64]:
        """What a cross-encoder must answer, (N,), 0 to 1; or an embedding model's cosines, or MaxSim."""
        if self.task == "multi-vector":
            sims = [self.tokens(query) @ self.tokens(document).T for document in documents]
            return np.asarray([sim.max(axis=1).sum() for sim in sims])
        if self.task == "embedding":
            return np.asarray(self.vectors(documents) @ self.vectors([query])[0])
        logits = [self._table[_ids(query, document)].sum() for document in documents]
        return np.asarray(1 / (1 + np.exp(-np.array(logits))))

    @cached_property
    def _words(self) -> NDArray[np.float16]:
        """The GPU's table, before its LayerNorm."""
        random = np.random.default_rng(list(self.name.encode()))
        return random.standard_normal((len(_VOCABULARY), self.dimensions)).astype(np.float16)

    @cached_property
    def _table(self) -> NDArray[np.float64]:
        """A token's id -> its embedding, or its part of a cross-encoder's logit."""
        rows = self._words.astype(np.float64)
        if self.task == "cross-encoder":
            return rows[:, :1] / 4
        rows = rows - rows.mean(axis=1, keepdims=True)
        return np.asarray(rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + _EPSILON))

    def publish(self, store: ModelStore, *targets: Target) -> None:
        for target in targets or ("cpu-fp32",):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                _tokenizer().save(str(folder / "tokenizer.json"))
                if target == "gpu-fp16":
                    self._write_bert(folder)
                else:
                    onnx.save(self._graph(), folder / "model.onnx")
                    if self.task == "sparse":
                        onnx.save(self._head(), folder / "head.onnx")
                if self.ballast_bytes:
                    with (folder / "ballast.bin").open("wb") as ballast:
                        ballast.truncate(self.ballast_bytes)
                store.publish(folder, self._manifest(folder, target))

    def _manifest(self, folder: Path, target: Target) -> Manifest:
        scores = self.task == "cross-encoder"
        return Manifest(
            schema_version=SCHEMA_VERSION,
            name=self.name,
            revision=target,
            task=self.task,
            target=target,
            architecture="bert",
            source=Source("tests/tiny.py", "1"),
            files=tuple(
                File(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
                for path in folder.iterdir()
            ),
            model_file="model.safetensors" if target == "gpu-fp16" else "model.onnx",
            tokenizer_file="tokenizer.json",
            pad_token_id=_PAD,
            max_tokens=MAX_TOKENS,
            dimensions=1 if scores else self.dimensions,
            pooling="mean" if self.task == "embedding" else None,
            normalize=self.task in ("embedding", "multi-vector"),
            sparse=SparseHead(file="head.onnx") if self.task == "sparse" else None,
            late_interaction=_LATE if self.task == "multi-vector" else None,
            labels=("relevance",) if scores else (),
            prompts=dict(self.prompts),
            int8_ranges=dict(self.int8_ranges),
        )

    def _graph(self) -> onnx.ModelProto:
        constants = {"table": self._table.astype(np.float32)}
        constants["table"][[_VOCABULARY[word] for word in self.broken]] = np.nan
        nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows"])]
        output = "rows"
        if self.work:
            constants["identity"] = np.eye(self.dimensions, dtype=np.float32)
        for n in range(self.work):
            nodes.append(helper.make_node("MatMul", [output, "identity"], [f"same{n}"]))
            output = f"same{n}"
        shape: list[Any] = ["B", "T", self.dimensions]
        if self.task == "cross-encoder":
            constants |= {"last": np.array([2]), "tokens": np.array([1])}
            nodes += [
                helper.make_node("Cast", ["attention_mask"], ["ones"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", ["ones", "last"], ["mask"]),
                helper.make_node("Mul", [output, "mask"], ["masked"]),
                helper.make_node("ReduceSum", ["masked", "tokens"], ["logits"], keepdims=0),
            ]
            output, shape = "logits", ["B", 1]
        graph = helper.make_graph(
            nodes,
            self.name,
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"])
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)

    def _head(self) -> onnx.ModelProto:
        """Each dimension is a word."""
        size = self.dimensions
        shape: list[Any] = ["N", size]
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["hidden", "identity"], ["logits"])],
            "head",
            [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.eye(size, dtype=np.float32), "identity")],
        )
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)

    def _write_bert(self, folder: Path) -> None:
        """Without layers it is LayerNorm(word + position + type), of which two are nothing here."""
        assert self.task == "embedding", "the GPU's tiny models embed"
        size = self.dimensions
        config = {
            "model_type": "bert",
            "architectures": ["BertModel"],
            "hidden_size": size,
            "num_hidden_layers": 0,
            "num_attention_heads": 1,
            "intermediate_size": size,
            "max_position_embeddings": MAX_TOKENS,
            "vocab_size": len(_VOCABULARY),
            "pad_token_id": _PAD,
            "layer_norm_eps": _EPSILON,
            "dtype": "float16",
        }
        (folder / "config.json").write_text(json.dumps(config))
        weights = {
            "word_embeddings.weight": self._words,
            "position_embeddings.weight": np.zeros((MAX_TOKENS, size), np.float16),
            "token_type_embeddings.weight": np.zeros((2, size), np.float16),
            "LayerNorm.weight": np.ones(size, np.float16),
            "LayerNorm.bias": np.zeros(size, np.float16),
        }
        save_file(
            {f"embeddings.{name}": value for name, value in weights.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )


_EPSILON = 1e-12
_LATE = LateInteraction(
    query_tokens=8, document_tokens=MAX_TOKENS, skipped=(_VOCABULARY["w0"],), skips_in_queries=True
)


def manifest_of(name: str, **fields: Any) -> Manifest:
    """Of an embedding model for the CPU without files, for what reads manifests and no models."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        revision="r1",
        task="embedding",
        target="cpu-int8",
        architecture="bert",
        source=Source("there", "1"),
        files=(),
        model_file="model.onnx",
        tokenizer_file="tokenizer.json",
        pad_token_id=0,
        max_tokens=16,
        dimensions=2,
        pooling="mean",
        normalize=True,
        prompts={"query": "q: ", "document": "d: "},
    )
    return msgspec.structs.replace(manifest, **fields)


def some_text(random: Random, most_words: int = 12) -> str:
    """1 to `most_words` words that every tiny model knows."""
    return " ".join(f"w{random.randrange(WORDS)}" for _ in range(random.randint(1, most_words)))


def publish_all(tinies: Iterable[Tiny], url: str, *targets: Target, connection_string: str = "") -> None:
    """Into the model store at `url`; without targets for the CPU."""
    with tempfile.TemporaryDirectory() as cache:
        store = open_store_url(
            url, connection_string=connection_string, cache_dir=Path(cache), cache_disk_bytes=1
        )
        for tiny in tinies:
            tiny.publish(store, *targets)


def nearly(answer: Any, right: NDArray[np.float64]) -> bool:
    """Whether an answer's numbers are `right`, to what FP32 can tell."""
    array: FloatMatrix = np.asarray(answer, np.float32)
    return array.shape == right.shape and bool(np.abs(array - right).max() < 1e-5)


def _ids(*texts: str) -> list[int]:
    ids = [_CLS]
    for text in texts:
        ids += [_VOCABULARY.get(word, _UNK) for word in text.split()] + [_SEP]
    return ids


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(_VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", _CLS), ("[SEP]", _SEP)],
    )
    return tokenizer
