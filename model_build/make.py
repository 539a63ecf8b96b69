"""Makes a model's files: reads the original, converts it, describes the result and measures it.

It does not know options of a command line, or where the result is kept or published.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from model_build.locate import Located
from model_build.progress import Progressing
from shared.errors import InvalidArtefact, InvalidInput
from shared.models.manifest import OPENVINO_TARGETS, Manifest, Target
from shared.vectors import Pooling

if TYPE_CHECKING:
    from model_build.source import SourceModel


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
        _check_target(source, target)
    gates = gates_of(
        target,
        source.task,
        mean=asked.min_cosine,
        minimum=asked.min_worst_cosine,
        rank_agreement=asked.min_rank_agreement,
    )
    convert(folder, source, target, progress, asked.calibration)
    with progress.step("describe"):
        manifest = describe(folder, source, located.source, asked.name, target)
    with progress.step("evaluate"):
        try:
            quality = evaluate(folder, manifest, root, source, tasks, gates)
            memory = measure_memory(folder, manifest)
        except InvalidArtefact as error:  # the target's engine cannot run it
            return manifest, prompted.origin, [error.message]
    measured = msgspec.structs.replace(manifest, quality=quality, memory=memory)
    return measured, prompted.origin, shortfalls(quality, target, gates)


def convert(
    folder: Path,
    source: SourceModel,
    target: Target,
    progress: Progressing,
    calibration: Path | None = None,
) -> None:
    """Write what the target runs into `folder`."""
    if target == "cpu-static":
        with progress.step("convert"):
            from model_build.describe import WEIGHTS_FILE
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
        _make_graph(folder, source, target, progress)


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


def _check_target(source: SourceModel, target: Target) -> None:
    """Raises InvalidInput (field "target")."""
    from model_build.source import STATIC

    if target in OPENVINO_TARGETS and source.task in ("sparse", "multi-vector"):
        raise InvalidInput(
            f"{target} is for embedding models and cross-encoders: build a {source.task} model for cpu-int8",
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


def _make_graph(folder: Path, source: SourceModel, target: Target, progress: Progressing) -> None:
    """Write the ONNX graph of a CPU target."""
    from model_build.calibration import find_divisors
    from model_build.describe import HEAD_FILE, MODEL_FILE
    from model_build.export import export_onnx, optimize_offline
    from model_build.int8 import quantize_per_row

    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "fp32.onnx"
        with progress.step("export"):
            export_onnx(source, graph)
        with progress.step("quantise" if target == "cpu-int8" else "optimise"):
            if target == "cpu-int8":
                divisors = find_divisors(graph, source)
                if not quantize_per_row(graph, graph.with_name("int8.onnx"), divisors):
                    raise InvalidInput(
                        "the model has no layer that can be quantised to INT8", field="target"
                    )
                graph = graph.with_name("int8.onnx")
            optimize_offline(graph, folder / MODEL_FILE)
            if source.task == "sparse":
                head = graph.with_name(HEAD_FILE)
                if target == "cpu-int8":
                    quantize_per_row(head, head.with_name("int8-head.onnx"))
                    head = head.with_name("int8-head.onnx")
                optimize_offline(head, folder / HEAD_FILE)
