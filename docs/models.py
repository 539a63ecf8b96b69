"""Writes the table of models in docs/models.md: `.venv/bin/python -m docs.models`.

From model_build/coverage.toml, what is known of each model. Knows none by name. A test fails while the
page is not what this would write.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec

from shared.models.manifest import Target

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
COVERAGE = ROOT / "model_build" / "coverage.toml"

BEGIN = (
    "<!-- Written by `.venv/bin/python -m docs.models` from model_build/coverage.toml. Edit that. -->"
)
END = "<!-- The end of what docs.models writes. -->"

_FIDELITY = {
    "real": "real weights",
    "random": "random weights",
    "tests": "tiny models",
    "none": "-",
}
_COLUMNS = ("model", "kind", "tokens", "dimensions", "CPU", "GPU, FP16", "fidelity", "TEI", "Infinity")

Fidelity = Literal["real", "random", "tests", "none"]


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the models of an architecture share; fields as coverage.toml explains them."""

    built: tuple[Target, ...]
    fidelity: Fidelity
    tei: bool
    reason: str = ""


class Covered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model; what it has for itself goes before its architecture's. None: as that."""

    kind: Literal["embedding", "reranker", "sparse", "multi-vector"]
    architecture: str
    tokens: int | None = None
    dimensions: int | None = None
    built: tuple[Target, ...] | None = None
    fidelity: Fidelity | None = None
    figures: str = ""
    reason: str = ""
    note: str = ""
    name: str = ""
    tei: Literal["listed", ""] | None = None
    infinity: Literal["listed", ""] = ""


class Coverage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole table."""

    architecture: dict[str, Architecture]
    models: dict[str, Covered]


def read_coverage(path: Path = COVERAGE) -> Coverage:
    """Raises msgspec.ValidationError naming the field."""
    return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Coverage)


def render() -> str:
    """The whole page: what is between the marks is written, all else is as it is."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(read_coverage())}\n{END}{after}"


def table(coverage: Coverage) -> str:
    """A summary and, for each architecture, its models."""
    built = [name for name in coverage.models if _built(coverage, name)]
    on_cpu = [
        name for name in built if any(target.startswith("cpu") for target in _built(coverage, name))
    ]
    known = Counter(_fidelity(coverage, name) for name in built)
    lines = [
        f"Of {len(coverage.models)} models {len(built)} are built, {len(on_cpu)} for the CPU too: the "
        f"fidelity of {known['real']} was measured on their real weights,",
        f"of {known['random']} on random weights of their architecture, and of {known['tests']} on tiny "
        "models.",
    ]
    for architecture in coverage.architecture:
        names = [name for name in coverage.models if coverage.models[name].architecture == architecture]
        lines += ["", f"**{architecture}**", "", _row(_COLUMNS), _row(("---",) * len(_COLUMNS))]
        lines += [_row(_cells(coverage, name)) for name in names]
    return "\n".join([*lines, ""])


def _cells(coverage: Coverage, name: str) -> tuple[str, ...]:
    model, shared = coverage.models[name], coverage.architecture[coverage.models[name].architecture]
    built = _built(coverage, name)
    reason = model.reason or shared.reason
    cpu = next((target for target in built if target.startswith("cpu")), "")
    fidelity = _FIDELITY[_fidelity(coverage, name)]
    tei = (
        "named" if model.tei == "listed" else "architecture" if model.tei is None and shared.tei else "-"
    )
    return (
        name + (f" ({model.note})" if model.note else ""),
        model.kind,
        "" if model.tokens is None else f"{model.tokens:,}",
        "" if model.dimensions is None else str(model.dimensions),
        cpu.removeprefix("cpu-").upper().replace("STATIC", "table") if cpu else reason,
        "built" if "gpu-fp16" in built else "-",
        f"{fidelity}: {model.figures}" if model.figures else fidelity,
        tei,
        "named" if model.infinity else "-",
    )


def _built(coverage: Coverage, name: str) -> tuple[Target, ...]:
    model = coverage.models[name]
    return coverage.architecture[model.architecture].built if model.built is None else model.built


def _fidelity(coverage: Coverage, name: str) -> Fidelity:
    model = coverage.models[name]
    return model.fidelity or coverage.architecture[model.architecture].fidelity


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
