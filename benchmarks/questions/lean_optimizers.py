"""What do optimizer steps cost that are safe, or in low precision, beside optax and torch?

AdamW in float32 with gradients clipped, and skipped where they are not finite (here all are); Adam
in float32 with moments of two bytes or one; Adam with bfloat16 parameters and gradients. A few
matrices, three gradients in turn, the state donated.

Peers: optax with `clip_by_global_norm` in `apply_if_finite`, with float32 moments, in plain
bfloat16, and with a float32 copy of the parameters kept by hand; torch.optim (foreach, fused) with
`clip_grad_norm_` and a look at the norm.
Floor: parameters, gradients and the state of the first competitor read once, parameters and state
written once: for each parameter 28 bytes in float32, 20 and 16 with moments of two bytes and one,
14 with all in bfloat16. (Who clips reads the gradients twice: 32.) FLOP: by the formulas of Adam
and of the norm, without what rounding takes.
Check: three steps in float64 by the textbook, the change of the parameters: exact up to a relative
error of 1e-4, with moments in bfloat16 (its last place is 1/128) 5e-3, in 8 bits 2e-2. It is
another optimizer from 1e-2 on, in 8 bits from 3e-2: a decay b1 of 0.8 gives 4e-2. The last place of
a bfloat16 parameter exceeds the change of three steps: there the mean change of each matrix is
compared, which rounding by chance keeps (of a float32 parameter, where one is kept too), and all
first moments, both exact up to 2e-2. Plain bfloat16 moves less than half as far: inexact.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from benchmarks.competitors import Case, Stepped
from benchmarks.questions import optimizer_steps
from benchmarks.questions.optimizer_steps import RATE, stepped, torch_stepped
from jloss.optimizers import adam, adamw, bf16, bf16_params, guard, int8
from jloss.optimizers.codecs import Int8

DECAY, LONGEST = 0.01, 1.0
NORMS = (0.5, 2.0, 8.0)  # of the gradients that are to be clipped: all but the first
SIZES = {  # leaves, and the shape of each
    "quick": (2, (256, 256)),
    "cpu": (4, (2048, 2048)),
    "accelerator": (10, (2048, 4096)),
}


def draw_of_norms(leaves, *shape):
    start, batches = optimizer_steps.draw(leaves, *shape)
    scales = [norm / math.sqrt(leaves * math.prod(shape)) for norm in NORMS]
    return start, [[scale * g for g in gradients] for scale, gradients in zip(scales, batches)]


def draw_bfloat16(leaves, *shape):
    """Gradients whose mean is 1, so that the parameters of a matrix move together."""
    start, batches = optimizer_steps.draw(leaves, *shape)
    cast = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
    return cast(start), cast(jax.tree.map(lambda g: 1 + g, batches))


def change(start, batches, weight_decay=0.0):
    each = lambda p, *gradients: optimizer_steps.adam(p, gradients, weight_decay)
    return (jax.tree.map(each, start, *batches),)


def change_if_clipped(start, batches):
    def clipped(gradients):
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradients))
        return [g * jnp.minimum(1, LONGEST / norm) for g in gradients]

    return change(start, [clipped(gradients) for gradients in batches], DECAY)


def means_and_first_moments(start, batches):
    average = lambda *gs: sum(0.1 * 0.9**age * g for age, g in enumerate(reversed(gs)))
    return means(*change(start, batches)), jax.tree.map(average, *batches)


def means(tree):
    return jax.tree.map(jnp.mean, tree)


def widened(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def joined(state):
    """The float32 parameters of "split16": the bits of bfloat16 ones, plus what lies below."""
    words = lambda p: jax.lax.bitcast_convert_type(p.astype(jnp.float32), jnp.int32)
    join = lambda p, low: jax.lax.bitcast_convert_type(words(p) + low, jnp.float32)
    return jax.tree.map(join, state[0], state[1].low)


def with_copy(tx):
    """bfloat16 parameters of which the state holds a float32 copy, as it is often done by hand."""

    def start(parameters):
        return parameters, (widened(parameters), tx.init(widened(parameters)))

    def step(state, gradient):
        parameters, (copy, inner) = state
        updates, inner = tx.update(widened(gradient), inner, copy)
        copy = optax.apply_updates(copy, updates)
        return jax.tree.map(lambda p, c: c.astype(p.dtype), parameters, copy), (copy, inner)

    return Stepped(start, step, lambda state: state[:1])


def by_means(competitor, parameters=lambda state: widened(state[0])):
    """Compared by the mean change of what `parameters` finds in the state, and first moments."""

    def read(state):
        mu = optax.tree.get(state[1], "mu")
        decoded = jax.tree.map(int8().decode, mu, is_leaf=lambda x: isinstance(x, Int8))
        return parameters(state), decoded

    return competitor._replace(read=read, seen=lambda change, mu: (means(change), mu))


def clip_and_skip():
    plain = optax.adamw(RATE, weight_decay=DECAY)
    ours = adamw(RATE, weight_decay=DECAY, max_norm=LONGEST, skip_nonfinite=True)
    theirs = optax.chain(optax.clip_by_global_norm(LONGEST), plain)
    make = lambda o, p, **form: o.AdamW(p, RATE, weight_decay=DECAY, **form)
    clip = lambda torch, p: torch.nn.utils.clip_grad_norm_(p, LONGEST)  # in place, as users do
    may_step = lambda torch, p: torch.isfinite(clip(torch, p))
    return {
        "jloss": stepped(ours),
        "jloss guard": stepped(guard(plain, LONGEST)),
        "optax": stepped(optax.apply_if_finite(theirs, max_consecutive_errors=5)),
        "torch": torch_stepped(make, may_step),
        "torch fused": torch_stepped(make, may_step, fused=True),
    }


def in_bfloat16():
    return {
        "jloss": by_means(stepped(bf16_params(adam(RATE, mu=bf16(), nu=bf16())))),
        "jloss int8": by_means(stepped(bf16_params(adam(RATE, mu=int8(), nu=int8())))),
        "jloss split16": by_means(stepped(bf16_params(adam(RATE), "split16")), joined),
        "optax": by_means(stepped(optax.adam(RATE))),
        "optax float32 copy": by_means(with_copy(optax.adam(RATE)), lambda state: state[1][0]),
    }


def with_moments(codec):
    return {
        "jloss": stepped(adam(RATE, mu=codec, nu=codec)),
        "jloss float32": stepped(adam(RATE)),
        "optax float32": stepped(optax.adam(RATE)),
    }


def case(name, rivals, scale, state, tolerance, wrong, **other):
    """`state` is what the first competitor keeps, in bytes for each parameter."""
    leaves, shape = SIZES[scale]
    count, dtype = leaves * math.prod(shape), other.get("dtype", "float32")
    return Case(
        name,
        {"dtype": dtype, "leaves": leaves, "parameters": count},
        functools.partial(other.get("draw", optimizer_steps.draw), leaves, *shape),
        other.get("exact", change),
        tolerance,
        rivals,
        floor_bytes=(3 * jnp.dtype(dtype).itemsize + 2 * state) * count,
        flops=other.get("flops", 14) * count,
        wrong=wrong,
    )


def cases(scale):
    scales = 8 / SIZES[scale][1][-1]  # two for each row
    yield case(
        "clip, skip, AdamW",
        clip_and_skip(),
        scale,
        state=8,
        tolerance={"change": 1e-4},
        wrong=1e-2,
        draw=draw_of_norms,
        exact=change_if_clipped,
        flops=19,
    )
    yield case(
        "Adam, moments in bfloat16", with_moments(bf16()), scale, 4, {"change": 5e-3}, wrong=1e-2
    )
    yield case(
        "Adam, moments in 8 bits",
        with_moments(int8()),
        scale,
        2 + scales,
        {"change": 2e-2},
        wrong=3e-2,
    )
    yield case(
        "Adam in bfloat16",
        in_bfloat16(),
        scale,
        state=4,
        tolerance={"mean change": 2e-2, "first moments": 2e-2},
        wrong=0.9,
        dtype="bfloat16",
        draw=draw_bfloat16,
        exact=means_and_first_moments,
    )
