"""Which revision answers whom: the policy alone, without backends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from shared.cards import Device, ModelCard, Share, Staged
from shared.context.sender import NOBODY, Sender
from shared.contracts import (
    AnyRequest,
    DecodeRequest,
    EmbedRequest,
    PredictRequest,
    RerankRequest,
    TokenizeRequest,
)
from shared.routing.staging import Way, answers, plan_ways

ONE = EmbedRequest("m", ("a",))
ANN = Sender("ann", "0123456789abcdef")
ALL_OF: dict[str, Any] = {"revision": "new", "beside": "old"}
CALLERS = [Sender("unnamed", f"{n:016x}") for n in range(2_000)]
REQUESTS: list[AnyRequest] = [
    EmbedRequest("m", ("a", "b")),
    EmbedRequest("m", ((1, 2), (3,))),
    RerankRequest("m", "a", ("b", "c")),
    PredictRequest("m", (("a", "b"), "c")),
    TokenizeRequest("m", ("a",)),
    DecodeRequest("m", ((97, 98),)),
]


def share(**fields: Any) -> Share:
    return Share(**(ALL_OF | fields))


def card(device: Device = "cpu", staged: Share | None = None, revision: str = "old") -> ModelCard:
    own = ModelCard("m", revision, device, "bert", "mean", 2, 16, device=device)
    if staged is None:
        return own
    return replace(own, staged=Staged(replace(own, revision=staged.revision), staged))


STAGED = [Way("cpu", "m@new", "staged", "new")]
CURRENT = [Way("cpu", "m", "current")]
PROMOTED = [Way("cpu", "m@new", None, "new"), Way("cpu", "m")]
GPU = [Way("gpu", "m")]
MINE = share(callers=("ann",))
ALONE = share(callers=("ann",), compatible=False)


@pytest.mark.parametrize(
    ("devices", "cards", "sender", "ways"),
    [
        # Nothing is staged, or nothing is known: as ever.
        (("cpu", "gpu"), [card(), card("gpu")], ANN, [Way("cpu", "m"), *GPU]),
        (("cpu",), [], ANN, [Way("cpu", "m")]),
        # Who is chosen falls back to the current one, device by device; who is not sees one way.
        (("cpu",), [card(staged=MINE)], ANN, [*STAGED, *CURRENT]),
        (("cpu",), [card(staged=MINE)], NOBODY, CURRENT),
        (("cpu",), [card(staged=MINE)], Sender("bob", "b" * 16), CURRENT),
        (("cpu", "gpu"), [card(staged=MINE), card("gpu")], ANN, [*STAGED, *CURRENT, *GPU]),
        (("gpu", "cpu"), [card(staged=MINE), card("gpu")], ANN, [*GPU, *STAGED, *CURRENT]),
        (
            ("gpu", "cpu"),
            [card(staged=MINE), card("gpu", MINE)],
            ANN,
            [Way("gpu", "m@new", "staged", "new"), Way("gpu", "m", "current"), *STAGED, *CURRENT],
        ),
        # What must not stand beside the current one's is not followed by it, nor by the other device's.
        (("cpu",), [card(staged=ALONE)], ANN, STAGED),
        (("cpu",), [card(staged=ALONE)], NOBODY, CURRENT),
        (("gpu", "cpu"), [card(staged=ALONE), card("gpu")], ANN, STAGED),
        # On a device that this router does not have nothing is staged.
        (("cpu",), [card(), card("gpu", ALONE)], ANN, [Way("cpu", "m")]),
        # Once promoted, whoever was chosen stays on it by name, and nothing is compared.
        (("cpu",), [card(staged=MINE, revision="new")], ANN, PROMOTED),
        (("cpu",), [card(staged=MINE, revision="new")], NOBODY, [Way("cpu", "m")]),
    ],
)  # fmt: skip
def test_a_request_tries(
    devices: tuple[Device, ...], cards: list[ModelCard], sender: Sender, ways: list[Way]
) -> None:
    """The staged revision first where it is chosen, then the current one."""
    assert plan_ways(ONE, devices, cards, sender) == ways


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 99, 100])
@pytest.mark.parametrize("by", ["caller", "request"])
def test_a_percentage_is_about_that_share(by: Any, percent: int) -> None:
    """Of 2,000 callers or texts; five times the spread of a draw is allowed: none at 0 and 100."""
    asked = (
        [(ONE, sender) for sender in CALLERS]
        if by == "caller"
        else [(EmbedRequest("m", (f"text {n}",)), ANN) for n in range(len(CALLERS))]
    )
    chosen = sum(answers(share(percent=percent, by=by), *each) for each in asked)
    part = percent / 100
    assert abs(chosen - len(asked) * part) <= 5 * (len(asked) * part * (1 - part)) ** 0.5


@pytest.mark.parametrize("by", ["caller", "request"])
def test_a_larger_share_keeps_who_was_in(by: Any) -> None:
    """On both devices alike, whatever the revisions are called."""
    sets = [
        {each.owner for each in CALLERS if answers(share(percent=n, by=by, revision=f"r{n}"), ONE, each)}
        for n in (1, 5, 20, 100)
    ]
    assert all(small < large for small, large in pairwise(sets))


@pytest.mark.parametrize("percent", [0, 50, 99, 100])
def test_without_keys_there_are_no_callers_to_choose(percent: int) -> None:
    """All or nobody; a share of requests works."""
    assert answers(share(percent=percent), ONE, NOBODY) == (percent == 100)
    chosen = [
        answers(share(percent=50, by="request"), EmbedRequest("m", (f"{n}",)), NOBODY) for n in range(64)
    ]
    assert {True, False} == set(chosen)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: each.operation)
def test_the_same_request_gets_the_same_revision(request_: AnyRequest) -> None:
    """By its first text or query and who sends it; neither by the texts after it nor by how often."""
    half = share(percent=50, by="request")
    shorter = replace(request_, **{request_.items: request_.texts[:1]})
    for sender in CALLERS[:50]:
        assert answers(half, request_, sender) == answers(half, request_, sender)
        assert answers(half, request_, sender) == answers(half, shorter, sender)
    assert {answers(half, request_, sender) for sender in CALLERS[:50]} == {True, False}


def test_documents_of_a_query_stay_together() -> None:
    """Their scores are compared with each other, also across the pages of a search."""
    half = share(percent=50, by="request")
    pages = [RerankRequest("m", "moon", (f"document {n}",)) for n in range(50)]
    assert len({answers(half, page, ANN) for page in pages}) == 1


@pytest.mark.parametrize(
    ("current", "counts"), [("old", True), ("new", True), ("newer", False), ("older", False)]
)
def test_a_share_counts_beside_what_was_current(current: str, counts: bool) -> None:
    """Or once it was promoted; not when another one was published or gone back to."""
    assert share().counts_beside(current) == counts
