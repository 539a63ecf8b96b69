"""Fixtures of the builder's tests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

from model_build.__main__ import app
from tests.model_build.command import CONFIG, Ran, Run, save_letters
from tests.tiny_torch import state_pooling


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mean pooling: 2 layers of 32, a WordPiece of single letters, 64 positions."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source") / "tiny-bert"
    return state_pooling(save_letters(BertModel(CONFIG), folder))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, which imports torch once; --json writes to the real stdout.

    Memory is measured here too: test_memory.py sees to the process of its own that finds it exactly.
    """

    def pool(workers: int, **_: Any) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr("model_build.memory.ProcessPoolExecutor", pool)

    def command(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="model_build")
        return Ran(int(ended.value.code or 0), *capfd.readouterr())

    return command
