"""Reads a sentence-transformers or transformers folder: task, tokenizer, limits and layers.

It does not know graphs, quantisation or the model store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_build.configuration import Config, Heads, Module, SentenceBert, SentenceTransformers, Width
from model_build.folder import fields_of, read_json, read_value, refused, refusing
from model_build.formats import check_no_adapter, no_model
from model_build.late import MASK, Late, is_late, read_late
from model_build.layers import CONFIGURED, KINDS, read_layers
from model_build.pair_template import read_template, without_special_tokens
from model_build.pooling import read_pooling
from model_build.purpose import check_architecture, pooling_of_plain
from model_build.source_tokenizer import pad_token_id, read_tokenizer
from model_build.sparse import SPARSE_MODULES, is_sparse, read_sparse
from model_build.static import MODEL2VEC, MODULE, Static, is_model2vec, read_static
from model_build.text_side import TEXT_SIDE, ending_at_first_end
from model_build.weights import check_described, count_elements
from model_build.word_scores import read_score
from shared.cards import Task
from shared.engines.torch import ENCODERS_OF
from shared.errors import InvalidInput, printable
from shared.models.manifest import (
    MAX_NAMES,
    MAX_TOKENS,
    LateInteraction,
    PairTemplate,
    RouteName,
    SparseHead,
    head_of,
)
from shared.vectors import Layer, Pooling, Poolings, poolings_of

SCORE = "LogitScore"
"""The module of rerankers made of language models, by class name."""
_MODULES = ("Transformer", "Pooling", MODULE, SCORE, *SPARSE_MODULES, MASK, *KINDS)
_INSTEAD = {
    "SparseStaticEmbedding": ": queries of sparse models are embedded as documents are here",
}
"""What would be right instead of modules that are not read."""
_PYLATE_DENSE = "pylate.models.Dense.Dense"
STATIC = "static"
"""The model_type of static embeddings, which are no transformers."""
# Their position ids start after the padding id, so the positions before it are unused.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """The description of a sentence-transformers or transformers folder.

    folder: holds config.json and the transformer's safetensors.
    tokenizer_json: the text of tokenizer.json, converted if the folder has only a slow tokenizer.
    max_tokens: special tokens included. dimensions: of the vector after pooling and Dense layers; of a
        cross-encoder, the number of its labels.
    pooling: None for a cross-encoder with a head, and for sparse and multi-vector models. labels: of a
        cross-encoder, in its logits' order. template: of a cross-encoder that reads a pair as one text.
    sparse: of a sparse model. late_interaction: of a multi-vector model.
    route: of the original's Router; None: it has none.
    elements: of the transformer's weights; of static embeddings 0.
    """

    folder: Path
    task: Task
    architecture: str
    model_type: str
    num_heads: int
    hidden_size: int
    tokenizer_json: str
    pad_token_id: int
    max_tokens: int
    dimensions: int
    pooling: Poolings | None = None
    labels: tuple[str, ...] = ()
    template: PairTemplate | None = None
    normalize: bool = False
    layers: tuple[Layer, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    matryoshka_dimensions: tuple[int, ...] = ()
    sparse: SparseHead | None = None
    late_interaction: LateInteraction | None = None
    route: RouteName | None = None
    elements: int = 0


def inspect_source(folder: Path, pooling: Pooling | Literal["splade"] | None = None) -> SourceModel:
    """Read `folder`. pooling: of a folder that states none.

    Raises InvalidInput (field "model" or "pooling") for what this builder does not support, and
    InvalidArtefact if a Dense layer has NaN or infinite numbers.
    """
    check_no_adapter(folder)
    modules = _modules(folder)
    if modules[0][0] == MODULE:
        static = read_static(modules[0][1], has_modules=(folder / "modules.json").is_file())
        return _static_model(folder, static, modules[1:])
    transformer = modules[0][1]
    check_no_adapter(transformer)
    raw = read_json(transformer / "config.json")
    if raw is None:
        raise no_model(transformer)
    stated = fields_of(raw, Config, "config.json")
    config = _config(transformer, raw)
    check_architecture(stated, raw, config)
    held = count_elements(transformer)
    tokenizer_json, tokenizer_settings = read_tokenizer(transformer)
    if config.model_type == TEXT_SIDE:
        tokenizer_json = ending_at_first_end(tokenizer_json, config.eos_token_id)
    architecture = (stated.architectures or [type(config).__name__])[0]
    hidden_size = int(config.hidden_size)
    is_cross_encoder = _is_cross_encoder(folder, modules, architecture, config.model_type)
    has_modules = (folder / "modules.json").is_file()
    if pooling is not None and (is_cross_encoder or len(modules) > 1):
        what = "a cross-encoder pools nothing" if is_cross_encoder else "modules.json states the pooling"
        raise InvalidInput(f"{what}: leave --pooling out", field="pooling")
    longest = _max_tokens(transformer, config, tokenizer_settings.model_max_length)
    about = _sentence_transformers(folder)
    if is_late(about, modules, architecture):
        tokenizer = tokenizer_json, tokenizer_settings
        late = read_late(modules, about, tokenizer, hidden_size, (longest, _positions(config)))
        tokenizer_json, layers = late.tokenizer_json, _late_model(late)
        longest = max(late.described.query_tokens, late.described.document_tokens)
    elif is_sparse(modules, pooling):
        head = read_sparse(modules, transformer, architecture, about)
        layers = _sparse_model(folder, head, config)
    elif is_cross_encoder:
        layers = _cross_encoder(folder, config, modules, has_modules=has_modules)
        if layers["template"] is not None:  # it brings its special tokens as text
            tokenizer_json = without_special_tokens(tokenizer_json)
    else:
        read: Poolings = (
            read_pooling(modules[1][1])
            if len(modules) > 1
            else pooling_of_plain(folder, architecture, pooling if pooling != "splade" else None)
        )
        layers = _embedding_model(folder, stated, modules, hidden_size, read)
    elements = check_described(config, held, head_of(layers["task"], layers.get("pooling")))
    return SourceModel(
        folder=transformer,
        elements=elements,
        architecture=architecture,
        model_type=config.model_type,
        num_heads=int(config.num_attention_heads),
        hidden_size=hidden_size,
        tokenizer_json=tokenizer_json,
        pad_token_id=pad_token_id(config, tokenizer_json, tokenizer_settings),
        max_tokens=longest,
        **layers,
    )


def _is_cross_encoder(
    folder: Path, modules: list[tuple[str, Path]], architecture: str, model_type: str
) -> bool:
    """Whether it is a classifier alone, or a language model whose words are its scores.

    A classifier before a Pooling has lost its head.
    """
    if len(modules) > 1 and modules[1][0] == SCORE:
        if not architecture.endswith("ForCausalLM"):
            raise refused(f"a LogitScore follows {architecture}, which is no language model")
        return True
    if len(modules) > 1:
        return False
    if architecture.endswith("ForSequenceClassification"):
        if model_type in ENCODERS_OF:
            raise refused(f"a {architecture} needs its decoder, and this builder runs encoders alone")
        return True
    if (folder / "modules.json").is_file():
        raise refused(f"the only module is a Transformer, but {architecture} is not a cross-encoder")
    return False


def _cross_encoder(
    folder: Path, config: Any, modules: list[tuple[str, Path]], *, has_modules: bool
) -> dict[str, Any]:
    """The activation is ignored: the server applies sigmoid or softmax, or returns logits."""
    prompts, default_prompt = _prompts(folder)
    prompt = prompts.get(default_prompt or "")
    transformer = modules[0][1]
    template = read_template(transformer, config.model_type, prompt, has_modules=has_modules)
    by_word = len(modules) > 1
    if by_word and template is None:
        raise refused(
            "the language model has no chat template for pairs, without which its scores mean nothing: "
            "save one as chat_template.jinja, and the modality message in sentence_bert_config.json"
        )
    if prompt and template is None:
        raise refused(
            "the cross-encoder prepends a prompt to its texts, which the server does not support"
        )
    labels = (
        ("relevant",) if by_word else tuple(str(each) for _, each in sorted(config.id2label.items()))
    )
    if len(labels) > MAX_NAMES:
        raise refused(f"the cross-encoder has {len(labels)} labels; at most {MAX_NAMES} are served")
    return {
        "task": "cross-encoder",
        "dimensions": len(labels),
        "pooling": "last" if by_word else None,
        "labels": labels,
        "template": template,
        "layers": (read_score(modules[1][1], transformer, config),) if by_word else (),
    }


def _embedding_model(
    folder: Path,
    stated: Config,
    modules: list[tuple[str, Path]],
    hidden_size: int,
    pooling: Poolings,
) -> dict[str, Any]:
    after = read_layers(modules[2:], hidden_size * len(poolings_of(pooling)))
    prompts, default_prompt = _prompts(folder)
    return {
        "task": "embedding",
        "dimensions": after.width,
        "pooling": pooling,
        "normalize": after.normalize,
        "layers": after.layers,
        "prompts": prompts,
        "default_prompt": default_prompt,
        "matryoshka_dimensions": _matryoshka(folder, stated),
    }


def _late_model(late: Late) -> dict[str, Any]:
    return {
        "task": "multi-vector",
        "dimensions": late.width,
        "normalize": late.normalize,
        "layers": late.layers,
        "prompts": late.prompts,
        "late_interaction": late.described,
    }


def _sparse_model(folder: Path, head: SparseHead, config: Any) -> dict[str, Any]:
    prompts, default_prompt = _prompts(folder)
    return {
        "task": "sparse",
        "dimensions": int(config.vocab_size),
        "prompts": prompts,
        "default_prompt": default_prompt,
        "sparse": head,
    }


def _static_model(folder: Path, static: Static, modules: list[tuple[str, Path]]) -> SourceModel:
    after = read_layers(modules, static.width)
    if static.architecture == MODEL2VEC and after.layers:
        raise refused("an int8 table of model2vec has no layers after it: save it as float16")
    prompts, default_prompt = _prompts(folder)
    return SourceModel(
        folder=static.folder,
        task="embedding",
        architecture=static.architecture,
        model_type=STATIC,
        num_heads=0,
        hidden_size=static.width,
        tokenizer_json=static.tokenizer_json,
        pad_token_id=0,
        max_tokens=static.max_tokens,
        dimensions=after.width,
        pooling="mean",
        normalize=after.normalize or static.normalize,
        layers=after.layers,
        prompts=prompts,
        default_prompt=default_prompt,
        matryoshka_dimensions=_matryoshka(folder, Config()),
    )


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module, in order; a plain transformers folder is one Transformer."""
    listed = read_value(folder / "modules.json")
    if listed is None:
        return [(MODULE if is_model2vec(folder) else "Transformer", folder)]
    modules = []
    for module in fields_of(listed, list[Module], "modules.json"):
        package, _, name = module.type.rpartition(".")
        known = package.split(".")[0] == "sentence_transformers" or module.type == _PYLATE_DENSE
        if not known or name not in _MODULES:
            raise refused(
                f"the model has a {printable(name)} module; this builder reads "
                f"{', '.join(_MODULES)}{_INSTEAD.get(name, '')}"
            )
        where = Path(module.path)
        if where.is_absolute() or ".." in where.parts or "\0" in module.path:
            raise refused("modules.json names a folder outside the model")
        configured = name in ("Pooling", "SpladePooling", SCORE, *CONFIGURED)
        if configured and not (folder / where / "config.json").is_file():
            raise refused(f"there is no {where / 'config.json'}, which the {name} of modules.json needs")
        modules.append((name, folder / where))
    kinds = [name for name, _ in modules]
    if "SpladePooling" in kinds:
        return modules
    is_late = MASK in kinds or _sentence_transformers(folder).model_type == "ColBERT"
    if is_late and kinds[:1] == ["Transformer"] and {*kinds[1:]} <= {MASK, *KINDS}:
        return modules
    before = 2 if kinds[:2] == ["Transformer", "Pooling"] else 1
    if kinds not in (["Transformer"], ["Transformer", SCORE]) and (
        kinds[:before] not in (["Transformer", "Pooling"], [MODULE]) or not {*kinds[before:]} <= {*KINDS}
    ):
        raise refused(
            f"the modules are not Transformer and Pooling, or {MODULE}, and then any of "
            f"{', '.join(KINDS)}; or Transformer and {SCORE}"
        )
    return modules


def _config(folder: Path, raw: dict[str, Any]) -> Any:
    """The transformers configuration, of an architecture that transformers itself implements."""
    if "auto_map" in raw:
        raise refused("the model needs its own code (auto_map), which this builder never runs")
    if raw.get("quantization_config") or raw.get("transformers_weights"):
        raise refused(
            "config.json names quantised weights, or files other than model.safetensors "
            "(quantization_config, transformers_weights): this builder supports neither"
        )
    kind = raw.get("model_type") or "none stated"
    wrong = (
        f"config.json is not valid for {kind}"
        if kind in CONFIG_MAPPING
        else f"unknown architecture: {kind}"
    )
    with refusing(wrong):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        # Absent in architectures that are not text encoders.
        msgspec.convert(config.hidden_size, Width)
        msgspec.convert(config.num_attention_heads, Heads)
    if config.is_encoder_decoder and config.model_type not in ENCODERS_OF:
        raise refused(
            f"{config.model_type} is an encoder-decoder; this builder runs the encoders of "
            f"{', '.join(sorted(ENCODERS_OF))} alone, and encoders"
        )
    return config


def _max_tokens(folder: Path, config: Any, model_max_length: float | None) -> int:
    """The configured maximum length, bounded by the position embeddings.

    As in sentence-transformers 6, for cross-encoders too: `max_seq_length`, else the tokenizer's
    `model_max_length`. `max_length` in tokenizer_config.json and the truncation inside tokenizer.json
    are ignored: they record how the model was trained or last called.
    """
    limits = [_positions(config)]
    name = "sentence_bert_config.json"
    stated = fields_of(read_json(folder / name) or {}, SentenceBert, name).max_seq_length
    # Unset, model_max_length is written as 10**30.
    limits.append(int(min(stated or model_max_length or 512, 10**30)))
    if not 1 <= min(limits) <= MAX_TOKENS:
        raise refused(f"the model reads {min(limits)} tokens by its files: set max_seq_length in {name}")
    return min(limits)


def _positions(config: Any) -> int:
    """How many tokens the model has positions for; MAX_TOKENS where they are computed."""
    positions = getattr(config, "max_position_embeddings", None)
    return int(positions) - _unused_positions(config) if positions else MAX_TOKENS


def _unused_positions(config: Any) -> int:
    """Number of position embeddings before the first token's."""
    if config.model_type == "mpnet":
        return 2  # its padding is 1 for transformers, whatever config.json says
    if config.model_type not in _OFFSET_POSITIONS:
        return 0
    if config.pad_token_id is None:
        raise refused(
            f"config.json has no pad_token_id, where the positions of a {config.model_type} start"
        )
    return int(config.pad_token_id) + 1


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    config = _sentence_transformers(folder)
    prompts = {name: text or "" for name, text in (config.prompts or {}).items()}
    default = config.default_prompt_name
    if default is not None and default not in prompts:
        raise refused("default_prompt_name is not one of the prompts")
    return prompts, default


def _matryoshka(folder: Path, config: Config) -> tuple[int, ...]:
    """The Matryoshka dimensions that a configuration states."""
    for holder in (_sentence_transformers(folder), config):
        if stated := holder.matryoshka_dimensions or holder.matryoshka_dims:
            return tuple(sorted(stated))
    return ()


def _sentence_transformers(folder: Path) -> SentenceTransformers:
    name = "config_sentence_transformers.json"
    return fields_of(read_json(folder / name) or {}, SentenceTransformers, name)
