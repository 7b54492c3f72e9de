"""The machine, its own ceilings measured here and now, and which peers are installed."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from importlib import metadata, util
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.competitors import NotHere, tensors, torch_and_device, waiting

PACKAGES = {"jloss", "jax", "jaxlib", "optax", "torch", "tokamax"}


class Machine(NamedTuple):
    device: str
    platform: str
    cores: int
    python: str
    versions: dict[str, str | None]  # None where a package is not installed
    load: float  # of the last minute, before anything was measured
    copy: float  # bytes read and written each second
    matmul: dict[str, float]  # dtype: FLOP each second


def machine(quick: bool, packages=()) -> Machine:
    device = jax.devices()[0]
    wanted = sorted(PACKAGES | set(packages))
    load = os.getloadavg()[0]
    small = quick or device.platform == "cpu"
    return Machine(
        f"{len(jax.devices())} x {device.device_kind} ({processor()})",
        device.platform,
        os.cpu_count() or 1,
        platform.python_version(),
        {name: version(name) for name in wanted},
        load,
        copy_bandwidth(2**26 if small else 2**30, 10 if quick else 30),
        matmul_ceilings(1024 if quick else 2048 if small else 8192),
    )


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(s.split(":")[1].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    if not util.find_spec(package):
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return getattr(__import__(package), "__version__", "of unknown version")


def copy_bandwidth(elements: int, rounds: int) -> float:
    """Bytes a second of the fastest pass that reads and writes an array far larger than caches."""
    add, x = jax.jit(lambda x: x + 1, donate_argnums=0), [jnp.zeros(elements)]

    def in_place():
        x[0] = jax.block_until_ready(add(x[0]))

    return 2 * x[0].nbytes / fastest(in_place, rounds)


def matmul_ceilings(n: int) -> dict[str, float]:
    """FLOP a second of the fastest product of two [n, n] matrices, by XLA or, if here, by torch."""
    rate = {"float32": 0.0, "bfloat16": 0.0}
    for dtype in rate:
        a = jnp.full((n, n), 1 / n, dtype)
        product = jax.jit(lambda a: a @ a)
        rate[dtype] = 2 * n**3 / fastest(lambda a=a, f=product: jax.block_until_ready(f(a)))
        with contextlib.suppress(ImportError, NotHere):
            torch, place = torch_and_device()
            (a,), wait = tensors(torch, place, (a,)), waiting(torch, place)
            other = 2 * n**3 / fastest(lambda a=a, wait=wait: wait(a @ a))
            rate[dtype] = max(rate[dtype], other)
    return rate


def fastest(call, rounds: int = 12) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
