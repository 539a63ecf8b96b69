"""Streams a file to its caller, in one of a bounded number of slots.

Does not know owners or storage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from functions.api.responses import SLICE_BYTES
from functions.api.slots import Slots
from functions.http.pace import MIN_BYTES_PER_S, MinimumRate
from shared.errors import RequestTimeout

BINARY = "application/octet-stream"


class Download(StreamingResponse):
    """Keeps its slot until the last byte is sent, or the caller leaves or reads too slowly.

    content: blocks of bytes, `size` in all. An exception from it aborts the response.
    """

    def __init__(
        self, content: AsyncIterator[bytes], size: int, slots: Slots, owner: str, pause_s: float
    ) -> None:
        """pause_s: longest pause of the caller's reading. Raises Overloaded."""
        super().__init__(content, headers={"content-length": str(size)}, media_type=BINARY)
        self._slots = slots
        self._owner = owner
        self._rate = MinimumRate(bytes_per_s=MIN_BYTES_PER_S, grace_s=pause_s)
        slots.acquire(owner)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._is_head = scope["method"] == "HEAD"
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._slots.release(self._owner)

    async def stream_response(self, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        if self._is_head:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        async for block in self.body_iterator:
            for start in range(0, len(block), SLICE_BYTES):
                sent = block[start : start + SLICE_BYTES]
                message = {"type": "http.response.body", "body": sent, "more_body": True}
                try:
                    await self._rate.wait_for(send(message), len(sent))
                except RequestTimeout:
                    return  # the server closes an incomplete response
        await send({"type": "http.response.body", "body": b"", "more_body": False})
