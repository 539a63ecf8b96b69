"""Schemas of the JSON files in a model's folder: the fields that are read, with types and bounds.

It does not know where the files are or how they are used. Other fields are left to transformers and
sentence-transformers.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec

from shared.models.manifest import MAX_DIMENSIONS, MAX_NAMES, MAX_TOKEN_ID, MAX_TOKENS

# Larger than in any real model. Values within are still checked against the weights:
# model_build.weights.
Width: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_DIMENSIONS)]
Types: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_DIMENSIONS)]
Inner: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Layers: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=256)]
Heads: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=4_096)]
Tokens: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKEN_ID)]
Short: TypeAlias = Annotated[str, msgspec.Meta(max_length=1_000)]


class Config(msgspec.Struct):
    """config.json of any architecture; each uses some of these names.

    pad_token_id: -1 for none.
    """

    architectures: list[Short] | None = None
    model_type: Short | None = None
    hidden_size: Width | None = None
    dim: Width | None = None
    d_model: Width | None = None
    n_embd: Width | None = None
    embedding_size: Width | None = None
    head_dim: Width | None = None
    type_vocab_size: Types | None = None
    intermediate_size: Inner | None = None
    hidden_dim: Inner | None = None
    num_hidden_layers: Layers | None = None
    num_layers: Layers | None = None
    n_layers: Layers | None = None
    n_layer: Layers | None = None
    num_hidden_groups: Layers | None = None
    num_attention_heads: Heads | None = None
    num_key_value_heads: Heads | None = None
    n_heads: Heads | None = None
    n_head: Heads | None = None
    num_experts: Heads | None = None
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    num_labels: Annotated[int, msgspec.Meta(ge=0, le=MAX_NAMES)] | None = None
    pad_token_id: TokenId | None = None
    id2label: Annotated[dict[str, Short | float | None], msgspec.Meta(max_length=MAX_NAMES)] | None = (
        None
    )
    matryoshka_dimensions: list[Width] | None = None
    matryoshka_dims: list[Width] | None = None


class TokenContent(msgspec.Struct):
    """A token written as an object."""

    content: Short


class TokenizerConfig(msgspec.Struct):
    """tokenizer_config.json. model_max_length: 10**30 stands for unset."""

    model_max_length: Annotated[float, msgspec.Meta(ge=0)] | None = None
    pad_token: Short | TokenContent | None = None


class SentenceBert(msgspec.Struct):
    """sentence_bert_config.json."""

    max_seq_length: Tokens | None = None
    do_lower_case: bool | None = None
    modality_config: Annotated[dict[Short, Any], msgspec.Meta(max_length=100)] | None = None
    processing_kwargs: Annotated[dict[Short, Any], msgspec.Meta(max_length=100)] | None = None


class SentenceTransformers(msgspec.Struct):
    """config_sentence_transformers.json. model_type: the class that saved the folder."""

    model_type: Short | None = None
    prompts: Annotated[dict[Short, str | None], msgspec.Meta(max_length=MAX_NAMES)] | None = None
    default_prompt_name: Short | None = None
    matryoshka_dimensions: list[Width] | None = None
    matryoshka_dims: list[Width] | None = None


class Module(msgspec.Struct):
    """An entry of modules.json. path: its folder, relative to the model's."""

    type: Short
    path: Short


class Pooling(msgspec.Struct):
    """config.json of a Pooling module: `pooling_mode`, or the booleans of older versions."""

    include_prompt: bool | None = None
    pooling_mode: Short | list[Short] | None = None
    pooling_mode_cls_token: bool | None = None
    pooling_mode_max_tokens: bool | None = None
    pooling_mode_mean_tokens: bool | None = None
    pooling_mode_mean_sqrt_len_tokens: bool | None = None
    pooling_mode_weightedmean_tokens: bool | None = None
    pooling_mode_lasttoken: bool | None = None


class DenseConfig(msgspec.Struct):
    """config.json of a Dense module."""

    activation_function: Short = "torch.nn.modules.activation.Tanh"
    module_input_name: Short | None = None
    module_output_name: Short | None = None
    use_residual: bool | None = None


class NormalizeConfig(msgspec.Struct):
    """config.json of a Normalize module, where there is one."""

    module_input_name: Short | None = None
    module_output_name: Short | None = None


class LogitScore(msgspec.Struct):
    """config.json of a LogitScore module. false_token_id: null where the score is one word's logit."""

    true_token_id: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]
    false_token_id: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)] | None = None
    module_input_name: Short | None = None


class Model2Vec(msgspec.Struct):
    """config.json of model2vec. max_length: null for no limit, which is not the same as unset."""

    normalize: bool = False
    max_length: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None


class Truncation(msgspec.Struct):
    """`truncation` of tokenizer.json."""

    max_length: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Adapter(msgspec.Struct):
    """adapter_config.json, of the peft library. alpha_pattern: a module's name -> its lora_alpha."""

    base_model_name_or_path: Short | None = None
    peft_type: Short | None = None
    lora_alpha: float = 8
    alpha_pattern: Annotated[dict[Short, float], msgspec.Meta(max_length=MAX_NAMES)] = {}
    use_rslora: bool = False
    fan_in_fan_out: bool = False


class WeightsIndex(msgspec.Struct):
    """model.safetensors.index.json. weight_map: a tensor's name -> the file that holds it."""

    weight_map: dict[str, str]
