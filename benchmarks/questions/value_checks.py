"""What do the checks of values cost a step that does not ask for them?

A loss of a small batch, jitted and called from Python, where dispatch is all: as jloss has it (no
check in the program unless `jloss.checked` asks), under `jloss.checked`, and with one `debug_check`
of checkify left in the program, as it might have been written.

Peers: optax, which has no checks.
Floor: of no meaning here: time is dispatch.
Check: the textbook's formula in float64; exact is a relative error up to 1e-5.
"""

import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

import jloss
from benchmarks.competitors import Called, Case

BATCH, CLASSES = 8, 16


def draw():
    one, other = jax.random.split(jax.random.key(0))
    labels = jax.random.randint(other, (BATCH,), 0, CLASSES)
    return jax.random.normal(one, (BATCH, CLASSES)), labels


def with_debug_check(x, y):
    checkify.debug_check(jnp.all((y >= 0) & (y < x.shape[-1])), "`labels` out of range")
    return jloss.softmax_cross_entropy_with_integer_labels(x, y)


def cases(scale):
    loss = jax.jit(jloss.softmax_cross_entropy_with_integer_labels)
    one = lambda f: Called(lambda x, y: (f(x, y),))
    yield Case(
        "cross-entropy, called from Python",
        {"dtype": "float32", "batch": BATCH, "classes": CLASSES},
        draw,
        lambda x, y: (jax.nn.logsumexp(x, -1) - x[jnp.arange(BATCH), y],),
        {"value": 1e-5},
        {
            "jloss": one(loss),
            "jloss checked": one(jloss.checked(loss)),
            "jloss with debug_check": one(jax.jit(with_debug_check)),
            "optax": one(jax.jit(optax.softmax_cross_entropy_with_integer_labels)),
        },
        floor_bytes=0,
        flops=0,
    )
