"""Reads a LogitScore module: a language model's score of a pair from the logits of one or two words.

It does not know templates or how the model is run. The score is a row of the language model's head, or
the difference of two, times the last token's hidden state: a Dense layer after pooling by that token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from model_build.configuration import LogitScore, WeightsIndex
from model_build.folder import fields_of, read_json, refused, refusing
from model_build.weights import INDEX, WEIGHTS, check_numbers
from shared.vectors import DenseLayer

_CHANGED = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings by which architectures change their logits, after which a difference is no linear layer."""


def read_score(module: Path, transformer: Path, config: Any) -> DenseLayer:
    """The layer from the last token's hidden state (H,) to the score (1,).

    module: folder of the LogitScore. transformer: of the language model. config: of transformers.
    Raises InvalidInput (field "model") and InvalidArtefact.
    """
    stated = fields_of(read_json(module / "config.json"), LogitScore, "LogitScore's config.json")
    if stated.module_input_name not in (None, "causal_logits"):
        raise refused("a LogitScore has another input than causal_logits")
    for name in _CHANGED:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise refused(f"config.json has {name}, by which the model's logits are no longer linear")
    words = [stated.true_token_id]
    if stated.false_token_id is not None:
        words.append(stated.false_token_id)
    if max(words) >= config.vocab_size:
        raise refused(f"a LogitScore's tokens are not in the vocabulary of {config.vocab_size}")
    rows = _head(transformer, config, words)
    weight = rows if len(words) == 1 else rows[:1] - rows[1:]
    return DenseLayer(weight.numpy(), None, "identity")


def _head(folder: Path, config: Any, words: list[int]) -> torch.Tensor:
    """(words, H) float32: the rows of the language model's head."""
    with refusing(f"config.json is not valid for {config.model_type}"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    if head is None or head.bias is not None:
        raise refused("the language model's head is none that this builder reads: it has a bias")
    names = [name for name, module in model.named_modules() if module is head]
    if config.tie_word_embeddings:
        table = model.get_input_embeddings()
        names = [name for name, module in model.named_modules() if module is table]
    name = f"{names[0]}.weight"
    file = WEIGHTS
    if not (folder / WEIGHTS).is_file():
        index = fields_of(read_json(folder / INDEX), WeightsIndex, INDEX)
        file = index.weight_map.get(name, WEIGHTS)
    with (
        refusing(f"the weights lack {name}, the language model's head"),
        safe_open(folder / Path(file).name, framework="pt") as tensors,
    ):
        rows = tensors.get_slice(name)
        if list(rows.get_shape()) != [config.vocab_size, config.hidden_size]:
            raise refused(f"{name} does not fit config.json")
        read = torch.cat([rows[word : word + 1] for word in words]).to(torch.float32)
    check_numbers([(name, read)])
    return read
