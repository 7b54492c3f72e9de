"""Pictures of what was measured: times against jloss, the roofline, and growth with size."""

from __future__ import annotations

import collections
import json
import pathlib

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from benchmarks import report

SIZE = 2.8  # inches of a panel

STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def draw(results, folder: pathlib.Path) -> None:
    mpl.use("Agg")
    with plt.style.context(STYLE):
        for name, picture in (("times", times), ("roofline", roofline), ("growth", growth)):
            figure = picture(results)
            if figure:
                figure.savefig(folder / f"{name}.png", dpi=130)
                plt.close(figure)


def colours(rows):
    """One colour for each competitor, ours first."""
    names = dict.fromkeys(row["competitor"] for row in rows if "ms" in row)
    ours_first = sorted(names, key=lambda name: not report.is_ours(name))
    return {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(ours_first)}


def times(results):
    """Time over jloss's, a line for each case; hollow where the result is inexact."""
    cases = [c for c in report.cases(results["rows"]) if "ms" in c[0] and len(c) > 1]
    if not cases:
        return None
    figure, axes = plt.subplots(figsize=(3.2 * SIZE, 1.2 + 0.17 * len(cases)))
    colour = colours(results["rows"])
    for i, (first, *others) in enumerate(cases):
        for row in (row for row in others if "ms" in row):
            low, middle, high = (ms / first["ms"][1] for ms in row["ms"])
            tint = colour[row["competitor"]]
            fill = tint if row["status"] == "exact" else "white"
            axes.plot([low, high], [i, i], color=tint, lw=1)
            axes.plot(middle, i, "o", ms=4, color=tint, mfc=fill)
    axes.axvline(1, color=colour[cases[0][0]["competitor"]], lw=1)
    axes.set(xscale="log", xlabel="time over jloss's; right of the line jloss is faster")
    labels = [f"{c[0]['case']}: {report.told(c[0]['at'])}" for c in cases]
    axes.set_yticks(range(len(cases)), labels)
    axes.invert_yaxis()
    legend(figure, colour)
    return figure


def roofline(results):
    """Useful FLOP a second over useful FLOP per byte, under the machine's own two ceilings."""
    rows = [row for row in results["rows"] if "ms" in row and row["flops"] and row["floor_bytes"]]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(2.4 * SIZE, 1.8 * SIZE))
    colour, machine = colours(results["rows"]), results["machine"]
    intensity = lambda row: row["flops"] / row["floor_bytes"]
    for row in rows:
        rate = row["flops"] / row["ms"][1] * 1e3 / 1e9
        axes.plot(intensity(row), rate, "o", ms=4, color=colour[row["competitor"]], alpha=0.7)
    reach = [min(map(intensity, rows)) / 2, 2 * max(*map(intensity, rows), 100)]
    for (dtype, ceiling), style in zip(machine["matmul"].items(), ("-", "--")):
        bend = ceiling / machine["copy"]
        x = [reach[0], bend, max(reach[1], 2 * bend)]
        y = [min(ceiling, machine["copy"] * v) / 1e9 for v in x]
        axes.plot(x, y, style, color="black", lw=1, label=f"copy, and matmul {dtype}")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of the floor", ylabel="GFLOP/s")
    axes.legend(frameon=False)
    legend(figure, colour)
    return figure


def curves(rows):
    """(question, case, what stays fixed, what grows): competitor: [(size, row)]."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in (row for row in rows if "ms" in row):
        for key, value in row["at"].items():
            if isinstance(value, int):
                fixed = json.dumps({k: v for k, v in row["at"].items() if k != key})
                found[row["case"], fixed, key][row["competitor"]].append((value, row))
    longest = lambda lines: max(len({size for size, _ in line}) for line in lines.values())
    return {key: lines for key, lines in found.items() if longest(lines) >= 3}


def growth(results):
    """Time (above) and temporary memory (below) along every size that takes three values."""
    found = curves(results["rows"])
    if not found:
        return None
    shape = {"figsize": (SIZE * len(found), 1.7 * SIZE), "squeeze": False, "sharex": "col"}
    figure, axes = plt.subplots(2, len(found), **shape)
    colour = colours(results["rows"])
    for (above, below), ((case, fixed, key), lines) in zip(axes.T, found.items()):
        for name, line in lines.items():
            line = sorted(line, key=lambda point: point[0])
            sizes = [size for size, _ in line]
            above.plot(sizes, [row["ms"][1] for _, row in line], "o-", ms=3, color=colour[name])
            temp = [row.get("temp_bytes") for _, row in line]
            if None not in temp:
                below.plot(sizes, [t / 2**20 for t in temp], "o-", ms=3, color=colour[name])
        above.set(xscale="log", yscale="log", title=f"{case}\n{report.told(json.loads(fixed))}")
        below.set_yscale("symlog", linthresh=1)
        below.set_xlabel(key)
        below.set_ylim(0, 2 * max(1, below.get_ylim()[1]))
        below.xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("temporary MiB")
    legend(figure, colour, columns=10)
    return figure


def legend(figure, colour, columns=5):
    handles = [plt.Line2D([], [], marker="o", ls="", color=c, label=n) for n, c in colour.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False)
