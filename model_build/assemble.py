"""`python -m model_build.assemble MODEL`: publishes a model that was built elsewhere, without torch.

The files and the manifest, quality included, are byte for byte those of the build that the recipe was
written from; nothing is measured here. It does not know how the files are made: see recipe.py.

Exit codes as in `python -m model_build`.
"""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

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
    model: Annotated[str, typer.Argument(help="A model with a recipe in model_build/recipes.")],
    target: Annotated[BuildTarget, typer.Option(help="What to build.")],
    push: Annotated[
        str, typer.Option(help="Publish to this store: file://FOLDER or a blob container's URL.")
    ],
) -> None:
    """Publish MODEL, assembled from its weights and its recipe. Needs no torch.

    Exit codes: 0 done, 2 bad input, 3 the files differ from the original build, 4 the push failed.
    """
    code = BAD_INPUT
    try:
        recipe = read_recipe(model, target.value)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            settings = Settings.from_env(os.environ)
            store = open_store(replace(settings, model_store=push, cache_dir=folder / "cache"))
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
    """The recipe of a model. Raises InvalidInput (field "model") naming the models that have one."""
    known = {
        path.name.removesuffix(f".{target}.json"): path for path in RECIPES.glob(f"*.{target}.json")
    }
    if model not in known:
        raise InvalidInput(
            f"there is no recipe for {printable(model)} on {target}; there are recipes for: "
            f"{', '.join(sorted(known)) or 'none'}; python -m model_build builds any model, with torch",
            field="model",
        )
    return decode_recipe(known[model].read_bytes())


def report(manifest: Manifest, *, new: bool) -> str:
    """A summary of what was published, with the quality of the original build."""
    quality = manifest.quality
    assert quality is not None
    what, close = "cosine with the original", quality.cosine_mean
    if close is None:
        what, close = "rank agreement with the original", quality.rank_agreement_mean
    built = datetime.fromtimestamp(manifest.created, UTC).date()
    status = "published" if new else "nothing to do: this content was published already"
    return (
        f"{manifest.name} {manifest.revision} ({manifest.target}): {status}\n"
        f"  byte for byte the build made with torch {manifest.tools['torch']} and measured on {built}\n"
        f"  {what}, as measured then: mean {close:.6f}"
    )


if __name__ == "__main__":
    app(prog_name="python -m model_build.assemble")
