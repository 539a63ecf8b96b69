"""Refuses folders with kinds of models that this builder does not support, naming the kind.

It does not know weights, tokenizers or graphs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import transformers

from model_build.configuration import Config
from model_build.folder import refused
from shared.errors import printable
from shared.vectors import Pooling

_POOLINGS = ", ".join(get_args(Pooling))

# model_type of config_sentence_transformers.json; "ColBERT" is PyLate's.
_OTHER_KINDS = {
    "SparseEncoder": "a sparse encoder (SPLADE), whose vectors have a number for each word",
    "MultiVectorEncoder": "a late-interaction model (ColBERT), which has a vector for each token",
    "ColBERT": "a late-interaction model (ColBERT), which has a vector for each token",
}

# (suffix of the class in config.json, what such a model is and what to do). The first match is used.
_HEADS = (
    (
        "ForCausalLM",
        "a language model, whose text vector is the last token's if it was trained for one "
        "(--pooling last). One that reranks by words as yes and no says so in a LogitScore module and "
        "has a chat template for pairs: docs/models.md shows how to save it so",
    ),
    (
        "ForMaskedLM",
        "a masked language model, as sparse encoders (SPLADE) are, which are not built. If it was "
        "trained for dense vectors, say how they are pooled: --pooling mean or cls",
    ),
    (
        "ForPreTraining",
        "a model as it is before it is trained for vectors. If it was, say how they are pooled: "
        "--pooling mean or cls",
    ),
)


def check_kind(folder: Path, saved_as: str | None) -> None:
    """Raise InvalidInput (field "model") for a sparse encoder or a late-interaction model.

    saved_as: model_type of config_sentence_transformers.json.
    """
    if said := _OTHER_KINDS.get(saved_as or ""):
        raise refused(
            f"config_sentence_transformers.json says {saved_as}: {said}. This builder makes models with "
            "one vector a text, and cross-encoders"
        )
    if (folder / "artifact.metadata").is_file():  # Stanford's
        raise refused(
            f"the folder has ColBERT's artifact.metadata: {_OTHER_KINDS['ColBERT']}. This builder makes "
            "models with one vector a text, and cross-encoders"
        )


def check_architecture(stated: Config, raw: dict[str, Any], config: Any) -> None:
    """Raise InvalidInput if config.json names a class, or a type of positions, that transformers' own
    code of this model type does not have: the model would load and return wrong vectors.

    raw: config.json. config: transformers' configuration object, read from it.
    """
    for name in stated.architectures or []:
        if "ColBERT" in name:
            raise refused(f"config.json says {printable(name)}: {_OTHER_KINDS['ColBERT']}")
        if not _is_native(name):
            raise refused(
                f"config.json says {printable(name)}, a class that transformers does not have: its own "
                "code is needed, which this builder never runs"
            )
    positions = raw.get("position_embedding_type")
    if positions not in (None, "absolute") and not hasattr(type(config), "position_embedding_type"):
        raise refused(
            f"config.json has position_embedding_type {printable(str(positions))!r}, which "
            f"transformers' own {config.model_type} does not have"
        )


def _is_native(name: str) -> bool:
    found = getattr(transformers, name, None)
    return isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)


def pooling_of_plain(folder: Path, architecture: str, given: Pooling | None) -> Pooling:
    """The pooling of a folder without modules.json: `given` by the operator, else InvalidInput.

    sentence-transformers would use the mean, or a language model's last token, and only log it. A model
    that was trained otherwise would then be published with meaningless vectors.
    """
    if (folder / "1_Pooling").is_dir():
        raise refused("there is a folder 1_Pooling but no modules.json, which describes it")
    if given is not None:
        return given
    what = next((said for end, said in _HEADS if architecture.endswith(end)), None)
    if what is None:
        what = f"which says nothing about pooling: give it as --pooling ({_POOLINGS})"
    raise refused(
        "there is no modules.json, so this is no sentence-transformers model but a "
        f"{printable(architecture)}, {what}"
    )
