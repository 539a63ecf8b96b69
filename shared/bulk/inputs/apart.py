"""Reads an input in a child process with memory and CPU limits, and yields its chunks.

For Parquet: pyarrow allocates the size that a page declares, recurses as deep as the schema, and can
crash the process, and none of this can be checked in advance. The other formats are read in bounded
pieces and need no process. It does not know storage.

The child's stdin has a line of JSON (_Task), then for each requested range its length as u64 and its
bytes. The child's stdout has frames: kind u8, length u64, payload. All numbers are little-endian.
    R  start u64, length u64: read this range, or a beginning of it
    C  length u64 of bad rows, bad rows as JSON lines, the chunk's rows as an Arrow file
    X  message and field as JSON: the input is refused
    M  out of memory
    E  end of the input
"""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, NoReturn

import msgspec

from shared.bulk.inputs.allowance import Allowance, Limits
from shared.bulk.inputs.detect import InputFormat, ReadOptions, read_rows
from shared.bulk.inputs.source import ByteSource
from shared.bulk.rows import BadRow, Chunk, cut_chunks, unpack_table
from shared.errors import InvalidInput, Unavailable

MEMORY_BYTES = 256 << 20
"""Memory for the data, in addition to about 100 MiB for Python and its modules."""
SILENT_S = 120.0
"""A file fails if its reader neither yields a row nor requests bytes for this long."""
_CPU_S = 3600
_RANGE_BYTES = 4 << 20
_FRAME_BYTES = 256 << 20
_FRAME, _RANGE, _LENGTH = struct.Struct("<cQ"), struct.Struct("<QQ"), struct.Struct("<Q")
_START = f"""
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from {__name__} import main
main()
"""
_UNREADABLE = "the file is not a Parquet file that can be read"
_TOO_MUCH = "the file needs too much memory to be read: write smaller values, pages and row groups"


class _Task(msgspec.Struct, frozen=True):
    size: int
    format: InputFormat
    options: ReadOptions
    limits: Limits


class _Refusal(msgspec.Struct, frozen=True):
    message: str
    field: str | None


def cut_apart(
    source: ByteSource, format: InputFormat, options: ReadOptions, allowance: Allowance
) -> Iterator[Chunk]:
    """The same chunks as cut_chunks(read_rows(...)), read in a child process.

    Raises what read_rows raises; InvalidInput also if the reader needs more than MEMORY_BYTES, makes no
    progress for SILENT_S or crashes; Unavailable if it was killed from outside.
    """
    command = [sys.executable, "-c", _START, msgspec.json.encode(sys.path).decode()]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    # In its own session, so that Ctrl-C reaches only the parent, which kills the child.
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and code
        command, stdin=pipe, stdout=pipe, stderr=nowhere, start_new_session=True, bufsize=0
    )
    with child:
        try:
            yield from _chunks(child, source, format, options, allowance)
        finally:
            child.kill()


def _chunks(
    child: subprocess.Popen[bytes],
    source: ByteSource,
    format: InputFormat,
    options: ReadOptions,
    allowance: Allowance,
) -> Iterator[Chunk]:
    task = _Task(source.size, format, options, allowance.limits)
    index = 0
    try:
        _send(child, msgspec.json.encode(task) + b"\n")
        while True:
            kind, payload = _receive(child, allowance)
            match kind:
                case b"R":
                    start, length = _RANGE.unpack(payload)
                    data = source.read(start, min(length, _RANGE_BYTES))
                    _send(child, _LENGTH.pack(len(data)) + data)
                case b"C":
                    yield _chunk(index, payload)
                    index += 1
                case b"X":
                    refusal = msgspec.json.decode(payload, type=_Refusal)
                    raise InvalidInput(refusal.message, field=refusal.field)
                case b"M":
                    raise InvalidInput(_TOO_MUCH)
                case _:
                    return
    except (EOFError, BrokenPipeError):
        _tell_death(child.wait())


def _chunk(index: int, payload: bytes) -> Chunk:
    (length,) = _LENGTH.unpack_from(payload)
    rows = _LENGTH.size + length
    bad = tuple(BadRow.from_json(line) for line in payload[_LENGTH.size : rows].splitlines())
    return Chunk(index, unpack_table(payload[rows:]), bad)


def _tell_death(code: int) -> NoReturn:
    """Raises Unavailable if the reader was killed from outside, else InvalidInput."""
    if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        raise Unavailable("the process that reads the file was ended")
    if code == -signal.SIGXCPU:
        raise InvalidInput(f"the file takes more than {_CPU_S} s to read")
    raise InvalidInput(_UNREADABLE)


def _send(child: subprocess.Popen[bytes], data: bytes) -> None:
    assert child.stdin is not None
    view = memoryview(data)
    while view:
        view = view[child.stdin.write(view) :]


def _receive(child: subprocess.Popen[bytes], allowance: Allowance) -> tuple[bytes, bytes]:
    """The next frame. Raises EOFError if the child ended, InvalidInput after SILENT_S of silence."""
    kind, length = _FRAME.unpack(_read(child, _FRAME.size, allowance))
    if length > _FRAME_BYTES:
        raise InvalidInput(_TOO_MUCH)
    return kind, _read(child, length, allowance)


def _read(child: subprocess.Popen[bytes], length: int, allowance: Allowance) -> bytes:
    assert child.stdout is not None
    fd, data = child.stdout.fileno(), bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    heard = time.monotonic()
    while len(data) < length:
        allowance.go_on()
        if poll.poll(500):
            piece = os.read(fd, min(length - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENT_S:
            raise InvalidInput(f"the file is given up: no row could be read for {SILENT_S:.0f} s")
    return bytes(data)


def main() -> None:
    """Entry point of the child process."""
    asked, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # stray prints go to stderr, not between the frames
    _bound()
    with suppress(BrokenPipeError):
        _serve(asked, told)
        told.flush()
    os._exit(0)  # skip cleanup: nothing needs it, and joining pyarrow's threads may hang


def _serve(asked: BinaryIO, told: BinaryIO) -> None:
    task = msgspec.json.decode(asked.readline(), type=_Task)

    def read(start: int, length: int) -> bytes:
        _tell(told, b"R", _RANGE.pack(start, length))
        told.flush()
        (size,) = _LENGTH.unpack(_exactly(asked, _LENGTH.size))
        return _exactly(asked, size)

    allowance = Allowance(task.size, task.limits)
    try:
        for chunk in cut_chunks(
            read_rows(ByteSource(task.size, read), task.format, task.options, allowance)
        ):
            bad = chunk.bad_to_json()
            _tell(told, b"C", _LENGTH.pack(len(bad)) + bad, chunk.to_arrow())
            told.flush()
        _tell(told, b"E")
    except InvalidInput as error:
        _tell(told, b"X", msgspec.json.encode(_Refusal(error.message, error.field)))
    except MemoryError:
        _tell(told, b"M")


def _tell(told: BinaryIO, kind: bytes, *payload: bytes) -> None:
    told.write(_FRAME.pack(kind, sum(map(len, payload))))
    for data in payload:
        told.write(data)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        os._exit(0)  # the parent has ended
    return data


def _bound() -> None:
    """Limit this process; more memory raises MemoryError. Without /proc memory is not limited."""
    import resource

    # All of it, before memory is limited.
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    pa.set_memory_pool(pa.system_memory_pool())  # the other pools reserve more than they use
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S + 1))
    with suppress(OSError), open("/proc/self/status") as status:
        held = next(line for line in status if line.startswith("VmData:"))
        most = (int(held.split()[1]) << 10) + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
