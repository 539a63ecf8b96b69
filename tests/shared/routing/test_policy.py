"""The routing policies: a table for every branch, and a day of traffic through the simulation."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from shared.cards import Device
from shared.contracts import AnyRequest, EmbedRequest, PredictRequest, RerankRequest, TokenizeRequest
from shared.request_size import estimate_request, estimate_tokens
from shared.routing.policy import (
    SPEEDS,
    BackendView,
    Decision,
    Policy,
    Speed,
    Work,
    adaptive,
    fixed,
    policy_of,
    preferring,
    wants_gpu,
)
from shared.settings import Settings
from tests.benchmarks.routing import POLICIES, SEED, Simulation
from tests.benchmarks.traffic import MIX, SIZE_BYTES, Arrival, day_of, recorded_days, synthetic_counts

SIZES: Mapping[Device, int] = {"cpu": 23_000_000, "gpu": 46_000_000}
UP = BackendView(available=True, warm=True, waking_s=None, queued_tokens=0)
COLD = BackendView(available=True, warm=False, waking_s=None, queued_tokens=0)
OPEN = BackendView(available=False, warm=True, waking_s=None, queued_tokens=0)
OPEN_COLD = BackendView(available=False, warm=False, waking_s=None, queued_tokens=0)
# With SIZES a CPU does 1,000 tokens a second and the GPU 10,000; thresholds divide without rounding.
ROUND: Mapping[Device, Speed] = {
    "cpu": Speed(byte_tokens_per_s=1_000 * 23e6, overhead_s=0.0),
    "gpu": Speed(byte_tokens_per_s=10_000 * 46e6, overhead_s=0.0),
}


def waking(since_s: float) -> BackendView:
    return BackendView(available=True, warm=False, waking_s=since_s, queued_tokens=0)


def busy(queued_tokens: int, requests: int = 1) -> BackendView:
    return BackendView(True, True, None, queued_tokens, requests)


def work(
    texts: int = 1,
    tokens: int = 100,
    *,
    cross_encoder: bool = False,
    size_bytes: Mapping[Device, int] = SIZES,
) -> Work:
    return Work(texts, tokens, cross_encoder, size_bytes)


@pytest.mark.parametrize(
    ("asked", "cpu", "gpu", "devices"),
    [
        (work(texts=9), UP, UP, ("cpu", "gpu")),
        (work(texts=10), UP, UP, ("gpu", "cpu")),
        (work(texts=1, cross_encoder=True), UP, UP, ("gpu", "cpu")),
        (work(texts=1, tokens=10**9), UP, UP, ("cpu", "gpu")),  # the rule counts texts alone
        (work(texts=10), UP, COLD, ("gpu", "cpu")),  # and does not mind a cold GPU
        (work(texts=10), UP, OPEN, ("cpu", "gpu")),
        (work(texts=9), OPEN, UP, ("gpu", "cpu")),
        (work(texts=9), OPEN, OPEN, ("cpu", "gpu")),
        (work(texts=10), OPEN, OPEN, ("gpu", "cpu")),
        (work(texts=10, size_bytes={"cpu": 1}), UP, UP, ("cpu",)),
        (work(texts=9, size_bytes={"gpu": 1}), UP, UP, ("gpu",)),
        (work(texts=9, size_bytes={"gpu": 1}), UP, OPEN, ("gpu",)),
        (work(texts=10, size_bytes={}), UP, UP, ("cpu",)),
        (work(texts=10), UP, None, ("cpu",)),
        (work(texts=10, size_bytes={"gpu": 1}), UP, None, ("cpu",)),
    ],
)
def test_the_fixed_rule(
    asked: Work, cpu: BackendView, gpu: BackendView | None, devices: tuple[Device, ...]
) -> None:
    """Nine texts to the CPU, ten and cross-encoders to the GPU; what is down or lacks the model last."""
    decision = fixed(10)(asked, _views(cpu, gpu))
    assert decision.devices == devices
    assert not decision.wake_gpu


@pytest.mark.parametrize("gpu", [UP, COLD, OPEN, OPEN_COLD, waking(5.0)])
@pytest.mark.parametrize("policy", [fixed(10), adaptive(25.0, speeds=ROUND, min_saving_s=1.0)])
def test_what_the_gpu_is_wanted_for_does_not_depend_on_its_sleep(
    policy: Policy, gpu: BackendView
) -> None:
    """As many are counted while it is down as while it is up, or the forecast would feed on itself."""
    assert wants_gpu(policy, work(texts=20, tokens=2_000), _views(UP, gpu))
    assert not wants_gpu(policy, work(texts=2, tokens=200), _views(UP, gpu))
    assert not wants_gpu(policy, work(texts=20, tokens=2_000, size_bytes={"cpu": 1}), _views(UP, gpu))
    assert not wants_gpu(policy, work(texts=20, tokens=2_000), _views(UP, None))


# Expected seconds with ROUND: CPU tokens / 1,000, GPU tokens / 10,000; beside another request that is no
# smaller, twice that. The GPU must save more than 1 s and is woken from 5 s of CPU work.
@pytest.mark.parametrize(
    ("asked", "cpu", "gpu", "devices", "wakes"),
    [
        # Both up: the sooner one, with a bias for the CPU; 0.8 s against 0.08, 2 s against 0.2.
        (work(tokens=800), UP, UP, ("cpu", "gpu"), False),
        (work(tokens=2_000), UP, UP, ("gpu", "cpu"), False),
        # Of each request beside it counts at most as much as its own size: 1.6 s against 0.08, 0.9
        # against 0.08, 1.1 against 0.22, 3.3 against 0.22, 2 against 4.2, 2 against 0.8.
        (work(tokens=800), busy(10**6), UP, ("gpu", "cpu"), False),
        (work(tokens=800), busy(100), UP, ("cpu", "gpu"), False),
        (work(tokens=1_100), UP, busy(10**6), ("cpu", "gpu"), False),
        (work(tokens=1_100), busy(10**6, 2), busy(10**6), ("gpu", "cpu"), False),
        (work(tokens=2_000), UP, busy(10**6, 20), ("cpu", "gpu"), False),
        (work(tokens=2_000), UP, busy(6_000, 20), ("gpu", "cpu"), False),
        # Cold: the CPU covers, and the GPU is woken from 5 s of work, what waits included.
        (work(tokens=4_999), UP, COLD, ("cpu", "gpu"), False),
        (work(tokens=5_000), UP, COLD, ("cpu", "gpu"), True),
        (work(tokens=100), busy(4_899), COLD, ("cpu", "gpu"), False),
        (work(tokens=100), busy(4_900), COLD, ("cpu", "gpu"), True),
        # So much work that it is done sooner by waiting for the GPU: the call itself wakes it.
        (work(tokens=40_000), UP, COLD, ("gpu", "cpu"), False),
        # Waking: not woken twice; used once the rest of the wait is worth it.
        (work(tokens=5_000), UP, waking(0.0), ("cpu", "gpu"), False),
        (work(tokens=5_000), UP, waking(23.0), ("gpu", "cpu"), False),
        (work(tokens=2_000), UP, waking(24.9), ("cpu", "gpu"), False),  # at least one more second
        (work(tokens=5_000), UP, waking(50.0), ("cpu", "gpu"), False),  # late: no longer believed
        # Down: never first, never woken.
        (work(tokens=2_000), UP, OPEN, ("cpu", "gpu"), False),
        (work(tokens=10_000), UP, OPEN_COLD, ("cpu", "gpu"), False),
        (work(tokens=100), OPEN, UP, ("gpu", "cpu"), False),
        (work(tokens=100), OPEN, COLD, ("gpu", "cpu"), False),
        (work(tokens=10_000), OPEN, COLD, ("gpu", "cpu"), False),
        (work(tokens=100), OPEN, OPEN, ("cpu", "gpu"), False),
        # No choice.
        (work(tokens=10**6, size_bytes={"cpu": 1}), UP, UP, ("cpu",), False),
        (work(tokens=1, size_bytes={"gpu": 1}), UP, COLD, ("gpu",), False),
        (work(tokens=10**6, size_bytes={}), UP, UP, ("cpu",), False),
        (work(tokens=10**6), UP, None, ("cpu",), False),
        (work(tokens=1, size_bytes={"gpu": 1}), UP, None, ("cpu",), False),
    ],
)
def test_the_adaptive_policy(
    asked: Work,
    cpu: BackendView,
    gpu: BackendView | None,
    devices: tuple[Device, ...],
    wakes: bool,
) -> None:
    """The backend that answers sooner; the CPU covers while the GPU sleeps, which is woken for much."""
    decide = adaptive(25.0, speeds=ROUND, min_saving_s=1.0, wake_backlog_s=5.0)
    decision = decide(asked, _views(cpu, gpu))
    assert (decision.devices, decision.wake_gpu) == (devices, wakes)


def test_a_tie_goes_to_the_cpu() -> None:
    """A GPU that saves exactly what it must save is not used."""
    decide = adaptive(25.0, speeds=ROUND, min_saving_s=0.0)
    tied = work(tokens=1_000, size_bytes={"cpu": 23_000_000, "gpu": 460_000_000})
    assert decide(tied, _views(UP, UP)).devices == ("cpu", "gpu")
    sooner = work(tokens=1_000, size_bytes={"cpu": 23_000_000, "gpu": 459_000_000})
    assert decide(sooner, _views(UP, UP)).devices == ("gpu", "cpu")


def test_a_gpu_that_wakes_at_once_is_still_not_woken_for_little() -> None:
    """The bill for a replica, not the wait, is what keeps little work from a cold GPU."""
    decide = adaptive(0.0, speeds=ROUND, min_saving_s=1.0, wake_backlog_s=5.0)
    assert decide(work(tokens=4_000), _views(UP, COLD)).devices == ("cpu", "gpu")
    assert decide(work(tokens=6_000), _views(UP, COLD)).devices == ("gpu", "cpu")


def test_a_larger_model_is_worth_the_gpu_sooner() -> None:
    """Two texts of a small model stay on the CPU, those of one ten times as large do not."""
    decide = adaptive(25.0)
    small = work(texts=2, tokens=200)
    large = work(texts=2, tokens=200, size_bytes={"cpu": 230_000_000, "gpu": 460_000_000})
    assert decide(small, _views(UP, UP)).devices == ("cpu", "gpu")
    assert decide(large, _views(UP, UP)).devices == ("gpu", "cpu")


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [
        ([], 0),
        (["word"], 3),
        (["words"], 4),
        (["word", "words"], 7),
        ([(101, 2054, 102)], 5),
        ([("word", "words")], 5),
        (["字字字字"], 5),  # twelve bytes
        (["\ud800"], 3),  # half a surrogate pair, as JSON can carry it
    ],
)
def test_tokens_are_estimated_without_a_tokenizer(texts: list[str], tokens: int) -> None:
    """Four bytes a token and two more a text; ids count themselves."""
    assert estimate_tokens(texts) == tokens


@pytest.mark.parametrize(
    ("request_", "paired", "max_tokens", "tokens"),
    [
        # Four bytes a token, and two special ones.
        (EmbedRequest("m", ("a" * 400, "a" * 4)), False, None, 102 + 3),
        (EmbedRequest("m", ("a" * 400, "a" * 4)), False, 16, 16 + 3),
        (EmbedRequest("m", ((1,) * 400, (1, 2))), False, 16, 16 + 4),
        # A cross-encoder reads the query with each document, an embedding model once.
        (RerankRequest("m", "q" * 40, ("a" * 4, "a" * 400)), True, None, 2 * 12 + 3 + 102),
        (RerankRequest("m", "q" * 40, ("a" * 4, "a" * 400)), True, 16, 15 + 16),
        (RerankRequest("m", "q" * 400, ("a" * 4, "a" * 400)), False, 16, 16 + 3 + 16),
        (PredictRequest("m", ("a" * 400, ("a" * 4, "a" * 8))), True, 16, 16 + 5),
        # Nothing is cut where tokens are what is asked for.
        (TokenizeRequest("m", ("a" * 400, "")), False, 16, 102 + 2),
    ],
)
def test_a_request_is_estimated_by_what_a_model_is_fed(
    request_: AnyRequest, paired: bool, max_tokens: int | None, tokens: int
) -> None:
    """What is cut off costs nothing, and a query as often as it is read."""
    assert estimate_request(request_, paired=paired, max_tokens=max_tokens) == tokens


def test_the_setting_names_the_policy() -> None:
    """The fixed rule has the setting's threshold; adaptive has the setting's wake time."""
    nine = work(texts=9, tokens=900)
    assert policy_of(Settings(gpu_min_texts=9))(nine, _views(UP, UP)).devices[0] == "gpu"
    assert policy_of(Settings(gpu_min_texts=10))(nine, _views(UP, UP)).devices[0] == "cpu"
    # 30 s on the CPU: worth a wait of 10 s, but not one of 60 s.
    much = work(texts=9, tokens=303_000)
    soon, late = (Settings(routing="adaptive", gpu_wake_s=wake_s) for wake_s in (10.0, 60.0))
    assert policy_of(soon)(much, _views(UP, COLD)).devices[0] == "gpu"
    assert policy_of(late)(much, _views(UP, COLD)).devices[0] == "cpu"


@pytest.mark.parametrize(
    ("device", "asked", "cpu", "gpu", "devices"),
    [
        ("gpu", work(texts=1), UP, UP, ("gpu", "cpu")),
        ("cpu", work(texts=10**6, cross_encoder=True), UP, UP, ("cpu", "gpu")),
        ("gpu", work(), UP, COLD, ("gpu", "cpu")),
        ("gpu", work(), UP, OPEN, ("cpu", "gpu")),
        ("gpu", work(size_bytes={"cpu": 1}), UP, UP, ("cpu",)),
        ("cpu", work(size_bytes={"gpu": 1}), UP, UP, ("gpu",)),
        ("gpu", work(), UP, None, ("cpu",)),
    ],
)
def test_what_was_asked_for_comes_first_where_it_can(
    device: Device,
    asked: Work,
    cpu: BackendView,
    gpu: BackendView | None,
    devices: tuple[Device, ...],
) -> None:
    """Whatever the request is; only a backend that is unavailable or lacks the model is passed over."""
    decision = preferring(device)(asked, _views(cpu, gpu))
    assert (decision.devices, decision.wake_gpu) == (devices, False)


def test_the_simulation_asks_the_policy_for_every_request_and_does_what_it_says() -> None:
    """Each arrival is one decision of the policy under test; what stays on the CPU costs no GPU time."""
    arrivals = day_of(synthetic_counts(SEED), 200, SEED)
    asked: list[Work] = []

    def spy(work: Work, views: Mapping[Device, BackendView]) -> Decision:
        asked.append(work)
        return Decision(("cpu",), False, "")

    outcome = Simulation(spy).run(arrivals)
    assert asked == [arrival.work for arrival in arrivals]
    assert sum(map(len, outcome.latencies_s.values())) == len(arrivals)
    assert outcome.paid_s["gpu"] == 0
    for name in ("fixed, 10 texts", "adaptive"):
        assert POLICIES[name].__module__ == "shared.routing.policy"


def test_the_simulated_gpu_wakes_serves_and_sleeps() -> None:
    """Two requests within the idle time share a wake of 20 to 30 s; one long after has its own."""
    much = Work(10, 1_000, False, SIZE_BYTES)
    arrivals = [Arrival(at_s, "batch", much) for at_s in (0.0, 100.0, 5_000.0)]
    outcome = Simulation(POLICIES["always GPU"]).run(arrivals)
    service_s = SPEEDS["gpu"].seconds(1_000, SIZE_BYTES["gpu"])
    first, second, third = outcome.latencies_s["batch"]
    assert 20.0 < first < 30.1
    assert second == pytest.approx(service_s)
    assert 20.0 < third < 30.1
    assert outcome.wakes == 2
    served_s = service_s - SPEEDS["gpu"].overhead_s
    up_s = (100.0 + served_s + 300.0) + (third - SPEEDS["gpu"].overhead_s + 300.0)
    assert outcome.paid_s["gpu"] == pytest.approx(up_s)


def test_the_simulated_instance_serves_its_jobs_side_by_side() -> None:
    """A short request that meets a long one takes twice its time, and not the long one's."""
    jobs = [Work(1, 100_000, False, SIZE_BYTES), Work(1, 1_000, False, SIZE_BYTES)]
    arrivals = [Arrival(0.0, "long", jobs[0]), Arrival(1.0, "short", jobs[1])]
    outcome = Simulation(POLICIES["always CPU"]).run(arrivals)
    long_s, short_s = (SPEEDS["cpu"].seconds(job.tokens, SIZE_BYTES["cpu"]) for job in jobs)
    overhead_s = SPEEDS["cpu"].overhead_s
    assert outcome.latencies_s["short"] == [pytest.approx(2 * (short_s - overhead_s) + overhead_s)]
    assert outcome.latencies_s["long"] == [pytest.approx(long_s + short_s - overhead_s)]


def test_the_simulated_cpu_app_scales_out_by_concurrency() -> None:
    """Sixteen calls under way are one instance's; the seventeenth starts another, which is paid for."""
    slow = Work(1, 100_000, False, SIZE_BYTES)
    alone = Simulation(POLICIES["always CPU"]).run([Arrival(0.0, "job", slow)] * 16)
    scaled = Simulation(POLICIES["always CPU"]).run([Arrival(0.0, "job", slow)] * 17)
    assert alone.paid_s["cpu"] == 24 * 3600
    assert scaled.paid_s["cpu"] > 24 * 3600


def test_a_synthetic_day_is_the_same_for_the_same_seed() -> None:
    """Arrivals are in order, within the day, and of every kind."""
    day = day_of(synthetic_counts(1), 2_000, 1)
    assert day == day_of(synthetic_counts(1), 2_000, 1)
    assert day != day_of(synthetic_counts(2), 2_000, 2)
    times = [arrival.at_s for arrival in day]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 24 * 3600
    assert {arrival.kind for arrival in day} == set(MIX)


def test_the_recording_is_eight_whole_weeks() -> None:
    """In quarters of an hour; the busiest day is a launch's, and the one without the server is empty."""
    days = recorded_days()
    assert [len(day.counts) for day in days] == [96] * 56
    assert max(range(56), key=lambda number: days[number].share) == 10
    assert days[30].share == sum(days[30].counts) == 0


@pytest.mark.parametrize("requests", [1_000, 10_000, 30_000])
def test_adaptive_is_no_slower_and_no_dearer_than_the_fixed_rule(requests: int) -> None:
    """On quiet and on busy synthetic days: p95 and GPU seconds are both at most the fixed rule's."""
    arrivals = day_of(synthetic_counts(SEED), requests, SEED)
    rule = Simulation(POLICIES["fixed, 10 texts"]).run(arrivals)
    ours = Simulation(POLICIES["adaptive"]).run(arrivals)
    assert ours.percentile(0.95) <= rule.percentile(0.95)
    assert ours.paid_s["gpu"] <= rule.paid_s["gpu"]


def test_between_quiet_and_busy_adaptive_trades_p95_for_gpu_seconds_and_p99() -> None:
    """3,000 requests a day keep the fixed rule's GPU up most of the day, which adaptive does not pay."""
    arrivals = day_of(synthetic_counts(SEED), 3_000, SEED)
    rule = Simulation(POLICIES["fixed, 10 texts"]).run(arrivals)
    ours = Simulation(POLICIES["adaptive"]).run(arrivals)
    assert ours.paid_s["gpu"] < rule.paid_s["gpu"] / 2
    assert ours.percentile(0.99) < rule.percentile(0.99) / 5
    assert ours.percentile(0.95) > rule.percentile(0.95)  # not hidden: docs/measurements/routing.md


def _views(cpu: BackendView, gpu: BackendView | None) -> dict[Device, BackendView]:
    return {"cpu": cpu} if gpu is None else {"cpu": cpu, "gpu": gpu}
