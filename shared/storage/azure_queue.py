"""A queue of an Azure storage account, or of Azurite.

Does not know what messages say. The queue is made when it turns out to be missing.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from typing import TypeVar

from azure.storage.queue import QueueClient
from msgspec.structs import replace

from shared.storage.azure_answers import made_if, unless
from shared.storage.blobs import Message

_FOREVER = -1
_VOID = ("MessageNotFound", "PopReceiptMismatch")
"""What is answered to a receipt that is void."""

T = TypeVar("T")


class AzureQueue:
    """Messages are base64, as the Functions host expects them of a queue trigger by default."""

    def __init__(self, client: QueueClient) -> None:
        self._client = client

    def send(self, body: bytes) -> None:
        text = base64.b64encode(body).decode()
        self._ask(lambda: self._client.send_message(text, time_to_live=_FOREVER))

    def receive(self, *, visible_after_s: float) -> Message | None:
        hidden_s = max(1, math.ceil(visible_after_s))
        found = self._ask(lambda: self._client.receive_message(visibility_timeout=hidden_s))
        if found is None:
            return None
        return Message(found.id, _body(found.content), found.dequeue_count or 1, found.pop_receipt or "")

    def renew(self, message: Message, *, visible_after_s: float) -> Message | None:
        hidden_s = math.ceil(visible_after_s)
        renewed = self._ask(
            lambda: unless(
                _VOID,
                lambda: self._client.update_message(
                    message.id, message.receipt, visibility_timeout=hidden_s
                ),
            )
        )
        return None if renewed is None else replace(message, receipt=renewed.pop_receipt or "")

    def delete(self, message: Message) -> None:
        self._ask(
            lambda: unless(_VOID, lambda: self._client.delete_message(message.id, message.receipt))
        )

    def depth(self) -> int:
        return self._ask(self._client.get_queue_properties).approximate_message_count or 0

    def _ask(self, call: Callable[[], T]) -> T:
        return made_if("QueueNotFound", self._client.create_queue, call)


def _body(content: str) -> bytes:
    """What is not base64 is not ours: its reader refuses it, and it ends in the poison queue."""
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return content.encode()
