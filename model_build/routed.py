"""Makes a model whose queries take another way than its documents: both routes in one set of files.

It does not know how one route is converted, described or measured.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from model_build.describe import describe, with_card, with_int8_ranges, with_routes
from model_build.evaluate import evaluate
from model_build.gates import gates_of, shortfalls
from model_build.locate import Located
from model_build.make import Asked, convert
from model_build.memory import measure_memory
from model_build.peaks import check_memory
from model_build.progress import Progressing
from model_build.prompts import with_prompts
from model_build.ranges import calibrate_int8
from model_build.reference import Reference
from model_build.source import STATIC, SourceModel, inspect_source
from shared.cards import TextMemory
from shared.errors import InvalidArtefact, InvalidInput
from shared.models.manifest import OPENVINO_TARGETS, Manifest, Quality, RouteName, Target


def make_routed(
    folder: Path,
    root: Path,
    routes: dict[RouteName, Path],
    located: Located,
    asked: Asked,
    progress: Progressing,
) -> tuple[Manifest, dict[str, str], list[str]]:
    """See `make`. routes: route -> its folder, the default route first. The quality is that of the route
    which is farthest from the original.

    Raises InvalidInput for a GPU, for --eval, and for routes whose vectors cannot be compared.
    """
    if asked.target in OPENVINO_TARGETS:
        raise InvalidInput(
            f"a model with routes is not built for {asked.target}: use cpu-int8 or cpu-fp32",
            field="target",
        )
    if asked.evaluations:
        raise InvalidInput("a model with routes is not scored: leave --eval out", field="eval")
    sources, origin = _read(routes, located, asked)
    targets = {name: _target(source, asked.target) for name, source in sources.items()}
    for name, source in sources.items():
        check_memory(source.elements, targets[name])
    parts: dict[RouteName, tuple[Path, Manifest]] = {}
    default, *_ = sources
    for name, source in sources.items():
        place = folder if name == default else folder / name
        place.mkdir(exist_ok=True)
        convert(place, source, targets[name], progress)
        manifest = describe(place, source, located.source, asked.name, targets[name])
        parts[name] = (place, manifest)
    manifest = with_routes(folder, parts.pop(default)[1], parts)
    failed: list[str] = []
    qualities, memories = [], []
    with progress.step("evaluate"):
        originals = {name: Reference(root, source) for name, source in sources.items()}
        manifest = with_int8_ranges(manifest, calibrate_int8(originals.values()))
        for name, original in originals.items():
            part = manifest.of_route(name)
            gates = gates_of(part.target, mean=asked.min_cosine, minimum=asked.min_worst_cosine)
            try:
                quality = evaluate(folder, part, original, [], gates)
                memories.append(measure_memory(folder, part))
            except InvalidArtefact as error:
                return manifest, origin, [f"{name}: {error.message}"]
            qualities.append(quality)
            failed += [f"{name}: {each}" for each in shortfalls(quality, part.target, gates)]
    measured = msgspec.structs.replace(
        manifest, quality=min(qualities, key=_closeness), memory=_largest(memories)
    )
    return with_card(folder, measured), origin, failed


def _read(
    routes: dict[RouteName, Path], located: Located, asked: Asked
) -> tuple[dict[RouteName, SourceModel], dict[str, str]]:
    """Each route's source, with one set of prompts, and the prompts' origins."""
    if asked.pooling is not None:
        raise InvalidInput("modules.json states the pooling: leave --pooling out", field="pooling")
    read = {name: inspect_source(place) for name, place in routes.items()}
    origin: dict[str, str] = {}
    prompts: dict[str, str] | None = None
    default_prompt: str | None = None
    for name, source in read.items():
        prompted = with_prompts(source, (*located.names, asked.name), asked.prompts)
        if prompts is None:  # the default route's: a name's prompt may be meant for one architecture
            # A prompt's name chooses the route, so that each route has a prompt of its name.
            prompts = dict.fromkeys(routes, "") | prompted.source.prompts
            default_prompt, origin = prompted.source.default_prompt, prompted.origin
        read[name] = replace(source, route=name, prompts=prompts, default_prompt=default_prompt)
    if len({(each.task, each.dimensions, each.normalize) for each in read.values()}) > 1:
        what = ", ".join(
            f"{name} gives {each.dimensions} dimensions{', of unit length' if each.normalize else ''}"
            for name, each in read.items()
        )
        raise InvalidInput(f"the routes' vectors cannot be compared: {what}", field="model")
    if default_prompt in read and default_prompt != next(iter(read)):
        raise InvalidInput(
            f"the default prompt is {default_prompt}, and the default route is another", field="model"
        )
    return read, origin


def _target(source: SourceModel, target: Target) -> Target:
    """Of a route. A table of static embeddings has no other form."""
    if target == "gpu-fp16":
        raise InvalidInput(
            "gpu-fp16 is for models without routes: build this one for cpu-int8 or cpu-fp32",
            field="target",
        )
    if source.model_type == STATIC:
        return "cpu-static"
    if target == "cpu-static":
        raise InvalidInput(
            f"cpu-static is for tables of static embeddings, and a route is a {source.architecture}: "
            "build it for cpu-int8",
            field="target",
        )
    return target


def _closeness(quality: Quality) -> float:
    return quality.cosine_mean if quality.cosine_mean is not None else 0.0


def _largest(memories: list[TextMemory | None]) -> TextMemory | None:
    known = [each for each in memories if each is not None]
    if len(known) < len(memories):
        return None
    return TextMemory(max(each.per_token for each in known), max(each.per_pair for each in known))
