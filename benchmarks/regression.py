"""What became slower, larger or less exact between two results?

    python -m benchmarks.regression OLD.json NEW.json

Reads results.json of `benchmarks`, or accuracy.json of `benchmarks.accuracy`. A row of jloss is
slower where its quartiles lie above the old ones, as they are (on the same device) and after
division by the peers' times in the same case: no change of jloss moves those, but the machine does
(and another version of the peer: the versions are printed). Memory and errors are compared on the
same device alone. Exits with 1 if anything became worse.
"""

from __future__ import annotations

import json
import math
import pathlib
import statistics
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import report

WORSE = 1.05  # what is claimed of times must exceed this, quartiles or not
ORDER = ["exact", "passed", "inexact", "failed", "refused", "wrong", "absent"]


class Key(NamedTuple):
    """What makes two rows the same measurement."""

    question: str
    case: str
    at: str
    who: str
    target: str

    def __str__(self):
        target = f", for {self.target}" if self.target else ""
        return f"{self.case}: {self.at} [{self.who}{target}]"


def key(row: dict[str, Any]) -> Key:
    """Of a row of the benchmarks, or of the certificate of accuracy."""
    if "loss" in row:
        at = f"{row['dtype']}, region {row['region']}"
        return Key("accuracy", row["loss"], at, row["library"], "")
    at = report.told(row["at"])
    return Key(row["question"], row["case"], at, row["competitor"], row.get("target", ""))


def compare(old, new) -> Iterator[str]:
    """A line for each thing of jloss's that became worse."""
    before, after = ({key(row): row for row in rows(results)} for results in (old, new))
    same_device = device(old) == device(new)
    for k, then in before.items():
        if not report.is_ours(k.who):
            continue
        if k not in after:
            yield f"gone: {k}"
            continue
        now, scales = after[k], ([1.0] if same_device else []) + peers(k, before, after)
        worse = [*status(then, now), *slower(then, now, scales)]
        if same_device or k.target:
            worse += [*larger(then, now), *less_exact(then, now)]
        yield from (f"{what}: {k}" for what in worse)


def rows(results):
    return [*results["rows"], *results.get("compiled", [])]


def device(results):
    return results.get("machine", {}).get("device")


def peers(k, before, after) -> list[float]:
    """How many times longer the peers of a case take now; nothing where none was timed."""
    of_case = [j for j in before if j[:3] == k[:3] and not report.is_ours(j.who)]
    both = [(before[j], after[j]) for j in of_case if j in after]
    times = [now["ms"][1] / then["ms"][1] for then, now in both if "ms" in then and "ms" in now]
    return [statistics.median(times)] if times else []


def status(then, now):
    was, is_now = (row.get("status", "exact") for row in (then, now))
    if ORDER.index(is_now) > ORDER.index(was):
        yield f"from {was} to {is_now}"


def slower(then, now, scales):
    if "ms" not in then or "ms" not in now or not scales:
        return
    times = now["ms"][1] / then["ms"][1] / max(scales)
    if times > WORSE and now["ms"][0] > then["ms"][2] * max(scales):
        yield f"slower, {times:.2f} times"


def larger(then, now):
    was, is_now = then.get("temp_bytes"), now.get("temp_bytes")
    if was is not None and is_now is not None and is_now > was + 4096:  # a page
        yield f"larger, {was / 2**20:.2f} to {is_now / 2**20:.2f} MiB"


def less_exact(then, now):
    """Errors that grew by a tenth, and to where luck cannot take them."""
    luck = then.get("tolerance", {})
    for part, was in errors(then).items():
        is_now, least = errors(now).get(part, math.inf), luck.get(part, 0) / 10
        if not (math.isnan(was) or is_now <= max(1.1 * was, least)):
            yield f"less exact, {part} {was:.2g} to {is_now:.2g}"


def errors(row) -> dict[str, float]:
    """Of a row of the benchmarks, or the worst ones of a row of the certificate."""
    if "loss" in row:
        parts = {part: row.get(part) for part in ("value", "gradient")}
        return {part: float(error["worst"]) for part, error in parts.items() if error}
    return {part: float(error) for part, error in row.get("errors", {}).items()}


def versions(results):
    told = results.get("machine", results)["versions"]
    return ", ".join(f"{name} {version}" for name, version in told.items() if version)


def main(old_file: str, new_file: str) -> int:
    """Prints what became worse, and says whether anything did."""
    old, new = (json.loads(pathlib.Path(file).read_text()) for file in (old_file, new_file))
    print(f"old: {versions(old)}\nnew: {versions(new)}")
    worse = list(compare(old, new))
    print(*worse or ["nothing became worse"], sep="\n")
    return bool(worse)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
