"""What was measured, as JSON for programs and as Markdown for people."""

from __future__ import annotations

import collections
import json
import math
import pathlib
from typing import Any

OURS = "jloss"  # competitors of ours have names that begin so
LEGEND = """\
Time is the median (quartiles) of interleaved rounds, `x time` its ratio to that of the first
row; a difference is claimed (bold) only where the quartiles do not overlap. `of ceiling` is the
question's floor, at this machine's copy bandwidth (in place) and matmul rate, over the time:
more than all of it where the data stays in caches. Memory is what the compiler sets aside beyond
inputs and outputs; of torch, on a GPU, its allocator's peak. `state B` is what a step in JAX keeps
beside each parameter, `compile s` torch's first call.
An **inexact** result misses the tolerance of its question: its time buys less. Products of
float32 are in float32, not TF32."""
OF_COMPILERS = """\
Nothing was run: these are the compilers' own figures for sizes that would fill such a device.
Temporary memory is exact, but for a workspace that a matmul may take there. Traffic is XLA's
count over the floor; a loop's body counts once, and a gather as a read of the whole array. Of a
step it is what its kernels read from main memory and write to it, in brackets by parameter."""


def strict(value):
    """For JSON, which has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: strict(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def save(results: dict[str, Any], folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(strict(results), indent=1, allow_nan=False)
    (folder / "results.json").write_text(text + "\n")
    (folder / "results.md").write_text(markdown(results))


def verdict(ours: dict[str, Any], other: dict[str, Any]) -> str:
    """Whose time is less, or that nothing can be said: where the quartiles overlap."""
    if "ms" not in ours or "ms" not in other:
        return "not timed"
    (low, _, high), (other_low, _, other_high) = ours["ms"], other["ms"]
    if high < other_low:
        return "faster"
    return "slower" if low > other_high else "no difference"


def ratio(ours: dict[str, Any], other: dict[str, Any]) -> float:
    """Of their median time to ours."""
    return other["ms"][1] / ours["ms"][1]


def cases(rows):
    """The rows of each case together, ours first."""
    together = collections.defaultdict(list)
    for row in rows:
        together[row["question"], row["case"], json.dumps(row["at"])].append(row)
    return [
        sorted(case, key=lambda row: not is_ours(row["competitor"])) for case in together.values()
    ]


def is_ours(name: str) -> bool:
    return name.startswith(OURS)


def counterpart(other, case):
    """Ours of the same form ("jloss vmap" for "optax vmap"), else the first of ours."""
    form = other["competitor"].partition(" ")[2]
    same = [row for row in case if row["competitor"] == f"{OURS} {form}"]
    return (same or case)[0]


def of_ceiling(row, machine) -> float | None:
    """The least time that this machine's own ceilings allow, as a share of the time it took."""
    if "ms" not in row:
        return None
    matmul = max(machine["matmul"]["float32"], machine["matmul"].get(row["at"].get("dtype"), 0))
    least = max(row["floor_bytes"] / machine["copy"], row["flops"] / matmul)
    return least / (row["ms"][1] / 1e3)


def markdown(results) -> str:
    machine, rows = results["machine"], results["rows"]
    lines = ["# Benchmarks", "", *header(machine), "", *summary(rows), "", LEGEND]
    for question in dict.fromkeys(row["question"] for row in rows):
        title, _, rest = results["questions"][question].partition("\n")
        lines += ["", f"## {title}", "", rest.strip(), "", *table(question, rows, machine)]
    if results.get("compiled"):
        lines += ["", *compiler_facts(results["compiled"])]
    return "\n".join(lines) + "\n"


def header(machine):
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
    absent = ", ".join(k for k, v in machine["versions"].items() if v is None)
    matmul = ", ".join(f"{dtype} {f / 1e9:.0f}" for dtype, f in machine["matmul"].items())
    yield f"{machine['device']}, {machine['cores']} cores, load {machine['load']:.1f} at the start."
    if machine["load"] > 0.3 * machine["cores"]:
        yield "**Other work was on the machine: publish no times of this run.**"
    yield f"Python {machine['python']}, {versions}. Absent: {absent or 'nothing'}."
    yield f"Its ceilings, measured here: {machine['copy'] / 1e9:.1f} GB/s, matmul {matmul} GFLOP/s."


def summary(rows):
    """For each peer: in how many cases jloss is faster, slower, or neither."""
    yield "| jloss against | cases | faster | no difference | slower | not timed |"
    yield "|---|--:|--:|--:|--:|--:|"
    count = collections.defaultdict(collections.Counter)
    for case in cases(rows):
        for other in (row for row in case if not is_ours(row["competitor"])):
            ours = counterpart(other, case)
            inexact = "inexact" in (ours["status"], other["status"])
            count[other["competitor"]][verdict(ours, other), inexact] += 1
    for name, of in count.items():
        said = ("faster", "no difference", "slower", "not timed")
        cells = [beside_inexact(of[v, False], of[v, True]) for v in said]
        yield f"| {name} | {sum(of.values())} | " + " | ".join(cells) + " |"


def beside_inexact(exact: int, inexact: int) -> str:
    return f"{exact + inexact} ({inexact} with an inexact result)" if inexact else str(exact)


def table(question, rows, machine):
    mine = [row for row in rows if row["question"] == question]
    steps = any("state_bytes" in row for row in mine)
    state = " state B | " if steps else " "
    yield f"| case | | ms | x time | of ceiling | temp MiB |{state}compile s | errors |"
    yield "|---|---|--:|--:|--:|--:|--:|" + "--:|" * steps + "---|"
    for first, *others in cases(mine):
        for row in (first, *others):
            case = f"{first['case']}: {told(first['at'])}" if row is first else ""
            measured = cells(first, row, machine)
            measured[4:4] = [state_of(row)] * steps
            yield f"| {case} | {row['competitor']} | " + " | ".join(measured) + " |"


def cells(first, row, machine):
    if "ms" not in row:
        return ["", "", "", "", "", f"{row['status']}: {row.get('reason') or told_errors(row)}"]
    low, middle, high = (significant(ms) for ms in row["ms"])
    times = ""
    if row is not first and "ms" in first:
        times = f"{ratio(first, row):.2f}"
        times = f"**{times}**" if verdict(first, row) != "no difference" else f"{times} (overlap)"
    share = of_ceiling(row, machine)
    return [
        f"{middle} ({low}..{high})",
        times,
        f"{share:.0%}" if share else "",
        "" if row.get("temp_bytes") is None else mib(row),
        "" if row["compile_s"] is None else f"{row['compile_s']:.1f}",
        ("**inexact** " if row["status"] == "inexact" else "") + told_errors(row),
    ]


def compiler_facts(rows):
    """Memory and traffic by the compilers of devices that were not at hand."""
    yield "## Compiler facts for devices that were not at hand"
    yield ""
    yield OF_COMPILERS
    yield ""
    yield "| case | | " + " | ".join(f"{t} temp MiB | traffic" for t in targets(rows)) + " |"
    yield "|---|---|" + "--:|--:|" * len(targets(rows))
    for together in cases(rows):
        first = together[0]
        for name in dict.fromkeys(row["competitor"] for row in together):
            case = f"{first['case']}: {told(first['at'])}" if name == first["competitor"] else ""
            of = {row["target"]: row for row in together if row["competitor"] == name}
            figures = [
                f"{mib(of[target])} | {traffic(of[target])}" if target in of else "none | "
                for target in targets(rows)
            ]
            yield f"| {case} | {name} | " + " | ".join(figures) + " |"


def targets(rows):
    return list(dict.fromkeys(row["target"] for row in rows))


def mib(row):
    return f"{row['temp_bytes'] / 2**20:.2f}"


def state_of(row):
    """Bytes that a step keeps for each parameter, beside it."""
    return f"{row['state_bytes'] / row['at']['parameters']:.2f}" if "state_bytes" in row else ""


def traffic(row):
    if not row["floor_bytes"]:
        return ""
    moved = row.get("moved_bytes", row["compiler_bytes"])
    each = f" ({moved / row['at']['parameters']:.1f} B)" if "moved_bytes" in row else ""
    return f"{moved / row['floor_bytes']:.2f}{each}"


def in_a_line(row) -> str:
    """A row for the terminal."""
    if "ms" not in row:
        return f"{row['competitor']:16} {row['status']}: {row.get('reason') or told_errors(row)}"
    low, middle, high = (significant(ms) for ms in row["ms"])
    time = f"{middle} ms ({low}..{high})"
    return f"{row['competitor']:16} {row['status']:8} {time:28} {told_errors(row)}"


def told(at) -> str:
    return ", ".join(f"{v}" if k == "dtype" else f"{k} {v}" for k, v in at.items())


def told_errors(row):
    return ", ".join(f"{part} {float(error):.1e}" for part, error in row.get("errors", {}).items())


def significant(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"
