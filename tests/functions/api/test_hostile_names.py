"""Model names that try to lead out of the store, over ASGI and a real folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client import CollectorRegistry

from functions.api.app import create_app
from functions.api.build import connect
from functions.cpu import create_inference
from shared.dialects.operations import OPERATIONS
from shared.models.manifest import File, encode_manifest, encode_pointer
from shared.observability.metrics import Telemetry
from shared.settings import Settings
from tests.apps import ask
from tests.functions.api.bodies import valid_body
from tests.tiny import manifest_of

NAMES = [
    *("../secret", "..", ".", "/", "./m", "m/", "m/../m", "m/../../secret", "m/current", "m/r1"),
    *("..\\secret", "..%2fsecret", "%2e%2e%2fsecret", "%252e%252e%252fsecret", "..;/secret"),
    *("\uff0e\uff0e\uff0fsecret", "\u2025/secret", "..\u2215secret", "\u2024\u2024\u2044secret"),
    *("\uff4d", "m\u0301", "\u202em", "\u200bm", "secret\0", "\0", "m\0", "m\n", "\nm", " m", "m "),
    *(".hidden", "/etc/passwd", "file:///etc/passwd", "https://example.com/m", "C:\\m", "~", "~/secret"),
    *("M", "m@r1", "-m", "m.", "*", "?", "m*", "[m]", "${HOME}", "$(id)", "m;id", "m' OR 1=1"),
    *("a" * 129, "a" * 100_000, "../" * 10_000 + "secret"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model "m"; beside it, and hidden in it, one that a path could lead to."""
    root = tmp_path_factory.mktemp("names")
    for folder in (root / "store" / "m", root / "store" / ".hidden", root / "secret"):
        files = (File("model.onnx", 1, "0" * 64), File("tokenizer.json", 1, "0" * 64))
        manifest = manifest_of(folder.name, files=files)
        (folder / "r1").mkdir(parents=True)
        (folder / "r1" / "manifest.json").write_bytes(encode_manifest(manifest))
        (folder / "current").write_bytes(encode_pointer({"cpu": "r1"}))
    return root / "store"


@pytest.mark.anyio
async def test_a_model_name_cannot_leave_the_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In body, query and path, as it is and encoded: 404, no file but the store's own is opened."""
    settings = Settings(model_store=f"file://{store}")
    backend, catalogue = connect(settings, create_inference(settings))
    app = create_app(settings, backend, catalogue, Telemetry(CollectorRegistry()))
    opened: set[Path] = set()
    really_open, really_os_open = Path.open, os.open

    def noting(path: Path, *arguments: Any, **named: Any) -> Any:
        opened.add(path)
        return really_open(path, *arguments, **named)

    def noting_below(path: Any, flags: int, *arguments: Any, dir_fd: int | None = None) -> int:
        folder = Path() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
        opened.add(folder / path)
        return really_os_open(path, flags, *arguments, dir_fd=dir_fd)

    monkeypatch.setattr(Path, "open", noting)
    # The product looks for os.open among those that take a folder.
    monkeypatch.setattr(os, "supports_dir_fd", {*os.supports_dir_fd, noting_below})
    monkeypatch.setattr(os, "open", noting_below)
    answers: list[tuple[str, int, bytes]] = []
    try:
        for name in NAMES:
            code = quote(name, safe="").encode()
            for operation in OPERATIONS:
                body = {**valid_body(operation), "model": name}
                path = operation.paths[0]
                unnamed = json.dumps(body | {"model": None}).encode()
                answers.append((name, *await ask(app, path, json.dumps(body).encode())))
                answers.append((name, *await ask(app, path, unnamed, query=b"model=" + code)))
            answers.append((name, *await ask(app, "/info", method="GET", query=b"model=" + code)))
            if name.endswith("/"):
                continue  # in a path such a slash is none
            for sent in (name, quote(name, safe="")):
                embeddings = f"/openai/deployments/{sent}/embeddings"
                answers.append((name, *await ask(app, embeddings, b'{"input": "a"}')))
                answers.append((name, *await ask(app, f"/v1/models/{sent}", method="GET")))
    finally:
        await backend.close()
    for name, status, answer in answers:
        assert status == 404, (name[:40], status, answer)
        assert len(answer) < 1000
        for leak in (b"secret", b"hidden", b"manifest", str(store).encode(), b"Traceback"):
            assert leak not in answer or leak in name.encode(), name[:40]  # the name is repeated
    # "M" alone could be a model's name, and there is none.
    listed = {store / "m" / "current", store / "m" / "staged", store / "m" / "r1" / "manifest.json"}
    folders = {store, store / "m", store / "m" / "r1", store / "M"}
    assert listed <= opened
    assert opened <= listed | folders
