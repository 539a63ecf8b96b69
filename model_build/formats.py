"""Error messages for weights in formats that this builder does not read, with the way to convert them.

It does not know what safetensors contain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from model_build.configuration import Adapter
from model_build.folder import fields_of, read_json, refused
from shared.errors import InvalidInput

ADAPTER = "adapter_config.json"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Files that training leaves beside the weights.
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.\w+")
# A revision that is safe in a shell command; another is left out of it.
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")

_OTHERS = {
    "GGUF (llama.cpp)": ("*.gguf",),
    "ONNX": ("*.onnx", "onnx/*.onnx"),
    "TensorFlow": ("tf_model*.h5", "saved_model.pb"),
    "Flax": ("flax_model*.msgpack",),
    "OpenVINO": ("openvino_model.xml", "openvino/*.xml"),
    "Core ML": ("*.mlpackage", "coreml/*"),
}


def check_no_adapter(folder: Path) -> None:
    """Raise InvalidInput for a LoRA adapter, which some libraries load and others ignore."""
    described = read_json(folder / ADAPTER)
    if described is None:
        return
    base = fields_of(described, Adapter, ADAPTER).base_model_name_or_path
    raise refused(
        f"the folder holds a LoRA adapter ({ADAPTER}) of {base or 'another model'}, not a complete "
        "model: merge it into that model first (peft: merge_and_unload(), then save_pretrained()), and "
        "build the result"
    )


def no_model(folder: Path) -> InvalidInput:
    """The error for a folder without config.json."""
    if not folder.is_dir():
        return refused(f"the folder {folder.name}, which modules.json names, is missing")
    if not any(folder.iterdir()):
        return refused("the folder is empty")
    said = _other_format(folder)
    return refused(
        f"the model is not a folder with a config.json{f': {said}' if said else ''}; a model is what "
        "save_pretrained() writes: config.json, model.safetensors, tokenizer.json"
    )


def no_weights(folder: Path, name: str) -> InvalidInput:
    """The error for a folder without the safetensors file `name`."""
    if pickles := pickles_of(path.name for path in folder.glob("*") if path.is_file()):
        return refused(
            f"{_only_pickles(pickles)} To convert them: python -m model_build.convert FOLDER OUT"
        )
    said = _other_format(folder)
    return refused(f"there is no {name}{f': {said}' if said else ''}")


def no_weights_at_hub(repository: str, revision: str | None, names: Iterable[str]) -> InvalidInput:
    """The error for a model of the hub that has no safetensors. names: of the repository's files."""
    listed = list(names)
    for parent in sorted({name.rpartition("/")[0] for name in listed}):
        pickles = pickles_of(Path(name).name for name in listed if name.rpartition("/")[0] == parent)
        if pickles:
            break
    else:
        return refused(
            f"{repository} has no *.safetensors at the hub, the only format that this builder reads"
        )
    folder = repository.rpartition("/")[2]
    at = f" --revision {revision}" if revision and _PLAIN.fullmatch(revision) else ""
    return refused(
        f"{_only_pickles(pickles)} Fetch the model: hf download {repository}{at} --local-dir {folder}; "
        f"convert it: python -m model_build.convert {folder} {folder}-safetensors; then build "
        f"{folder}-safetensors"
    )


def _only_pickles(names: list[str]) -> str:
    kinds = ", ".join(sorted({"*" + Path(name).suffix for name in names}))
    return (
        f"the weights are only there as pickles ({kinds}), which can run code when loaded; this builder "
        "reads safetensors."
    )


def pickles_of(names: Iterable[str]) -> list[str]:
    """PyTorch weight files among `names`, sorted."""
    found = [name for name in sorted(names) if Path(name).suffix in _PICKLES]
    return [name for name in found if not _NO_WEIGHTS.fullmatch(name)]


def _other_format(folder: Path) -> str | None:
    for kind, patterns in _OTHERS.items():
        if any(any(folder.glob(pattern)) for pattern in patterns):
            return f"the weights are {kind}'s, and this builder reads PyTorch's as safetensors"
    return None
