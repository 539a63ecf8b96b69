"""The arithmetic of docs/costs.py, against sums done by hand; and that unknown prices are asked for.

That the page shows what the calculator prints is in tests/test_docs_commands.py, as for all pages.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import costs
from docs.costs import FlexPrices, GpuPrices, ahead_price, cpu_price, gpu_price, idle_bill

ROOT = Path(__file__).parents[1]
NO_GRANTS = FlexPrices(
    gb_s=1e-5, million_executions=2.0, free_gb_s=0.0, free_executions=0.0, always_ready_gb_s=1e-6
)
GPU = ["--gpu-s", "0.001", "--vcpu-s", "0.0001", "--gib-s", "0.00001"]


def test_a_million_tokens_on_the_cpu() -> None:
    """100 texts of 100 tokens a second: 100 s of 4 + 2 GB, and 1,000 requests that run twice."""
    price = cpu_price(
        NO_GRANTS, texts_per_s=100, tokens_per_text=100, texts_per_request=10, busy_share=1.0
    )
    assert price == pytest.approx(600 * 1e-5 + 2_000 * 2e-6)


def test_half_idle_time_costs_twice_the_memory() -> None:
    """Executions stay as many."""
    price = cpu_price(
        NO_GRANTS, texts_per_s=100, tokens_per_text=100, texts_per_request=10, busy_share=0.5
    )
    assert price == pytest.approx(1_200 * 1e-5 + 2_000 * 2e-6)


def test_a_second_of_a_gpu_replica_is_all_that_it_takes() -> None:
    """The GPU, eight cores and 56 GiB are billed side by side."""
    assert GpuPrices(gpu=1.0, vcpu=0.1, gib=0.01).second == pytest.approx(1 + 0.8 + 0.56)


def test_a_million_tokens_on_the_gpu() -> None:
    """50,000 a second: 20 s of the GPU at a quarter busy is 80 s of it, and 20 s of the router."""
    price = gpu_price(NO_GRANTS, 0.001, tokens_per_s=50_000, tokens_per_request=1_000, busy_share=0.25)
    assert price == pytest.approx(80 * 0.001 + 40 * 1e-5 + 1_000 * 2e-6)


def test_grants_cover_the_timers_of_an_idle_service() -> None:
    """8,640 runs a month of 4 GB and of 2 GB, a second each: 51,840 GB-s of 100,000 free ones."""
    arguments = {"timer_run_s": 1.0, "always_ready_gb": 0.0, "registry_day": 0.0}
    free = idle_bill(FlexPrices(), timers_gb=[4.0, 2.0], monthly=[], **arguments)
    assert free["all"] == 0
    billed = idle_bill(NO_GRANTS, timers_gb=[4.0, 2.0], monthly=[], **arguments)
    assert billed["all"] == pytest.approx(51_840 * 1e-5 + 17_280 * 2e-6)


def test_idle_adds_up() -> None:
    """Always-ready instances are paid for every second, a registry by the day, the rest by the month."""
    parts = idle_bill(
        NO_GRANTS,
        timers_gb=[],
        timer_run_s=1.0,
        always_ready_gb=4.0,
        registry_day=0.2,
        monthly=[5.0, 0.5],
    )
    assert parts["always ready"] == pytest.approx(4 * 2_592_000 * 1e-6)
    assert parts["registry"] == pytest.approx(6.0)
    assert parts["by the month"] == 5.5
    assert parts["all"] == pytest.approx(4 * 2.592 + 6.0 + 5.5)


def test_only_what_is_over_a_grant_is_billed() -> None:
    """And nothing is paid back below it."""
    prices = FlexPrices(gb_s=1.0, million_executions=1e6, free_gb_s=10, free_executions=5)
    assert prices.bill(12, 4) == 2
    assert prices.bill(9, 7) == 2


def test_what_a_spared_request_may_cost() -> None:
    """180 GPU seconds at a tenth of a cent."""
    assert ahead_price(0.001, gpu_s_per_request=180) == pytest.approx(0.18)


@pytest.mark.parametrize(
    "arguments",
    [
        ["gpu"],
        ["ahead"],
        ["idle"],
        ["cpu", "--busy-share", "0"],
        ["cpu", "--busy-share", "1.1"],
        ["cpu", "--gb-s", "-1"],
        ["cpu", "--texts-per-s", "0"],
    ],
)
def test_unknown_rates_and_prices_and_impossible_numbers_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No figure comes out of a rate or a price that nobody stated."""
    with pytest.raises(SystemExit) as refused:
        costs.main(arguments)
    assert refused.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["gpu", "--tokens-per-s", "50000", *GPU], "0.0483"),
        (["ahead", "--gpu-s-per-request", "100", *GPU], "0.2360"),
        (["idle", "--monthly", "5", "1", "--gpu-ahead", "--registry-day", "0.1"], "9.0000"),
    ],
)
def test_each_command_prints_its_answer(
    arguments: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the prices that it was given."""
    costs.main(arguments)
    assert printed in capsys.readouterr().out


def test_every_default_price_has_a_publisher() -> None:
    """The page's table has the prices that are used and no others, each with an address."""
    page = (ROOT / "docs" / "costs.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|]+ \| (\d+\.\d+) \|[^|\n]*\| ([^|\n]+) \|$", page, re.MULTILINE)
    flex, t4 = FlexPrices(), GpuPrices()
    used = {flex.gb_s, flex.million_executions, flex.always_ready_gb_s, t4.gpu, t4.vcpu, t4.gib}
    assert {float(price) for price, _ in rows} == used | {costs.REGISTRY_DAY}
    assert all("](https://" in publisher or publisher == "the same" for _, publisher in rows)


def test_the_measured_rates_are_the_readmes_and_the_measurements() -> None:
    """The page must not keep an old figure when those get a new one."""
    readme = (ROOT / "README.md").read_text("utf-8")
    measured = (ROOT / "docs" / "measurements" / "int8-cpu.md").read_text("utf-8")
    assert f"| **8 bits, pair-safe scales** | **{costs.TEXTS_PER_S}** |" in measured
    assert f"mean {costs.TOKENS_PER_TEXT:.0f} tokens" in readme
    assert f"against the bare engine | {costs.HTTP_SHARE:.0%} |".replace("%", " %") in readme
