"""Which revision of a model a request is answered by: pure policy, no clocks, no I/O.

Does not know where shares are written, nor how a backend is called: shared.routing.dispatch walks the
ways. docs/decisions/044-staged-revisions.md says why it is so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from shared.cards import Device, ModelCard, Share
from shared.context.sender import Sender
from shared.contracts import AnyRequest, RerankRequest
from shared.names import pinned_name

Role: TypeAlias = Literal["current", "staged"]

_PLACES = 10_000
_READ_CHARACTERS = 4_096
"""Of a text, and of a list of token ids: enough to tell requests apart, however long they are."""


@dataclass(frozen=True, slots=True)
class Way:
    """One try at an answer: a device, and what it is asked for.

    model: NAME for the current revision, NAME@REVISION for the staged one. role: which of the two that
    is; None while there is but one. revision: the one that must answer; "": whichever is current.
    """

    device: Device
    model: str
    role: Role | None = None
    revision: str = ""


def plan_ways(
    request: AnyRequest, devices: Sequence[Device], cards: Sequence[ModelCard], sender: Sender
) -> list[Way]:
    """In the order to try: on each of `devices` the staged revision, if it is chosen, then the current.

    A revision that is not compatible is the only one that answers whom it is chosen for.
    """
    current = {card.device: card for card in cards if card.device in devices}
    staged = {device: card.staged for device, card in current.items() if card.staged is not None}
    chosen = {device for device, each in staged.items() if answers(each.share, request, sender)}
    alone = any(not staged[device].share.compatible for device in chosen)
    ways = []
    for device in devices:
        each = staged.get(device)
        # Once it is promoted there is nothing to compare.
        are_two = each is not None and each.share.revision != current[device].revision
        if each is not None and device in chosen:
            pinned = pinned_name(request.model, each.share.revision)
            ways.append(Way(device, pinned, "staged" if are_two else None, each.share.revision))
        if not alone:
            ways.append(Way(device, request.model, "current" if are_two else None))
    return ways


def answers(share: Share, request: AnyRequest, sender: Sender) -> bool:
    """Whether the staged revision of the request's model answers this request of this caller."""
    return sender.name in share.callers or _place(share, request, sender) < share.percent


def _place(share: Share, request: AnyRequest, sender: Sender) -> float:
    """From 0 to below 100, always the same for the same: a larger percentage keeps who was in.

    Not by revision or device, so that a caller gets the staged one on both or on neither.
    """
    if share.by == "request":
        told = (request.model, sender.owner, _opening(request))
    elif sender.owner:
        told = (request.model, sender.owner, "")
    else:
        return 100.0 - 100.0 / _PLACES  # of all who have no key nobody is told apart: in at 100 only
    digest = hashlib.sha256("\0".join(told).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") % _PLACES * 100 / _PLACES


def _opening(request: AnyRequest) -> str:
    """The first text, or the query that all documents are scored for; not the rest of the request."""
    first = request.query if isinstance(request, RerankRequest) else request.texts[0]
    parts = (first,) if isinstance(first, str) else first[:_READ_CHARACTERS]
    return " ".join(str(part)[:_READ_CHARACTERS] for part in parts)
