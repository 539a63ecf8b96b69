"""Microsoft's worker library, without the .NET host: a process with the app in it, and the tests' end.

`python -m tests.functions.worker` loads function_app.py as the platform does, in the role that
BLITZ_ROLE names. It reads lines of JSON, `{"id", "do", ...}`, and answers each with `{"id", "value"}`
or `{"id", "error"}` as soon as it is done; id 0 is the start. `Worker` is the other end. Does not know
what the app answers.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


class WorkerFailed(Exception):
    """What the worker would tell the host: the app could not be indexed, or a function raised."""


def _line(message: dict[str, Any]) -> str:
    """One line of JSON; bytes in it are {"base64": str}."""

    def encode(data: bytes) -> dict[str, str]:
        return {"base64": base64.b64encode(data).decode("ascii")}

    return json.dumps(message, default=encode) + "\n"


def _parse(line: str) -> dict[str, Any]:
    def decode(value: dict[str, Any]) -> Any:
        return base64.b64decode(value["base64"]) if "base64" in value else value

    message: dict[str, Any] = json.loads(line, object_hook=decode)
    return message


# --- the tests' end


class Worker:
    """A started worker process. Call it from one thread; several calls may be under way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._started: Future[Any] = Future()
        self._waiting: dict[int, Future[Any]] = {0: self._started}
        threading.Thread(target=self._read, daemon=True).start()

    def started(self) -> float:
        """Seconds that loading the app took. Raises WorkerFailed, with what the host would log."""
        return float(self._started.result(PATIENCE_S))

    def functions(self) -> dict[str, list[dict[str, Any]]]:
        """The indexed functions, and each one's bindings as the host gets them."""
        functions: dict[str, list[dict[str, Any]]] = self._ask("functions")
        return functions

    def modules(self) -> set[str]:
        """The top-level modules that are imported."""
        return set(self._ask("modules"))

    def listen(self) -> str:
        """Serve the same ASGI app over uvicorn, in the same process; its base URL."""
        return f"http://127.0.0.1:{self._ask('listen')}"

    def invoke(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Future[dict[str, Any]]:
        """Begin a call of the one HTTP function; url is whole and escaped, header names in lower case.

        Gives "status", "headers" and "body" (bytes), or WorkerFailed if the function raised.
        """
        return self._begin("invoke", method=method, url=url, headers=dict(headers), body=body)

    def message(self, queue: str, body: bytes) -> None:
        """Call the function of a queue with a message of it. Raises WorkerFailed if the function did."""
        self._begin("message", queue=queue, body=body).result(PATIENCE_S)

    def timer(self, name: str) -> None:
        """Call a timer function. Raises WorkerFailed if it raised."""
        self._begin("timer", name=name).result(PATIENCE_S)

    def _ask(self, do: str) -> Any:
        return self._begin(do).result(PATIENCE_S)

    def _begin(self, do: str, **arguments: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        number = next(self._ids)
        self._waiting[number] = answer
        assert self._process.stdin is not None
        self._process.stdin.write(_line({"id": number, "do": do, **arguments}))
        self._process.stdin.flush()
        return answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = _parse(line)
            waiting = self._waiting.pop(answer["id"])
            if "error" in answer:
                waiting.set_exception(WorkerFailed(answer["error"]))
            else:
                waiting.set_result(answer["value"])
        for waiting in self._waiting.values():
            waiting.set_exception(WorkerFailed("the worker process ended"))


@contextmanager
def running_worker(settings: Mapping[str, str]) -> Iterator[Worker]:
    """A worker with these BLITZ_ variables and no others.

    Raises WorkerFailed, with what the host would log, if the app cannot be indexed.
    """
    environ = {key: value for key, value in os.environ.items() if not key.startswith("BLITZ_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.functions.worker"],
        cwd=ROOT,
        env={**environ, **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        try:
            worker = Worker(process)
            worker.started()
            yield worker
        finally:
            process.stdin.close()  # that is how it learns to end
            try:
                process.wait(PATIENCE_S)
            finally:
                process.kill()


# --- the worker's end


class _App:
    """The function app as the worker library sees it; one a process, because the library is global."""

    def __init__(self) -> None:
        self._runtime = importlib.import_module("azure_functions_runtime")
        self._native = importlib.import_module("azure_functions_runtime.native_invocation")
        self._datum = importlib.import_module("azure_functions_runtime.bindings.datumdef").Datum
        self._functions: dict[str, Any] = {}
        self._server: asyncio.Task[None] | None = None

    async def load(self) -> float:
        """Index the app, as the host's first request has it done; the seconds that took."""
        began = time.perf_counter()
        request = SimpleNamespace(
            worker_init_request=SimpleNamespace(capabilities={}, function_app_directory=str(ROOT))
        )
        answer = await self._runtime.worker_init_request(
            SimpleNamespace(request=request, properties={"host": "127.0.0.1", "protos": _protos()})
        )
        if answer.result.status != 1:
            raise WorkerFailed(answer.result.exception.message)
        indexed = await self._runtime.functions_metadata_request(None)
        self._functions = {each.name: each for each in indexed.function_metadata_results}
        return time.perf_counter() - began

    async def functions(self) -> dict[str, list[Any]]:
        return {
            name: [json.loads(binding) for binding in each.raw_bindings]
            for name, each in self._functions.items()
        }

    async def modules(self) -> list[str]:
        return sorted({name.partition(".")[0] for name in sys.modules})

    async def listen(self) -> int:
        import uvicorn

        app = sys.modules["function_app"].app.middleware._app
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
        self._server = asyncio.create_task(uvicorn.Server(config).serve([listener]))
        return int(listener.getsockname()[1])

    async def invoke(
        self, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> dict[str, Any]:
        datum = self._datum
        parts = urlsplit(url)
        request = {
            "method": datum(method, "string"),
            "url": datum(url, "string"),
            "headers": {name: datum(value, "string") for name, value in headers.items()},
            "body": datum(body, "bytes"),
            "params": {"route": datum(unquote(parts.path[1:]), "string")},
            # As the host does it: the query is there twice, and its empty values only in the URL.
            "query": {name: datum(value, "string") for name, value in parse_qsl(parts.query)},
        }
        answer = await self._call("http_app_func", "req", datum(request, "http"), {})
        return {
            "status": int(answer.value["status_code"].value),
            "headers": {name: each.value for name, each in answer.value["headers"].items()},
            "body": answer.value["body"].value,
        }

    async def message(self, queue: str, body: bytes) -> None:
        """As the host: text where it is UTF-8, and what it knows of the message beside it."""
        [name] = [
            name
            for name, bindings in (await self.functions()).items()
            if any(binding.get("queueName") == queue for binding in bindings)
        ]
        now = datetime.now(UTC).isoformat()
        metadata = {
            "Id": self._datum(str(uuid.uuid4()), "string"),
            "DequeueCount": self._datum("1", "json"),
            "PopReceipt": self._datum("receipt", "string"),
            **{
                time: self._datum(json.dumps(now), "json")
                for time in ("ExpirationTime", "InsertionTime", "NextVisibleTime")
            },
        }
        await self._call(name, "message", self._datum(body.decode(), "string"), metadata)

    async def timer(self, name: str) -> None:
        timer = self._datum(json.dumps({"IsPastDue": False}), "json")
        await self._call(name, "timer", timer, {})

    async def _call(self, name: str, argument: str, value: Any, metadata: dict[str, Any]) -> Any:
        """What the function of that name returns."""
        ok, answer, _, error, _ = await self._native.invocation_request_native(
            str(uuid.uuid4()), self._functions[name].function_id, [(argument, value)], metadata
        )
        if not ok:
            raise WorkerFailed(error)
        return answer


def _protos() -> ModuleType:
    """Stands for the generated protobuf module: the library only makes and reads these."""
    protos = ModuleType("protos")
    for name in (
        "FunctionMetadataResponse",
        "RpcException",
        "RpcFunctionMetadata",
        "WorkerInitResponse",
        "WorkerMetadata",
    ):
        setattr(protos, name, SimpleNamespace)
    binding, status = type("BindingInfo", (SimpleNamespace,), {}), type("Status", (SimpleNamespace,), {})
    for number, direction in enumerate(("in", "out", "inout")):
        setattr(binding, direction, number)
    binding.undefined = 0  # type: ignore[attr-defined]
    status.Failure, status.Success = 0, 1  # type: ignore[attr-defined]
    protos.BindingInfo, protos.StatusResult = binding, status  # type: ignore[attr-defined]
    return protos


async def _main(answers: IO[str]) -> None:
    """Answer until stdin ends. Each request is a task of its own, as in the worker."""
    app = _App()

    async def answer(number: int, do: str, **arguments: Any) -> None:
        try:
            value = {"value": await getattr(app, do)(**arguments)}
        except Exception as error:
            value = {"error": str(error) or type(error).__name__}
        answers.write(_line({"id": number, **value}))
        answers.flush()

    await answer(0, "load")
    tasks = set()
    with ThreadPoolExecutor(1) as reading:  # its own: the loop's default threads are the app's
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(reading, sys.stdin.readline):
            request = _parse(line)
            tasks.add(asyncio.create_task(answer(request.pop("id"), **request)))
    os._exit(0)  # the platform kills workers too: no shutdown is run that it would not run


if __name__ == "__main__":
    # What libraries print must not pass for an answer: stdout's descriptor becomes stderr.
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # The platform appends the app's folder: what is installed could shadow our packages, and must not.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT] + [str(ROOT)]
    asyncio.run(_main(_answers))
