"""The machine, its own ceilings measured here and now, and which peers are installed."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata, util
from typing import NamedTuple

import jax
import jax.numpy as jnp

PACKAGES = {"jloss", "jax", "jaxlib", "optax", "torch"}


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
        {
            dtype: matmul_ceiling(1024 if quick else 2048 if small else 8192, dtype)
            for dtype in ("float32", "bfloat16")
        },
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
    add = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros(elements)).compile()
    x, seconds = jnp.zeros(elements), []
    for _ in range(rounds):
        start = time.perf_counter()
        x = jax.block_until_ready(add(x))
        seconds.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(seconds)


def matmul_ceiling(n: int, dtype: str, rounds: int = 5) -> float:
    """FLOP a second of the fastest product of two [n, n] matrices."""
    product = jax.jit(lambda a: a @ a)
    a, seconds = jnp.ones((n, n), dtype) / n, []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds[1:])
