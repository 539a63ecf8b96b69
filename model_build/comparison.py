"""Two revisions of a model side by side, and whether the results of one may stand beside the other's.

Reads manifests; does not know stores, nor which revision is served.
"""

from __future__ import annotations

from collections.abc import Callable

from shared.errors import InvalidInput
from shared.models.manifest import Manifest

_SEPARATES: dict[str, Callable[[Manifest], object]] = {
    "weights": lambda model: model.source.revision,
    "dimensions": lambda model: model.dimensions,
    "pooling": lambda model: model.pooling,
    "normalize": lambda model: model.normalize,
    "int8 ranges": lambda model: model.int8_ranges,
    "prompts": lambda model: model.prompts,
    "default prompt": lambda model: model.default_prompt,
}
"""What makes vectors of one no neighbours of the other's. A cross-encoder's scores are in no index."""

_QUALITY = {
    "cosine, mean": ("cosine_mean", ".6f"),
    "cosine, 1st percentile": ("cosine_p01", ".6f"),
    "cosine, min": ("cosine_min", ".6f"),
    "rank agreement, mean": ("rank_agreement_mean", ".4f"),
    "rank agreement, min": ("rank_agreement_min", ".4f"),
    "score difference, mean": ("score_mean_abs_diff", ".4f"),
    "score difference, max": ("score_max_abs_diff", ".4f"),
    "difference by batch": ("batch_max_abs_diff", ".1e"),
    "loads in s": ("load_s", ".2f"),
    "inputs/s when built": ("inputs_per_s", ".0f"),
}
_ABSENT = "-"


def differences(current: Manifest, other: Manifest) -> list[str]:
    """What keeps their results apart, in words; none if they may stand beside each other.

    Raises InvalidInput if they cannot even answer the same requests.
    """
    for what, mine, others in (
        ("task", current.task, other.task),
        ("number of labels", len(current.labels), len(other.labels)),
    ):
        if mine != others:
            raise InvalidInput(
                f"{other.revision} has another {what} than {current.revision}, {others} instead of "
                f"{mine}: publish it under a name of its own"
            )
    if current.task == "cross-encoder":
        return ["labels"] if current.labels != other.labels else []
    return [what for what, told in _SEPARATES.items() if told(current) != told(other)]


def side_by_side(current: Manifest, other: Manifest) -> list[str]:
    """Lines of a table: what, the current one, the other; without what neither has."""
    left, right = _told(current), _told(other)
    rows = [("", "current", "other")]
    for what in dict.fromkeys((*left, *right)):
        row = (what, left.get(what, _ABSENT), right.get(what, _ABSENT))
        if row[1:] != (_ABSENT, _ABSENT):
            rows.append(row)
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{what:{first}}  {mine:{second}}  {others}".rstrip() for what, mine, others in rows]


def _told(model: Manifest) -> dict[str, str]:
    prompts = {f"prompt {name}": repr(text) for name, text in sorted(model.prompts.items())}
    told = {
        "revision": model.revision,
        "target": model.target,
        "weights": f"{model.source.name} {model.source.revision[:12]}",
        "dimensions": str(model.dimensions),
        "max tokens": str(model.max_tokens),
        "int8 range": f"{model.int8_range():g}" if model.task == "embedding" else _ABSENT,
        **prompts,
        "default prompt": model.default_prompt or _ABSENT,
        "labels": ", ".join(model.labels) or _ABSENT,
        "size, MB": f"{model.size / 1e6:.1f}",
    }
    for what, (field, form) in _QUALITY.items():
        value = getattr(model.quality, field, None)
        told[what] = _ABSENT if value is None else format(value, form)
    evaluations = model.quality.evaluations if model.quality else {}
    return told | {task: f"{score:.4f}" for task, score in evaluations.items()}
