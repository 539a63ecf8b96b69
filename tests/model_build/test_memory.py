"""What a text takes: by hand, and as measured against what processes of their own then take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from transformers import ModernBertConfig, ModernBertModel, XLMRobertaModel

from model_build.describe import MODEL_FILE
from model_build.export import export_onnx, optimize_offline
from model_build.memory import fit, measure_memory
from model_build.source import inspect_source
from shared.cards import TextMemory
from shared.models.manifest import MANIFEST_FILE, File, encode_manifest
from tests.tiny import manifest_of
from tests.tiny_torch import ENCODERS, WORDS, edit_json, save_random

LONG: dict[str, tuple[Any, Any]] = {
    "modernbert": (
        ModernBertModel,
        ModernBertConfig(
            **{"vocab_size": len(WORDS), "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 4096},
            **{"pad_token_id": 1, "bos_token_id": 0, "cls_token_id": 0},
            **{"eos_token_id": 2, "sep_token_id": 2},
        ),
    ),
    "xlm-roberta": (
        XLMRobertaModel,
        type(ENCODERS["xlm-roberta"][1])(
            **ENCODERS["xlm-roberta"][1].to_dict()
            | {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 4098}
        ),
    ),
}
RUN = """
import re, sys
from pathlib import Path
from shared.engines.onnx import OnnxEngine
from shared.models.manifest import MANIFEST_FILE, decode_manifest
def told(name):
    return int(re.findall(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[0]) * 1024
folder, tokens, texts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
engine = OnnxEngine(folder, decode_manifest((folder / MANIFEST_FILE).read_bytes()))
engine.run([[5] * 8])
before = told("VmRSS")
engine.run([[5] * tokens] * texts)
print(told("VmHWM") - before, told("VmRSS") - before)
"""


def test_two_peaks_say_what_a_token_and_a_pair_take() -> None:
    """Ten bytes a token and one a pair, with a margin of 15 %; noise makes nothing negative."""
    assert fit({10: 200, 20: 600}) == TextMemory(11.5, 1.15)
    assert fit({10: 300, 20: 600}) == TextMemory(34.5, 0.0)
    assert fit({10: 300, 20: 400}) == TextMemory(34.5, 0.0)
    assert fit({10: 100, 20: 600}) == TextMemory(0.0, 2.3)
    assert fit({10: 0, 20: 0}) == TextMemory(0.0, 0.0)


def long_model(folder: Path, architecture: str) -> Path:
    """A transformers folder with random weights that reads 4,096 tokens."""
    save_random(folder, *LONG[architecture], seed=0)
    edit_json(folder / "tokenizer_config.json", model_max_length=4096)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
@pytest.mark.parametrize("architecture", LONG)
def test_a_long_text_takes_what_was_measured_of_shorter_ones(architecture: str, tmp_path: Path) -> None:
    """In a process of its own, alone and several at once: no more, and not much less. Little is kept."""
    source = inspect_source(long_model(tmp_path / "source", architecture), "mean")
    assert source.max_tokens == 4096
    export_onnx(source, tmp_path / "fused.onnx")
    optimize_offline(tmp_path / "fused.onnx", tmp_path / MODEL_FILE)
    files = (File(MODEL_FILE, 1, "0"), File("tokenizer.json", 1, "0"))
    width = source.dimensions
    manifest = manifest_of("long", max_tokens=4096, dimensions=width, pad_token_id=1, files=files)
    memory = measure_memory(tmp_path, manifest)
    assert memory is not None
    manifest = msgspec.structs.replace(manifest, memory=memory)
    (tmp_path / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    for tokens, texts in ((4096, 1), (1024, 6)):
        ran = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path), str(tokens), str(texts)],
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        )
        peak, kept = map(int, ran.stdout.split())
        reckoned = texts * memory.bytes_of(tokens)
        # Beside what grows with the text, attention in tiles has some room that does not.
        assert peak - (1 << 20) <= reckoned <= 2 * peak
        # What is little is kept, for the next run.
        assert kept < peak / 4 or reckoned < 64 << 20
