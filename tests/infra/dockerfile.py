"""The Dockerfiles of infra/, read as far as the tests need it. Knows no rule about them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.infra.bicep import INFRA

GPU = INFRA / "gpu" / "Dockerfile"
CPU = INFRA / "cpu" / "Dockerfile"


def instructions(file: Path = GPU) -> list[tuple[str, str]]:
    """Each one's name and the rest, in order; continued lines are one line."""
    text = re.sub(r"^#.*\n", "", file.read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    lines = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(name, " ".join(rest.split())) for name, rest in lines]


def arguments(name: str, file: Path = GPU) -> list[str]:
    """What follows each instruction of that name."""
    return [rest for instruction, rest in instructions(file) if instruction == name]
