"""What does a step of an optimizer cost, beside optax and torch?

float32 parameters, three gradients in turn, the state donated: SGD, momentum, RMSProp, Adam and
AdamW on a few large matrices, and AdamW on many small ones.

Peers: optax; torch.optim with its default (foreach) and, where it has one, its fused form.
Floor: parameters, gradients and moments read once, parameters and moments written once: 12 bytes
for each parameter, and 8 for each moment. FLOP: by the formulas.
Check: three steps in float64 by the textbook, the change of the parameters; exact is a relative
error up to 1e-4, since parameters near 1 that move by 1e-3 keep four digits of the move; from 1e-2
on, which a forgotten weight decay exceeds, it is another optimizer.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jloss
from benchmarks.competitors import STEPS, Case, Stepped, TorchStepped

RATE, EPS = 1e-3, 1e-8
SIZES = {  # leaves, and parameters in each
    "quick": {"large": (2, 2**18), "small": (50, 64)},
    "cpu": {"large": (4, 2**22), "small": (1000, 256)},
    "accelerator": {"large": (10, 10**7), "small": (1000, 1024)},
}


class Optimizer(NamedTuple):
    textbook: Callable  # (gradient of each step) -> change of the parameters, from parameters p
    jloss: optax.GradientTransformation
    optax: optax.GradientTransformation
    torch: Callable  # (torch.optim, parameters, keywords)
    torch_fused: bool
    moments: int
    flops: int  # for each parameter


def sgd(p, gradients):
    return -RATE * sum(gradients)


def momentum(p, gradients):
    trace, change = 0, 0
    for g in gradients:
        trace = g + 0.9 * trace
        change -= RATE * trace
    return change


def rmsprop(p, gradients):
    square, change = 0, 0
    for g in gradients:
        square = 0.9 * square + 0.1 * g**2
        change -= RATE * g / (jnp.sqrt(square) + EPS)
    return change


def adam(p, gradients, weight_decay=0.0):
    m, v, now = 0, 0, p
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + EPS)
        now -= RATE * (direction + weight_decay * now)
    return now - p


OPTIMIZERS = {
    "SGD": Optimizer(
        sgd, jloss.sgd(RATE), optax.sgd(RATE), lambda o, p, **k: o.SGD(p, RATE, **k), True, 0, 2
    ),
    "momentum": Optimizer(
        momentum,
        jloss.momentum(RATE, 0.9),
        optax.sgd(RATE, 0.9),
        lambda o, p, **k: o.SGD(p, RATE, momentum=0.9, **k),
        True,
        1,
        4,
    ),
    "RMSProp": Optimizer(
        rmsprop,
        jloss.rmsprop(RATE, decay=0.9, eps=EPS, eps_in_sqrt=False),
        optax.rmsprop(RATE, decay=0.9, eps=EPS, eps_in_sqrt=False),
        lambda o, p, **k: o.RMSprop(p, RATE, alpha=0.9, eps=EPS, **k),
        False,
        1,
        9,
    ),
    "Adam": Optimizer(
        adam,
        jloss.adam(RATE),
        optax.adam(RATE),
        lambda o, p, **k: o.Adam(p, RATE, **k),
        True,
        2,
        14,
    ),
    "AdamW": Optimizer(
        functools.partial(adam, weight_decay=0.01),
        jloss.adamw(RATE, weight_decay=0.01),
        optax.adamw(RATE, weight_decay=0.01),
        lambda o, p, **k: o.AdamW(p, RATE, weight_decay=0.01, **k),
        True,
        2,
        16,
    ),
}


def draw(leaves, *shape):
    tree = lambda key: list(jax.random.normal(key, (leaves, *shape)))
    start, *gradients = jax.random.split(jax.random.key(0), 1 + STEPS)
    return tree(start), [tree(key) for key in gradients]


def stepped(tx):
    def step(state, gradient):
        parameters, inner = state
        updates, inner = tx.update(gradient, inner, parameters)
        return optax.apply_updates(parameters, updates), inner

    return Stepped(lambda p: (p, tx.init(p)), step, lambda state: state[:1])


def torch_stepped(make, may_step=lambda torch, parameters: True, **form):
    def prepare(torch, parameters):
        optimizer = make(torch.optim, parameters, **form)

        def step(gradients):
            for p, g in zip(parameters, gradients):
                p.grad = g
            if may_step(torch, parameters):
                optimizer.step()
            return (parameters,)

        return step

    return TorchStepped(prepare)


def case(name, leaves, size):
    optimizer = OPTIMIZERS[name]
    each = lambda start, gradients: jax.tree.map(
        lambda p, *g: optimizer.textbook(p, g), start, *gradients
    )
    rivals = {
        "jloss": stepped(optimizer.jloss),
        "optax": stepped(optimizer.optax),
        "torch": torch_stepped(optimizer.torch),
    }
    if optimizer.torch_fused:
        rivals["torch fused"] = torch_stepped(optimizer.torch, fused=True)
    return Case(
        name,
        {"dtype": "float32", "leaves": leaves, "parameters": leaves * size},
        functools.partial(draw, leaves, size),
        lambda start, gradients: (each(start, gradients),),
        {"change": 1e-4},
        rivals,
        floor_bytes=(12 + 8 * optimizer.moments) * leaves * size,
        flops=optimizer.flops * leaves * size,
        wrong=1e-2,
    )


def cases(scale):
    for name in OPTIMIZERS:
        yield case(name, *SIZES[scale]["large"])
    yield case("AdamW", *SIZES[scale]["small"])
