"""What the service costs: a calculator over rates and prices that you state.

`.venv/bin/python docs/costs.py {cpu,gpu,idle,ahead} --help`. Knows no tariff: prices with a default are
what others published (docs/costs.md tells where and when); those without were not found: look them up.
Standard library only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

PRICED = "published by others, see docs/costs.md; check the current price"

TEXTS_PER_S, TOKENS_PER_TEXT = 101.4, 101.0
"""docs/measurements/int8-cpu.md: all-MiniLM-L6-v2 in INT8 on two Zen 3 cores without VNNI, the slower
of the two machines that were measured. 4096 MB come with two cores."""
HTTP_SHARE = 0.98
"""README: over HTTP, 64 texts a request, against the bare engine."""
CPU_GB, ROUTER_GB = 4.0, 2.0
T4_VCPU, T4_GIB = 8.0, 56.0
MONTH_DAYS = 30
MONTH_S = MONTH_DAYS * 86_400.0
TIMER_S = 300.0


@dataclass(frozen=True, slots=True)
class FlexPrices:
    """Of Flex Consumption, in dollars. Grants are a subscription's, each month, for what is on demand.

    always_ready_gb_s: of instances that never go away, while they do nothing.
    """

    gb_s: float = 0.000026
    million_executions: float = 0.40
    free_gb_s: float = 100_000.0
    free_executions: float = 250_000.0
    always_ready_gb_s: float = 0.000004

    def price(self, gb_s: float, executions: float) -> float:
        """Without the grants."""
        return gb_s * self.gb_s + executions * self.million_executions / 1e6

    def bill(self, gb_s: float, executions: float) -> float:
        """Of a month, with the grants."""
        over = max(gb_s - self.free_gb_s, 0.0), max(executions - self.free_executions, 0.0)
        return self.price(*over)


def cpu_price(
    prices: FlexPrices,
    *,
    texts_per_s: float,
    tokens_per_text: float,
    texts_per_request: float,
    busy_share: float,
) -> float:
    """Dollars for a million tokens on the CPU app, router included, grants not.

    Flex bills an instance's memory while it runs at least one function, however many run side by side.
    busy_share: of that time, how much one instance's full rate is reached. The router waits for each
    answer, so it is taken to run as long as the backend.
    """
    seconds = 1e6 / (texts_per_s * tokens_per_text * busy_share)
    requests = 1e6 / (tokens_per_text * texts_per_request)
    return prices.price((CPU_GB + ROUTER_GB) * seconds, 2 * requests)


@dataclass(frozen=True, slots=True)
class GpuPrices:
    """Of Container Apps' serverless T4, in dollars a second. A GPU app is never billed as idle."""

    gpu: float = 0.000088
    vcpu: float = 0.000024
    gib: float = 0.000003

    @property
    def second(self) -> float:
        """Of a replica: the GPU, eight cores and 56 GiB."""
        return self.gpu + T4_VCPU * self.vcpu + T4_GIB * self.gib


REGISTRY_DAY = 0.167
"""Dollars for a Basic container registry, up to 10 GB of images included."""


def gpu_price(
    prices: FlexPrices,
    second: float,
    *,
    tokens_per_s: float,
    tokens_per_request: float,
    busy_share: float,
) -> float:
    """Dollars for a million tokens on the GPU app, router included, grants not.

    second: see GpuPrices. busy_share: of the seconds that the replica is up, idle ones included.
    """
    work_s = 1e6 / tokens_per_s
    router = prices.price(ROUTER_GB * work_s, 1e6 / tokens_per_request)
    return second * work_s / busy_share + router


def idle_bill(
    prices: FlexPrices,
    *,
    timers_gb: Sequence[float],
    timer_run_s: float,
    always_ready_gb: float,
    registry_day: float,
    monthly: Sequence[float],
) -> dict[str, float]:
    """Dollars a month with no request at all, by what they are for.

    timers_gb: memory of the app of each timer; each runs every TIMER_S, for timer_run_s as billed.
    monthly: what else has a price a month: storage, logs, private endpoints.
    """
    runs = MONTH_S / TIMER_S
    timers = prices.bill(sum(timers_gb) * timer_run_s * runs, len(timers_gb) * runs)
    parts = {
        "timers": timers,
        "always ready": always_ready_gb * prices.always_ready_gb_s * MONTH_S,
        "registry": registry_day * MONTH_DAYS,
        "by the month": sum(monthly),
    }
    return {**parts, "all": sum(parts.values())}


def ahead_price(second: float, *, gpu_s_per_request: float) -> float:
    """Dollars that sparing one request the cold start may cost: what GPU_AHEAD_SECONDS is in money."""
    return second * gpu_s_per_request


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one answer."""
    asked = _parser().parse_args(arguments)
    match asked.what:
        case "cpu":
            dollars = cpu_price(
                _flex(asked),
                texts_per_s=asked.texts_per_s,
                tokens_per_text=asked.tokens_per_text,
                texts_per_request=asked.texts_per_request,
                busy_share=asked.busy_share,
            )
            print(f"{dollars:.4f} USD a million tokens on the CPU")
        case "gpu":
            dollars = gpu_price(
                _flex(asked),
                _gpu(asked).second,
                tokens_per_s=asked.tokens_per_s,
                tokens_per_request=asked.tokens_per_request,
                busy_share=asked.busy_share,
            )
            print(f"{dollars:.4f} USD a million tokens on the GPU")
        case "ahead":
            dollars = ahead_price(_gpu(asked).second, gpu_s_per_request=asked.gpu_s_per_request)
            print(f"at most {dollars:.4f} USD for each request that is spared the cold start")
        case "idle":
            parts = idle_bill(
                _flex(asked),
                timers_gb=[CPU_GB] + [ROUTER_GB] * asked.gpu_ahead,
                timer_run_s=asked.timer_run_s,
                always_ready_gb=asked.always_ready_gb,
                registry_day=asked.registry_day,
                monthly=asked.monthly,
            )
            for name, dollars in parts.items():
                print(f"{dollars:10.4f} USD a month: {name}")


def _flex(asked: argparse.Namespace) -> FlexPrices:
    return FlexPrices(
        asked.gb_s,
        asked.million_executions,
        asked.free_gb_s,
        asked.free_executions,
        asked.always_ready_gb_s,
    )


def _gpu(asked: argparse.Namespace) -> GpuPrices:
    return GpuPrices(asked.gpu_s, asked.vcpu_s, asked.gib_s)


def _parser() -> argparse.ArgumentParser:
    default, t4 = FlexPrices(), GpuPrices()
    flex = argparse.ArgumentParser(add_help=False)
    group = flex.add_argument_group(f"Flex Consumption, USD ({PRICED})")
    group.add_argument("--gb-s", type=_amount, default=default.gb_s)
    group.add_argument("--million-executions", type=_amount, default=default.million_executions)
    group.add_argument("--free-gb-s", type=_amount, default=default.free_gb_s)
    group.add_argument("--free-executions", type=_amount, default=default.free_executions)
    group.add_argument("--always-ready-gb-s", type=_amount, default=default.always_ready_gb_s)
    gpu = argparse.ArgumentParser(add_help=False)
    group = gpu.add_argument_group(f"Container Apps serverless GPU, USD a second ({PRICED})")
    group.add_argument("--gpu-s", type=_amount, default=t4.gpu, help="the T4")
    group.add_argument("--vcpu-s", type=_amount, default=t4.vcpu, help="a vCPU, active")
    group.add_argument("--gib-s", type=_amount, default=t4.gib, help="a GiB, active")
    busy = argparse.ArgumentParser(add_help=False)
    busy.add_argument("--busy-share", type=_share, default=1.0, help="of billed time at the full rate")

    parser = argparse.ArgumentParser(description="What the service costs. See docs/costs.md.")
    commands = parser.add_subparsers(dest="what", required=True)
    of = commands.add_parser("cpu", parents=[flex, busy], help="USD a million tokens on the CPU")
    measured = TEXTS_PER_S * HTTP_SHARE
    of.add_argument("--texts-per-s", type=_positive, default=measured, help=f"measured: {measured:.1f}")
    of.add_argument("--tokens-per-text", type=_positive, default=TOKENS_PER_TEXT)
    of.add_argument("--texts-per-request", type=_positive, default=64.0)
    of = commands.add_parser("gpu", parents=[flex, gpu, busy], help="USD a million tokens on the GPU")
    of.add_argument("--tokens-per-s", type=_positive, required=True, help="nobody measured it on a T4")
    of.add_argument("--tokens-per-request", type=_positive, default=64 * TOKENS_PER_TEXT)
    of = commands.add_parser("ahead", parents=[gpu], help="GPU_AHEAD_SECONDS in USD")
    of.add_argument("--gpu-s-per-request", type=_amount, required=True, help="its value")
    of = commands.add_parser("idle", parents=[flex], help="USD a month without a request")
    of.add_argument("--gpu-ahead", action="store_true", help="GPU_AHEAD_SECONDS is set: one timer more")
    of.add_argument("--timer-run-s", type=_amount, default=1.0, help="billed for a run; an assumption")
    of.add_argument("--always-ready-gb", type=_amount, default=0.0, help="2 or 4 for each instance")
    of.add_argument(
        "--registry-day", type=_amount, default=REGISTRY_DAY, help=f"USD, {PRICED}; 0 without a GPU app"
    )
    of.add_argument(
        "--monthly",
        type=_amount,
        nargs="+",
        required=True,
        help="USD a month of storage, logs and whatever else has such a price; 0: leave out",
    )
    return parser


def _amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not an amount")
    return value


def _positive(text: str) -> float:
    if (value := _amount(text)) == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _share(text: str) -> float:
    if (value := _positive(text)) > 1:
        raise argparse.ArgumentTypeError("must be at most 1")
    return value


if __name__ == "__main__":
    main()
