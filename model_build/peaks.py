"""What memory a build takes at its highest, and whether this machine has it.

It does not know how models are built: the figures are measured, see
docs/measurements/int8-cpu.md#memory-of-a-build.
"""

from __future__ import annotations

from collections.abc import Mapping

from model_build.folder import refused
from shared.engines.memory import usable_memory
from shared.models.manifest import Target

_FP32_BYTES = 4
_TIMES: Mapping[Target, float] = {
    "cpu-int8": 2.0,
    "cpu-int8-static": 3.3,
    "cpu-bf16": 3.3,
    "cpu-fp32": 3.3,
    "gpu-fp16": 2.6,
}
"""The weights in FP32 at the highest step, the original's file among them."""
_BESIDE_BYTES = 1_000_000_000
"""Python with torch and the other libraries, and what running the sample texts takes."""


def peak_bytes(elements: int, target: Target) -> int:
    """Of resident memory, of a whole build. elements: of the model's weights.

    >>> peak_bytes(567_000_000, "cpu-int8")
    5536000000
    """
    return round(_TIMES[target] * elements * _FP32_BYTES) + _BESIDE_BYTES


def check_memory(elements: int, target: Target) -> None:
    """Raise InvalidInput (field "model") if a build takes more memory than this machine has.

    Tables of static embeddings have no elements here, and are not checked.
    """
    if elements == 0 or (needed := peak_bytes(elements, target)) <= (memory := usable_memory()):
        return
    raise refused(
        f"the model's {elements} weights take {elements * _FP32_BYTES} bytes in FP32, and a build for "
        f"{target} takes {needed} bytes of memory; this machine has {memory}"
    )
