"""Makes a model's files: reads the original, converts it, describes the result and measures it.

It does not know options of a command line, or where the result is kept or published.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from model_build.locate import Located
from model_build.progress import Progressing
from shared.errors import InvalidArtefact, InvalidInput
from shared.models.manifest import OPENVINO_TARGETS, Manifest, Source, Target
from shared.vectors import Pooling

if TYPE_CHECKING:
    from model_build.gates import Gates
    from model_build.reference import Reference
    from model_build.sensitivity import Kept
    from model_build.source import SourceModel
    from model_build.tasks import Evaluation

# Graphs between the steps, in a folder beside what is published.
_GRAPHS, _FP32, _INT8, _INT8_HEAD = "graphs", "fp32.onnx", "int8.onnx", "int8-head.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of a build. None: what is usual for the target, or stated by the folder."""

    target: Target
    name: str
    pooling: Pooling | Literal["splade"] | None
    prompts: dict[str, str]
    evaluations: Sequence[Path]
    calibration: Path | None = None
    min_cosine: float | None
    min_worst_cosine: float | None
    min_rank_agreement: float | None


def make(
    folder: Path, located: Located, asked: Asked, progress: Progressing
) -> tuple[Manifest, dict[str, str], list[str]]:
    """Build into `folder`; return the manifest with its quality, the prompts' origins, and failed gates.

    Raises InvalidArtefact if the original returns NaN or infinite numbers.
    """
    with progress.step("read the model"):
        # torch takes seconds to import; a mistyped name should fail before that.
        from transformers.utils.logging import disable_progress_bar

        from model_build.adapter import merge_adapter
        from model_build.describe import with_int8_ranges
        from model_build.native import with_native_code
        from model_build.peaks import check_memory
        from model_build.prompts import with_prompts
        from model_build.ranges import calibrate_int8
        from model_build.reference import Reference
        from model_build.routed import make_routed
        from model_build.routes import with_routes
        from model_build.source import inspect_source
        from model_build.tasks import check_rankable, read_evaluation
        from model_build.text_side import with_text_side

        disable_progress_bar()
        for library in ("onnxruntime", "sentence_transformers"):
            logging.getLogger(library).setLevel(logging.ERROR)
        tasks = [read_evaluation(path) for path in asked.evaluations]
        merged = merge_adapter(located.folder, folder / "merged")
        root = with_native_code(merged, folder / "source")
        if routes := with_routes(root, folder / "routes"):
            return make_routed(folder, root, routes, located, asked, progress)
        read = inspect_source(with_text_side(root, folder / "text"), asked.pooling)
        prompted = with_prompts(read, (*located.names, asked.name), asked.prompts)
        source = prompted.source
        check_rankable(tasks, source.task, source.dimensions)
        _check_target(source, asked.target)
        check_memory(source.elements, asked.target)
    build = _Build(folder, Reference(root, source), source, located.source, asked, tasks)
    build.convert(progress)
    with progress.step("describe"):
        manifest = build.describe(folder)
    try:
        with progress.step("evaluate"):
            ranges = calibrate_int8([build.original])
            manifest = build.measure(folder, with_int8_ranges(manifest, ranges))
        manifest = build.keep_in_fp32(manifest, progress)
        manifest = build.write_card(manifest)
    except InvalidArtefact as error:  # the target's engine cannot run it
        return manifest, prompted.origin, [error.message]
    return manifest, prompted.origin, build.shortfalls(manifest)


@dataclass(frozen=True, slots=True)
class _Build:
    """A model that was read. tasks: additional ones to score."""

    folder: Path
    original: Reference
    source: SourceModel
    origin: Source
    asked: Asked
    tasks: Sequence[Evaluation]

    def convert(self, progress: Progressing) -> None:
        """Write what the target runs."""
        convert(self.folder, self.source, self.asked.target, progress, self.asked.calibration)

    def describe(self, into: Path) -> Manifest:
        """Write what else is published; the manifest, without quality."""
        from model_build.describe import describe

        return describe(into, self.source, self.origin, self.asked.name, self.asked.target)

    def measure(self, into: Path, manifest: Manifest) -> Manifest:
        """With quality and memory. Raises InvalidArtefact if the target's engine cannot run it."""
        from model_build.evaluate import evaluate
        from model_build.memory import measure_memory

        quality = evaluate(into, manifest, self.original, self.tasks, self._gates())
        memory = measure_memory(into, manifest)
        return msgspec.structs.replace(manifest, quality=quality, memory=memory)

    def keep_in_fp32(self, manifest: Manifest, progress: Progressing) -> Manifest:
        """Of an INT8 model that is not as close as it should be, keep layers in FP32 if that helps."""
        from model_build.gates import distances, int8_aims

        if not self._may_keep:
            return manifest
        aims = int8_aims(**self._limits())
        if not (manifest.quality and distances(manifest.quality, aims)):
            return manifest
        from model_build.keeping import keep_in_fp32

        graphs = self.folder / _GRAPHS / _FP32, self.folder / _GRAPHS / _INT8
        with progress.step("keep layers in FP32"):
            rebuild = partial(self._rebuild, manifest.int8_ranges)
            return keep_in_fp32(self.folder, manifest, graphs, self.source, rebuild, aims, self._gates())

    def write_card(self, manifest: Manifest) -> Manifest:
        """The manifest with its card, which says what was measured."""
        from model_build.describe import with_card

        return with_card(self.folder, manifest)

    def shortfalls(self, manifest: Manifest) -> list[str]:
        """The failed gates as messages."""
        from model_build.gates import shortfalls

        assert manifest.quality is not None
        short = shortfalls(manifest.quality, manifest.target, self._gates())
        if short and self._may_keep:
            return [*short, "keeping a quarter of it in FP32 would not suffice; try --target cpu-fp32"]
        return short

    @property
    def _may_keep(self) -> bool:
        """Whether layers of it can stay in FP32."""
        return self.asked.target == "cpu-int8" and self.source.task in ("embedding", "cross-encoder")

    def _rebuild(self, ranges: dict[int, float], into: Path, kept: Kept) -> Manifest:
        from model_build.describe import with_int8_ranges

        quantize(self.folder, into, self.source, kept.layers)
        return self.measure(into, with_int8_ranges(self.describe(into), ranges))

    def _gates(self) -> Gates:
        from model_build.gates import gates_of

        return gates_of(self.asked.target, self.source.task, **self._limits())

    def _limits(self) -> dict[str, float | None]:
        return {
            "mean": self.asked.min_cosine,
            "minimum": self.asked.min_worst_cosine,
            "rank_agreement": self.asked.min_rank_agreement,
        }


def convert(
    folder: Path,
    source: SourceModel,
    target: Target,
    progress: Progressing,
    calibration: Path | None = None,
) -> None:
    """Write what the target runs into `folder`.

    Raises InvalidInput, at once (field "target") if that would be larger than an ONNX file.
    """
    from model_build.describe import WEIGHTS_FILE

    _check_size(source, target)
    if target == "cpu-static":
        with progress.step("convert"):
            from model_build.static import export_static

            export_static(
                source.folder, source.architecture, source.tokenizer_json, folder / WEIGHTS_FILE
            )
    elif target == "gpu-fp16":
        with progress.step("convert"):
            from model_build.fp16 import export_fp16

            export_fp16(source, folder)
    elif target in OPENVINO_TARGETS:
        _make_openvino(folder, source, target, calibration, progress)
    else:
        from model_build.export import export_onnx, optimize_offline

        (folder / _GRAPHS).mkdir()
        with progress.step("export"):
            export_onnx(source, folder / _GRAPHS / _FP32)
        with progress.step("quantise" if target == "cpu-int8" else "optimise"):
            if target == "cpu-int8":
                quantize(folder, folder, source)
            else:
                for graph, published in _graphs(source):
                    optimize_offline(folder / _GRAPHS / graph, folder / published)


def quantize(folder: Path, into: Path, source: SourceModel, kept: Collection[str] = ()) -> None:
    """Write the INT8 model of the graphs in `folder` into `into`. kept: layers that stay in FP32.

    Raises InvalidInput (field "target") if the graph has no layer to quantise.
    """
    from model_build.calibration import find_divisors
    from model_build.describe import HEAD_FILE, MODEL_FILE
    from model_build.export import optimize_offline
    from model_build.int8 import quantize_per_row

    graphs, made = folder / _GRAPHS, into / _GRAPHS
    made.mkdir(exist_ok=True)
    divisors = find_divisors(graphs / _FP32, source)
    if not quantize_per_row(graphs / _FP32, made / _INT8, divisors, kept):
        raise InvalidInput("the model has no layer that can be quantised to INT8", field="target")
    optimize_offline(made / _INT8, into / MODEL_FILE)
    if source.task == "sparse":
        quantize_per_row(graphs / HEAD_FILE, made / _INT8_HEAD)
        optimize_offline(made / _INT8_HEAD, into / HEAD_FILE)


def _graphs(source: SourceModel) -> list[tuple[str, str]]:
    """Each FP32 graph of a model, and the name under which it is published."""
    from model_build.describe import HEAD_FILE, MODEL_FILE

    return [(_FP32, MODEL_FILE), *([(HEAD_FILE, HEAD_FILE)] if source.task == "sparse" else [])]


def _make_openvino(
    folder: Path, source: SourceModel, target: Target, calibration: Path | None, progress: Progressing
) -> None:
    """Write the ONNX graph that OpenVINO runs."""
    from model_build.calibration import calibration_inputs
    from model_build.describe import MODEL_FILE
    from model_build.export import export_plain
    from model_build.qdq import quantize_static

    if target == "cpu-bf16":
        with progress.step("export"):
            export_plain(source, folder / MODEL_FILE)
        return
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "fp32.onnx"
        with progress.step("export"):
            export_plain(source, graph)
        with progress.step("quantise"):
            inputs = calibration_inputs(source, calibration)
            quantize_static(graph, folder / MODEL_FILE, inputs, source.pad_token_id)


def _check_size(source: SourceModel, target: Target) -> None:
    """Raises InvalidInput (field "target") if what the target runs is more than one ONNX file holds."""
    from model_build.graphs import LARGEST_FILE

    if target in ("gpu-fp16", "cpu-static"):  # no ONNX
        return
    form, size = ("INT8", 1) if target == "cpu-int8" else ("FP32", 4)
    if size * source.elements > LARGEST_FILE:
        # A large graph between the steps of cpu-int8 lies in two files; OpenVINO's tools read one.
        instead = "gpu-fp16" if source.elements > LARGEST_FILE else "cpu-int8"
        raise InvalidInput(
            f"{target}: the model's {source.elements} weights take {size * source.elements} bytes in "
            f"{form}, and an ONNX file holds {LARGEST_FILE}: use {instead}",
            field="target",
        )


def _check_target(source: SourceModel, target: Target) -> None:
    """Raises InvalidInput (field "target")."""
    from model_build.source import STATIC

    if target in OPENVINO_TARGETS and source.task in ("sparse", "multi-vector"):
        raise InvalidInput(
            f"{target} is not for {source.task} models: use cpu-int8",
            field="target",
        )
    if (source.model_type == STATIC) == (target == "cpu-static"):
        return
    if target == "cpu-static":
        message = f"is for tables of static embeddings: build a {source.architecture} for cpu-int8"
    else:
        message = (
            "is for transformers, and this model is a table of static embeddings, which has no layers "
            "to quantise and which a GPU would not read faster: build it for cpu-static"
        )
    raise InvalidInput(f"{target} {message}", field="target")
