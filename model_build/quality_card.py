"""What a model's card says of its quality, in Markdown. It does not know how that was measured."""

from __future__ import annotations

from shared.models.manifest import Manifest, Quality


def quality_section(manifest: Manifest) -> str:
    """A section, or nothing for a model that was not measured."""
    quality = manifest.quality
    if quality is None:
        return ""
    parts = [_closeness(quality), *_kept(quality), *_outputs(manifest, quality), *_evaluations(quality)]
    return "\n## Quality\n\n" + "\n\n".join(parts) + "\n"


def _closeness(quality: Quality) -> str:
    if quality.cosine_mean is not None:
        return (
            f"Cosine with the original's vectors: mean {quality.cosine_mean:.4f}, "
            f"minimum {quality.cosine_min:.4f}."
        )
    return (
        f"Rank agreement with the original: mean {quality.rank_agreement_mean:.4f}, "
        f"minimum {quality.rank_agreement_min:.4f}. Scores differ by at most "
        f"{quality.score_max_abs_diff:.4f}."
    )


def _kept(quality: Quality) -> list[str]:
    if not quality.kept_fp32:
        return []
    names = "\n".join(f"- `{name}`" for name in quality.kept_fp32)
    return [
        f"Kept in FP32, because INT8 cost too much there ({quality.kept_fp32_share:.1%} of the "
        f"multiplications; {quality.kept_fp32_time:.2f} times the time that all in INT8 takes):",
        names,
    ]


def _outputs(manifest: Manifest, quality: Quality) -> list[str]:
    if not quality.outputs:
        return []
    rows = "\n".join(
        f"| {form} | {'-' if value is None else f'{value:.4f}'} |"
        for form, value in quality.outputs.items()
    )
    stated = "" if manifest.matryoshka_dimensions else " The model states no shorter dimensions."
    return [
        "How well forms of the vectors keep the order of the sample texts' similarities (Spearman's "
        f"correlation with the original's):{stated}",
        f"| form | order kept |\n|---|---|\n{rows}",
    ]


def _evaluations(quality: Quality) -> list[str]:
    if not quality.evaluations:
        return []
    rows = "\n".join(f"| {task} | {score:.4f} |" for task, score in quality.evaluations.items())
    return [f"| task and figure | score |\n|---|---|\n{rows}"]
