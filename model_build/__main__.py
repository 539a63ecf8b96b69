"""`python -m model_build MODEL`: exports, quantises, evaluates and publishes a model, and reports on it.

It does not know how any of these steps works.

Exit codes: 0 done, 2 bad input, 3 a gate failed (nothing is published), 4 the push failed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from msgspec.structs import replace

from model_build.locate import locate
from model_build.make import Asked, make
from model_build.progress import Progressing
from model_build.prompts import parse_prompts
from model_build.report import report
from shared.command_line import command_of
from shared.errors import BlitzError, InvalidArtefact, InvalidInput, Misconfigured
from shared.models.manifest import MANIFEST_FILE, Manifest, encode_manifest
from shared.models.store import ModelStore, open_store
from shared.names import check_name
from shared.settings import Settings

BAD_INPUT, GATE_FAILED, PUSH_FAILED = 2, 3, 4
_PACKAGES = ("torch", "transformers", "sentence_transformers", "onnx", "onnxscript", "scipy")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class BuildTarget(StrEnum):
    """Device and number format to build for."""

    int8 = "cpu-int8"
    int8_static = "cpu-int8-static"
    bf16 = "cpu-bf16"
    fp32 = "cpu-fp32"
    static = "cpu-static"
    fp16 = "gpu-fp16"


class PoolingName(StrEnum):
    """A pooling of --pooling, by its name in manifests."""

    mean = "mean"
    cls = "cls"
    max = "max"
    last = "last"
    weighted_mean = "weighted_mean"
    mean_sqrt_length = "mean_sqrt_length"
    splade = "splade"


_OPTIONAL = {BuildTarget.int8_static: ("openvino", "nncf"), BuildTarget.bf16: ("openvino",)}


@app.command()
def build(
    model: Annotated[str, typer.Argument(help="A folder, a name in models.toml, or a hub id ORG/NAME.")],
    target: Annotated[BuildTarget, typer.Option(help="What to build.")],
    name: Annotated[
        str, typer.Option(help="Publish under this name. Default: the last part of MODEL.")
    ] = "",
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag of a hub model; prefer a commit.")
    ] = None,
    push: Annotated[
        str,
        typer.Option(help="Publish to this store: file://FOLDER or a blob container's URL."),
    ] = "",
    hold: Annotated[
        bool, typer.Option("--hold", help="Publish without serving it; model_build.rollout stages it.")
    ] = False,
    pooling: Annotated[
        PoolingName | None,
        typer.Option(help="How to pool a transformers folder, which does not state it."),
    ] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Refuse an embedding model below this mean cosine. Default: the target's.",
        ),
    ] = None,
    min_worst_cosine: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Refuse an embedding model if one text's cosine is lower. Default: the target's.",
        ),
    ] = None,
    min_rank_agreement: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            help="Refuse a cross-encoder below this Spearman correlation. Default: the target's.",
        ),
    ] = None,
    evaluations: Annotated[
        list[Path] | None,
        typer.Option(
            "--eval", help="A .tsv of score, a, b; a .csv of qtext, label, atext; a BEIR folder."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TEXT",
            help="Add a prompt to an embedding model, as query='query: '; NAME= removes one. The names "
            "query, document, classification and clustering serve that input_type. Default: the prompts "
            "of the model's configuration, or those known for its family. Repeatable.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="For cpu-int8-static: texts like those that will be embedded, one a line; for a "
            "cross-encoder a query, a tab and a document. Default: the builder's own."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also keep the built files in this folder.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Also write a recipe, from which model_build.assemble makes the same files without "
            "torch: model_build/recipes/NAME.TARGET.json."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")
    ] = False,
) -> None:
    """Build MODEL for one target, measure it against the original, and publish it.

    Exit codes: 0 done, 2 bad input, 3 a gate failed, 4 the push failed.
    """
    # Libraries print to stdout, which is reserved for --json.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            _check_calibration(calibration, target)
            _check_packages(target)
            os.environ["NNCF_CI"] = "1"  # NNCF would otherwise send statistics to its maker, unasked
            given = parse_prompts(prompt or [])
            store = _open(push, folder / "cache") if push else None
            located = locate(model, revision)
            final_name = check_name(name or located.name, field="name")
            if hold:
                _check_served(store, final_name, target)
            with Progressing(5) as progress:
                asked = Asked(
                    target=target.value,
                    name=final_name,
                    pooling=None if pooling is None else pooling.value,
                    prompts=given,
                    evaluations=evaluations or [],
                    calibration=calibration,
                    min_cosine=min_cosine,
                    min_worst_cosine=min_worst_cosine,
                    min_rank_agreement=min_rank_agreement,
                )
                manifest, origin, short = make(folder, located, asked, progress)
        except InvalidArtefact as error:  # the model is at fault, not the command line
            _fail(f"not published: {error.message}", GATE_FAILED, as_json)
        except BlitzError as error:
            _fail(error.message, BAD_INPUT, as_json)
        if short:
            _fail("not published: " + "; ".join(short), GATE_FAILED, as_json, manifest)
        status = "built"
        try:
            if out is not None:
                _keep(folder, manifest, out)
        except OSError:
            _fail("the folder given by --out is not writable", BAD_INPUT, as_json, manifest)
        if recipe is not None:
            _record(folder, manifest, located.folder, recipe, as_json)
        try:
            if store is not None:
                is_new = store.publish(folder, manifest, serve=not hold)
                status = ("held" if hold else "published") if is_new else "unchanged"
        except BlitzError as error:
            _fail(f"the push failed: {error.message}", PUSH_FAILED, as_json, manifest)
    if as_json:
        result = {"status": status, "exit_code": 0, "error": None, "manifest": manifest}
        _print_json(result | {"prompts_from": origin})
    else:
        report(status, manifest, origin)


def _check_calibration(given: Path | None, target: BuildTarget) -> None:
    """Raises InvalidInput for texts that the target has no use for."""
    if given is not None and target.value != "cpu-int8-static":
        raise InvalidInput("--calibration is for --target cpu-int8-static", field="calibration")


def _check_packages(target: BuildTarget) -> None:
    """Raises Misconfigured if only the serving packages are installed, as after `make run`, or OpenVINO
    is not and `target` is for it."""
    optional = _OPTIONAL.get(target, ())
    for packages, environment in ((_PACKAGES, "build"), (optional, "openvino")):
        if missing := [name for name in packages if find_spec(name) is None]:
            raise Misconfigured(
                f"building a model for {target} needs packages that are not installed "
                f"({', '.join(missing)}); make .venv/{environment} installs them"
            )


def _open(url: str, cache: Path) -> ModelStore:
    settings = Settings.from_env(os.environ)
    return open_store(replace(settings, model_store=url, cache_dir=cache))


def _check_served(store: ModelStore | None, name: str, target: BuildTarget) -> None:
    """Raises InvalidInput for --hold where there is nothing that goes on being served."""
    if store is None:
        raise InvalidInput("--hold is for --push", field="hold")
    store.current(name, "gpu" if target is BuildTarget.fp16 else "cpu")


def _keep(folder: Path, manifest: Manifest, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in manifest.files:
        shutil.copyfile(folder / file.name, out / file.name)
    (out / MANIFEST_FILE).write_bytes(encode_manifest(manifest))


def _record(folder: Path, manifest: Manifest, source: Path, recipe: Path, as_json: bool) -> None:
    from model_build.int8 import smoothing_in
    from model_build.masked_keys import heads_in
    from model_build.recipe import encode_recipe, write_recipe

    try:
        model = folder / manifest.model_file
        int8 = manifest.target == "cpu-int8"
        divisors, heads = (smoothing_in(model), heads_in(model)) if int8 else ([], 0)
        recipe.write_bytes(encode_recipe(write_recipe(folder, manifest, source, divisors, heads)))
    except BlitzError as error:
        _fail(error.message, BAD_INPUT, as_json, manifest)
    except OSError:
        _fail("the file given by --recipe is not writable", BAD_INPUT, as_json, manifest)


def _fail(message: str, code: int, as_json: bool, manifest: Manifest | None = None) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    if as_json:
        _print_json({"status": "failed", "exit_code": code, "error": message, "manifest": manifest})
    raise typer.Exit(code)


def _print_json(value: dict[str, Any]) -> None:
    # The real stdout, even while stdout is redirected.
    print(msgspec.json.encode(value).decode(), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    app(prog_name=command_of("model_build"))
