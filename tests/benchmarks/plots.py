"""Draws curves as SVG files, for the docs. Does not know what is measured."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.benchmarks.curves import Curve

# The same picture is the same bytes, and its text is text.
mpl.rcParams.update({"svg.hashsalt": "blitz", "svg.fonttype": "none", "font.family": "sans-serif"})


def draw(curve: Curve, path: Path, machine: str) -> None:
    """Medians as lines, quartiles as bands. machine: told beneath the title."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curve.lines.items():
        across = [x for x, _ in points]
        axes.plot(across, [y.median for _, y in points], marker="o", markersize=3, label=name)
        axes.fill_between(across, [y.low for _, y in points], [y.high for _, y in points], alpha=0.2)
    ticks = sorted({x for points in curve.lines.values() for x, _ in points})
    if ticks[-1] > 8 * ticks[0] > 0:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_title(f"{curve.title}\n{machine}", fontsize=10)
    axes.set_xlabel(curve.across)
    axes.set_ylabel(curve.up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
