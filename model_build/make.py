"""Makes a model's files: reads the original, converts it, describes the result and measures it.

It does not know options of a command line, or where the result is kept or published.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from model_build.locate import Located
from model_build.progress import Progressing
from shared.errors import InvalidArtefact, InvalidInput
from shared.models.manifest import Manifest, Source, Target
from shared.vectors import Pooling

if TYPE_CHECKING:
    from model_build.gates import Gates
    from model_build.sensitivity import Kept
    from model_build.source import SourceModel
    from model_build.tasks import Evaluation

# Graphs between the steps, beside what is published.
_FP32, _INT8 = "traced.onnx", "quantized.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of a build. None: what is usual for the target, or stated by the folder."""

    target: Target
    name: str
    pooling: Pooling | None
    prompts: dict[str, str]
    evaluations: Sequence[Path]
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
        _check_target(source, asked.target)
    build = _Build(folder, root, source, located.source, asked, tasks)
    build.convert(progress)
    with progress.step("describe"):
        manifest = build.describe(folder)
    try:
        with progress.step("evaluate"):
            manifest = build.measure(folder, manifest)
        manifest = build.keep_in_fp32(manifest, progress)
        manifest = build.write_card(manifest)
    except InvalidArtefact as error:  # the target's engine cannot run it
        return manifest, prompted.origin, [error.message]
    return manifest, prompted.origin, build.shortfalls(manifest)


@dataclass(frozen=True, slots=True)
class _Build:
    """A model that was read. root: the original's folder. tasks: additional ones to score."""

    folder: Path
    root: Path
    source: SourceModel
    origin: Source
    asked: Asked
    tasks: Sequence[Evaluation]

    def convert(self, progress: Progressing) -> None:
        """Write what the target runs."""
        from model_build.describe import MODEL_FILE, WEIGHTS_FILE

        source, target = self.source, self.asked.target
        if target == "cpu-static":
            from model_build.static import export_static

            weights = self.folder / WEIGHTS_FILE
            with progress.step("convert"):
                export_static(source.folder, source.architecture, source.tokenizer_json, weights)
            return
        if target == "gpu-fp16":
            from model_build.fp16 import export_fp16

            with progress.step("convert"):
                export_fp16(source, self.folder)
            return
        from model_build.export import export_onnx, optimize_offline

        with progress.step("export"):
            export_onnx(source, self.folder / _FP32)
        with progress.step("quantise" if target == "cpu-int8" else "optimise"):
            if target == "cpu-int8":
                self._quantize(self.folder)
            else:
                optimize_offline(self.folder / _FP32, self.folder / MODEL_FILE)

    def describe(self, into: Path) -> Manifest:
        """Write what else is published; the manifest, without quality."""
        from model_build.describe import describe

        return describe(into, self.source, self.origin, self.asked.name, self.asked.target)

    def measure(self, into: Path, manifest: Manifest) -> Manifest:
        """With int8 ranges, quality and memory.

        Raises InvalidArtefact if the target's engine cannot run it.
        """
        from model_build.describe import with_int8_ranges
        from model_build.evaluate import evaluate
        from model_build.memory import measure_memory
        from model_build.ranges import calibrate_int8

        manifest = with_int8_ranges(manifest, calibrate_int8(self.root, self.source))
        quality = evaluate(into, manifest, self.root, self.source, self.tasks, self._gates())
        memory = measure_memory(into, manifest)
        return msgspec.structs.replace(manifest, quality=quality, memory=memory)

    def keep_in_fp32(self, manifest: Manifest, progress: Progressing) -> Manifest:
        """Of an INT8 model that is not as close as it should be, keep layers in FP32 if that helps."""
        from model_build.gates import distances, int8_aims

        if self.asked.target != "cpu-int8":
            return manifest
        aims = int8_aims(**self._limits())
        if not (manifest.quality and distances(manifest.quality, aims)):
            return manifest
        from model_build.keeping import keep_in_fp32

        graphs = self.folder / _FP32, self.folder / _INT8
        with progress.step("keep layers in FP32"):
            return keep_in_fp32(
                self.folder, manifest, graphs, self.source, self._rebuild, aims, self._gates()
            )

    def write_card(self, manifest: Manifest) -> Manifest:
        """The manifest with its card, which says what was measured."""
        from model_build.describe import with_card

        return with_card(self.folder, manifest)

    def shortfalls(self, manifest: Manifest) -> list[str]:
        """The failed gates as messages."""
        from model_build.gates import shortfalls

        assert manifest.quality is not None
        short = shortfalls(manifest.quality, manifest.target, self._gates())
        if short and manifest.target == "cpu-int8":
            return [*short, "keeping a quarter of it in FP32 would not suffice; try --target cpu-fp32"]
        return short

    def _rebuild(self, into: Path, kept: Kept) -> Manifest:
        self._quantize(into, kept.layers)
        return self.measure(into, self.describe(into))

    def _quantize(self, into: Path, kept: Collection[str] = ()) -> None:
        """Raises InvalidInput (field "target") if the graph has no layer to quantise."""
        from model_build.calibration import find_divisors
        from model_build.describe import MODEL_FILE
        from model_build.export import optimize_offline
        from model_build.int8 import quantize_per_row

        divisors = find_divisors(self.folder / _FP32, self.source)
        if not quantize_per_row(self.folder / _FP32, into / _INT8, divisors, kept):
            raise InvalidInput("the model has no layer that can be quantised to INT8", field="target")
        optimize_offline(into / _INT8, into / MODEL_FILE)

    def _gates(self) -> Gates:
        from model_build.gates import gates_of

        return gates_of(self.asked.target, **self._limits())

    def _limits(self) -> dict[str, float | None]:
        return {
            "mean": self.asked.min_cosine,
            "minimum": self.asked.min_worst_cosine,
            "rank_agreement": self.asked.min_rank_agreement,
        }


def _check_target(source: SourceModel, target: Target) -> None:
    """Raises InvalidInput (field "target")."""
    from model_build.source import STATIC

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
