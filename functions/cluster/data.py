"""Bulk embedding with Ray Data: a dataset, or folders of files, through actors that each hold models.

    $ python -m functions.cluster.data IN OUT --model M

IN: a Parquet, JSONL or CSV file, or a folder of them. OUT: a folder on a disk that all nodes share; see
functions.cluster.units for what is in it. Run again after a crash, it goes on with what is not done.

Exit codes: 0 done, 1 done with rows that have no vector, 2 bad input, 4 store or cluster do not answer.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pyarrow as pa
import ray
import typer
from msgspec.structs import replace
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from functions.cluster.rows import HowToEmbed, RowEmbedder
from functions.cluster.start import start_ray
from functions.cluster.units import OutputFolder, Unit, find_units, read_unit
from shared.cards import Device
from shared.errors import BlitzError, InvalidInput, Unavailable, UnknownModel
from shared.models.catalogue import Catalogue
from shared.models.store import open_store
from shared.settings import Settings, aliases_of
from shared.wire import messages
from shared.wording import counted

if TYPE_CHECKING:
    from ray.data import Dataset

BATCH_ROWS = 512
FAILED_ROWS, BAD_INPUT, NO_ANSWER = 1, 2, 4

URL_ADVICE = "mount it on all nodes, or call functions.cluster.data.embed on what Ray Data reads there"


def embed(
    dataset: Dataset,
    *,
    model: str,
    text_column: str = "text",
    settings: Settings | None = None,
    dimensions: int | None = None,
    prompt_name: str | None = None,
    truncate: bool = True,
    device: Device = "cpu",
    actors: tuple[int, int] = (1, 1),
    actor_cpus: int = 1,
) -> Dataset:
    """The dataset with columns vector (D numbers of float32), tokens, truncated, and error: why a row
    has no vector, or null.

    settings: None: those of the environment. actors: at least and at most, each with models of its own
    and `actor_cpus` CPUs, or a GPU. The model's revision is the one that is current now. Raises
    UnknownModel and StoreUnavailable; rows are embedded when the dataset is consumed.
    """
    settings = settings or Settings.from_env(os.environ)
    how = plan_embedding(
        settings,
        device,
        model,
        text_column,
        dimensions=dimensions,
        prompt_name=prompt_name,
        truncate=truncate,
    )
    return dataset.map_batches(
        RowEmbedder,
        fn_constructor_args=(settings, device, actor_cpus, how),
        batch_format="pyarrow",
        batch_size=BATCH_ROWS,
        **_resources(device, actors, actor_cpus),
    )


def plan_embedding(
    settings: Settings,
    device: Device,
    model: str,
    text_column: str,
    *,
    dimensions: int | None,
    prompt_name: str | None,
    truncate: bool,
) -> HowToEmbed:
    """With the model's current revision, its name for an alias, its dimensions if none are given.

    Raises UnknownModel, InvalidInput, StoreUnavailable.
    """
    name = aliases_of(settings.model_aliases).get(model, model)
    cards = asyncio.run(Catalogue(open_store(settings), (device,)).cards())
    by_name = {card.name: card for card in cards if card.task == "embedding"}
    if name not in by_name:
        raise UnknownModel.among(sorted(by_name), name)
    card = by_name[name]
    if dimensions is not None and dimensions > card.dimensions:
        raise InvalidInput(f"{name} has {card.dimensions} dimensions", field="dimensions")
    return HowToEmbed(
        name, card.revision, dimensions or card.dimensions, text_column, prompt_name, truncate
    )


class UnitEmbedder:
    """Ray's actor: reads units, embeds their rows, writes them. One row in, one row out, per unit.

    An error is a packed one in that row: raised through Ray it would be a page of tracebacks.
    """

    def __init__(
        self, settings: Settings, device: Device, threads: int, how: HowToEmbed, out: str
    ) -> None:
        self._create_embedder = cache(lambda: RowEmbedder(settings, device, threads, how))
        self._text_column = how.text_column
        self._output = OutputFolder(Path(out))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """batch: the JSON of one Unit, in a list of one."""
        unit = msgspec.json.decode(str(batch["unit"][0]), type=Unit)
        try:
            done = self._output.write(unit, self._embedded(unit))
        except BlitzError as error:
            return {"name": [unit.name], "rows": [0], "bad": [0], "error": [messages.pack_error(error)]}
        return {"name": [unit.name], "rows": [done.rows], "bad": [done.bad], "error": [b""]}

    def _embedded(self, unit: Unit) -> Iterator[pa.Table]:
        embed_rows = self._create_embedder()
        for table in read_unit(unit, self._text_column):
            yield embed_rows(table)


def _resources(device: Device, actors: tuple[int, int], cpus: int) -> dict[str, Any]:
    pool = ActorPoolStrategy(min_size=actors[0], max_size=actors[1])
    return {"compute": pool, "num_cpus": cpus, **({"num_gpus": 1} if device == "gpu" else {})}


def embed_files(
    source: Path,
    out: Path,
    how: HowToEmbed,
    settings: Settings,
    *,
    device: Device = "cpu",
    actors: tuple[int, int] = (1, 1),
    actor_cpus: int = 1,
) -> tuple[int, int, list[str]]:
    """Embed what is not done; rows with vectors and without, of all units, and why files failed.

    Raises InvalidInput for inputs or an output that cannot be, what an actor's models raise, and
    Unavailable if an actor does not start.
    """
    output = OutputFolder(out)
    units = find_units(source)
    how = output.begin(how)
    output.keep_only(units)
    left, rows, bad = [], 0, 0
    for unit in units:
        done = output.done(unit)
        if done is None:
            left.append(unit)
        else:
            rows, bad = rows + done.rows, bad + done.bad
    if not left:
        return rows, bad, []
    # A block for each unit, so that actors get them one by one.
    items = [{"unit": msgspec.json.encode(unit).decode()} for unit in left]
    dataset = ray.data.from_items(items, override_num_blocks=len(left))
    results = dataset.map_batches(
        UnitEmbedder,
        fn_constructor_args=(settings, device, actor_cpus, how, str(out)),
        batch_size=1,
        **_resources(device, actors, actor_cpus),
    )
    failures = []
    with _translating():
        for result in results.iter_rows():
            rows, bad = rows + result["rows"], bad + result["bad"]
            if result["error"]:
                error = messages.unpack_error(result["error"])
                if not isinstance(error, InvalidInput):  # which is of one file
                    raise error
                failures.append(f"{result['name']}: {error.message}")
    return rows, bad, failures


def _check_resources(device: Device, actor_cpus: int) -> None:
    """Raises InvalidInput if no actor would ever start; a cluster that is joined may add nodes."""
    there = ray.cluster_resources()
    if there.get("CPU", 0) < actor_cpus:
        raise InvalidInput(f"this machine has {there['CPU']:g} CPUs for Ray", field="actor_cpus")
    if device == "gpu" and there.get("GPU", 0) < 1:
        raise InvalidInput("Ray finds no GPU on this machine", field="gpu")


@contextmanager
def _translating() -> Iterator[None]:
    """Translate Ray's errors into ours. It runs what an actor that died had again by itself."""
    try:
        yield
    except RayError:
        raise Unavailable("the cluster ended the job: run it again, and it goes on") from None


def main(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file or a folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that all nodes share.")],
    model: Annotated[str, typer.Option(help="The model.")],
    model_store: Annotated[str, typer.Option(help="file://FOLDER or a blob container's URL.")] = "",
    text_column: Annotated[str, typer.Option(help="Column or JSON field with the text.")] = "text",
    dimensions: Annotated[int | None, typer.Option(min=1, help="Shorter vectors.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="Of the model's prompts.")] = None,
    no_truncate: Annotated[
        bool, typer.Option("--no-truncate", help="Texts longer than the model reads get no vector.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Actors with a GPU each.")] = False,
    actors: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1,
    actor_cpus: Annotated[int, typer.Option(min=1, help="CPUs, engine threads, of one.")] = 1,
) -> None:
    """Embed the texts of files on a Ray cluster: a local one, or what RAY_ADDRESS names."""
    device: Device = "gpu" if gpu else "cpu"
    try:
        settings = Settings.from_env(os.environ)
        if model_store:
            settings = replace(settings, model_store=model_store)
        for field, path in (("IN", source), ("OUT", out)):
            if path.parts[:1] and path.parts[0].endswith(":"):
                raise InvalidInput(f"{path.parts[0]}// is no folder: {URL_ADVICE}", field=field)
        if not source.exists():
            raise InvalidInput(f"there is no {source}", field="IN")
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise InvalidInput("OUT is in IN: vectors would be read as inputs", field="OUT")
        how = plan_embedding(
            settings,
            device,
            model,
            text_column,
            dimensions=dimensions,
            prompt_name=prompt_name,
            truncate=not no_truncate,
        )
        start_ray(os.environ, log_to_driver=True)
        if "RAY_ADDRESS" not in os.environ:
            _check_resources(device, actor_cpus)
        rows, bad, failures = embed_files(
            source.resolve(),
            out.resolve(),
            how,
            settings,
            device=device,
            actors=(1, actors),
            actor_cpus=actor_cpus,
        )
    except BlitzError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(NO_ANSWER if isinstance(error, Unavailable) else BAD_INPUT) from None
    finally:
        ray.shutdown()
    print(f"{counted(rows, 'row')} with vectors, {bad:,} without, in {out}")
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures:
        raise typer.Exit(BAD_INPUT)
    if bad:
        raise typer.Exit(FAILED_ROWS)


if __name__ == "__main__":
    typer.run(main)
