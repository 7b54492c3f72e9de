"""One case, measured: checked against float64, timed in turns, judged by quartiles."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.competitors import Case, NotHere

WARM = 2  # rounds that do not count
SETTLE_S = 5e-3  # in which the threads of the one before stop to spin: torch's took 1.4x from JAX


def measure(case: Case, rounds: int, budget_s: float, installed) -> list[dict[str, Any]]:
    """A row for every competitor, absent and wrong ones included; times only of the right ones."""
    try:
        rows = rows_of(case, rounds, budget_s, installed)
    except Exception as error:  # of the case as a whole: no memory for it, say
        failed = {"status": "failed", "reason": reason(error)}
        rows = dict.fromkeys(case.competitors, failed)
    fixed = {"case": case.name, "at": dict(case.at), "tolerance": dict(case.tolerance)}
    fixed |= {"flops": case.flops, "floor_bytes": case.floor_bytes}
    return [{**fixed, "competitor": name, **row} for name, row in rows.items()]


def rows_of(case, rounds, budget_s, installed):
    rows, runs = {}, {}
    arguments = jax.block_until_ready(jax.jit(case.draw)())
    exact = in_float64(case, arguments)
    for name, competitor in case.competitors.items():
        if not installed(name.split()[0]):
            rows[name] = {"status": "absent", "reason": f"{name.split()[0]} is not installed"}
            continue
        rows[name], run = check(case, competitor, arguments, exact)
        if rows[name]["status"] in ("exact", "inexact"):
            runs[name] = run
    for name, seconds in take_turns(runs, rounds, budget_s).items():
        rows[name] |= {"ms": [1e3 * s for s in quartiles(seconds)], "rounds": len(seconds)}
        rows[name] |= memory_and_counts(runs[name])
    return rows


def in_float64(case, arguments):
    """The exact result, on the CPU where the accelerator has no float64 of its own."""
    device = jax.devices()[0]
    if device.platform == "tpu":
        device = jax.devices("cpu")[0]
    with jax.enable_x64(True), jax.default_device(device):
        wide = lambda a: a.astype("float64") if jnp.issubdtype(a.dtype, jnp.floating) else a
        return jax.jit(case.exact)(*jax.tree.map(wide, jax.device_put(arguments, device)))


def check(case, competitor, arguments, exact):
    """The row of a competitor before it is timed, and what to time."""
    try:
        run = competitor.ready(arguments)
        errors = dict(zip(case.tolerance, relative_errors(run.result(), exact)))
    except NotHere as error:
        return {"status": "absent", "reason": str(error)}, None
    except Exception as error:  # a peer may raise whatever it likes
        return {"status": "failed", "reason": reason(error)}, None
    status = "exact"
    if any(not error <= case.tolerance[part] for part, error in errors.items()):
        status = "inexact"
    if any(not error < case.wrong for error in errors.values()):
        status = "wrong"
    row = {"status": status, "errors": errors, "compile_s": run.compile_s}
    return row | ({} if run.state_bytes is None else {"state_bytes": run.state_bytes}), run


def relative_errors(result, exact):
    """|result - exact| / |exact| of each part, in the Euclidean norm over all that it holds."""
    for got, wanted in zip(result, exact, strict=True):
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (got, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the result has the shapes {shapes[0]}, not {shapes[1]}")
        device = jax.tree.leaves(wanted)[0].device
        with jax.enable_x64(True):
            apart, size = norms(jax.device_put(got, device), wanted)
        yield float(apart / size)


@jax.jit
def norms(got, wanted):
    apart = jax.tree.map(lambda a, b: jnp.sum((a.astype("float64") - b) ** 2), got, wanted)
    size = jax.tree.map(lambda b: jnp.sum(b**2), wanted)
    return tuple(jnp.sqrt(sum(jax.tree.leaves(tree))) for tree in (apart, size))


def take_turns(runs, rounds, budget_s):
    """Seconds of each competitor in each round, which begins with another one, back or forth."""
    once = [seconds_of(run, 1) for run in runs.values()]
    calls, wake = enough_calls(once), max(once, default=0) < 0.05
    seconds = {name: [] for name in runs}
    names, start = list(runs), time.perf_counter()
    for i in range(rounds + WARM):
        if i >= WARM + 5 and time.perf_counter() - start > budget_s:
            break
        turn = names[i % len(names) :] + names[: i % len(names)]
        for name in turn if i % 2 else turn[::-1]:
            seconds[name].append(seconds_of(runs[name], calls, wake))
    return {name: times[WARM:] for name, times in seconds.items()}


def enough_calls(seconds, at_least_s=2e-3, at_most_s=0.1):
    """How many calls the clock resolves for each of them, or what the slowest leaves time for."""
    if not seconds:
        return 1
    return max(1, min(math.ceil(at_least_s / min(seconds)), round(at_most_s / max(seconds))))


def seconds_of(run, calls, wake=True):
    """Of one call; before a short one, threads that slept wake up in another."""
    time.sleep(SETTLE_S)
    if wake:
        run.wait(run.call())
    start = time.perf_counter()
    for _ in range(calls):
        result = run.call()
    run.wait(result)
    return (time.perf_counter() - start) / calls


def quartiles(seconds):
    return statistics.quantiles(seconds, n=4)


def memory_and_counts(run):
    """Memory, which is exact, and the compiler's count of FLOP and traffic."""
    if run.compiled is None:
        return {"temp_bytes": run.peak_bytes()}
    memory, cost = run.compiled.memory_analysis(), run.compiled.cost_analysis() or {}
    return {
        "temp_bytes": memory.temp_size_in_bytes,
        "compiler_flops": cost.get("flops"),
        "compiler_bytes": cost.get("bytes accessed"),
    }


def reason(error):
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line[:200]}"
