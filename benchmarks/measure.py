"""One case, measured: checked against float64, timed in turns, judged by quartiles."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.competitors import Case

WARM = 2  # rounds that do not count
SETTLE_S = 5e-3  # in which the threads of the one before stop to spin: torch's took 1.4x from JAX


def measure(case: Case, rounds: int, budget_s: float, installed) -> list[dict[str, Any]]:
    """A row for every competitor, absent and wrong ones included; times only of the right ones."""
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
        rows[name] |= compiler_facts(runs[name])
    fixed = {"case": case.name, "at": dict(case.at)}
    fixed |= {"flops": case.flops, "floor_bytes": case.floor_bytes}
    return [{**fixed, "competitor": name, **row} for name, row in rows.items()]


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
    except Exception as error:  # a peer may raise whatever it likes
        return {"status": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}, None
    status = "exact"
    if any(not error <= case.tolerance[part] for part, error in errors.items()):
        status = "inexact"
    if any(not error < case.wrong for error in errors.values()):
        status = "wrong"
    return {"status": status, "errors": errors, "compile_s": run.compile_s}, run


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
    """Seconds of each competitor in each round; every round begins with another one."""
    calls = {name: enough_calls(run) for name, run in runs.items()}
    seconds = {name: [] for name in runs}
    names, start = list(runs), time.perf_counter()
    for i in range(rounds + WARM):
        if i >= WARM + 5 and time.perf_counter() - start > budget_s:
            break
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(seconds_of(runs[name], calls[name]))
    return {name: times[WARM:] for name, times in seconds.items()}


def enough_calls(run, at_least_s=2e-3):
    """How many calls the clock can resolve."""
    return max(1, min(1000, round(at_least_s / min(seconds_of(run, 1) for _ in range(2)))))


def seconds_of(run, calls):
    time.sleep(SETTLE_S)
    if calls > 1:  # threads that slept wake up before the clock runs
        run.wait(run.call())
    start = time.perf_counter()
    for _ in range(calls):
        result = run.call()
    run.wait(result)
    return (time.perf_counter() - start) / calls


def quartiles(seconds):
    return statistics.quantiles(seconds, n=4)


def compiler_facts(run):
    """Memory, FLOP and traffic of a compiled program, which are exact."""
    if run.compiled is None:
        return {"temp_bytes": run.peak_bytes()}
    memory, cost = run.compiled.memory_analysis(), run.compiled.cost_analysis() or {}
    return {
        "temp_bytes": memory.temp_size_in_bytes,
        "compiler_flops": cost.get("flops"),
        "compiler_bytes": cost.get("bytes accessed"),
    }


def first_line(error):
    return (str(error).splitlines() or [""])[0][:200]
