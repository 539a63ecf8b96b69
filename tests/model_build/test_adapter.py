"""LoRA adapters of a local base: what is merged computes W x + scale * B (A x), as peft's layers do.

The merge was compared with peft 0.21.2 too, which is not among the packages here: outputs of BERT with
adapted linear layers, embeddings, biases and classifiers differed by 7e-7 at most.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForMaskedLM, BertModel

from model_build.adapter import merge_adapter
from shared.errors import BlitzError
from tests.model_build.command import CONFIG, Run, save_letters
from tests.tiny_torch import OLD, edit_json

IDS = torch.tensor([[2, 8, 9, 30, 3], [2, 5, 6, 7, 3]])
QUERY = "encoder.layer.0.attention.self.query"
VALUE = "encoder.layer.1.attention.self.value"
WORDS = "embeddings.word_embeddings"
RANK = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_letters(BertModel(CONFIG), tmp_path_factory.mktemp("source") / "base")


def adapter(folder: Path, base: Path, *paths: str, **config: Any) -> Path:
    """As peft saves it: A and B of each linear layer or embedding in `paths`."""
    folder.mkdir(exist_ok=True)
    stated = {"peft_type": "LORA", "r": RANK, "lora_alpha": 12, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(stated | config))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for path in paths:
        width, size = AutoModel.from_pretrained(base).get_submodule(path).weight.shape
        if path == WORDS:  # of (tokens, width), and its matrices are no modules
            width, size, kind, suffix = size, width, "lora_embedding_", ""
        else:
            kind, suffix = "lora_", ".weight"
        for part, shape in (("A", (RANK, size)), ("B", (width, RANK))):
            name = f"base_model.model.{path}.{kind}{part}{suffix}"
            tensors[name] = torch.randn(shape, generator=generator) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def adapted(base: Path, folder: Path, scales: dict[str, float]) -> torch.Tensor:
    """The base's answer to IDS, with what LoRA adds to each layer's output. scales: by path."""
    model = AutoModel.from_pretrained(base).eval()
    tensors = load_file(folder / "adapter_model.safetensors")
    for path, scale in scales.items():
        a, b = (
            next(
                each for name, each in tensors.items() if f"{path}.lora_" in name and f"_{part}" in name
            )
            for part in "AB"
        )

        def add(_: Any, inputs: Any, output: Any, a: Any = a, b: Any = b, scale: float = scale) -> Any:
            (x,) = inputs
            return output + scale * (a[:, x].movedim(0, -1) if x.dtype == torch.int64 else x @ a.T) @ b.T

        model.get_submodule(path).register_forward_hook(add)
    with torch.no_grad():
        answer: torch.Tensor = model(input_ids=IDS).last_hidden_state
    return answer


SCALED: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "alpha over rank": ({}, {QUERY: 3.0}),
    "its root": ({"use_rslora": True}, {QUERY: 6.0, VALUE: 6.0}),
    "alphas of their own": (
        {"alpha_pattern": {"layer.1.attention.self.value": 2, "query": 8}},
        {QUERY: 2.0, VALUE: 0.5, WORDS: 3.0},
    ),
    "an embedding": ({}, {WORDS: 3.0}),
}


@pytest.mark.parametrize("case", SCALED)
def test_a_merged_adapter_computes_what_lora_adds(case: str, base: Path, tmp_path: Path) -> None:
    config, scales = SCALED[case]
    folder = adapter(tmp_path / "adapter", base, *scales, **config)
    merged = merge_adapter(folder, tmp_path / "merged")
    with torch.no_grad():
        answer = AutoModel.from_pretrained(merged).eval()(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(answer, adapted(base, folder, scales), atol=2e-6, rtol=1e-5)
    assert (answer - adapted(base, folder, {})).abs().max() > 1e-3


def test_a_base_whose_names_are_longer_is_found(tmp_path: Path) -> None:
    """The checkpoint of a language model calls its encoder bert; and it may be in shards."""
    torch.manual_seed(0)
    base = save_letters(BertForMaskedLM(CONFIG), tmp_path / "base")
    BertForMaskedLM.from_pretrained(base).save_pretrained(base, max_shard_size="20KB")
    (base / "model.safetensors").unlink(missing_ok=True)
    assert (base / "model.safetensors.index.json").is_file()
    folder = adapter(tmp_path / "adapter", base, QUERY)
    merged = merge_adapter(folder, tmp_path / "merged")
    with torch.no_grad():
        answer = AutoModel.from_pretrained(merged).eval()(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(answer, adapted(base, folder, {QUERY: 3.0}), atol=2e-6, rtol=1e-5)


def test_what_an_adapter_holds_whole_replaces_its_bases(base: Path, tmp_path: Path) -> None:
    """Biases and modules that were trained beside the matrices, under the wrapped names of peft."""
    folder = adapter(tmp_path / "adapter", base, QUERY)
    tensors = load_file(folder / "adapter_model.safetensors")
    wrapped = f"base_model.model.{VALUE}.base_layer.bias"
    norm = "base_model.model.embeddings.LayerNorm.modules_to_save.weight"
    tensors |= {wrapped: torch.full((32,), 7.0), norm: torch.full((32,), 5.0)}
    save_file(tensors, folder / "adapter_model.safetensors")
    weights = load_file(merge_adapter(folder, tmp_path / "merged") / "model.safetensors")
    assert weights[f"{VALUE}.bias"].tolist() == [7.0] * 32
    assert weights["embeddings.LayerNorm.weight"].tolist() == [5.0] * 32
    assert weights.keys() == load_file(base / "model.safetensors").keys()


@pytest.mark.parametrize("modules_of", ["base", "adapter"])
def test_an_adapter_of_a_local_base_is_built(
    modules_of: str, base: Path, run: Run, tmp_path: Path
) -> None:
    """By the command: with the modules and prompts of whichever has them."""
    own = tmp_path / "base"
    merge_adapter(adapter(tmp_path / "first", base, VALUE), own)  # a base of its own to change
    folder = adapter(tmp_path / "adapter", own, QUERY)
    holder = own if modules_of == "base" else folder
    listed = [(OLD + "Transformer", ""), (OLD + "Pooling", "1_Pooling"), (OLD + "Normalize", "2_N")]
    modules = [{"idx": n, "name": str(n), "type": t, "path": p} for n, (t, p) in enumerate(listed)]
    (holder / "modules.json").write_text(json.dumps(modules))
    (holder / "1_Pooling").mkdir()
    edit_json(holder / "1_Pooling" / "config.json", pooling_mode="cls", word_embedding_dimension=32)
    edit_json(holder / "config_sentence_transformers.json", prompts={"query": "q "})
    ran = run(folder, "--target", "cpu-fp32", "--json", "--min-cosine", "0.9999")
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads(ran.stdout)["manifest"]
    assert (manifest["pooling"], manifest["normalize"], manifest["prompts"]) == (
        "cls",
        True,
        {"query": "q "},
    )


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "adapter_config.json", **values)


def _tensors(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(dict(change(*each) for each in load_file(path).items()), path)

    return edit


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "DoRA": (_config(use_dora=True), "not plain LoRA (use_dora): merge it with peft"),
    "PiSSA": (_config(init_lora_weights="pissa_niter_4"), "not plain LoRA (init_lora_weights pissa"),
    "prefixes": (_config(peft_type="PREFIX_TUNING"), "not plain LoRA (peft_type PREFIX_TUNING)"),
    "a pattern": (_config(alpha_pattern={"(a+)+": 2}), "not plain LoRA ((a+)+)"),
    "an odd alpha": (_config(lora_alpha="x"), "adapter_config.json is not valid"),
    "pickles": (_pickled, "only there as pickles (*.bin)"),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "there is no adapter_",
    ),
    "a vector beside": (
        _tensors(lambda name, each: (name.replace("lora_A.weight", "lora_magnitude_vector"), each)),
        "lora_magnitude_vector, which is not plain LoRA",
    ),
    "half a pair": (
        _tensors(lambda name, each: (name.replace(".lora_A", ".other"), each)),
        "do not fit one another",
    ),
    "another model's": (
        _tensors(lambda name, each: (name.replace("layer.0", "layer.9"), each)),
        "which its base does not have",
    ),
    "another rank": (
        _tensors(lambda name, each: (name, each[:2] if "lora_A" in name else each)),
        "do not fit one another",
    ),
    "another width": (
        _tensors(lambda name, each: (name, each[:, :8].clone() if "lora_A" in name else each)),
        "does not fit its base's: is it another model?",
    ),
    "no matrices": (_tensors(lambda name, each: (f"x.{name[-3:]}", each)), "has no lora_A and lora_B"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_cannot_be_merged_is_refused(case: str, base: Path, tmp_path: Path) -> None:
    """One sentence, before anything is written."""
    change, message = REFUSED[case]
    folder = adapter(tmp_path / "adapter", base, QUERY)
    change(folder)
    with pytest.raises(BlitzError) as refusal:
        merge_adapter(folder, tmp_path / "merged")
    assert message in str(refusal.value)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["org/base", None, "", "a\0b", "x" * 999])
def test_an_adapter_whose_base_is_not_here_is_left_to_be_refused(
    name: str | None, base: Path, run: Run, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "adapter", base, QUERY, base_model_name_or_path=name)
    ran = run(folder, "--target", "cpu-fp32")
    assert ran.returncode == 2
    assert "holds a LoRA adapter (adapter_config.json) of" in ran.stderr
    assert "name that model's local folder in base_model_name_or_path" in ran.stderr


def test_an_adapter_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    first = adapter(tmp_path / "first", base, QUERY)
    second = adapter(tmp_path / "second", base, QUERY, base_model_name_or_path=str(first))
    with pytest.raises(BlitzError, match="is an adapter itself"):
        merge_adapter(second, tmp_path / "merged")
