"""Says in words what a build made. It does not know how that was made or measured."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from shared.command_line import command_of
from shared.models.manifest import Manifest, Quality


def report(status: str, manifest: Manifest, origin: Mapping[str, str]) -> None:
    """Print a build's result. origin: prompt -> where it comes from."""
    quality = manifest.quality
    assert quality is not None
    where = {
        "built": "built; --push publishes it",
        "published": "published",
        "held": f"published, not served; {command_of('model_build.rollout')} stage or use does that",
        "unchanged": "nothing to do: this content was published already",
    }
    typer.echo(f"{manifest.name} {manifest.revision} ({manifest.target}): {where[status]}")
    if manifest.task == "embedding":
        typer.echo(
            f"  cosine with the original: mean {quality.cosine_mean:.6f}, "
            f"1st percentile {quality.cosine_p01:.6f}, min {quality.cosine_min:.6f}"
        )
        typer.echo(
            f"  {quality.cosine_low_share:.1%} of the texts below {quality.limits['cosine_low']:g}; "
            f"apart from what all have in common {quality.cosine_centred:.6f}"
        )
        _report_prompts(manifest, origin)
    elif manifest.task != "cross-encoder":
        _report_tokens(manifest, quality)
        _report_prompts(manifest, origin)
    else:
        typer.echo(
            f"  rank agreement with the original: mean {quality.rank_agreement_mean:.4f}, "
            f"min {quality.rank_agreement_min:.4f}"
        )
        typer.echo(
            f"  scores differ by {quality.score_mean_abs_diff:.4f} on average, "
            f"{quality.score_max_abs_diff:.4f} at most"
        )
    unit = "pairs" if manifest.task == "cross-encoder" else "texts"
    typer.echo(f"  largest difference between batches: {quality.batch_max_abs_diff:.1e}")
    typer.echo(
        f"  {manifest.size / 1e6:.1f} MB, loads in {quality.load_s:.2f} s, "
        f"{quality.inputs_per_s:.0f} {unit}/s on this machine"
    )
    if quality.kept_fp32:
        typer.echo(
            f"  kept in FP32, because INT8 cost too much there: {', '.join(quality.kept_fp32)}; "
            f"{quality.kept_fp32_share:.1%} of the multiplications, {quality.kept_fp32_time:.2f} times "
            "the time that all in INT8 takes"
        )
    if quality.outputs:
        kept = ", ".join(f"{form} {value or 0:.4f}" for form, value in quality.outputs.items())
        typer.echo(f"  order of similarities kept: {kept}")
        typer.echo(f"  int8 vectors use {quality.int8_largest} of 127")
    for task, score in quality.evaluations.items():
        typer.echo(f"  {task}: {score:.4f}")


def _report_prompts(manifest: Manifest, origin: Mapping[str, str]) -> None:
    for own, route in (manifest.routes or {}).items():
        typer.echo(f"  texts of prompt or input type {own} take another way ({route.architecture})")
    if not any(manifest.prompts.values()) and not manifest.routes:
        typer.echo("  no prompts, so input_type has no effect; --prompt NAME=TEXT adds one")
    for name, text in sorted(manifest.prompts.items()):
        used = ", used by default" if name == manifest.default_prompt else ""
        typer.echo(f"  prompt {name}: {text!r} ({origin.get(name, 'names a route')}{used})")


def _report_tokens(manifest: Manifest, quality: Quality) -> None:
    of = "text" if manifest.task == "sparse" else "token"
    typer.echo(
        f"  cosine with the original, of each {of}: mean {quality.cosine_mean:.6f}, "
        f"1st percentile {quality.cosine_p01:.6f}, min {quality.cosine_min:.6f}"
    )
    typer.echo(
        f"  rank agreement with the original: mean {quality.rank_agreement_mean:.4f}, "
        f"min {quality.rank_agreement_min:.4f}"
    )
    if quality.active_mean is not None:
        typer.echo(
            f"  {quality.active_mean:.0f} of {manifest.dimensions} words have a weight, on average"
        )
