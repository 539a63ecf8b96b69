"""Streams the file of a multipart/form-data body into a blob, without buffering it whole.

Does not know what the file is for, or jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, TypeAlias

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from functions.http.decompression import content_coding_of
from functions.http.pace import MIN_BYTES_PER_S, enforce_rate
from shared.compression import compression_of
from shared.errors import BlitzError, EmptyInput, InvalidInput, PayloadTooLarge, UnsupportedMediaType
from shared.storage.blobs import Blobs, Metadata

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE = "file"
"""The form field that holds the file."""

_BLOCK_BYTES = 1 << 20
_PIECE_BYTES = 64 << 10
_MAX_FORM_BYTES = 64 << 10
"""Limit of everything but the file: other fields, headers, boundaries, preamble and epilogue."""
_BROKEN = "the body is not valid multipart/form-data"

Check: TypeAlias = Callable[[Mapping[str, str], bool], None]


class Upload:
    """An incoming form. fields: those read so far. filename: known after `begin`.

    check: called with the fields and whether they are complete, before the file (for an early error) and
    at the end. grace_s: longest pause of the sender.
    """

    def __init__(self, request: Request, max_bytes: int, check: Check, grace_s: float) -> None:
        """Raises UnsupportedMediaType, PayloadTooLarge."""
        if content_coding_of(request.headers.get("content-encoding", "")):
            raise UnsupportedMediaType(
                "a form with a Content-Encoding is not supported: send it and its file uncompressed"
            )
        kind, options = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise UnsupportedMediaType("send multipart/form-data as Content-Type, with a boundary")
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._max_bytes: float = float("inf")
        self._check = check
        announced = request.headers.get("content-length", "")
        # int() refuses thousands of digits.
        self._announced = int(announced[:18]) if announced.isdecimal() else 0
        self.limit(max_bytes, PayloadTooLarge(f"the file is larger than {max_bytes} bytes", field=FILE))
        self._body = enforce_rate(request.stream(), bytes_per_s=MIN_BYTES_PER_S, grace_s=grace_s)
        self._unparsed = memoryview(b"")
        self._block = bytearray()
        self._body_bytes = self._file_bytes = self._files = 0
        self._name = ""
        self._header, self._value, self._field = bytearray(), bytearray(), bytearray()
        self._given = self._complete = False
        self._stopped = False
        self._reading: asyncio.Task[object] | None = None
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError:
            raise InvalidInput(_BROKEN) from None

    def limit(self, max_bytes: int, refusal: BlitzError) -> None:
        """Lower the limit of the file's bytes; a higher one is ignored. Raises `refusal` at once if the
        Content-Length exceeds it."""
        if max_bytes < self._max_bytes:
            self._max_bytes, self._refusal = max_bytes, refusal
        if self._announced > self._max_bytes + _MAX_FORM_BYTES:
            raise self._refusal

    async def begin(self) -> None:
        """Read up to the file. Raises InvalidInput, RequestTimeout and what `check` raises."""
        while not self._files:
            if not await self._read():
                raise InvalidInput(f"send the file in the form field {FILE}", field=FILE)
        self._check(self.fields, False)

    async def block(self) -> bytes:
        """The file's next block; empty at the end, once the whole form was valid.

        Raises EmptyInput, InvalidInput, RequestTimeout, ClientDisconnect, what `check` raises and
        the refusal given to `limit`.
        """
        if self._stopped:
            raise ClientDisconnect
        self._reading = asyncio.current_task()
        while len(self._block) < _BLOCK_BYTES and await self._read():
            pass
        self._reading = None
        block = bytes(self._block)
        self._block.clear()
        if not self._given and (compression := compression_of(block[:4])):
            raise InvalidInput(
                f"the file is compressed ({compression}): send it uncompressed", field=FILE
            )
        self._given = True
        if not block:
            if not self._file_bytes:
                raise EmptyInput("the file is empty", field=FILE)
            self._check(self.fields, True)
        return block

    def stop(self) -> None:
        """Abort: `block` raises, now or later."""
        self._stopped = True
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> bool:
        """Parse the next piece of the body; False at its end."""
        if not self._unparsed:
            data = await anext(self._body, None)
            if data is None:
                if not self._complete:
                    raise InvalidInput(_BROKEN)
                return False
            self._unparsed = memoryview(data)
        # In pieces, because some servers deliver a body whole.
        piece, self._unparsed = self._unparsed[:_PIECE_BYTES], self._unparsed[_PIECE_BYTES:]
        self._body_bytes += len(piece)
        try:
            self._parser.write(bytes(piece))
        except FormParserError:
            raise InvalidInput(_BROKEN) from None
        if self._body_bytes - self._file_bytes > _MAX_FORM_BYTES:
            raise InvalidInput(f"the form has more than {_MAX_FORM_BYTES} bytes besides the file")
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
            self._field += memoryview(data)[start:end]
            return
        self._file_bytes += end - start
        if self._file_bytes > self._max_bytes:
            raise self._refusal
        self._block += memoryview(data)[start:end]

    def _end_part(self) -> None:
        if self._name != FILE:
            self.fields[self._name] = self._field.decode(errors="replace")
        self._field.clear()

    def _end(self) -> None:
        self._complete = True


async def store(upload: Upload, blobs: Blobs, key: str, metadata: Metadata, threads: Executor) -> None:
    """Write an upload that has begun. Raises what `Upload.block` raises, and then leaves no blob.

    threads: an upload occupies one until it is complete.
    """
    loop = asyncio.get_running_loop()

    def blocks() -> Iterator[bytes]:
        while block := asyncio.run_coroutine_threadsafe(upload.block(), loop).result():
            yield block

    try:
        await loop.run_in_executor(threads, blobs.write_stream, key, blocks(), metadata)
    finally:
        upload.stop()
