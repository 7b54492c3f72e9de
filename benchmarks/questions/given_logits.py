"""What do losses from given logits cost, value and gradient, beside optax and torch?

The mean over logits [tokens, classes]: cross-entropy with integer labels (its value alone as well),
KL divergence between two arrays of logits (gradient in the first), sigmoid focal loss and binary
cross-entropy with a label for each logit.

jloss twice: as it is, and on CPU by `chunked`, of 128 rows at a time, which stay in the caches.

Peers: optax and torch's functional losses as documented and, for bfloat16, behind the cast to
float32 that careful users write (KL needs it of jloss too: its logarithms are taken outside); on
accelerators also torch.compile, and Liger's cross-entropy, which writes over its logits and so is
given a copy of them.
Floor: each array read once, the gradient written once. FLOP: an addition, a multiplication, an
exponential or a logarithm is 1; counted beside each formula.
Check: the textbook's formula in float64. Exact is a relative error up to 1e-5 of the value, and of
the gradient (in the Euclidean norm); for bfloat16 one rounding to it, 4e-3.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jloss
from benchmarks.competitors import (
    Case,
    Jitted,
    torch_value_and_gradient,
    value_and_gradient,
)

SIZES = {
    "quick": [(256, 8192)],
    "cpu": [(1024, n) for n in (32768, 2048, 8192)] + [(n, 32768) for n in (256, 4096)],
    "accelerator": [(8192, n) for n in (32768, 4096, 131072)] + [(n, 32768) for n in (1024, 32768)],
}


def wide(x):
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def torch_wide(x):
    return x.float() if x.is_floating_point() else x


def cross_entropy(x, y):
    return jnp.mean(jax.nn.logsumexp(x, -1) - jnp.take_along_axis(x, y[:, None], -1)[:, 0])


def kl(x, t):
    log_p = jax.nn.log_softmax(t)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(x)), -1))


def binary(x, y):
    return jnp.mean(jnp.logaddexp(0, (1 - 2 * y) * x))


def focal(x, y):
    surprise = jnp.logaddexp(0, (1 - 2 * y) * x)
    return jnp.mean((0.75 - 0.5 * y) * jnp.expm1(-surprise) ** 2 * surprise)


def torch_kl(functional, x, t):
    log_q, log_p = functional.log_softmax(x, -1), functional.log_softmax(t, -1)
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def liger(functional, x, y):
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy(x.clone(), y)


class Loss(NamedTuple):
    textbook: Callable
    jloss: Callable
    rows: Callable  # the reduction to one value for each row
    optax: Callable
    torch: Callable | None
    compared_with: str  # what stands beside the logits
    flops: int  # for each logit


LOSSES = {
    "cross-entropy": Loss(
        cross_entropy,
        jloss.softmax_cross_entropy_with_integer_labels,
        jloss.each,
        lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean(),
        lambda functional, x, y: functional.cross_entropy(x, y),
        "labels",
        6,  # maximum, difference, exponential, sum; quotient and difference
    ),
    "KL divergence": Loss(
        kl,
        lambda x, t, reduction: jloss.kl_divergence(
            jax.nn.log_softmax(wide(x)), jax.nn.softmax(wide(t)), reduction=reduction
        ),
        jloss.each,
        lambda x, t: optax.kl_divergence(jax.nn.log_softmax(x), jax.nn.softmax(t)).mean(),
        torch_kl,
        "logits",
        14,  # as above for both, difference of logarithms, product, sum; difference of both
    ),
    "binary cross-entropy": Loss(
        binary,
        jloss.sigmoid_binary_cross_entropy,
        functools.partial(jloss.mean, axis=-1),
        lambda x, y: optax.sigmoid_binary_cross_entropy(x, y).mean(),
        lambda functional, x, y: functional.binary_cross_entropy_with_logits(x, y),
        "bits",
        8,  # sign, exponential, sum, logarithm, sum; quotient, difference, scale
    ),
    "sigmoid focal": Loss(
        focal,
        functools.partial(jloss.sigmoid_focal_loss, alpha=0.25),
        functools.partial(jloss.mean, axis=-1),
        lambda x, y: optax.sigmoid_focal_loss(x, y, alpha=0.25).mean(),
        None,
        "bits",
        16,  # binary cross-entropy, the miss, its square and weight; the product's two slopes
    ),
}


def draw(tokens, classes, dtype, compared_with):
    one, other = jax.random.split(jax.random.key(0))
    logits = lambda key: (4 * jax.random.normal(key, (tokens, classes))).astype(dtype)
    beside = {
        "labels": lambda key: jax.random.randint(key, (tokens,), 0, classes),
        "bits": lambda key: jax.random.bernoulli(key, 0.1, (tokens, classes)).astype(dtype),
        "logits": logits,
    }
    return logits(one), beside[compared_with](other)


def ours(loss):
    return functools.partial(loss.jloss, reduction=jloss.mean)


def in_chunks(loss):
    rows = lambda _, x, y: loss.jloss(x, y, reduction=loss.rows)
    return lambda x, y: jloss.chunked(rows, None, x, y, chunk=128, reduction=jloss.mean)


def competitors(loss, dtype, scale):
    yield "jloss", value_and_gradient(ours(loss))
    if scale != "accelerator":
        yield "jloss in chunks", value_and_gradient(in_chunks(loss))
    yield "optax", value_and_gradient(loss.optax)
    if dtype == "bfloat16":
        yield "optax cast", value_and_gradient(lambda *both: loss.optax(*map(wide, both)))
    if loss.torch:
        yield "torch", torch_value_and_gradient(loss.torch)
    if loss.torch and scale == "accelerator":
        yield "torch compiled", torch_value_and_gradient(loss.torch, compiled=True)
    if loss.torch and dtype == "bfloat16":
        cast = lambda functional, *both: loss.torch(functional, *map(torch_wide, both))
        yield "torch cast", torch_value_and_gradient(cast, compiled=scale == "accelerator")
    if loss.compared_with == "labels" and scale == "accelerator":
        yield "liger_kernel with copy", torch_value_and_gradient(liger)


def case(name, tokens, classes, dtype, scale):
    loss, entries = LOSSES[name], tokens * classes
    size = jnp.dtype(dtype).itemsize
    one = 1e-5 if dtype == "float32" else 4e-3
    return Case(
        name,
        {"dtype": dtype, "tokens": tokens, "classes": classes},
        functools.partial(draw, tokens, classes, dtype, loss.compared_with),
        jax.value_and_grad(loss.textbook),
        {"value": one, "gradient": one},
        dict(competitors(loss, dtype, scale)),
        floor_bytes=2 * entries * size
        + (4 * tokens if name == "cross-entropy" else entries * size),
        flops=loss.flops * entries,
    )


def value_alone(tokens, classes, dtype):
    """Cross-entropy without its gradient."""
    full = case("cross-entropy", tokens, classes, dtype, "cpu")
    loss, entries = LOSSES["cross-entropy"], tokens * classes
    value = lambda f: Jitted(lambda x, y: (f(x, y),))
    return full._replace(
        name="cross-entropy, value alone",
        exact=lambda x, y: (loss.textbook(x, y),),
        tolerance={"value": full.tolerance["value"]},
        competitors={
            "jloss": value(ours(loss)),
            "jloss in chunks": value(in_chunks(loss)),
            "optax": value(loss.optax),
        },
        floor_bytes=entries * jnp.dtype(dtype).itemsize + 4 * tokens,
        flops=4 * entries,
    )


def cases(scale):
    for dtype in ("float32", "bfloat16"):
        for name in LOSSES:
            for size in SIZES[scale] if name == "cross-entropy" else SIZES[scale][:1]:
                yield case(name, *size, dtype, scale)
        yield value_alone(*SIZES[scale][0], dtype)
