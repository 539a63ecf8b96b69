"""The dispatcher with fake backends, a policy that the test decides, and a clock that it moves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from shared import errors
from shared.cards import Device, ModelCard
from shared.context import deadline, preference
from shared.contracts import DecodeRequest, EmbedRequest, PredictRequest, RerankRequest, TokenizeRequest
from shared.errors import BlitzError, DeadlineExceeded, Unavailable
from shared.observability.metrics import Telemetry
from shared.routing.breaker import FAILURES, OPEN_S
from shared.routing.dispatch import Dispatcher
from shared.routing.policy import BackendView, Decision, Work
from tests.fakes.catalogue import FakeCatalogue
from tests.fakes.clock import Clock
from tests.fakes.inference import FakeDevice
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

ONE = EmbedRequest("m", ("a",))


def card(device: Device, size: int, **options: Any) -> ModelCard:
    return ModelCard("m", "r", device, "bert", "mean", 2, 16, device=device, size_bytes=size, **options)


class Setup:
    """A dispatcher over two fakes; its policy says `decision` each time and keeps what it was told."""

    def __init__(self, *devices: Device, **options: Any) -> None:
        self.clock = Clock()
        self.cpu, self.gpu = FakeDevice("cpu"), FakeDevice("gpu")
        self.catalogue = FakeCatalogue([card("cpu", 10), card("gpu", 20)])
        self.decision = Decision(devices or ("cpu", "gpu"), False, "the test says so")
        self.told: list[tuple[Work, Mapping[Device, BackendView]]] = []
        self.metrics = Telemetry(CollectorRegistry())
        self.decide: Callable[[BackendView], tuple[Device, ...]] | None = None
        self.wakes = 0
        self.wake_ends: asyncio.Future[None] | None = None
        numbers: dict[str, Any] = {
            "part_texts": 10,
            "concurrency": {"cpu": 4, "gpu": 4},
            "max_queue_s": 30.0,
            "max_request_tokens": 10_000,
            "patience_s": 25.0,
            "gpu_idle_s": 300.0,
        }
        self.dispatcher = Dispatcher(
            {"cpu": self.cpu, "gpu": self.gpu},
            self.catalogue,
            self._decide,
            wake_gpu=self._wake,
            metrics=self.metrics,
            clock=self.clock,
            **(numbers | options),
        )

    def _decide(self, work: Work, views: Mapping[Device, BackendView]) -> Decision:
        self.told.append((work, views))
        if self.decide is not None:
            return Decision(self.decide(views["gpu"]), False, "by the GPU's view")
        return self.decision

    async def _wake(self) -> None:
        self.wakes += 1
        assert deadline.remaining_s() is None
        self.wake_ends = asyncio.get_running_loop().create_future()
        await self.wake_ends

    async def view(self, device: Device) -> BackendView:
        """What the policy is told of `device` now; asked of the CPU, which answers."""
        before, self.decision = self.decision, Decision(("cpu",), False, "")
        await self.dispatcher.run(ONE)
        self.decision = before
        return self.told[-1][1][device]

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics._registry.get_sample_value(f"{name}_total", labels) or 0.0


def texts(count: int) -> tuple[str, ...]:
    """Distinct lengths, so that a row tells whose it is."""
    return tuple("x" * (n + 1) for n in range(count))


def lengths(count: int) -> list[float]:
    return [float(n + 1) for n in range(count)]


async def settle() -> None:
    """Let every task that can go on go on until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(call: Awaitable[Any]) -> AsyncIterator[asyncio.Future[Any]]:
    task = asyncio.ensure_future(call)
    await settle()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


# Where a request goes


async def test_the_policy_is_told_what_is_known_and_obeyed() -> None:
    """Texts, estimated tokens, sizes on each device; the answer is of the device that it names."""
    setup = Setup("gpu", "cpu")
    result = await setup.dispatcher.run(EmbedRequest("m", ("abcdefgh", "b")))
    assert result.device == "gpu"
    assert not setup.cpu.asked
    work, views = setup.told[0]
    assert work == Work(2, 7, False, {"cpu": 10, "gpu": 20})
    assert views == {
        "cpu": BackendView(available=True, warm=True, waking_s=None, queued_tokens=0),
        "gpu": BackendView(available=True, warm=False, waking_s=None, queued_tokens=0),
    }


async def test_a_preference_goes_before_the_policy_and_only_within_its_block() -> None:
    """Also in a task that was begun there; the policy's backend answers when the preferred one fails."""
    setup = Setup("cpu", "gpu")
    with preference.stated("gpu"):
        first = asyncio.ensure_future(setup.dispatcher.run(ONE))
    assert (await first).device == "gpu"
    assert (await setup.dispatcher.run(ONE)).device == "cpu"
    setup.gpu.error = Unavailable("down")
    with preference.stated("gpu"):
        assert (await setup.dispatcher.run(ONE)).device == "cpu"


async def test_what_is_sent_to_the_gpu_counts_as_wanting_it() -> None:
    """And what is kept from it does not, so that waking ahead goes by where requests really go."""
    setup = Setup("gpu", "cpu")
    wanted: list[bool] = []
    setup.dispatcher.watch_gpu_work(lambda: wanted.append(True))
    with preference.stated("cpu"):
        await setup.dispatcher.run(ONE)
    assert not wanted
    setup.decision = Decision(("cpu", "gpu"), False, "")
    with preference.stated("gpu"):
        await setup.dispatcher.run(ONE)
    assert wanted == [True]


async def test_every_kind_of_request_goes_its_way() -> None:
    """Each comes back as its own result, from its own method."""
    setup = Setup("gpu")
    reranked = await setup.dispatcher.run(RerankRequest("m", "q", ("a", "bb")))
    predicted = await setup.dispatcher.run(PredictRequest("m", (("a", "b"), "ccc")))
    assert reranked.scores.tolist() == [1, 2]
    assert predicted.labels == ("no", "yes")
    assert [type(call) for call in setup.gpu.asked] == [RerankRequest, PredictRequest]


async def test_tokens_are_told_by_the_cpu() -> None:
    """Whatever the policy or the caller would rather have: the GPU is neither woken nor counted on."""
    setup = Setup("gpu")
    wanted: list[bool] = []
    setup.dispatcher.watch_gpu_work(lambda: wanted.append(True))
    with preference.stated("gpu"):
        result = await setup.dispatcher.run(TokenizeRequest("m", ("ab", "", "c")))
    assert (result.texts, result.token_counts) == (("a", "b", "c"), (2, 0, 1))
    assert (len(setup.cpu.asked), setup.gpu.asked, wanted) == (1, [], [])


async def test_a_cross_encoder_reads_the_query_with_each_document() -> None:
    """The estimate counts it each time; an embedding model reads it once."""
    for task, tokens in (("cross-encoder", 2 * 3 + 2 * 6), ("embedding", 2 * 3 + 6)):
        setup = Setup()
        setup.catalogue.listed = [card("cpu", 10, task=task)]
        await setup.dispatcher.run(RerankRequest("m", "q" * 16, ("a", "b")))
        work = setup.told[0][0]
        assert (work.cross_encoder, work.tokens) == (task == "cross-encoder", tokens)


async def test_tokens_under_way_are_told_and_forgotten() -> None:
    """Of a call that is not answered yet, whether it ends well, badly or not at all."""
    setup = Setup("gpu")
    arrived, go = asyncio.Event(), asyncio.Event()

    async def wait(request: Any) -> None:
        arrived.set()
        await go.wait()

    setup.gpu.before = wait
    for ending in ("ok", "error", "cancelled"):
        arrived.clear()
        go.clear()
        async with running(setup.dispatcher.run(EmbedRequest("m", ("abcdefgh",)))) as task:
            await arrived.wait()
            assert (await setup.view("gpu")).queued_tokens == 4
            setup.gpu.error = errors.InvalidInput("no") if ending == "error" else None
            if ending == "cancelled":
                task.cancel()
            go.set()
            await asyncio.wait([task])
        assert (await setup.view("gpu")).queued_tokens == 0


async def test_a_model_that_is_not_known_is_told_as_such() -> None:
    """The policy decides where to ask for it; a backend may have found it since."""
    setup = Setup("cpu")
    await setup.dispatcher.run(EmbedRequest("new", ("a",)))
    assert setup.told[0][0].size_bytes == {}
    assert len(setup.cpu.asked) == 1


# Falling back

FALLING_BACK = [
    errors.Unavailable("no"),
    errors.ModelLoadFailed("no"),
    errors.StoreUnavailable("no"),
    errors.BackendFailed("no"),
    errors.DeadlineExceeded("no"),
    errors.Overloaded("no"),
    errors.UnknownModel("no"),
    errors.InvalidArtefact("no"),
    errors.BeyondMemory("no"),
]
THE_CALLERS = [
    errors.InvalidInput("no"),
    errors.InputTooLong("no"),
    errors.PayloadTooLarge("no"),
]


@pytest.mark.parametrize("error", FALLING_BACK, ids=lambda error: error.code)
async def test_what_another_backend_may_answer_goes_to_it(error: BlitzError) -> None:
    """One answer, of the second; the metrics say what happened."""
    setup = Setup("gpu", "cpu")
    setup.gpu.error = error
    assert (await setup.dispatcher.run(ONE)).device == "cpu"
    assert len(setup.gpu.asked) == len(setup.cpu.asked) == 1
    assert setup.metric("blitz_backend_requests", backend="gpu", outcome=error.code) == 1
    assert setup.metric("blitz_backend_requests", backend="cpu", outcome="ok") == 1
    assert setup.metric("blitz_backend_fallbacks", backend="gpu") == 1


@pytest.mark.parametrize("error", THE_CALLERS, ids=lambda error: error.code)
async def test_the_callers_errors_end_it(error: BlitzError) -> None:
    """Asking another backend the same would give the same."""
    setup = Setup("gpu", "cpu")
    setup.gpu.error = error
    with pytest.raises(type(error)):
        await setup.dispatcher.run(ONE)
    assert not setup.cpu.asked
    assert setup.metric("blitz_backend_fallbacks", backend="gpu") == 0


@pytest.mark.parametrize(
    ("first", "second", "raised"),
    [
        (errors.Overloaded("a"), errors.Unavailable("b"), "a"),
        (errors.UnknownModel("a"), errors.Unavailable("b"), "b"),
        (errors.Unavailable("a"), errors.UnknownModel("b"), "a"),
        (errors.UnknownModel("a"), errors.UnknownModel("b"), "a"),
        (errors.Unavailable("a"), errors.InvalidInput("b"), "b"),
    ],
)
async def test_of_several_failures_the_telling_one_is_raised(
    first: BlitzError, second: BlitzError, raised: str
) -> None:
    """The first, but a model is not called unknown while the backend that may have it is away."""
    setup = Setup("gpu", "cpu")
    setup.gpu.error, setup.cpu.error = first, second
    with pytest.raises(BlitzError, match=raised):
        await setup.dispatcher.run(ONE)


async def test_a_backend_that_hangs_leaves_time_for_the_other() -> None:
    """It gets half, and the answer is in time."""
    setup = Setup("gpu", "cpu")

    async def hang(request: Any) -> None:
        await asyncio.Event().wait()

    setup.gpu.before = hang
    for within_s in (0.5, 5.0, 50.0):  # half of it is enough for any machine in the end
        with suppress(DeadlineExceeded):
            async with deadline.within(within_s):
                assert (await setup.dispatcher.run(ONE)).device == "cpu"
            break
    else:
        pytest.fail("no time was left for the other")


async def test_without_time_left_nothing_more_is_tried() -> None:
    """The request's own deadline is over: what the first backend said is the answer."""
    setup = Setup("gpu", "cpu")
    setup.gpu.error = errors.BackendFailed("it took its time")

    async def late() -> None:
        async with deadline.within(-1):
            await setup.dispatcher.run(ONE)

    with pytest.raises(errors.BackendFailed):
        await late()
    assert len(setup.gpu.asked) == 1
    assert not setup.cpu.asked


async def test_a_caller_that_leaves_ends_the_call_and_starts_no_other() -> None:
    """Cancellation reaches the backend and is no reason to fall back."""
    setup = Setup("gpu", "cpu")
    cancelled = asyncio.Event()

    async def hang(request: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    setup.gpu.before = hang
    async with running(setup.dispatcher.run(ONE)) as task:
        task.cancel()
    assert cancelled.is_set()
    assert task.cancelled()
    assert not setup.cpu.asked
    assert setup.metric("blitz_backend_requests", backend="gpu", outcome="cancelled") == 1


# The circuit


async def fail_often(setup: Setup, times: int = FAILURES) -> None:
    for _ in range(times):
        await setup.dispatcher.run(ONE)


@pytest.mark.parametrize(
    "error", [errors.Unavailable("no"), errors.BackendFailed("no")], ids=lambda error: error.code
)
async def test_a_backend_that_keeps_failing_is_left_alone_for_a_while(error: BlitzError) -> None:
    """The policy sees it; it is not called; a trial after the pause closes the circuit."""
    setup = Setup("gpu", "cpu")
    setup.gpu.error = error
    await fail_often(setup)
    assert not (await setup.view("gpu")).available
    calls = len(setup.gpu.asked)
    assert (await setup.dispatcher.run(ONE)).device == "cpu"
    assert len(setup.gpu.asked) == calls
    setup.clock.now += OPEN_S
    setup.gpu.error = None
    assert (await setup.view("gpu")).available
    assert (await setup.dispatcher.run(ONE)).device == "gpu"
    assert (await setup.view("gpu")).available


async def test_with_no_other_backend_an_open_circuit_fails_at_once_and_says_when() -> None:
    """503 with the time of the next trial, without a call."""
    setup = Setup("gpu")
    setup.gpu.error = errors.BackendFailed("no")
    for _ in range(FAILURES):
        with pytest.raises(errors.BackendFailed):
            await setup.dispatcher.run(ONE)
    setup.clock.now += 4
    with pytest.raises(Unavailable) as caught:
        await setup.dispatcher.run(ONE)
    assert caught.value.retry_after_s == OPEN_S - 4
    assert len(setup.gpu.asked) == FAILURES


@pytest.mark.parametrize(
    "error",
    [e for e in FALLING_BACK if type(e) not in (Unavailable, errors.BackendFailed, DeadlineExceeded)]
    + THE_CALLERS,
    ids=lambda error: error.code,
)
async def test_an_answer_that_is_an_error_opens_no_circuit(error: BlitzError) -> None:
    """One model that does not load, or one busy moment, does not close the backend to the others."""
    setup = Setup("gpu")
    setup.gpu.error = error
    for _ in range(3 * FAILURES):
        with pytest.raises(type(error)):
            await setup.dispatcher.run(ONE)
    assert (await setup.view("gpu")).available


@pytest.mark.parametrize(("waited_s", "opens"), [(24.0, False), (25.0, True)])
@pytest.mark.parametrize("by_cancelling", [False, True])
async def test_a_deadline_speaks_against_a_backend_only_after_a_fair_wait(
    waited_s: float, opens: bool, by_cancelling: bool
) -> None:
    """Hurried callers must not be able to close it to everyone; patience_s is fair."""
    setup = Setup("gpu")

    async def hang(request: Any) -> None:
        setup.clock.now += waited_s
        if not by_cancelling:
            raise DeadlineExceeded("too slow")
        await asyncio.Event().wait()

    async def ask() -> None:
        async with deadline.within(0.005 if by_cancelling else 60.0):
            await setup.dispatcher.run(ONE)

    setup.gpu.before = hang
    for _ in range(FAILURES):
        with pytest.raises(DeadlineExceeded):
            await ask()
    assert (await setup.view("gpu")).available is not opens


async def test_the_last_device_has_all_the_time_left() -> None:
    """Those before it have half of what is left each; without a deadline nobody is hurried."""
    setup = Setup("gpu", "cpu")
    setup.gpu.error = errors.BackendFailed("no")
    shares: list[float | None] = []

    async def look(request: Any) -> None:
        shares.append(deadline.remaining_s())

    setup.gpu.before = setup.cpu.before = look
    async with deadline.within(1000):
        await setup.dispatcher.run(ONE)
    await setup.dispatcher.run(ONE)
    half_s, all_s, *without = shares
    assert half_s is not None
    assert all_s is not None
    assert half_s <= 500 < all_s <= 1000
    assert without == [None, None]


async def test_a_call_that_the_deadline_ends_is_counted_as_such() -> None:
    """Not as cancelled, which says that the caller left."""
    setup = Setup("gpu")

    async def hang(request: Any) -> None:
        await asyncio.Event().wait()

    setup.gpu.before = hang
    with pytest.raises(DeadlineExceeded):
        async with deadline.within(0.005):
            await setup.dispatcher.run(ONE)
    async with running(setup.dispatcher.run(ONE)) as task:
        task.cancel()
    outcomes = ("deadline_exceeded", "cancelled")
    told = [setup.metric("blitz_backend_requests", backend="gpu", outcome=o) for o in outcomes]
    assert told == [1, 1]


async def test_callers_that_leave_say_nothing_of_a_backend() -> None:
    """However long they waited: they may have waited for a very large request."""
    setup = Setup("gpu")

    async def hang(request: Any) -> None:
        setup.clock.now += 50.0
        await asyncio.Event().wait()

    setup.gpu.before = hang
    for _ in range(FAILURES):
        async with deadline.within(60), running(setup.dispatcher.run(ONE)) as task:
            task.cancel()
    assert (await setup.view("gpu")).available


async def test_a_large_request_counts_once_and_passes_once() -> None:
    """Its parts are one trial: all of them go, and close the circuit."""
    setup = Setup("gpu", "cpu")
    setup.gpu.error = errors.BackendFailed("no")
    await fail_often(setup, FAILURES - 1)
    assert (await setup.dispatcher.run(EmbedRequest("m", texts(35)))).device == "cpu"
    assert not (await setup.view("gpu")).available
    setup.gpu.error = None
    setup.clock.now += OPEN_S
    assert (await setup.dispatcher.run(EmbedRequest("m", texts(35)))).device == "gpu"
    assert (await setup.view("gpu")).available


# The GPU that scales to zero


async def test_the_gpu_is_warm_for_a_while_after_each_answer() -> None:
    """A refusal is an answer; silence is none. The CPU is always taken to be up."""
    setup = Setup("gpu")
    assert not (await setup.view("gpu")).warm
    for error in (None, errors.Overloaded("no")):
        setup.gpu.error = error
        if error is None:
            await setup.dispatcher.run(ONE)
        else:
            with pytest.raises(type(error)):
                await setup.dispatcher.run(ONE)
        setup.clock.now += 299
        assert (await setup.view("gpu")).warm
        setup.gpu.error = errors.BackendFailed("no")
        with pytest.raises(errors.BackendFailed):
            await setup.dispatcher.run(ONE)
        setup.clock.now += 1
        view = await setup.view("gpu")
        assert not view.warm
    assert (await setup.view("cpu")).warm


async def test_the_gpu_is_woken_once_while_the_cpu_answers() -> None:
    """One wake at a time, in nobody's request; it is seen as waking, and then as warm."""
    setup = Setup()
    setup.decision = Decision(("cpu", "gpu"), True, "")
    async with deadline.within(60):
        for _ in range(3):
            assert (await setup.dispatcher.run(ONE)).device == "cpu"
    await settle()
    setup.clock.now += 7
    view = await setup.view("gpu")
    assert (setup.wakes, view.waking_s, view.warm) == (1, 7.0, False)
    assert setup.wake_ends is not None
    setup.wake_ends.set_result(None)
    await settle()
    view = await setup.view("gpu")
    assert (view.waking_s, view.warm) == (None, True)
    assert setup.metric("blitz_gpu_wakes") == 1


async def test_whoever_wakes_the_gpu_ahead_waits_for_it() -> None:
    """Together with others that do; a failure is only logged; a warm GPU is asked all the same."""
    setup = Setup()
    for times in (1, 2):
        async with (
            running(setup.dispatcher.wake_gpu()) as one,
            running(setup.dispatcher.wake_gpu()) as other,
        ):
            assert setup.wakes == times
            assert not one.done()
            assert setup.wake_ends is not None
            setup.wake_ends.set_result(None)
            await asyncio.gather(one, other)
        assert (await setup.view("gpu")).warm
    async with running(setup.dispatcher.wake_gpu()) as failing:
        assert setup.wake_ends is not None
        setup.wake_ends.set_exception(DeadlineExceeded("it did not wake"))
        await failing


async def test_requests_that_the_gpu_is_wanted_for_are_told() -> None:
    """Also those that the CPU answers because the GPU is cold; none that goes to the CPU anyway."""
    setup = Setup()
    wanted: list[bool] = []
    setup.dispatcher.watch_gpu_work(lambda: wanted.append(True))
    await setup.dispatcher.run(ONE)
    assert not wanted
    setup.decide = lambda view: ("gpu", "cpu") if view.warm else ("cpu", "gpu")
    assert (await setup.dispatcher.run(ONE)).device == "cpu"
    assert wanted == [True]


async def test_a_gpu_that_woke_is_available_at_once() -> None:
    """While it started, calls to it failed; that is over, and nobody waits for a trial."""
    setup = Setup("gpu", "cpu")
    setup.gpu.error = errors.Unavailable("starting")
    await fail_often(setup)
    setup.decision = Decision(("cpu",), True, "")
    await setup.dispatcher.run(ONE)
    await settle()
    assert setup.wake_ends is not None
    assert not (await setup.view("gpu")).available
    setup.wake_ends.set_result(None)
    await settle()
    assert (await setup.view("gpu")).available


async def test_a_wake_that_failed_is_tried_again_when_the_policy_says_so() -> None:
    """It is over, not warm, and the next decision starts another."""
    setup = Setup()
    setup.decision = Decision(("cpu",), True, "")
    await setup.dispatcher.run(ONE)
    await settle()
    assert setup.wake_ends is not None
    setup.wake_ends.set_exception(DeadlineExceeded("it did not wake"))
    await settle()
    view = await setup.view("gpu")
    assert (view.waking_s, view.warm) == (None, False)
    await setup.dispatcher.run(ONE)
    await settle()
    assert setup.wakes == 2
    await setup.dispatcher.close()


async def test_closing_ends_the_wake_and_closes_every_backend() -> None:
    """Nothing goes on afterwards."""
    setup = Setup()
    setup.decision = Decision(("cpu",), True, "")
    await setup.dispatcher.run(ONE)
    await settle()
    await setup.dispatcher.close()
    assert setup.wake_ends is not None
    assert setup.wake_ends.cancelled()
    assert setup.cpu.closed
    assert setup.gpu.closed


async def test_states_never_ask_a_gpu_that_may_sleep() -> None:
    """Nothing is said of it then; once it is up, its models are listed with the CPU's, by name."""
    setup = Setup("gpu")
    assert [state.device for state in await setup.dispatcher.states()] == ["cpu", "cpu"]
    assert setup.gpu.asked_states == 0
    await setup.dispatcher.run(ONE)
    states = await setup.dispatcher.states()
    assert [(state.name, state.device) for state in states] == [
        ("m", "cpu"),
        ("m", "gpu"),
        ("only-cpu", "cpu"),
        ("only-gpu", "gpu"),
    ]
    setup.clock.now += 299
    await setup.dispatcher.states()
    setup.clock.now += 1
    await setup.dispatcher.states()
    assert setup.gpu.asked_states == 2  # asking did not make it look used


async def test_states_without_the_gpu_when_it_fails_but_not_without_the_cpu() -> None:
    """The CPU answers for the service."""
    setup = Setup("gpu")
    await setup.dispatcher.run(ONE)
    setup.gpu.error = errors.BackendFailed("no")
    assert {state.device for state in await setup.dispatcher.states()} == {"cpu"}
    setup.cpu.error = errors.Unavailable("no")
    with pytest.raises(Unavailable):
        await setup.dispatcher.states()


# Large requests


LARGE = [
    EmbedRequest("m", texts(35)),
    RerankRequest("m", "q", texts(35)),
    PredictRequest("m", texts(35)),
    TokenizeRequest("m", texts(35)),
    DecodeRequest("m", tuple(tuple(map(ord, text)) for text in texts(35))),
]
"""Each is four parts of a remote backend."""


async def answered(setup: Setup, request: Any) -> list[int]:
    """The token counts of the answer to any kind of request."""
    return list((await setup.dispatcher.run(request)).token_counts)


def kind_of(request: Any) -> str:
    return type(request).__name__


@given(st.integers(1, 60), st.integers(1, 25), st.integers(1, 5), st.randoms())
@settings(max_examples=40)
def test_any_splitting_joins_in_order(count: int, chunk: int, slots: int, random: Any) -> None:
    """Whatever the sizes and whichever part is answered first, rows and counts are the texts'."""

    async def run() -> None:
        setup = Setup("gpu", part_texts=chunk, concurrency={"gpu": slots})

        async def dawdle(request: Any) -> None:
            for _ in range(random.randrange(5)):
                await asyncio.sleep(0)

        setup.gpu.before = dawdle
        result = await setup.dispatcher.run(EmbedRequest("m", texts(count)))
        assert result.vectors[:, 0].tolist() == lengths(count)
        assert list(result.token_counts) == lengths(count)
        ranked = await setup.dispatcher.run(RerankRequest("m", "q", texts(count)))
        assert ranked.scores.tolist() == lengths(count)
        assert all(len(call.texts) <= chunk for call in setup.gpu.asked)
        assert len(setup.gpu.asked) == 2 * -(-count // chunk)

    asyncio.run(run())


async def test_the_first_error_of_a_part_cancels_the_rest_and_is_the_callers() -> None:
    """As itself, not in a group, and it names the text as the caller numbered it."""
    setup = Setup("gpu", "cpu", concurrency={"gpu": 100})
    ended: Counter[str] = Counter()

    async def fail_third(request: Any) -> None:
        try:
            if len(request.inputs[0]) == 21:
                await settle()
                raise errors.InputTooLong("too long", field="input[4]")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended["cancelled"] += 1
            raise

    setup.gpu.before = fail_third
    with pytest.raises(errors.InputTooLong) as caught:
        await setup.dispatcher.run(EmbedRequest("m", texts(45)))
    assert caught.value.field == "input[24]"
    assert ended["cancelled"] == 4
    assert not setup.cpu.asked


async def test_a_part_that_fails_sends_the_whole_request_elsewhere() -> None:
    """One answer is of one backend: INT8 and FP16 rows are not mixed."""
    setup = Setup("gpu", "cpu")

    async def fail_last(request: Any) -> None:
        if len(request.inputs[0]) == 31:
            raise errors.BackendFailed("it died")

    setup.gpu.before = fail_last
    result = await setup.dispatcher.run(EmbedRequest("m", texts(35)))
    assert (result.device, result.revision) == ("cpu", "cpu-1")
    assert result.vectors[:, 0].tolist() == lengths(35)


@pytest.mark.parametrize("request_", LARGE[:-1], ids=kind_of)  # of ids the number is known
async def test_what_may_be_too_much_is_counted_before_any_of_it_is_run(request_: Any) -> None:
    """By the backend, which is given the whole: only that knows. Twice the estimate is taken for it."""
    for max_tokens, calls in ((1000, 4), (300, 1)):
        setup = Setup("cpu", concurrency={"cpu": 8}, max_request_tokens=max_tokens)
        assert await answered(setup, request_) == lengths(35)
        assert len(setup.cpu.asked) == calls


async def test_too_many_tokens_in_all_end_it_as_soon_as_they_are_known() -> None:
    """Four times as many as were estimated: no further part is worked on."""
    setup = Setup("gpu", "cpu", max_request_tokens=800, concurrency={"gpu": 2})
    worked_on = []

    async def work(request: Any) -> None:
        await settle()
        worked_on.append(request)

    setup.gpu.before = work
    with pytest.raises(errors.PayloadTooLarge, match=r"at least 820 tokens.* 800:") as caught:
        await setup.dispatcher.run(EmbedRequest("m", texts(45)))
    assert caught.value.field == "input"
    assert len(worked_on) == 4  # of 55, 155, 255 and 355 tokens, one after the other
    setup.gpu.before = None
    assert not setup.cpu.asked
    assert (await setup.view("gpu")).available


NOT_THERE = errors.UnknownModel("there is no such revision")
NOT_LOADED = errors.ModelLoadFailed("it did not load")
NO_STORE = errors.StoreUnavailable("the store does not answer")


@pytest.mark.parametrize(
    ("met", "cannot", "answered_by", "asked_again"),
    [
        ("1 1 1 1", {}, "1", []),
        ("1 1 1 2", {}, "2", ["m@2"] * 3),
        ("1 2 1 2", {}, "2", ["m@2"] * 2),
        ("2 1 2 1", {}, "1", ["m@1"] * 2),
        ("1 2 3 2", {}, "2", ["m@2"] * 2),
        ("2 2 2 1", {"m@1": NOT_THERE}, "2", ["m@1"] * 3 + ["m@2"]),
        ("1 1 1 2", {"m@2": NOT_LOADED}, "1", ["m@2"] * 3 + ["m@1"]),
        ("1 1 1 2", {"m@2": NO_STORE}, "1", ["m@2"] * 3 + ["m@1"]),
    ],
)
async def test_parts_that_met_two_revisions_are_answered_by_one(
    met: str, cannot: dict[str, BlitzError], answered_by: str, asked_again: list[str]
) -> None:
    """The latest, asked for by name, because a backend's processes change one after the other; another
    if that is not to be had. met: in order, by the first call of each part."""
    setup = Setup("gpu")
    meets = iter(met.split())

    async def meet(request: Any) -> None:
        if request.model in cannot:
            await settle()
            raise cannot[request.model]

    async def run(request: Any) -> Any:
        if request.model == "m":
            setup.gpu.revision = next(meets)
        return await FakeDevice.run(setup.gpu, request)

    setup.gpu.before = meet
    setup.gpu.run = run  # type: ignore[method-assign]
    result = await setup.dispatcher.run(EmbedRequest("m", texts(35)))
    assert result.revision == answered_by
    assert result.vectors[:, 0].tolist() == lengths(35)
    assert [call.model for call in setup.gpu.asked] == ["m"] * 4 + asked_again


@pytest.mark.parametrize("request_", LARGE, ids=kind_of)
async def test_a_model_updated_between_two_parts_fails_no_request(request_: Any) -> None:
    """Of any kind."""
    setup = Setup("cpu", concurrency={"cpu": 2})  # parts one after the other

    async def update(request: Any) -> None:
        if len(setup.cpu.asked) == 2:
            setup.cpu.revision = "cpu-2"

    setup.cpu.before = update
    result = await setup.dispatcher.run(request_)
    assert result.revision == "cpu-2"
    assert list(result.token_counts) == lengths(35)
    assert [call.model for call in setup.cpu.asked] == ["m"] * 4 + ["m@cpu-2"] * 2


async def test_a_revision_that_not_all_can_get_is_an_honest_503() -> None:
    """Never mixed, and not the backend's failure."""
    setup = Setup("gpu")

    async def update(request: Any) -> None:
        if request.model != "m":
            raise NOT_THERE
        setup.gpu.revision = f"gpu-{len(setup.gpu.asked)}"

    setup.gpu.before = update
    for _ in range(2 * FAILURES):
        with pytest.raises(Unavailable, match="updated"):
            await setup.dispatcher.run(EmbedRequest("m", texts(25)))
    assert (await setup.view("gpu")).available


@pytest.mark.parametrize("request_", LARGE, ids=kind_of)
async def test_a_backend_in_process_is_given_the_whole(request_: Any) -> None:
    """It counts and admits requests, and makes micro-batches itself: parts would only compete."""
    setup = Setup("cpu", concurrency={})
    assert await answered(setup, request_) == lengths(35)
    assert setup.cpu.asked == [request_]


@pytest.mark.parametrize("request_", LARGE, ids=kind_of)
async def test_parts_of_a_request_do_not_refuse_each_other(request_: Any) -> None:
    """A backend that has room for one of them at a time answers all: those it refuses come again."""
    setup = Setup("cpu", concurrency={"cpu": 8})
    inside, refused = 0, 0

    async def one_at_a_time(request: Any) -> None:
        nonlocal inside, refused
        if inside:
            refused += 1
            raise errors.Overloaded("full", retry_after_s=60)
        inside += 1
        await settle()
        inside -= 1

    setup.cpu.before = one_at_a_time
    async with deadline.within(20):  # less than a wait of what the backend says: an answer ends it
        assert await answered(setup, request_) == lengths(35)
    assert refused >= 3


async def test_a_part_that_is_refused_after_all_others_were_answered_comes_again() -> None:
    """Also where no own part is left to wait for: others fill the queue, but this was admitted."""
    setup = Setup("cpu", concurrency={"cpu": 8})
    refusals = iter([errors.Overloaded("full", retry_after_s=0.01)] * 3)

    async def refuse_last(request: Any) -> None:
        if len(request.inputs[0]) == 31:
            await settle()
            for error in refusals:
                raise error

    setup.cpu.before = refuse_last
    assert await answered(setup, LARGE[0]) == lengths(35)
    assert len(setup.cpu.asked) == 4 + 3


@pytest.mark.parametrize("request_", LARGE, ids=kind_of)
async def test_a_queue_full_of_others_work_refuses_the_whole(request_: Any) -> None:
    """At once, after each part was asked once."""
    setup = Setup("cpu", concurrency={"cpu": 8})
    setup.cpu.error = setup.gpu.error = errors.Overloaded("full", retry_after_s=7)
    with pytest.raises(errors.Overloaded) as caught:
        await asyncio.wait_for(answered(setup, request_), 5)
    assert caught.value.retry_after_s == 7
    assert len(setup.cpu.asked) == 4


@pytest.mark.parametrize("concurrency", [{}, {"cpu": 8}], ids=["in process", "remote"])
@pytest.mark.parametrize("request_", LARGE, ids=kind_of)
async def test_what_surely_is_too_much_goes_nowhere(request_: Any, concurrency: Any) -> None:
    """By the characters of the whole, though each part alone would pass; both numbers are said."""
    setup = Setup("cpu", concurrency=concurrency, max_request_tokens=39)  # 624 characters
    query = isinstance(request_, RerankRequest)
    said = f"{630 + query} characters.* 39 tokens"
    with pytest.raises(errors.PayloadTooLarge, match=said):
        await answered(setup, request_)
    assert not setup.cpu.asked


# Room


class Gate:
    """Holds each call at a backend until the test lets it go."""

    def __init__(self) -> None:
        self.inside: list[tuple[Any, asyncio.Event]] = []
        self.most = 0

    async def __call__(self, request: Any) -> None:
        go = asyncio.Event()
        self.inside.append((request, go))
        self.most = max(self.most, len(self.inside))
        try:
            await go.wait()
        finally:
            self.inside = [item for item in self.inside if item[1] is not go]

    async def let_one_go(self) -> None:
        self.inside[0][1].set()
        await settle()


async def test_the_limit_is_for_all_requests_together() -> None:
    """Many callers at once, small and large: never more calls under way than the limit."""
    setup = Setup("gpu", concurrency={"gpu": 4})
    gate = setup.gpu.before = Gate()
    requests = [EmbedRequest("m", texts(n)) for n in (1, 35, 1, 50, 1, 1, 1, 1, 1, 25, 1)]
    async with running(asyncio.gather(*map(setup.dispatcher.run, requests))) as task:
        while gate.inside:
            await gate.let_one_go()
        results = await task
    assert gate.most == 4
    assert [len(result.token_counts) for result in results] == [len(r.inputs) for r in requests]


async def test_large_requests_leave_room_for_small_ones() -> None:
    """Two large requests, of more parts than there is room for, have half of it; a text goes at once."""
    setup = Setup("gpu", concurrency={"gpu": 4})
    gate = setup.gpu.before = Gate()
    large = EmbedRequest("m", texts(100))
    async with running(setup.dispatcher.run(large)), running(setup.dispatcher.run(large)):
        assert len(gate.inside) == 2
        async with running(setup.dispatcher.run(ONE)):
            assert gate.inside[-1][0] == ONE
            assert len(gate.inside) == 3


async def test_small_requests_do_not_starve_large_ones() -> None:
    """First come, first served: a part that waits goes before texts that came later."""
    setup = Setup("gpu", concurrency={"gpu": 1})
    gate = setup.gpu.before = Gate()
    async with (
        running(setup.dispatcher.run(ONE)),
        running(setup.dispatcher.run(EmbedRequest("m", texts(20)))),
        running(asyncio.gather(*(setup.dispatcher.run(ONE) for _ in range(5)))),
    ):
        await gate.let_one_go()
        assert len(gate.inside) == 1
        assert len(gate.inside[0][0].inputs) == 10


async def test_a_caller_that_leaves_while_waiting_takes_no_room() -> None:
    """Its place goes to the next."""
    setup = Setup("gpu", concurrency={"gpu": 1})
    gate = setup.gpu.before = Gate()
    async with running(setup.dispatcher.run(ONE)):
        async with running(setup.dispatcher.run(ONE)):
            pass
        async with running(setup.dispatcher.run(EmbedRequest("m", ("next",)))) as last:
            await gate.let_one_go()
            assert gate.inside[0][0].inputs == ("next",)
            await gate.let_one_go()
            assert (await last).token_counts == (4,)


async def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    """By how long calls took before: the other backend if there is one, else 429 that says when."""
    setup = Setup("gpu", concurrency={"gpu": 1}, max_queue_s=30.0)
    gate = setup.gpu.before = Gate()
    async with running(setup.dispatcher.run(ONE)):
        setup.clock.now += 20.0
        await gate.let_one_go()
    async with running(asyncio.gather(*(setup.dispatcher.run(ONE) for _ in range(3)))):  # two wait: 40 s
        with pytest.raises(errors.Overloaded) as caught:
            await asyncio.wait_for(setup.dispatcher.run(ONE), PATIENCE_S)
        assert caught.value.retry_after_s == 10.0
        setup.decision = Decision(("gpu", "cpu"), False, "")
        assert (await setup.dispatcher.run(ONE)).device == "cpu"


async def test_a_request_alone_is_never_too_much() -> None:
    """Nobody waits before it, so its own parts may take as long as they take."""
    setup = Setup("gpu", concurrency={"gpu": 1}, max_queue_s=1.0)

    async def take_a_while(request: Any) -> None:
        setup.clock.now += 20.0

    setup.gpu.before = take_a_while
    for _ in range(2):
        result = await setup.dispatcher.run(EmbedRequest("m", texts(95)))
        assert len(result.token_counts) == 95


async def test_a_backend_in_process_is_not_limited_here() -> None:
    """It has a queue of its own, which needs to see the texts to batch them."""
    setup = Setup("cpu", concurrency={})
    gate = setup.cpu.before = Gate()
    async with running(asyncio.gather(*(setup.dispatcher.run(ONE) for _ in range(40)))):
        assert len(gate.inside) == 40


def test_one_dispatcher_serves_event_loops_one_after_the_other() -> None:
    """What belongs to a loop is made in it, also where callers had to wait."""
    setup = Setup("gpu", concurrency={"gpu": 1})

    async def run() -> None:
        async def dawdle(request: Any) -> None:
            await asyncio.sleep(0)

        setup.gpu.before = dawdle
        await asyncio.gather(*(setup.dispatcher.run(ONE) for _ in range(4)))

    asyncio.run(run())
    asyncio.run(run())
    assert len(setup.gpu.asked) == 8
