"""`python -m model_build.rollout`: which revisions of a model there are, and which one is served.

    $ python -m model_build.rollout list bge-m3          revisions, the newest first, and what is served
    $ python -m model_build.rollout use bge-m3 3f9c1a2b  serve that one
    $ python -m model_build.rollout back bge-m3 cpu      serve the one that was built before it

Only the pointer NAME/current changes: no file is copied or deleted, and services take the other revision
up within BLITZ_REFRESH_S, without a restart. Does not build or publish, nor ask any service.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from model_build.__main__ import BAD_INPUT
from shared.cards import Device
from shared.errors import BlitzError, InvalidInput
from shared.models.manifest import Manifest
from shared.models.store import ModelStore, open_store
from shared.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

_Model = Annotated[str, typer.Argument(help="The model's name in the store.")]
_Store = Annotated[
    str, typer.Option(help="file://FOLDER or a blob container's URL; else BLITZ_MODEL_STORE.")
]


@app.command("list")
def list_revisions(model: _Model, store: _Store = "") -> None:
    """Every revision of MODEL, the newest first; * before those that are served."""
    with _opened(store) as opened:
        served = set(opened.revisions(model).items())
        for manifest in opened.published(model):
            is_served = (manifest.device, manifest.revision) in served
            typer.echo(f"{'*' if is_served else ' '} {_line(manifest)}")


@app.command()
def use(
    model: _Model,
    revision: Annotated[str, typer.Argument(help="One that `list` shows.")],
    store: _Store = "",
) -> None:
    """Serve REVISION of MODEL, on the device that it was built for."""
    with _opened(store) as opened:
        opened.revisions(model)
        _serve(opened, opened.manifest(model, revision))


@app.command()
def back(
    model: _Model,
    device: Annotated[str, typer.Argument(help="cpu or gpu.")],
    store: _Store = "",
) -> None:
    """Serve the revision of MODEL that was built before the one that is served on DEVICE."""
    with _opened(store) as opened:
        _serve(opened, previous(opened, model, _device(device)))


def previous(store: ModelStore, model: str, device: Device) -> Manifest:
    """The newest one that is older than what is served. Raises InvalidInput if there is none."""
    current = store.current(model, device)
    of_device = [each for each in store.published(model) if each.device == device]
    revisions = [each.revision for each in of_device]
    older = of_device[revisions.index(current) + 1 :] if current in revisions else []
    if not older:
        raise InvalidInput(
            f"no revision of {model} for {device} is older than {current}, which is served"
        )
    return older[0]


def _serve(store: ModelStore, manifest: Manifest) -> None:
    before = store.point(manifest.name, manifest.revision)
    changed = (
        "nothing to do: served already"
        if before == manifest.revision
        else f"served, instead of {before}"
    )
    typer.echo(f"{manifest.name} {manifest.revision} ({manifest.device}): {changed}")


def _line(manifest: Manifest) -> str:
    """One revision: for which target, when it was built, how close to the original."""
    quality, close = manifest.quality, None
    if quality is not None:
        close = quality.cosine_mean if quality.cosine_mean is not None else quality.rank_agreement_mean
    built = datetime.fromtimestamp(manifest.created, UTC)
    measured = "not measured" if close is None else f"quality {close:.6f}"
    return f"{manifest.revision}  {manifest.target}  built {built:%Y-%m-%d %H:%M} UTC  {measured}"


def _device(text: str) -> Device:
    if text == "cpu":
        return "cpu"
    if text == "gpu":
        return "gpu"
    raise InvalidInput(f"{text} is no device: cpu or gpu is right")


@contextmanager
def _opened(url: str) -> Iterator[ModelStore]:
    """The store that is meant. What goes wrong ends the command, with a line and exit code 2."""
    try:
        settings = Settings.from_env(os.environ)
        yield open_store(replace(settings, model_store=url or settings.model_store))
    except BlitzError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(BAD_INPUT) from error


if __name__ == "__main__":
    app(prog_name="python -m model_build.rollout")
