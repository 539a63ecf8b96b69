"""`python -m model_build.rollout`: which revisions of a model there are, and which ones answer.

    $ python -m model_build.rollout list bge-m3          revisions, the newest first, and what is served
    $ python -m model_build.rollout use bge-m3 3f9c1a2b  serve that one
    $ python -m model_build.rollout back bge-m3 cpu      serve the one that was built before it
    $ python -m model_build.rollout compare bge-m3 3f9c1a2b     with the one that is served
    $ python -m model_build.rollout stage bge-m3 3f9c1a2b --percent 10    for a tenth of the callers
    $ python -m model_build.rollout promote bge-m3 cpu   serve what is staged; abandon: or do not

Only NAME/current and NAME/staged change: no file is copied or deleted, and services go by them within
BLITZ_REFRESH_S, without a restart. Does not build or publish, nor ask any service.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer
from msgspec.structs import replace

from model_build.__main__ import BAD_INPUT
from model_build.comparison import differences, side_by_side
from shared.cards import Device, Share
from shared.command_line import command_of
from shared.errors import BlitzError, InvalidInput
from shared.models.manifest import Manifest
from shared.models.store import ModelStore, open_store
from shared.names import is_name
from shared.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


class By(StrEnum):
    """What a percentage is of."""

    caller = "caller"
    request = "request"


_Model = Annotated[str, typer.Argument(help="The model's name in the store.")]
_Device = Annotated[str, typer.Argument(help="cpu or gpu.")]
_Store = Annotated[
    str, typer.Option(help="file://FOLDER or a blob container's URL; else BLITZ_MODEL_STORE.")
]


@app.command("list")
def list_revisions(model: _Model, store: _Store = "") -> None:
    """Every revision of MODEL, the newest first; * before those that are served, + staged ones."""
    with _opened(store) as opened:
        served = set(opened.revisions(model).items())
        staged = _staged(opened, model)
        for manifest in opened.published(model):
            share = staged.get(manifest.device)
            is_staged = share is not None and share.revision == manifest.revision
            is_served = (manifest.device, manifest.revision) in served
            mark = "*" if is_served else "+" if is_staged else " "
            whom = f"  staged for {_whom(share)}" if share is not None and is_staged else ""
            typer.echo(f"{mark} {_line(manifest)}{whom}")


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
def back(model: _Model, device: _Device, store: _Store = "") -> None:
    """Serve the revision of MODEL that was built before the one that is served on DEVICE."""
    with _opened(store) as opened:
        _serve(opened, previous(opened, model, _device(device)))


@app.command()
def compare(
    model: _Model,
    revision: Annotated[str, typer.Argument(help="One that `list` shows.")],
    store: _Store = "",
) -> None:
    """REVISION of MODEL beside the one that is served on its device, as both builds measured it."""
    with _opened(store) as opened:
        _compare(*_pair(opened, model, revision))


@app.command()
def stage(
    model: _Model,
    revision: Annotated[str, typer.Argument(help="One that `list` shows.")],
    percent: Annotated[int, typer.Option(min=0, max=100, help="So many of the callers.")] = 0,
    key: Annotated[
        list[str] | None, typer.Option(help="The caller of that name (functions.keys). Repeatable.")
    ] = None,
    by: Annotated[
        By, typer.Option(help="request: --percent is of requests, whoever sends them.")
    ] = By.caller,
    incompatible: Annotated[
        bool,
        typer.Option(
            "--incompatible",
            help="Though its vectors must not stand beside the current one's; for --key alone.",
        ),
    ] = False,
    store: _Store = "",
) -> None:
    """Have REVISION of MODEL answer a share of the requests. Asked again: that share instead."""
    with _opened(store) as opened:
        keys = tuple(key or ())
        _check_share(percent, keys)
        current, staged = _pair(opened, model, revision)
        if current.revision == revision:
            raise InvalidInput(f"{revision} of {model} is what is served: there is nothing to stage")
        apart = differences(current, staged)
        _compare(current, staged)
        if apart and not incompatible:
            raise InvalidInput(
                f"{revision} differs from {current.revision} in {', '.join(apart)}, so that results of "
                "both must not meet in one index; --incompatible with --key is for callers who know"
            )
        if apart and percent:
            raise InvalidInput("--incompatible is for --key alone: a percentage of callers did not ask")
        share = Share(
            revision=revision,
            beside=current.revision,
            percent=percent,
            by=by.value,
            callers=keys,
            compatible=not apart,
        )
        opened.stage(model, share)
        typer.echo(f"{model} {revision} ({staged.device}): staged for {_whom(share)}")


@app.command()
def promote(model: _Model, device: _Device, store: _Store = "") -> None:
    """Serve what is staged for MODEL on DEVICE."""
    with _opened(store) as opened:
        share = _staged_on(opened, model, _device(device))
        _serve(opened, opened.manifest(model, share.revision))


@app.command()
def abandon(model: _Model, device: _Device, store: _Store = "") -> None:
    """Stage nothing for MODEL on DEVICE any more: the revision that is served answers everybody."""
    with _opened(store) as opened:
        share = _staged_on(opened, model, _device(device))
        opened.stages.end(model, _device(device))
        typer.echo(f"{model} {share.revision} ({device}): not staged any more; {share.beside} goes on")


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


def _pair(store: ModelStore, model: str, revision: str) -> tuple[Manifest, Manifest]:
    """What is served on the device of a revision, and that one."""
    store.revisions(model)
    manifest = store.manifest(model, revision)
    return store.manifest(model, store.current(model, manifest.device)), manifest


def _compare(current: Manifest, other: Manifest) -> None:
    for line in side_by_side(current, other):
        typer.echo(line)


def _staged(store: ModelStore, model: str) -> dict[Device, Share]:
    """What is staged and counts, and is not served already."""
    current = store.revisions(model)
    return {
        device: share
        for device, share in store.stages.of(model).items()
        if device in current
        and share.counts_beside(current[device])
        and share.revision != current[device]
    }


def _staged_on(store: ModelStore, model: str, device: Device) -> Share:
    share = _staged(store, model).get(device)
    if share is None:
        raise InvalidInput(f"nothing of {model} is staged for {device}")
    return share


def _check_share(percent: int, keys: tuple[str, ...]) -> None:
    if not percent and not keys:
        raise InvalidInput("say for whom: --percent or --key")
    for key in keys:
        if not is_name(key):
            raise InvalidInput(
                f"{key!r} is no key's name; {command_of('functions.keys')} list shows them"
            )


def _whom(share: Share) -> str:
    named = f"the callers {', '.join(share.callers)}" if share.callers else ""
    part = f"{share.percent} % of {share.by}s" if share.percent else ""
    return " and ".join(filter(None, (part, named)))


def _line(manifest: Manifest) -> str:
    """One revision: for which target, when it was built, how close to the original."""
    close = manifest.quality.closeness if manifest.quality else None
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
