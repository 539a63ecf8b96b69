"""Pickled weights become safetensors with the same numbers; a pickle that does more is refused unrun."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from model_build.convert import app, convert_folder
from model_build.source import inspect_source
from model_build.unpickle import TwiceError, read_tensors
from shared.errors import InvalidInput
from tests.tiny_torch import edit_json, tiny_model

Write = Callable[[Path], object]


class Runs:
    """Unpickled by Python itself it would make the file `owned` beside where it runs."""

    def __init__(self, owned: Path) -> None:
        self._owned = owned

    def __reduce__(self) -> Any:
        return Path.touch, (self._owned,)


def as_pickles(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """Exchange a folder's safetensors for pickles of these names; return what they hold together."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    listed = list(tensors.items())
    for n, name in enumerate(names):
        part = OrderedDict(listed[n :: len(names)])
        torch.save({"state_dict": part, "epoch": 3} if name.endswith("ckpt") else part, folder / name)
    return tensors


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin"],
        ["last.ckpt"],
        [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)],
    ],
)
def test_the_tensors_of_all_files_are_read(names: list[str], tmp_path: Path) -> None:
    """Bit for bit, and a trainer's other things are left out."""
    folder = tiny_model(tmp_path / "model")
    tensors = as_pickles(folder, *names)
    read = read_tensors(folder / name for name in names)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in read)


def test_tied_and_half_weights_are_written_as_they_are(tmp_path: Path) -> None:
    """safetensors holds no two names for one memory, and no views."""
    table = torch.randn(6, 4).to(torch.bfloat16)
    torch.save({"a": table, "b": table, "c": table.T}, tmp_path / "x.bin")
    save_file(read_tensors([tmp_path / "x.bin"]), tmp_path / "x.safetensors")
    written = load_file(tmp_path / "x.safetensors")
    assert torch.equal(written["a"], table)
    assert torch.equal(written["b"], table)
    assert torch.equal(written["c"], table.T)


def _pickled(value: Any) -> Write:
    return lambda path: path.write_bytes(pickle.dumps(value))


def _saved(value: Any) -> Write:
    return lambda path: torch.save(value, path)


def _runs(save: Callable[[Any], Write]) -> Write:
    return lambda path: save({"weight": Runs(path.with_name("owned"))})(path)


def _cut(path: Path) -> None:
    torch.save({"weight": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:300])


HOSTILE: dict[str, Write] = {
    "a pickle that runs": _runs(_pickled),
    "a checkpoint that runs": _runs(_saved),
    "a function": _saved({"weight": print}),
    "eval": _pickled(eval),
    "a module": _saved(torch.nn.Linear(2, 2)),
    "a tensor alone": _saved(torch.ones(2)),
    "a list": _saved([torch.ones(2)]),
    "no tensor": _saved({"epoch": 3}),
    "nothing": lambda path: path.write_bytes(b""),
    "no pickle": lambda path: path.write_bytes(b"x" * 1_000),
    "half a file": _cut,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_more_or_less_than_tensors_is_refused_and_not_run(case: str, tmp_path: Path) -> None:
    """Here in this process, with the program's own reader."""
    HOSTILE[case](tmp_path / "x.bin")
    with pytest.raises(Exception):  # noqa: B017, PT011 - torch raises many kinds
        read_tensors([tmp_path / "x.bin"])
    assert not (tmp_path / "owned").exists()


def test_a_pickle_that_runs_does_run_when_python_reads_it(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    HOSTILE["a pickle that runs"](tmp_path / "x.bin")
    pickle.loads((tmp_path / "x.bin").read_bytes())
    assert (tmp_path / "owned").exists()


def test_two_files_with_one_tensor_are_refused(tmp_path: Path) -> None:
    """Which of them is right is not known."""
    for name in ("a.bin", "b.bin"):
        torch.save({"weight": torch.ones(2)}, tmp_path / name)
    with pytest.raises(TwiceError):
        read_tensors([tmp_path / "a.bin", tmp_path / "b.bin"])


def test_a_folder_is_converted_by_the_command(tmp_path: Path) -> None:
    """In a process of its own; code is left behind, and what is made is a model that is read."""
    folder = tiny_model(tmp_path / "model")
    tensors = as_pickles(folder, "pytorch_model.bin")
    torch.save({"lr": 1.0}, folder / "training_args.bin")
    (folder / "modeling.py").write_text("raise SystemExit")
    edit_json(folder / "pytorch_model.bin.index.json", weight_map={})
    ran = CliRunner().invoke(app, [str(folder), str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(made[name], tensors[name]) for name in tensors)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".bin", ".py")]
    assert not (tmp_path / "out" / "pytorch_model.bin.index.json").exists()
    assert inspect_source(tmp_path / "out").pooling == "mean"
    assert (folder / "pytorch_model.bin").exists()


def test_a_hostile_pickle_leaves_nothing_behind(tmp_path: Path) -> None:
    """Exit code 2, one sentence with its name, no folder, and nothing that it would have done."""
    folder = tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    HOSTILE["a checkpoint that runs"](folder / "pytorch_model.bin")
    ran = CliRunner().invoke(app, [str(folder), str(tmp_path / "out")])
    assert ran.exit_code == 2
    assert "pytorch_model.bin holds something else than tensors, or is damaged" in ran.output
    assert "Traceback" not in ran.output
    assert not list(tmp_path.rglob("owned"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (4, "holds a tensor that another file"),
        (5, "takes more memory"),
        (-11, "ends the process that reads it"),
    ],
)
def test_how_the_process_ended_is_told(
    code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is given files, a limit of memory, and none of the operator's environment."""
    asked: dict[str, Any] = {}

    def ended(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        asked.update(options, arguments=arguments)
        return subprocess.CompletedProcess(arguments, code)

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr("model_build.convert.subprocess.run", ended)
    folder = tiny_model(tmp_path / "model")
    as_pickles(folder, "pytorch_model.bin")
    with pytest.raises(InvalidInput, match=said):
        convert_folder(folder, tmp_path / "out")
    assert "HF_TOKEN" not in asked["env"]
    assert asked["arguments"][:2] == [sys.executable, "-I"]
    assert int(asked["arguments"][3]) > 8 << 30


@pytest.mark.parametrize(
    ("folder", "out", "said"),
    [
        ("model", "out", "there are no pickles"),
        ("nowhere", "out", "the model is no folder"),
        ("model", "model", "OUT must not be there yet"),
        ("model", "model/out", "nor in FOLDER"),
        ("model", "no/out", "the folder that it is in must be"),
    ],
)
def test_what_cannot_be_converted_is_refused(folder: str, out: str, said: str, tmp_path: Path) -> None:
    """Safetensors are never made anew from pickles that are beside them."""
    as_pickles_beside = tiny_model(tmp_path / "model")
    torch.save({}, as_pickles_beside / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match=said):
        convert_folder(tmp_path / folder, tmp_path / out)
