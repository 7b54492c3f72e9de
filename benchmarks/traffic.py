"""What the kernels of a compiled program read from a device's main memory and write to it.

XLA's own count adds what a TPU moves within its fast memory, and both ends of each copy there.
"""

from __future__ import annotations

import math
import re

ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.\-]+) = (.+?) ([\w\-]+)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?:to_apply|body|calls|\w+_computations?)=\{?((?:%[\w.\-]+(?:, )?)+)")
NAME = re.compile(r"%([\w.\-]+)")
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
    *("after-all", "copy-done", "slice-done", "async-done"),
}
BRANCHING = {"conditional", "call", "while", "async-start"}


def bytes_moved(text: str) -> float:
    """Of a program in HLO: each array once for each kernel that reads or writes it.

    Of a conditional it counts the larger branch, of a loop one turn.
    """
    computations = {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if start := COMPUTATION.match(line):
            inside = computations["ENTRY" if start[1] else start[2]] = []
        elif found := INSTRUCTION.match(line):
            inside.append(found.groups())
    return moved_by(computations, "ENTRY")


def moved_by(computations, name):
    shapes, total = {}, 0.0
    for result, shape, kind, rest in computations[name]:
        shapes[result] = shape
        if kind in BRANCHING:
            called = NAME.findall(" ".join(CALLED.findall(rest)))
            total += max(moved_by(computations, branch) for branch in called)
        elif kind == "copy-start":  # of a tuple with both ends
            total += sum(sizes(shape))
        elif kind == "slice-start":  # of a tuple with the whole array, and the slice
            total += sizes(shape, everywhere=True)[1] + sizes(shape)[1]
        elif kind not in FREE and "ConcatBitcast" not in rest:
            operands = set(NAME.findall(rest.partition("), ")[0]))
            total += sum(sizes(shape)) + sum(sum(sizes(shapes.get(o, ""))) for o in operands)
    return total


def sizes(shape: str, everywhere: bool = False) -> list[float]:
    """Bytes of each array that is written there; of one outside main memory (a space S) none."""
    return [
        bits(dtype) / 8 * math.prod(int(n) for n in axes.split(",") if n)
        if everywhere or "S(" not in layout
        else 0.0
        for dtype, axes, layout in ARRAY.findall(shape)
    ]


def bits(dtype):
    digits = re.sub(r"\D", "", dtype)
    return 8 if dtype == "pred" else int(digits or 0)
