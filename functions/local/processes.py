"""Runs the backends as separate processes beside a local router, as Azure does.

Each process is `functions.local` with a role; one that dies is restarted, as the platform would do.
"""

from __future__ import annotations

import importlib.util
import logging
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from msgspec.structs import replace

from shared.cards import Device
from shared.errors import Misconfigured
from shared.observability import logs
from shared.settings import Settings

HOST = "127.0.0.1"
BAD_START = 2
"""Exit code for invalid settings: a restart would not help."""
STOP_S = 8.0
"""Grace period of a stopping backend; then it is killed."""

_log = logging.getLogger(__name__)
_start = logging.getLogger(logs.START)

_START_S = 180.0
_RESTART_S = 0.5
_LAST_PORT = 65_535


@contextmanager
def running_backends(
    settings: Settings, environ: Mapping[str, str], first_port: int
) -> Iterator[Settings]:
    """Start the CPU backend on `first_port` and the GPU backend on the next; stop them at the end.

    Yields the router's settings, with the backends' URLs and a secret generated for this run.
    Raises Misconfigured if a backend does not start.
    """
    secret = settings.backend_secret or secrets.token_urlsafe(32)
    ports: dict[Device, int] = {"cpu": first_port}
    if importlib.util.find_spec("torch"):
        ports["gpu"] = first_port + 1
    else:
        _start.info("gpu:    not started, torch is not installed")
    for device, port in ports.items():
        _check_port(device, port)
    shared = {"BLITZ_MODEL_STORE": settings.model_store, "BLITZ_BACKEND_SECRET": secret}
    if "gpu" in ports:  # the CPU backend splits bulk jobs for both devices
        shared["BLITZ_GPU_BACKEND_URL"] = f"http://{HOST}:{ports['gpu']}"
    if "gpu" in ports and not _has_cuda():
        shared["BLITZ_ALLOW_CPU"] = "1"
        _start.info("gpu:    no CUDA here, so the GPU backend runs on the CPU in FP32")
    children: list[_Child] = []
    try:
        for device, port in ports.items():
            children.append(_Child(device, port, {**environ, **shared, "BLITZ_ROLE": device}))
        for child in children:
            child.supervise_once_listening()
        urls = {device: f"http://{HOST}:{port}" for device, port in ports.items()}
        yield replace(
            settings,
            backend_secret=secret,
            cpu_backend_url=urls["cpu"],
            gpu_backend_url=urls.get("gpu", ""),
        )
    finally:
        _stop(children)


class _Child:
    """One backend process. After `supervise_once_listening` it is restarted whenever it ends."""

    def __init__(self, device: Device, port: int, environ: Mapping[str, str]) -> None:
        self._device = device
        self._port = port
        self._environ = environ
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name=f"keep-{device}", daemon=True)
        self.process = self._start()

    def supervise_once_listening(self) -> None:
        """Wait until it listens. Raises Misconfigured if it stopped instead, or took too long."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if _is_listening(self._port):
                self._supervisor.start()
                return
            time.sleep(0.05)
        raise Misconfigured(f"the {self._device} backend did not start on port {self._port}")

    def ask_to_stop(self) -> None:
        self._stopping.set()
        self.process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, at most `seconds`."""
        if self._supervisor.ident is not None:
            self._supervisor.join(seconds)
        else:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "functions.local", "--host", HOST, "--port", str(self._port)]
        # In its own process group: Ctrl-C goes to the router, which stops this process last.
        return subprocess.Popen(command, env=dict(self._environ), process_group=0)  # noqa: S603 - ours

    def _supervise(self) -> None:
        while True:
            code = self.process.wait()
            if code == BAD_START or self._stopping.wait(_RESTART_S):
                return
            _log.warning("the %s backend stopped (exit code %d): restarting it", self._device, code)
            self.process = self._start()
            if self._stopping.is_set():  # `ask_to_stop` may have terminated only the previous process
                self.process.terminate()


def _stop(children: list[_Child]) -> None:
    """Stop all in parallel. None survives, whatever interrupts this, a second Ctrl-C included."""
    deadline = time.monotonic() + STOP_S
    try:
        for child in children:
            child.ask_to_stop()
        for child in children:
            child.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for child in children:
            child.process.kill()  # no effect if it has ended


def _check_port(device: Device, port: int) -> None:
    """Require a free port, or another process on it would be taken for the backend."""
    if port > _LAST_PORT:
        raise Misconfigured(
            f"--separate needs the next two ports as well, and {port} is none: choose a lower --port"
        )
    if _is_listening(port):
        raise Misconfigured(
            f"port {port}, which the {device} backend needs, is in use: choose three others with --port"
        )


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _has_cuda() -> bool:
    """Asked in a subprocess, because the router must not load torch."""
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", ask]).returncode == 0  # noqa: S603 - our own line
