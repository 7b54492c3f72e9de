"""What does a cross-entropy that keeps its digits cost beside optax's?

Value and gradient of the mean over [tokens, classes] logits with integer labels, float32 and
bfloat16, against `optax.softmax_cross_entropy_with_integer_labels`. Each is held against float64
before it is timed. Rounds are interleaved and rotated; the ratio is that of the medians, and is
claimed only where the quartiles do not overlap. Temporary memory is exact, from the compiler.

    python -m benchmarks.cross_entropy [tokens classes]
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jloss

ROUNDS = 25


def mean_loss(name):
    if name == "jloss":
        return lambda x, y: jloss.softmax_cross_entropy_with_integer_labels(
            x, y, reduction=jloss.mean
        )
    return lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean()


def exact(x, y):
    """The loss and its gradient in float64, by the textbook."""
    x = np.asarray(x, np.float64)
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(p[rows, y]).mean()
    p[rows, y] -= 1
    return loss, p / len(y)


def measure(compiled, x, y):
    """Seconds of each round, by name; every round begins with another competitor."""
    seconds = {name: [] for name in compiled}
    names = list(compiled)
    for i in range(ROUNDS + 2):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](x, y))
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.quantiles(times[2:], n=4) for name, times in seconds.items()}


def main(tokens=1024, classes=32768):
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, optax {optax.__version__}")
    print("| dtype | loss | ms (quartiles) | ratio | temp MiB | value error | gradient error |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for dtype in (jnp.float32, jnp.bfloat16):
        x = (4 * jax.random.normal(jax.random.key(0), (tokens, classes))).astype(dtype)
        y = jax.random.randint(jax.random.key(1), (tokens,), 0, classes)
        loss, gradient = exact(x, np.asarray(y))
        compiled, errors = {}, {}
        for name in ("optax", "jloss"):
            compiled[name] = jax.jit(jax.value_and_grad(mean_loss(name))).lower(x, y).compile()
            got = compiled[name](x, y)
            apart = np.linalg.norm(np.asarray(got[1], np.float64) - gradient)
            errors[name] = abs(float(got[0]) - loss), apart / np.linalg.norm(gradient)
        times = measure(compiled, x, y)
        for name, (low, middle, high) in times.items():
            ratio = middle / times["optax"][1]
            temporary = compiled[name].memory_analysis().temp_size_in_bytes / 2**20
            value_error, gradient_error = errors[name]
            print(
                f"| {dtype.__name__} | {name} | {middle * 1e3:.1f} ({low * 1e3:.1f}.."
                f"{high * 1e3:.1f}) | {ratio:.2f} | {temporary:.2f} | {value_error:.1e} | "
                f"{gradient_error:.1e} |"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
