"""What do the checks of values cost a step that does not ask for them?

A jitted loss on a small batch, where dispatch is all: as jloss has it (no check in the program
unless `jloss.checked` asks), with a `debug_check` of checkify left in the program, and under
`jloss.checked`. Microseconds a call; medians of interleaved rounds.

    python -m benchmarks.checks
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

import jloss

ROUNDS, CALLS = 30, 200


def left_in(x, y):
    checkify.debug_check(jnp.all((y >= 0) & (y < x.shape[-1])), "`labels` out of range")
    return optax.softmax_cross_entropy_with_integer_labels(x, y)


def microseconds(f, x, y, calls):
    start = time.perf_counter()
    for _ in range(calls):
        f(x, y)
    jax.block_until_ready(f(x, y))
    return (time.perf_counter() - start) / calls * 1e6


def main():
    x, y = jnp.zeros((8, 16)), jnp.zeros(8, jnp.int32)
    loss = jloss.softmax_cross_entropy_with_integer_labels
    forms = {
        "optax, no check": (jax.jit(optax.softmax_cross_entropy_with_integer_labels), CALLS),
        "jloss, checks off": (jax.jit(loss), CALLS),
        "debug_check left in": (jax.jit(left_in), CALLS),
        "jloss.checked": (jloss.checked(jax.jit(loss)), 2),
    }
    times = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, (f, calls) in forms.items():
            times[name].append(microseconds(f, x, y, calls))
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for name, rounds in times.items():
        print(f"{name:20s} {statistics.median(rounds[2:]):9.1f} us a call")


if __name__ == "__main__":
    main()
