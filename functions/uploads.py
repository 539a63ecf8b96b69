"""One file of a multipart/form-data body into a blob, block by block, on disk or in memory never whole.

Does not know what the file is for, nor jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from shared.bulk.storage import Blobs
from shared.errors import EmptyInput, InvalidInput, PayloadTooLarge, UnsupportedMediaType

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE = "file"
"""The form field that holds the file."""

_BLOCK_BYTES = 1 << 20
_MAX_FORM_BYTES = 64 << 10
"""Of all other fields together, headers included."""
_BROKEN = "the body is not valid multipart/form-data"


class Upload:
    """A body as it comes. fields: those read so far. filename: known after `begin`.

    check: called with the fields once all are known, and for an early answer before the file is read.
    """

    def __init__(
        self, request: Request, max_bytes: int, check: Callable[[Mapping[str, str]], None]
    ) -> None:
        """Raises UnsupportedMediaType, PayloadTooLarge."""
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise UnsupportedMediaType("send multipart/form-data as Content-Type, with a boundary")
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._max_bytes = max_bytes
        self._check = check
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and (
            len(announced) > 18 or int(announced) > max_bytes + _MAX_FORM_BYTES
        ):
            raise self._too_large()
        self._body = request.stream()
        self._block = bytearray()
        self._file_bytes = self._form_bytes = self._files = 0
        self._name = ""
        self._header, self._value, self._field = bytearray(), bytearray(), bytearray()
        self._complete = False
        self._stopped = False
        self._reading: asyncio.Task[object] | None = None
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._take(self._header, data[start:end]),
            "on_header_value": lambda data, start, end: self._take(self._value, data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError:
            raise InvalidInput(_BROKEN) from None

    async def begin(self) -> None:
        """Read up to the file. Raises InvalidInput and what `check` raises."""
        while not self._files:
            if not await self._read():
                raise InvalidInput(f"send the file in the form field {FILE}", field=FILE)
        if self.fields:
            self._check(self.fields)

    async def block(self) -> bytes:
        """The file's next block; empty when all was read, and all was right.

        Raises EmptyInput, InvalidInput, PayloadTooLarge, ClientDisconnect and what `check` raises.
        """
        if self._stopped:
            raise ClientDisconnect
        self._reading = asyncio.current_task()
        while len(self._block) < _BLOCK_BYTES and await self._read():
            pass
        self._reading = None
        block = bytes(self._block)
        self._block.clear()
        if not block:
            if not self._file_bytes:
                raise EmptyInput("the file is empty", field=FILE)
            self._check(self.fields)
        return block

    def stop(self) -> None:
        """Nobody waits any more: `block`, now or later, raises."""
        self._stopped = True
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> bool:
        """Parse what has come of the body; False at its end."""
        data = await anext(self._body, None)
        if data is None:
            if not self._complete:
                raise InvalidInput(_BROKEN)
            return False
        try:
            self._parser.write(data)
        except FormParserError:
            raise InvalidInput(_BROKEN) from None
        return True

    def _begin_part(self) -> None:
        self._name = ""

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value.decode("latin-1"))
            self._name = options.get(b"name", b"").decode(errors="replace")
            if self._name == FILE:
                self._files += 1
                if self._files > 1:
                    raise InvalidInput("send one file", field=FILE)
                self.filename = options.get(b"filename", b"").decode(errors="replace")
        self._header.clear()
        self._value.clear()

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._name != FILE:
            self._take(self._field, data[start:end])
            return
        self._file_bytes += end - start
        if self._file_bytes > self._max_bytes:
            raise self._too_large()
        self._block += memoryview(data)[start:end]

    def _take(self, into: bytearray, data: bytes) -> None:
        self._form_bytes += len(data)
        if self._form_bytes > _MAX_FORM_BYTES:
            raise InvalidInput("the form's other fields are too large")
        into += data

    def _end_part(self) -> None:
        if self._name != FILE:
            self.fields[self._name] = self._field.decode(errors="replace")
        self._field.clear()

    def _end(self) -> None:
        self._complete = True

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the file is larger than {self._max_bytes} bytes", field=FILE)


async def store(
    upload: Upload, blobs: Blobs, key: str, metadata: Mapping[str, str], threads: Executor
) -> None:
    """Write an upload that has begun. Raises what `Upload.block` raises; then there is no blob.

    threads: an upload keeps one for as long as its caller takes to send it.
    """
    loop = asyncio.get_running_loop()

    def blocks() -> Iterator[bytes]:
        while block := asyncio.run_coroutine_threadsafe(upload.block(), loop).result():
            yield block

    try:
        await loop.run_in_executor(threads, blobs.write_stream, key, blocks(), metadata)
    finally:
        upload.stop()
