"""`python -m model_build MODEL`: exports, quantises, evaluates and publishes a model, and reports on it.

It does not know how any of these steps works.

Exit codes: 0 done, 2 bad input, 3 a gate failed (nothing is published), 4 the push failed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from model_build.locate import Located, locate
from model_build.prompts import parse_prompts
from shared.command_line import command_of
from shared.errors import BlitzError, InvalidArtefact, InvalidInput, Misconfigured
from shared.models.manifest import MANIFEST_FILE, Manifest, encode_manifest
from shared.models.store import ModelStore, open_store
from shared.names import check_name
from shared.settings import Settings
from shared.vectors import Pooling

if TYPE_CHECKING:
    from model_build.source import SourceModel

BAD_INPUT, GATE_FAILED, PUSH_FAILED = 2, 3, 4
_PACKAGES = ("torch", "transformers", "sentence_transformers", "onnx", "onnxscript", "scipy")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class BuildTarget(StrEnum):
    """Device and number format to build for."""

    int8 = "cpu-int8"
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


class Progressing:
    """Reports the build's steps on stderr: a progress bar on a terminal, otherwise a line per step."""

    def __init__(self, steps: int) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Progressing:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs."""
        self._bar.update(self._task, description=name)
        if not self._console.is_terminal:
            typer.echo(name, err=True)
        yield
        self._bar.advance(self._task)


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
            _check_packages()
            given = parse_prompts(prompt or [])
            store = _open(push, folder / "cache") if push else None
            located = locate(model, revision)
            final_name = check_name(name or located.name, field="name")
            if hold:
                _check_served(store, final_name, target)
            with Progressing(5) as progress:
                asked = Asked(
                    target=target,
                    name=final_name,
                    pooling=None if pooling is None else pooling.value,
                    prompts=given,
                    evaluations=evaluations or [],
                    min_cosine=min_cosine,
                    min_worst_cosine=min_worst_cosine,
                    min_rank_agreement=min_rank_agreement,
                )
                manifest, origin, short = _make(folder, located, asked, progress)
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
    _report(status, manifest, origin, as_json)


def _check_packages() -> None:
    """Raises Misconfigured if only the serving packages are installed, as after `make run`."""
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise Misconfigured(
            f"building a model needs packages that are not installed ({', '.join(missing)}); "
            "make .venv/build installs them"
        )


def _open(url: str, cache: Path) -> ModelStore:
    settings = Settings.from_env(os.environ)
    return open_store(dataclasses.replace(settings, model_store=url, cache_dir=cache))


def _check_served(store: ModelStore | None, name: str, target: BuildTarget) -> None:
    """Raises InvalidInput for --hold where there is nothing that goes on being served."""
    if store is None:
        raise InvalidInput("--hold is for --push", field="hold")
    store.current(name, "gpu" if target is BuildTarget.fp16 else "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of a build. None: what is usual for the target, or stated by the folder."""

    target: BuildTarget
    name: str
    pooling: Pooling | None
    prompts: dict[str, str]
    evaluations: list[Path]
    min_cosine: float | None
    min_worst_cosine: float | None
    min_rank_agreement: float | None


def _make(
    folder: Path, located: Located, asked: Asked, progress: Progressing
) -> tuple[Manifest, dict[str, str], list[str]]:
    """Build into `folder`; return the manifest with its quality, the prompts' origins, and failed gates.

    Raises InvalidArtefact if the original returns NaN or infinite numbers.
    """
    target = asked.target
    with progress.step("read the model"):
        # torch takes seconds to import; a mistyped name should fail before that.
        from transformers.utils.logging import disable_progress_bar

        from model_build.adapter import merge_adapter
        from model_build.describe import describe
        from model_build.evaluate import evaluate
        from model_build.gates import gates_of, shortfalls
        from model_build.memory import measure_memory
        from model_build.native import with_native_code
        from model_build.prompts import with_prompts
        from model_build.source import inspect_source
        from model_build.tasks import check_rankable, read_evaluation

        disable_progress_bar()
        logging.getLogger("onnxruntime").setLevel(logging.ERROR)
        tasks = [read_evaluation(path) for path in asked.evaluations]
        merged = merge_adapter(located.folder, folder / "merged")
        root = with_native_code(merged, folder / "source")
        read = inspect_source(root, asked.pooling)
        prompted = with_prompts(read, (*located.names, asked.name), asked.prompts)
        source = prompted.source
        if source.task == "cross-encoder":
            check_rankable(tasks, source.dimensions)
        _check_target(source, target)
    gates = gates_of(
        target.value,
        mean=asked.min_cosine,
        minimum=asked.min_worst_cosine,
        rank_agreement=asked.min_rank_agreement,
    )
    if target is BuildTarget.static:
        with progress.step("convert"):
            from model_build.describe import WEIGHTS_FILE
            from model_build.static import export_static

            export_static(
                source.folder, source.architecture, source.tokenizer_json, folder / WEIGHTS_FILE
            )
    elif target is BuildTarget.fp16:
        with progress.step("convert"):
            from model_build.fp16 import export_fp16

            export_fp16(source, folder)
    else:
        _make_graph(folder, source, target, progress)
    with progress.step("describe"):
        manifest = describe(folder, source, located.source, asked.name, target.value)
    with progress.step("evaluate"):
        try:
            quality = evaluate(folder, manifest, root, source, tasks, gates)
            memory = measure_memory(folder, manifest)
        except InvalidArtefact as error:  # the target's engine cannot run it
            return manifest, prompted.origin, [error.message]
    measured = msgspec.structs.replace(manifest, quality=quality, memory=memory)
    return measured, prompted.origin, shortfalls(quality, target.value, gates)


def _check_target(source: SourceModel, target: BuildTarget) -> None:
    """Raises InvalidInput (field "target")."""
    from model_build.source import STATIC

    if (source.model_type == STATIC) == (target is BuildTarget.static):
        return
    if target is BuildTarget.static:
        message = f"is for tables of static embeddings: build a {source.architecture} for cpu-int8"
    else:
        message = (
            "is for transformers, and this model is a table of static embeddings, which has no layers "
            "to quantise and which a GPU would not read faster: build it for cpu-static"
        )
    raise InvalidInput(f"{target.value} {message}", field="target")


def _make_graph(folder: Path, source: SourceModel, target: BuildTarget, progress: Progressing) -> None:
    """Write the ONNX graph of a CPU target."""
    from model_build.calibration import find_divisors
    from model_build.describe import MODEL_FILE
    from model_build.export import export_onnx, optimize_offline
    from model_build.int8 import quantize_per_row

    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "fp32.onnx"
        with progress.step("export"):
            export_onnx(source, graph)
        with progress.step("quantise" if target is BuildTarget.int8 else "optimise"):
            if target is BuildTarget.int8:
                divisors = find_divisors(graph, source)
                if not quantize_per_row(graph, graph.with_name("int8.onnx"), divisors):
                    raise InvalidInput(
                        "the model has no layer that can be quantised to INT8", field="target"
                    )
                graph = graph.with_name("int8.onnx")
            optimize_offline(graph, folder / MODEL_FILE)


def _keep(folder: Path, manifest: Manifest, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in manifest.files:
        shutil.copyfile(folder / file.name, out / file.name)
    (out / MANIFEST_FILE).write_bytes(encode_manifest(manifest))


def _record(folder: Path, manifest: Manifest, source: Path, recipe: Path, as_json: bool) -> None:
    from model_build.int8 import smoothing_in
    from model_build.recipe import encode_recipe, write_recipe

    try:
        model = folder / manifest.model_file
        divisors = smoothing_in(model) if manifest.target == "cpu-int8" else []
        recipe.write_bytes(encode_recipe(write_recipe(folder, manifest, source, divisors)))
    except BlitzError as error:
        _fail(error.message, BAD_INPUT, as_json, manifest)
    except OSError:
        _fail("the file given by --recipe is not writable", BAD_INPUT, as_json, manifest)


def _fail(message: str, code: int, as_json: bool, manifest: Manifest | None = None) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    if as_json:
        _print_json({"status": "failed", "exit_code": code, "error": message, "manifest": manifest})
    raise typer.Exit(code)


def _report(status: str, manifest: Manifest, origin: dict[str, str], as_json: bool) -> None:
    """Print the result. origin: prompt -> where it comes from."""
    if as_json:
        result = {"status": status, "exit_code": 0, "error": None, "manifest": manifest}
        _print_json(result | {"prompts_from": origin})
        return
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
    else:
        typer.echo(
            f"  rank agreement with the original: mean {quality.rank_agreement_mean:.4f}, "
            f"min {quality.rank_agreement_min:.4f}"
        )
        typer.echo(
            f"  scores differ by {quality.score_mean_abs_diff:.4f} on average, "
            f"{quality.score_max_abs_diff:.4f} at most"
        )
    unit = "texts" if manifest.task == "embedding" else "pairs"
    typer.echo(f"  largest difference between batches: {quality.batch_max_abs_diff:.1e}")
    typer.echo(
        f"  {manifest.size / 1e6:.1f} MB, loads in {quality.load_s:.2f} s, "
        f"{quality.inputs_per_s:.0f} {unit}/s on this machine"
    )
    if quality.outputs:
        kept = ", ".join(f"{form} {value or 0:.4f}" for form, value in quality.outputs.items())
        typer.echo(f"  order of similarities kept: {kept}")
        typer.echo(f"  int8 vectors use {quality.int8_largest} of 127")
    for task, score in quality.evaluations.items():
        typer.echo(f"  {task}: {score:.4f}")


def _report_prompts(manifest: Manifest, origin: dict[str, str]) -> None:
    if not any(manifest.prompts.values()):
        typer.echo("  no prompts, so input_type has no effect; --prompt NAME=TEXT adds one")
    for name, text in sorted(manifest.prompts.items()):
        used = ", used by default" if name == manifest.default_prompt else ""
        typer.echo(f"  prompt {name}: {text!r} ({origin[name]}{used})")


def _print_json(value: dict[str, Any]) -> None:
    # The real stdout, even while stdout is redirected.
    print(msgspec.json.encode(value).decode(), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    app(prog_name=command_of("model_build"))
