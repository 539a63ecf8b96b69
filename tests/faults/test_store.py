"""A model store that is down, holds a damaged file, or is copied to a full disk."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from azure.storage.blob import ContainerClient

from tests.azurite import ACCOUNT, Azurite, running_azurite
from tests.patience import PATIENCE_S
from tests.questions import Answer, ask_once, embed_one
from tests.server import free_port, running_service, started_service, wait_until_answered
from tests.tiny import Tiny, publish_all

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with running_azurite() as azurite:
        yield azurite


async def test_a_store_that_comes_late_is_used_when_it_comes(random: Random, tmp_path: Path) -> None:
    """The service starts without it, says 503 and why, and serves without being started again."""
    tiny, later = Tiny("a"), Azurite(free_port())
    url_of_store = f"http://127.0.0.1:{later.port}/{ACCOUNT}/models"
    with started_service(url_of_store, environ=_environ(later, tmp_path)) as (url, process):
        await asyncio.to_thread(
            wait_until_answered, f"{url}/health", process, PATIENCE_S, anything=False
        )
        answer = await ask_once(url, embed_one(tiny, random))
        assert answer.status == 503
        assert "the model store did not answer" in answer.message
        assert answer.retry_after_s
        with running_azurite(port=later.port):
            with ContainerClient.from_connection_string(later.connection_string, "models") as container:
                container.create_container()
            publish_all([tiny], url_of_store, connection_string=later.connection_string)
            assert (await _answer_after_retries(url, tiny, random)).right


async def test_a_folder_that_goes_away_is_no_empty_store(random: Random, tmp_path: Path) -> None:
    """What is loaded serves on, another model is 503 and not unknown; when it is back all is well."""
    loaded, other, folder = Tiny("a"), Tiny("b"), tmp_path / "models"
    publish_all([loaded, other], f"file://{folder}")
    with running_service(f"file://{folder}") as url:
        folder.rename(tmp_path / "away")
        assert (await ask_once(url, embed_one(loaded, random))).right
        answer = await ask_once(url, embed_one(other, random))
        assert answer.status == 503
        assert "the model store's files cannot be read" in answer.message
        assert answer.retry_after_s
        (tmp_path / "away").rename(folder)
        assert (await _answer_after_retries(url, other, random)).right


async def test_a_damaged_file_fails_its_model_alone(
    azurite: Azurite, random: Random, tmp_path: Path
) -> None:
    """503 naming the file; other models serve; once it is repaired it serves too."""
    sound, damaged = Tiny("a-sound-one"), Tiny("damaged")
    with azurite.container() as container:
        publish_all([sound, damaged], container.url, connection_string=azurite.connection_string)
        blob = container.get_blob_client("damaged/cpu-fp32/model.onnx")
        whole = blob.download_blob().readall()
        blob.upload_blob(whole[:-1] + bytes([whole[-1] ^ 1]), overwrite=True)
        with running_service(container.url, environ=_environ(azurite, tmp_path)) as url:
            for _ in range(2):
                answer = await ask_once(url, embed_one(damaged, random))
                assert answer.status == 503
                assert "model.onnx does not have its manifest's sha256" in answer.message
                assert answer.retry_after_s
                assert (await ask_once(url, embed_one(sound, random))).right
            blob.upload_blob(whole, overwrite=True)
            assert (await _answer_after_retries(url, damaged, random)).right
            assert (await ask_once(url, embed_one(sound, random))).right


async def test_a_full_disk_keeps_new_models_out_and_no_others(
    azurite: Azurite, random: Random, tmp_path: Path
) -> None:
    """503 that says so; no half copy is left; what is loaded serves on, and what fits is loaded."""
    first, large, small = Tiny("first"), Tiny("large", ballast_bytes=2_000_000), Tiny("small")
    with azurite.container() as container, _disk_of(tmp_path, "500k"):
        connection = azurite.connection_string
        publish_all([first, large, small], container.url, connection_string=connection)
        with running_service(container.url, environ=_environ(azurite, tmp_path)) as url:
            assert (await ask_once(url, embed_one(first, random))).right
            answer = await ask_once(url, embed_one(large, random))
            assert answer.status == 503
            assert "there is no disk space left" in answer.message
            assert os.listdir(tmp_path) == ["first@cpu-fp32"]
            assert (await ask_once(url, embed_one(first, random))).right
            assert (await ask_once(url, embed_one(small, random))).right


def _environ(azurite: Azurite, cache: Path) -> dict[str, str]:
    return {
        "BLITZ_STORAGE_CONNECTION_STRING": azurite.connection_string,
        "BLITZ_CACHE_DIR": str(cache),
    }


async def _answer_after_retries(url: str, tiny: Tiny, random: Random) -> Answer:
    """The first that is no 503, asked for again when the service says so."""
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await ask_once(url, embed_one(tiny, random))).status == 503:
            assert answer.retry_after_s is not None
            await asyncio.sleep(answer.retry_after_s)
        return answer


@contextmanager
def _disk_of(folder: Path, size: str) -> Iterator[None]:
    """A disk of `size` at `folder`; skips the test where we may not mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(command).returncode != 0:
        pytest.skip("mounting a small disk (tmpfs) is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
