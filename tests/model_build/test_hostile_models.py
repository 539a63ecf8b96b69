"""Model folders that somebody made to hang, fill or break the build: one sentence and exit code 2.

Each case changes a sound folder. The real command builds it in this process, under a time limit that
only a hang reaches, and what it takes of memory is held against what a sound build takes.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from safetensors.numpy import load_file, save_file

from model_build import folder as model_folder
from tests.model_build.command import Ran, Run
from tests.tiny_torch import OLD, PLAIN, edit_json, sentence_model, tiny_cross_encoder, tiny_model

Change = Callable[[Path], None]
HANGS_S = 120
MOST_MIB = 300
"""What a refusal may take beyond what the process has; a sound build of this size takes less."""


def _text(name: str, text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return change


def _latin(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text('{"é": 1}', "latin-1")

    return change


def _json(name: str, **values: Any) -> Change:
    return lambda folder: edit_json(folder / name, **values)


def _large(name: str, size: int) -> Change:
    """A file of `size` that takes no disk."""

    def change(folder: Path) -> None:
        with (folder / name).open("wb") as stream:
            stream.truncate(size)

    return change


def _fifo(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def _link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def _weights(header: Any, data: bytes = b"", length: int | None = None) -> Change:
    """A safetensors file. header: JSON, or bytes as they are. length: stated, if not the true one."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()

    def change(folder: Path) -> None:
        stated = len(raw) if length is None else length
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", stated) + raw + data)

    return change


def _tensor(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _without(tensor: str) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[tensor]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def _shape(tensor: str, *shape: int) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors") | {tensor: np.zeros(shape, np.float32)}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def _index(weight_map: Any) -> Change:
    """The weights in shards. weight_map: the shard's name for every tensor, or what is there instead."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        names = load_file(folder / "shard.safetensors")
        content = dict.fromkeys(names, weight_map) if isinstance(weight_map, str) else weight_map
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": content}))

    return change


def _fill(tensor: str, value: float) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[tensor].reshape(-1)[3] = value
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def _gone(name: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _only(*names: str) -> Change:
    """Files of other formats instead of the safetensors."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            _text(name, "x")(folder)

    return change


def _nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _all(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def _modules(*modules: Any) -> Change:
    return _text("modules.json", json.dumps(modules))


def _module_path(path: str) -> Change:
    first, second = ({"type": kind, "path": where} for kind, where in PLAIN)
    return _modules(first, second | {"path": path})


def _dense(weight: tuple[int, ...], **config: Any) -> Change:
    def change(folder: Path) -> None:
        listed = [*PLAIN, (OLD + "Dense", "2_Dense")]
        (folder / "modules.json").write_text(json.dumps([{"type": t, "path": p} for t, p in listed]))
        (folder / "2_Dense").mkdir()
        identity = "torch.nn.modules.linear.Identity"
        edit_json(folder / "2_Dense" / "config.json", **({"activation_function": identity} | config))
        tensors = {"linear.weight": np.zeros(weight, np.float32)}
        save_file(tensors, folder / "2_Dense" / "model.safetensors")

    return change


def _tokenizer(**parts: Any) -> Change:
    return lambda folder: edit_json(folder / "tokenizer.json", **parts)


DEEP = "[" * 100_000
NESTED = '{"a":' * 100_000
# Its Rust slices "é" in the middle, and ends the process while it words the error.
ABORTS = {
    "type": "BPE",
    "continuing_subword_prefix": "#",
    "vocab": {"a": 0, "é": 1},
    "merges": ["a é"],
}
PANICS = {
    "type": "BPE",
    "continuing_subword_prefix": "#####",
    "vocab": {"a": 0, "b": 1, "ab": 2},
    "merges": ["a b"],
}
PANICS_LATER = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}

LORA = _text("adapter_config.json", json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
ADAPTER = "a LoRA adapter (adapter_config.json) of org/base, not a complete model: merge it"

POOLING = {"pooling_mode": "mean", "word_embedding_dimension": 32}

CASES: dict[str, tuple[Change, str]] = {
    # What is not there, or is something else
    "nothing": (_nothing, "the folder is empty"),
    "no config": (_gone("config.json"), "not a folder with a config.json"),
    "no pooling": (_gone("1_Pooling"), "no 1_Pooling/config.json, which the Pooling of modules.json"),
    "no pooling's config": (_gone("1_Pooling/config.json"), "there is no 1_Pooling/config.json"),
    "no modules": (_gone("modules.json"), "a folder 1_Pooling but no modules.json"),
    "no transformer": (
        _modules(
            {"type": OLD + "Transformer", "path": "0_Transformer"},
            {"type": OLD + "Pooling", "path": "1_Pooling"},
        ),
        "the folder 0_Transformer, which modules.json names, is missing",
    ),
    "no dense": (
        _modules(*({"type": t, "path": p} for t, p in [*PLAIN, (OLD + "Dense", "2_Dense")])),
        "there is no 2_Dense/config.json",
    ),
    "a LoRA": (LORA, ADAPTER),
    "a LoRA alone": (_all(_nothing, LORA), ADAPTER),
    "a LoRA with modules": (_all(_gone("config.json"), LORA), ADAPTER),
    "an adapter that is none": (_text("adapter_config.json", "[]"), "adapter_config.json is not a JSON"),
    "GGUF": (_only("model.gguf"), "there is no model.safetensors: the weights are GGUF"),
    "GGUF alone": (_all(_only("model.gguf"), _gone("config.json")), "config.json: the weights are GGUF"),
    "ONNX": (_only("model.onnx"), "the weights are ONNX's"),
    "ONNX in its folder": (_only("onnx/model.onnx"), "the weights are ONNX's"),
    "TensorFlow": (_only("tf_model.h5"), "the weights are TensorFlow's"),
    "Flax": (_only("flax_model.msgpack"), "the weights are Flax's"),
    "OpenVINO": (_only("openvino_model.xml"), "the weights are OpenVINO's"),
    "a trainer's leavings": (
        _only("optimizer.pt", "training_args.bin"),
        "there is no model.safetensors",
    ),
    "a prompt without end": (
        _json("config_sentence_transformers.json", prompts={"query": "a " * 40}),
        "the prompt query fills the 40 tokens",
    ),
    # JSON
    "config nested deep": (_text("config.json", DEEP), "config.json is nested too deep"),
    "config of objects nested deep": (_text("config.json", NESTED), "config.json is nested too deep"),
    "config too large": (_large("config.json", 1 << 40), "config.json has 1099511627776 bytes"),
    "config of NULs": (_large("config.json", 1000), "config.json is not JSON"),
    "config not UTF-8": (_latin("config.json"), "config.json is not UTF-8"),
    "config a list": (_text("config.json", "[]"), "config.json is not a JSON object"),
    "config of huge digits": (_text("config.json", '{"a": ' + "9" * 5000 + "}"), "config.json is not"),
    "modules nested deep": (_text("modules.json", DEEP), "modules.json is nested too deep"),
    "tokenizer settings nested deep": (_text("tokenizer_config.json", NESTED), "nested too deep"),
    "prompts nested deep": (_text("config_sentence_transformers.json", DEEP), "nested too deep"),
    "length nested deep": (_text("sentence_bert_config.json", DEEP), "nested too deep"),
    "pooling nested deep": (_text("1_Pooling/config.json", DEEP), "nested too deep"),
    # Values of a configuration
    "hidden size a text": (_json("config.json", hidden_size="32"), "hidden_size"),
    "hidden size a list": (_json("config.json", hidden_size=[32]), "hidden_size"),
    "hidden size negative": (_json("config.json", hidden_size=-32), "hidden_size"),
    "hidden size null": (_json("config.json", hidden_size=None), "config.json"),
    "hidden size NaN": (_json("config.json", hidden_size=float("nan")), "hidden_size"),
    "hidden size infinite": (_json("config.json", hidden_size=float("inf")), "hidden_size"),
    "hidden size of a billion": (_json("config.json", hidden_size=10**9), "hidden_size"),
    "hidden size beyond 64 bits": (_json("config.json", hidden_size=10**30), "hidden_size"),
    "heads that do not divide": (_json("config.json", num_attention_heads=7), "config.json"),
    "no heads": (_json("config.json", num_attention_heads=0), "num_attention_heads"),
    "a billion layers": (_json("config.json", num_hidden_layers=10**9), "num_hidden_layers"),
    "100,000 layers": (_json("config.json", num_hidden_layers=100_000), "num_hidden_layers"),
    "200 layers": (_json("config.json", num_hidden_layers=200), "larger model than the weights"),
    "layers true": (_json("config.json", num_hidden_layers=True), "num_hidden_layers"),
    "a wide inside": (_json("config.json", intermediate_size=1 << 20), "larger model than the weights"),
    "a wider inside": (_json("config.json", intermediate_size=10**9), "intermediate_size"),
    "a vocabulary too large": (_json("config.json", vocab_size=5_000_000), "larger model than"),
    "positions without end": (_json("config.json", max_position_embeddings=10**12), "max_position"),
    "a million positions": (_json("config.json", max_position_embeddings=1 << 20), "larger model"),
    "a million labels": (_json("config.json", num_labels=1_000_000), "num_labels"),
    "labels a text": (_json("config.json", id2label="x"), "id2label"),
    "labels not numbered": (_json("config.json", id2label={"x": "y"}), "config.json"),
    "architectures a text": (_json("config.json", architectures="Bert"), "architectures"),
    "architectures of numbers": (_json("config.json", architectures=[1]), "architectures"),
    "model type a list": (_json("config.json", model_type=["bert"]), "model_type"),
    "an activation that is none": (_json("config.json", hidden_act="no-such"), "config.json"),
    "padding a text": (_json("config.json", pad_token_id="x"), "pad_token_id"),
    "padding outside": (_json("config.json", pad_token_id=10**6), "config.json"),
    "quantised weights": (_json("config.json", quantization_config={"quant_method": "x"}), "quantised"),
    "weights named elsewhere": (
        _json("config.json", transformers_weights="../x"),
        "transformers_weights",
    ),
    # sentence-transformers' files
    "length a text": (_json("sentence_bert_config.json", max_seq_length="x"), "max_seq_length"),
    "length negative": (_json("sentence_bert_config.json", max_seq_length=-1), "max_seq_length"),
    "longest negative": (_json("tokenizer_config.json", model_max_length=-5), "model_max_length"),
    "longest NaN": (_json("tokenizer_config.json", model_max_length=float("nan")), "model_max_length"),
    "longest a text": (_json("tokenizer_config.json", model_max_length="x"), "model_max_length"),
    "prompts a list": (_json("config_sentence_transformers.json", prompts=["x"]), "prompts"),
    "prompts of numbers": (_json("config_sentence_transformers.json", prompts={"q": 1}), "prompts"),
    "default prompt a list": (
        _json("config_sentence_transformers.json", default_prompt_name=["q"]),
        "default_prompt_name",
    ),
    "sizes a text": (_json("config.json", matryoshka_dimensions="12"), "matryoshka_dimensions"),
    "sizes negative": (_json("config.json", matryoshka_dims=[-1]), "matryoshka_dims"),
    "pooling of objects": (_json("1_Pooling/config.json", pooling_mode=[{}]), "pooling_mode"),
    "modules an object": (_text("modules.json", "{}"), "modules.json"),
    "modules none": (_modules(), "the modules are not"),
    "modules of numbers": (_modules(1), "modules.json"),
    "a module absolute": (_module_path("/etc"), "outside the model"),
    "a module above": (_module_path("1_Pooling/../../x"), "outside the model"),
    "a module of NUL": (_module_path("1\0"), "outside the model"),
    "a module that is no class": (
        _modules({"type": "sentence_transformers.no.Transformer", "path": ""}),
        "cross-encoder",
    ),
    "a code module": (_modules({"type": "os.system.Transformer", "path": ""}), "module"),
    "dense of another width": (_dense((2, 31)), "do not fit vectors of 32 dimensions"),
    "dense of three sides": (_dense((2, 32, 1)), "do not fit"),
    "dense of no side": (_dense(()), "do not fit"),
    "dense of nothing": (_dense((0, 32)), "do not fit"),
    "dense with a list": (_dense((2, 32), module_input_name=["x"]), "module_input_name"),
    "dense with a number": (_dense((2, 32), activation_function=1), "activation_function"),
    # Tokenizers
    "tokenizer nested deep": (_text("tokenizer.json", NESTED), "tokenizer.json is not a tokenizer"),
    "tokenizer of 1 GB": (_large("tokenizer.json", 1 << 30), "tokenizer.json has 1073741824 bytes"),
    "tokenizer of nothing": (_text("tokenizer.json", ""), "tokenizer.json is not a tokenizer"),
    "tokenizer that panics": (_tokenizer(model=PANICS), "tokenizer.json is not a tokenizer"),
    "tokenizer that panics later": (_tokenizer(post_processor=PANICS_LATER), "is not a tokenizer"),
    "tokenizer that aborts": (_tokenizer(model=ABORTS), "tokenizer.json is not a tokenizer"),
    # Weights
    "weights of nothing": (_weights(b"", b"", 0), "valid safetensors"),
    "weights of five bytes": (_text("model.safetensors", "abcde"), "model.safetensors"),
    "a header longer than the file": (_weights(b"{}", length=100_000), "valid safetensors"),
    "a header of many bytes": (_weights(b"{}", length=1 << 62), "more than 16777216 bytes"),
    "a header that is no JSON": (_weights(b"nonsense"), "valid safetensors"),
    "a header nested deep": (_weights(DEEP.encode()), "valid safetensors"),
    "a header that is a list": (_weights([]), "valid safetensors"),
    "offsets that overlap": (
        _weights({"a": _tensor("F32", [2], 0, 8), "b": _tensor("F32", [2], 4, 12)}, bytes(12)),
        "valid safetensors",
    ),
    "offsets beyond the end": (_weights({"a": _tensor("F32", [2], 0, 8)}, bytes(4)), "valid safetens"),
    "offsets that go back": (_weights({"a": _tensor("F32", [2], 8, 0)}, bytes(8)), "valid safetensors"),
    "a gap": (_weights({"a": _tensor("F32", [1], 4, 8)}, bytes(8)), "valid safetensors"),
    "a tail": (_weights({"a": _tensor("F32", [1], 0, 4)}, bytes(8)), "valid safetensors"),
    "a type that is none": (_weights({"a": _tensor("F31", [1], 0, 4)}, bytes(4)), "valid safetensors"),
    "a type of another size": (_weights({"a": _tensor("F64", [1], 0, 4)}, bytes(4)), "valid safetens"),
    "a shape that does not fit": (_weights({"a": _tensor("F32", [9], 0, 4)}, bytes(4)), "valid safet"),
    "a shape that overflows": (
        _weights({"a": _tensor("F32", [1 << 62, 1 << 62], 0, 4)}, bytes(4)),
        "valid safetensors",
    ),
    "a shape negative": (_weights({"a": _tensor("F32", [-1], 0, 4)}, bytes(4)), "valid safetensors"),
    "a key twice": (
        _weights(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            bytes(8),
        ),
        "valid safetensors",
    ),
    "tensors of other names": (_weights({"a": _tensor("F32", [1], 0, 4)}, bytes(4)), "weights lack"),
    "a tensor missing": (_without("encoder.layer.1.output.dense.weight"), "weights lack encoder"),
    "a tensor of another shape": (
        _shape("encoder.layer.0.output.dense.weight", 5, 5),
        "weights do not match",
    ),
    "weights of 1 TB": (_large("model.safetensors", 1 << 40), "this machine's memory"),
    # Shards
    "a shard above": (_index("../shard.safetensors"), "outside the model's folder"),
    "a shard absolute": (_index("/etc/passwd"), "outside the model's folder"),
    "a shard of NUL": (_index("x\0"), "outside the model's folder"),
    "a shard missing": (
        _index("none.safetensors"),
        "none.safetensors, which model.safetensors.index.json names, is missing",
    ),
    "a shard without the tensor": (
        _index({"x": "shard.safetensors"}),
        "a tensor in shard.safetensors that is not there",
    ),
    "a map of numbers": (_index({"x": 1}), "model.safetensors.index.json"),
    "a map that is none": (_index([]), "model.safetensors.index.json"),
    # What is no regular file
    "config a FIFO": (_fifo("config.json"), "config.json in the model's folder is no regular file"),
    "weights a FIFO": (_fifo("model.safetensors"), "model.safetensors in the model's folder is no"),
    "tokenizer a FIFO": (_fifo("tokenizer.json"), "tokenizer.json in the model's folder is no regular"),
    "a FIFO that libraries open": (_fifo("added_tokens.json"), "is no regular file"),
    "a FIFO in a module": (_fifo("1_Pooling/config.json"), "is no regular file"),
    "config /dev/zero": (_link("config.json", "/dev/zero"), "config.json in the model's folder is no"),
    "weights /dev/zero": (_link("model.safetensors", "/dev/zero"), "is no regular file"),
    "tokenizer /dev/stdin": (_link("tokenizer.json", "/dev/full"), "is no regular file"),
    "config a link to nothing": (_link("config.json", "nothing"), "config.json"),
    "config a link to itself": (_link("config.json", "config.json"), "config.json"),
}


@pytest.fixture
def limited() -> Iterator[None]:
    """Ends a test that hangs, and fails one that takes much memory."""

    def hang(*_: object) -> None:
        raise TimeoutError("the build hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANGS_S)
    held = _peak_mib()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert _peak_mib() - held < MOST_MIB


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """What torch and transformers take by themselves is no case's."""
    import transformers.models.bert.modeling_bert  # noqa: F401

    import model_build.evaluate
    import model_build.export  # noqa: F401


def _refused(ran: Ran, message: str, folder: Path) -> None:
    assert ran.returncode == 2, ran.stderr
    (sentence,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert message in sentence
    assert len(sentence) < 500
    assert "Traceback" not in ran.stderr
    assert "panicked" not in ran.stderr
    assert str(folder) not in sentence


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_is_refused(case: str, run: Run, tmp_path: Path) -> None:
    """One sentence that names the file or the field, and exit code 2."""
    change, message = CASES[case]
    folder = sentence_model(tmp_path / "model", PLAIN, POOLING)
    change(folder)
    _refused(run(folder, "--target", "cpu-fp32"), message, tmp_path)


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_json("config.json", num_hidden_layers=200), "weights"),
        (_json("config.json", id2label={str(n): "x" for n in range(1_001)}), "id2label"),
        (_without("classifier.weight"), "weights lack classifier.weight"),
        (_shape("classifier.weight", 3, 3), "weights do not match"),
    ],
)
def test_a_hostile_cross_encoder_is_refused(
    change: Change, message: str, run: Run, tmp_path: Path
) -> None:
    """The same, of a classifier."""
    folder = tiny_cross_encoder(tmp_path / "model")
    change(folder)
    _refused(run(folder, "--target", "cpu-fp32"), message, tmp_path)


WEIGHT, HEAD = "encoder.layer.0.output.dense.weight", "classifier.weight"
NUMBERS: dict[str, tuple[Change, str]] = {
    "NaN": (_fill(WEIGHT, float("nan")), f"the weight {WEIGHT} has NaN or infinite numbers"),
    "infinite": (_fill(WEIGHT, float("inf")), f"the weight {WEIGHT} has NaN or infinite numbers"),
    # A token that no sample has.
    "NaN in a rare row": (
        _fill("embeddings.word_embeddings.weight", float("nan")),
        "the weight embeddings.word_embeddings.weight has NaN",
    ),
    "NaN in a dense layer": (
        _all(_dense((2, 32)), lambda folder: _fill("linear.weight", float("nan"))(folder / "2_Dense")),
        "the weight linear.weight of a Dense layer has NaN",
    ),
    "overflowing": (_fill(WEIGHT, 3e38), "NaN or infinite"),
}


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8", "gpu-fp16"])
@pytest.mark.parametrize("case", NUMBERS)
def test_a_model_whose_numbers_are_none_is_exit_3(
    case: str, target: str, run: Run, tmp_path: Path
) -> None:
    """For every target, and nothing is published."""
    change, message = NUMBERS[case]
    folder = _quiet(sentence_model(tmp_path / "model", PLAIN, POOLING))
    change(folder)
    if case == "overflowing" and target == "gpu-fp16":
        message = f"the weight {WEIGHT} has values that do not fit FP16"
    _broken(run(folder, "--target", target, "--push", f"file://{tmp_path}/store"), message, tmp_path)


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8", "gpu-fp16"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_cross_encoder_whose_numbers_are_none_is_exit_3(
    value: float, target: str, run: Run, tmp_path: Path
) -> None:
    """Its head too."""
    folder = _quiet(tiny_cross_encoder(tmp_path / "model"))
    _fill(HEAD, value)(folder)
    ran = run(folder, "--target", target, "--push", f"file://{tmp_path}/store")
    _broken(ran, f"the weight {HEAD} has NaN or infinite numbers", tmp_path)


def test_products_that_overflow_in_fp16_are_exit_3(run: Run, tmp_path: Path) -> None:
    """Weights that fit FP16 one by one, and a sum that does not: found without a GPU too."""
    folder = _quiet(sentence_model(tmp_path / "model", PLAIN, POOLING))
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.weight"] *= 1e4
    tensors[WEIGHT] *= 1e4
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    cpu = run(folder, "--target", "cpu-fp32")
    assert cpu.returncode == 0, cpu.stderr
    _broken(run(folder, "--target", "gpu-fp16"), "or overflow in the format of", tmp_path)


def test_an_unread_poolers_numbers_do_not_matter(run: Run, tmp_path: Path) -> None:
    """No vector depends on it."""
    folder = _quiet(sentence_model(tmp_path / "model", PLAIN, POOLING))
    _fill("pooler.dense.weight", float("nan"))(folder)
    ran = run(folder, "--target", "cpu-fp32")
    assert ran.returncode == 0, ran.stderr


def _quiet(folder: Path) -> Path:
    """With what sentence-transformers needs to read the tokenizer."""
    settings = {"pad_token": "<pad>", "unk_token": "<unk>"}
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **settings)
    return folder


def _broken(ran: Ran, message: str, tmp_path: Path) -> None:
    assert ran.returncode == 3, ran.stderr
    (sentence,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert message in sentence
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "store").exists()


# Of a vocabulary of 31: the last id is one that graphs were not traced with.
PADDINGS: dict[str, tuple[str, Any, int]] = {
    "last": ("bert", 30, 0),
    "last of RoBERTa": ("roberta", 30, 0),
    "last of MPNet": ("mpnet", 30, 0),
    "last of DistilBERT": ("distilbert", 30, 0),
    "none": ("bert", None, 0),
    "none of RoBERTa": ("roberta", None, 2),
    "-1": ("bert", -1, 0),
}


@pytest.mark.parametrize("task", ["embedding", "cross-encoder"])
@pytest.mark.parametrize("case", PADDINGS)
def test_any_padding_id_is_built_or_refused(case: str, task: str, run: Run, tmp_path: Path) -> None:
    """A padding id that is the vocabulary's last, or none: a model as good as any, or one sentence."""
    architecture, padding, code = PADDINGS[case]
    # RoBERTa counts positions from its padding's id on: pairs need some more.
    folder = _quiet(
        tiny_model(tmp_path / "model", architecture)
        if task == "embedding"
        else tiny_cross_encoder(tmp_path / "model", architecture, positions=100)
    )
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    edit_json(folder / "config.json", pad_token_id=padding)
    gates = ("--min-rank-agreement", "-1")  # random weights rank nothing
    ran = run(folder, "--target", "cpu-fp32", *gates)
    if code:
        _refused(ran, "config.json has no pad_token_id, where", tmp_path)
    else:
        assert ran.returncode == 0, ran.stderr


def test_a_model_that_reads_too_few_tokens_to_rank_is_refused(run: Run, tmp_path: Path) -> None:
    """Nine, after its padding's offset: no document is read. Nothing is published."""
    folder = _quiet(tiny_cross_encoder(tmp_path / "model", "roberta", positions=40))
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    edit_json(folder / "config.json", pad_token_id=30)
    ran = run(folder, "--target", "cpu-fp32", "--push", f"file://{tmp_path}/store")
    _broken(
        ran, "its ranking cannot be measured (--min-rank-agreement): it gives all documents", tmp_path
    )
    assert "nan" not in ran.stderr


FILES = ["config.json", "model.safetensors", "1_Pooling/config.json", "somewhere.onnx"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("typed", ["{}", "./{}", "../here/{}"])
def test_a_file_is_no_model(
    name: str, typed: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named as it was typed, with what a model is; a name of two parts is not looked for at the hub."""
    folder = sentence_model(tmp_path / "here", PLAIN, POOLING)
    (folder / "somewhere.onnx").touch()
    monkeypatch.chdir(folder)
    ran = run(typed.format(name), "--target", "cpu-fp32")
    _refused(ran, f"error: '{typed.format(name)}' is a file: give its folder", tmp_path)
    assert "config.json, model.safetensors and tokenizer.json" in ran.stderr


@pytest.mark.parametrize("typed", ["", "a\0b", "nowhere", "/nowhere/at/all", "a b/c", "~/x", "a/b/c"])
def test_what_names_nothing_is_refused_as_typed(typed: str, run: Run, tmp_path: Path) -> None:
    """Without the hub, which has none of these."""
    _refused(run(typed, "--target", "cpu-fp32"), "is neither a folder, nor a hub id", tmp_path)


class Hub:
    """Stands in for the hub: a repository's files, of which a snapshot has what was asked for."""

    def __init__(self, cache: Path, *files: str) -> None:
        self._cache = cache
        self._files = files

    def snapshot_download(self, repository: str, **options: Any) -> str:
        folder = self._cache / ("0" * 40)
        for name in filter_repo_objects(self._files, allow_patterns=options["allow_patterns"]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        return str(folder)

    def list_repo_files(self, repository: str, *, revision: str | None) -> list[str]:
        return list(self._files)


CONVERTS = "convert it: python -m model_build.convert mini mini-safetensors; then build mini-safe"
NO_OTHERS = ["org/mini has no *.safetensors at the hub, the only format that this builder reads"]
OF_THE_HUB: list[tuple[list[str], tuple[str, ...], list[str]]] = [
    (["pytorch_model.bin", "training_args.bin"], (), ["only there as pickles (*.bin)", CONVERTS]),
    (
        ["pytorch_model.bin"],
        ("--revision", "v1.0"),
        ["org/mini --revision v1.0 --local-dir mini"],
    ),
    (["pytorch_model.bin"], (), ["hf download org/mini --local-dir mini; conv"]),
    (["0_Transformer/pytorch_model.bin"], (), [CONVERTS]),
    (["model.ckpt", "onnx/model.onnx"], (), ["only there as pickles (*.ckpt)", CONVERTS]),
    (["onnx/model.onnx"], (), NO_OTHERS),
    (["training_args.bin"], (), NO_OTHERS),
]


@pytest.mark.parametrize(("files", "options", "said"), OF_THE_HUB)
def test_a_model_of_the_hub_without_safetensors_is_refused(
    files: list[str],
    options: tuple[str, ...],
    said: list[str],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With what fetches and converts it; pickles themselves are never fetched."""
    hub = Hub(tmp_path, "config.json", "README.md", *files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", hub.list_repo_files)
    ran = run("org/mini", "--target", "cpu-fp32", *options)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    for each in said:
        assert each in ran.stderr
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "$(touch owned).bin"])
def test_pickles_are_refused_with_what_converts_them(name: str, run: Run, tmp_path: Path) -> None:
    """Never loaded here. Their names are in no command, which is pasted into a shell."""
    folder = sentence_model(tmp_path / "model", PLAIN, POOLING)
    _only(name)(folder)
    ran = run(folder, "--target", "cpu-fp32")
    _refused(ran, "To convert them: python -m model_build.convert FOLDER OUT", tmp_path)
    assert "touch" not in ran.stderr


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("case", ["200 layers", "a tensor missing", "a tensor of another shape"])
def test_a_hostile_folder_is_refused_for_the_gpu_too(case: str, run: Run, tmp_path: Path) -> None:
    """Another path reads the weights there."""
    folder = sentence_model(tmp_path / "model", PLAIN, POOLING)
    CASES[case][0](folder)
    _refused(run(folder, "--target", "gpu-fp16"), "weights", tmp_path)


def test_a_folder_of_very_many_files_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted, not read: the root of a disk is no model."""
    monkeypatch.setattr(model_folder, "MAX_FILES", 20)
    folder = sentence_model(tmp_path / "model", PLAIN, POOLING)
    for n in range(20):
        (folder / f"{n}.json").write_text("{}")
    _refused(run(folder, "--target", "cpu-fp32"), "more than 20 files", tmp_path)


def test_a_name_too_long_for_the_file_system_is_refused(run: Run, tmp_path: Path) -> None:
    """It is no folder, and no hub's id."""
    _refused(run("a" * 5_000, "--target", "cpu-fp32"), "is neither a folder", tmp_path)


def test_a_snapshot_of_links_is_built(run: Run, tiny: Path, tmp_path: Path) -> None:
    """The hub's cache holds links to ../../blobs, and those must go on being followed."""
    folder, blobs = tmp_path / "snapshots" / "model", tmp_path / "blobs"
    shutil.copytree(tiny, folder)
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    (folder / "gone.json").symlink_to("nothing")  # as a download that broke off leaves
    ran = run(folder, "--target", "cpu-fp32")
    assert ran.returncode == 0, ran.stderr
