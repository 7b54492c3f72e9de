"""What does a loss for one example cost under `vmap`, beside the batched call and beside optax?

The mean over a batch of examples [features], value and gradient: Huber, cosine distance, and
cross-entropy with integer labels; by one call on the batch, and by `vmap` of the loss for one.
float32, on accelerators bfloat16 too.

Peers: optax in both forms; torch's functional losses on the batch.
Floor: predictions and targets read once, the gradient written once. FLOP: as counted beside each.
Check: the textbook's formula in float64; exact is a relative error up to 1e-5, for bfloat16 one
rounding to it, 4e-3.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jloss
from benchmarks.competitors import Case, torch_value_and_gradient, value_and_gradient

DTYPES = {"quick": ["float32"], "cpu": ["float32"], "accelerator": ["float32", "bfloat16"]}
SIZES = {  # batch, features
    "quick": [(1024, 64)],
    "cpu": [(2**n, 128) for n in (8, 11, 14, 17)],
    "accelerator": [(2**n, 1024) for n in (10, 14, 18)],
}


class Loss(NamedTuple):
    textbook: Callable  # of one example
    jloss: Callable
    optax: Callable
    torch: Callable
    flops: int  # for each feature


def huber(x, y):
    apart = jnp.abs(x - y)
    return jnp.where(apart <= 1, apart**2 / 2, apart - 0.5)


def cosine(x, y):
    return 1 - jnp.vdot(x, y) / jnp.sqrt(jnp.vdot(x, x) * jnp.vdot(y, y))


LOSSES = {
    "Huber": Loss(
        huber,
        jloss.huber_loss,
        optax.huber_loss,
        lambda functional, x, y: functional.huber_loss(x, y),
        6,  # difference, comparison, square, half, sum; slope
    ),
    "cosine distance": Loss(
        cosine,
        jloss.cosine_distance,
        optax.cosine_distance,
        lambda functional, x, y: (1 - functional.cosine_similarity(x, y)).mean(),
        10,  # three products and sums; two products and two sums of the slope
    ),
    "cross-entropy": Loss(
        lambda x, y: jax.nn.logsumexp(x) - x[y],
        jloss.softmax_cross_entropy_with_integer_labels,
        optax.softmax_cross_entropy_with_integer_labels,
        lambda functional, x, y: functional.cross_entropy(x, y),
        6,
    ),
}


def draw(name, batch, features, dtype):
    one, other = jax.random.split(jax.random.key(0))
    x = (2 * jax.random.normal(one, (batch, features))).astype(dtype)
    if name == "cross-entropy":
        return x, jax.random.randint(other, (batch,), 0, features)
    return x, jax.random.normal(other, (batch, features)).astype(dtype)


def case(name, batch, features, dtype="float32"):
    loss, read = LOSSES[name], batch * features * jnp.dtype(dtype).itemsize
    one = 1e-5 if dtype == "float32" else 4e-3
    of_each = lambda f: lambda x, y: jax.vmap(f)(x, y).mean()
    return Case(
        name,
        {"dtype": dtype, "batch": batch, "features": features},
        functools.partial(draw, name, batch, features, dtype),
        jax.value_and_grad(of_each(loss.textbook)),
        {"value": one, "gradient": one},
        {
            "jloss": value_and_gradient(lambda x, y: loss.jloss(x, y, reduction=jloss.mean)),
            "jloss vmap": value_and_gradient(of_each(loss.jloss)),
            "optax": value_and_gradient(lambda x, y: loss.optax(x, y).mean()),
            "optax vmap": value_and_gradient(of_each(loss.optax)),
            "torch": torch_value_and_gradient(loss.torch),
        },
        floor_bytes=2 * read + (4 * batch if name == "cross-entropy" else read),
        flops=loss.flops * batch * features,
    )


def cases(scale):
    for dtype, name, size in itertools.product(DTYPES[scale], LOSSES, SIZES[scale]):
        yield case(name, *size, dtype)
