"""Which backend a request goes to: pure policy, no clocks, no I/O.

Does not know how backends are called: `shared.routing.dispatch` supplies its view and executes the
decision. `tests/benchmarks/routing.py` evaluates these functions over a day of traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from shared.cards import Device
from shared.settings import Settings
from shared.wording import counted


class Work(msgspec.Struct, frozen=True):
    """What is known of a request before it is tokenised.

    tokens: an estimate. size_bytes: of the model's files, for each device that has the model.
    """

    texts: int
    tokens: int
    cross_encoder: bool
    size_bytes: Mapping[Device, int]


class BackendView(msgspec.Struct, frozen=True):
    """One backend as the router sees it at this moment.

    available: its circuit is closed. warm: it is not scaled to zero, judged by its last response.
    waking_s: seconds since a wake began; None: none is in progress. queued_tokens, queued_requests: this
    router's requests in progress there, and their estimated tokens.
    """

    available: bool
    warm: bool
    waking_s: float | None
    queued_tokens: int
    queued_requests: int = 0


class Decision(msgspec.Struct, frozen=True):
    """devices: in the order to try; never empty. reason: for logs.

    wake_gpu: wake the GPU although another device goes first.
    """

    devices: tuple[Device, ...]
    wake_gpu: bool
    reason: str


Policy: TypeAlias = Callable[[Work, Mapping[Device, BackendView]], Decision]
"""Views hold all backends. Raises nothing: a model that no backend has goes to the CPU."""


class Speed(msgspec.Struct, frozen=True):
    """Speed of one instance. byte_tokens_per_s: model bytes x tokens per second, so that a model of
    twice the size takes twice as long. overhead_s: fixed cost of a call."""

    byte_tokens_per_s: float
    overhead_s: float

    def seconds(self, tokens: int, size_bytes: int) -> float:
        """Expected time for so many tokens on a model of that size."""
        return self.overhead_s + tokens * size_bytes / self.byte_tokens_per_s


SPEEDS: Mapping[Device, Speed] = {
    # Measured: all-MiniLM-L6-v2 in INT8 (23 MB), 100 texts of 101 tokens a second on two Zen 3 cores.
    # An FP32 model has four times the bytes but takes about twice as long.
    "cpu": Speed(byte_tokens_per_s=100 * 101 * 23e6, overhead_s=0.005),
    # Assumed, not measured: a tenth of a T4's FP16 peak of 65 TFLOPS; two operations and two bytes per
    # parameter, so operations and bytes are the same number.
    "gpu": Speed(byte_tokens_per_s=0.1 * 65e12, overhead_s=0.010),
}

MIN_SAVING_S = 0.05
"""A warm GPU is used only if it saves this much time, because each use extends its billed time."""

WAKE_BACKLOG_S = 2.0
"""A cold GPU is woken if the CPU's backlog, this request included, exceeds this on one instance."""

MIN_WAIT_S = 1.0
"""Shortest expected wait for a GPU that is overdue."""


def policy_of(settings: Settings) -> Policy:
    """The policy that `settings.routing` names."""
    if settings.routing == "adaptive":
        return adaptive(settings.gpu_wake_s)
    return fixed(settings.gpu_min_texts)


def wants_gpu(policy: Policy, work: Work, views: Mapping[Device, BackendView]) -> bool:
    """Whether the request would go to the GPU if it were up."""
    if "gpu" not in views:
        return False
    up = replace(views["gpu"], available=True, warm=True, waking_s=None)
    return policy(work, {**views, "gpu": up}).devices[0] == "gpu"


def preferring(device: Device) -> Policy:
    """`device` first for every request, as its caller asked."""

    def decide(work: Work, views: Mapping[Device, BackendView]) -> Decision:
        return _decide(device, work, views, "asked for")

    return decide


def fixed(gpu_min_texts: int) -> Policy:
    """Fewer than `gpu_min_texts` texts to the CPU; cross-encoders and larger batches to the GPU."""

    def decide(work: Work, views: Mapping[Device, BackendView]) -> Decision:
        if work.cross_encoder:
            return _decide("gpu", work, views, "a cross-encoder")
        if work.texts >= gpu_min_texts:
            return _decide("gpu", work, views, f"{counted(gpu_min_texts, 'text')} or more")
        return _decide("cpu", work, views, f"fewer than {counted(gpu_min_texts, 'text')}")

    return decide


def adaptive(
    gpu_wake_s: float,
    *,
    speeds: Mapping[Device, Speed] = SPEEDS,
    min_saving_s: float = MIN_SAVING_S,
    wake_backlog_s: float = WAKE_BACKLOG_S,
) -> Policy:
    """The backend with the shorter expected time; the CPU covers while the GPU scales from zero.

    gpu_wake_s: how long scaling takes. min_saving_s, wake_backlog_s: see MIN_SAVING_S, WAKE_BACKLOG_S.
    """

    def decide(work: Work, views: Mapping[Device, BackendView]) -> Decision:
        if len(_holders(work, views)) < 2:
            return _decide("cpu", work, views, "one backend")
        cpu, gpu = views["cpu"], views["gpu"]
        cpu_s = _expected_s("cpu", work, cpu, speeds)
        gpu_s = _expected_s("gpu", work, gpu, speeds)
        if not gpu.warm:
            gpu_s += _wake_s(gpu.waking_s, gpu_wake_s)
        chosen: Device = "gpu" if gpu_s + min_saving_s < cpu_s else "cpu"
        reason = f"expected: CPU {cpu_s:.3f} s, GPU {gpu_s:.3f} s"
        wake = False
        if not gpu.warm and gpu.waking_s is None:
            backlog_s = speeds["cpu"].seconds(work.tokens + cpu.queued_tokens, work.size_bytes["cpu"])
            wake = gpu.available and backlog_s >= wake_backlog_s
            if not wake:
                chosen = "cpu"
        return _decide(chosen, work, views, reason, wake_gpu=wake)

    return decide


def _expected_s(device: Device, work: Work, view: BackendView, speeds: Mapping[Device, Speed]) -> float:
    """Expected seconds on a backend that is up, as if all queued work were of this model.

    The batcher shares capacity fairly: until this request is done, no other gets more than it does, so a
    query behind a large batch does not wait for all of it.
    """
    ahead = min(view.queued_tokens, view.queued_requests * work.tokens)
    return speeds[device].seconds(work.tokens + ahead, work.size_bytes[device])


def _wake_s(waking_s: float | None, gpu_wake_s: float) -> float:
    """Expected seconds until it is up. One that is overdue is expected to need as long again."""
    if waking_s is None:
        return gpu_wake_s
    return max(abs(gpu_wake_s - waking_s), MIN_WAIT_S)


def _holders(work: Work, views: Mapping[Device, BackendView]) -> list[Device]:
    return [device for device in views if device in work.size_bytes]


def _decide(
    preferred: Device,
    work: Work,
    views: Mapping[Device, BackendView],
    reason: str,
    *,
    wake_gpu: bool = False,
) -> Decision:
    """Order the backends that have the model: available ones first, then `preferred`."""
    holders = _holders(work, views)
    if not holders:
        return Decision(("cpu",), False, "no backend is known to have the model")
    holders.sort(key=lambda device: (not views[device].available, device != preferred))
    if len(holders) == 1:
        reason = f"only the {holders[0].upper()} has the model"
    elif holders[0] != preferred:
        reason = f"the {preferred.upper()} is unavailable"
    return Decision(tuple(holders), wake_gpu and holders[0] != "gpu", reason)
