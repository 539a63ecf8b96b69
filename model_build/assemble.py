"""`python -m model_build.assemble MODEL`: publishes a model that was built elsewhere, without torch.

It does not know how the files are made: see recipe.py. Nothing is measured here: the manifest, with the
quality that it states, is that of the build which the recipe was written from, as are the files' bytes.

Exit codes are those of `python -m model_build`.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from model_build.__main__ import BAD_INPUT, GATE_FAILED, PUSH_FAILED, BuildTarget
from model_build.locate import locate
from model_build.recipe import Recipe, decode_recipe, follow_recipe
from shared.errors import BlitzError, InvalidInput, printable
from shared.models.manifest import Manifest, Target
from shared.models.store import open_store
from shared.settings import Settings

RECIPES = Path(__file__).with_name("recipes")

_WORDS = {GATE_FAILED: "not published: ", PUSH_FAILED: "the push failed: "}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def assemble(
    model: Annotated[
        str, typer.Argument(help="A model that there is a recipe of in model_build/recipes.")
    ],
    target: Annotated[BuildTarget, typer.Option(help="What it shall run on.")],
    push: Annotated[
        str, typer.Option(help="Publish to this store: file://FOLDER or a blob container's URL.")
    ],
) -> None:
    """Publish MODEL as it was built and measured, from its weights and its recipe. Needs no torch.

    Exit codes: 0 done, 2 bad input, 3 the files are not those that were built, 4 the push failed.
    """
    code = BAD_INPUT
    try:
        recipe = read_recipe(model, target.value)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            settings = Settings.from_env(os.environ)
            store = open_store(
                dataclasses.replace(settings, model_store=push, cache_dir=folder / "cache")
            )
            source = locate(model).folder
            code = GATE_FAILED
            follow_recipe(recipe, source, folder)
            code = PUSH_FAILED
            new = store.publish(folder, recipe.manifest)
    except BlitzError as error:
        typer.echo(f"error: {_WORDS.get(code, '')}{error.message}", err=True)
        raise typer.Exit(code) from error
    typer.echo(report(recipe.manifest, new=new))


def read_recipe(model: str, target: Target) -> Recipe:
    """Raises InvalidInput (field "model") that names the models which have one for `target`."""
    known = {
        path.name.removesuffix(f".{target}.json"): path for path in RECIPES.glob(f"*.{target}.json")
    }
    if model not in known:
        raise InvalidInput(
            f"there is no recipe to assemble {printable(model)} for {target} from, only for: "
            f"{', '.join(sorted(known)) or 'none'}; python -m model_build builds any model, with torch",
            field="model",
        )
    return decode_recipe(known[model].read_bytes())


def report(manifest: Manifest, *, new: bool) -> str:
    """What was published, and that its quality was not measured here."""
    quality = manifest.quality
    assert quality is not None
    what, close = "cosine with the original", quality.cosine_mean
    if close is None:
        what, close = "rank agreement with the original", quality.rank_agreement_mean
    built = datetime.fromtimestamp(manifest.created, UTC).date()
    status = "published" if new else "nothing to do: this content was published already"
    return (
        f"{manifest.name} {manifest.revision} ({manifest.target}): {status}\n"
        f"  the same bytes as were built with torch {manifest.tools['torch']} and measured on {built}\n"
        f"  {what}, as measured then: mean {close:.6f}"
    )


if __name__ == "__main__":
    app(prog_name="python -m model_build.assemble")
