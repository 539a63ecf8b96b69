"""Chooses the revision of a model that answers a request: pure policy, no clock, no I/O.

Does not know where shares are stored, or how a backend is called: shared.routing.dispatch tries the
ways in order. Reasons: docs/decisions/044-staged-revisions.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from shared.cards import Device, ModelCard, Share
from shared.context.sender import Sender
from shared.contracts import AnyRequest, RerankRequest
from shared.names import pinned_name

Role: TypeAlias = Literal["current", "staged"]

_PLACES = 10_000
_READ_CHARACTERS = 4_096
"""Characters of a text, and length of a list of token ids, that are hashed to tell requests apart."""


class Way(msgspec.Struct, frozen=True):
    """One attempt at an answer: a device, and the model to ask it for.

    model: NAME for the current revision, NAME@REVISION for the staged one. role: which of the two this
    is; None if there is only one. revision: the revision that must answer; "": whichever is current.
    """

    device: Device
    model: str
    role: Role | None = None
    revision: str = ""


def plan_ways(
    request: AnyRequest, devices: Sequence[Device], cards: Sequence[ModelCard], sender: Sender
) -> list[Way]:
    """Ways in the order to try them: per device the staged revision, if it is chosen, then the current.

    If an incompatible revision is chosen on any device, the current one is not tried at all.
    """
    current = {card.device: card for card in cards if card.device in devices}
    staged = {device: card.staged for device, card in current.items() if card.staged is not None}
    chosen = {device for device, each in staged.items() if answers(each.share, request, sender)}
    alone = any(not staged[device].share.compatible for device in chosen)
    ways = []
    for device in devices:
        each = staged.get(device)
        # After promotion both are the same revision, and there are no roles.
        are_two = each is not None and each.share.revision != current[device].revision
        if each is not None and device in chosen:
            pinned = pinned_name(request.model, each.share.revision)
            ways.append(Way(device, pinned, "staged" if are_two else None, each.share.revision))
        if not alone:
            ways.append(Way(device, request.model, "current" if are_two else None))
    return ways


def answers(share: Share, request: AnyRequest, sender: Sender) -> bool:
    """Whether `share` gives this caller's request to the staged revision."""
    return sender.name in share.callers or _place(share, request, sender) < share.percent


def _place(share: Share, request: AnyRequest, sender: Sender) -> float:
    """The request's place from 0 to below 100; a share of P percent takes the places below P.

    The hash is stable, so a larger share keeps everyone who was in the smaller one. It excludes revision
    and device, so that a caller gets the staged revision on both devices or on neither.
    """
    if share.by == "request":
        told = (request.model, sender.owner, _opening(request))
    elif sender.owner:
        told = (request.model, sender.owner, "")
    else:
        return 100.0 - 100.0 / _PLACES  # callers without a key are indistinguishable: only at 100
    digest = hashlib.sha256("\0".join(told).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") % _PLACES * 100 / _PLACES


def _opening(request: AnyRequest) -> str:
    """The first text, or the query of a rerank: what a request is hashed by."""
    first = request.query if isinstance(request, RerankRequest) else request.texts[0]
    parts = (first,) if isinstance(first, str) else first[:_READ_CHARACTERS]
    return " ".join(str(part)[:_READ_CHARACTERS] for part in parts)
