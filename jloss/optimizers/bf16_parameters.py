"""Parameters in bfloat16 that move as if they were float32."""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jloss.optimizers._precision import map_leaves, promoting, wide, wide_template
from jloss.optimizers._rounding import (
    floats,
    random_bits,
    straight_through,
    to_bfloat16,
    upper_half,
    words,
)


class Bf16State(NamedTuple):
    """The state of `bf16_params`.

    Attributes:
        step: how many there were.
        low: with "split16", int16 for each bfloat16 parameter: what the float32 parameter is beyond
            it, in its last place, -2^15 to 2^15 - 1. Otherwise None, as for other parameters.
        inner_state: the state inside.
    """

    step: ArrayLike
    low: Any
    inner_state: Any


def bf16_params(
    tx: optax.GradientTransformation,
    mode: Literal["stochastic", "split16"] = "stochastic",
    *,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Step bfloat16 parameters as float32 ones, whose updates are not lost.

    A bfloat16 number has 8 significant bits: an update below 1/512 of its parameter (below 1/256
    for some) rounds to nothing, at each step anew. What fails is small updates, so small learning
    rates (1e-4, and the end of every schedule), long averages and low noise; a large rate hides it.

    Args:
        tx: any optax transformation that ends with the update (`optax.chain(...)`, `adamw(...)`).
            It sees float32 gradients and parameters in place of half-precision ones, and so keeps
            a float32 state unless a codec stores it in less.
        mode: "stochastic" rounds parameter plus update up or down by chance, so that their mean is
            exact, and keeps nothing but a count. "split16" keeps the other 16 bits of a float32
            parameter in the state: an exact float32 run, seen by the model through its upper half.
        seed: of the stochastic rounding, an integer or a key. The bits are a hash of it, the step,
            the parameter's number and the entry's global index: 1 and 8 devices get the same, and
            so do the members of a `vmap` that have no seeds of their own.

    Returns:
        An optax transformation, the last of a chain, with the state `Bf16State(step, low,
        inner_state)`. Its updates are float32: `optax.apply_updates` adds them and lands on the
        rounded parameter to the bit (to 2^-24 of the old one, where the new one is 2^16 times
        smaller). Under strict dtype promotion write `(p.astype(u.dtype) + u).astype(p.dtype)`.

    Raises:
        ValueError: if `mode` is something else, or if `update` gets no parameters.

    Other parameters are left to `tx`. By hand in `shard_map` the index is the shard's own. A
    parameter that is changed from outside, by a projection say, keeps its other 16 bits, but for 0,
    which is 0. Derivatives pass through the rounding as if there were none, but not through those
    16 bits from step to step.

    References:
        Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015. Zamirai et al.,
        "Revisiting BFloat16 Training", arXiv, 2020.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jloss.optimizers import adam
    >>> def after(optimizer, steps=1000):
    ...     def step(_, carry):
    ...         params, state = carry
    ...         updates, state = optimizer.update(jnp.ones_like(params), state, params)
    ...         moved = params.astype(jnp.float32) + updates.astype(jnp.float32)
    ...         return moved.astype(params.dtype), state
    ...     params = jnp.ones(1, jnp.bfloat16)
    ...     return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]
    >>> after(adam(1e-4)), after(bf16_params(adam(1e-4), "split16"))
    (Array([1], dtype=bfloat16), Array([0.898438], dtype=bfloat16))
    """
    if mode not in ("stochastic", "split16"):
        raise ValueError(f'mode must be "stochastic" or "split16", got {mode!r}')
    run = promoting(tx)
    split = mode == "split16"

    def init(params: optax.Params) -> Bf16State:
        low = map_leaves(
            lambda p: jnp.zeros_like(p, jnp.int16) if split and _is_bf16(p) else None, params
        )
        return Bf16State(jnp.zeros((), jnp.int32), low, run.init(map_leaves(wide_template, params)))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Bf16State]:
        if params is None:
            raise ValueError("bf16_params needs the parameters: `update(updates, state, params)`")
        params = map_leaves(lambda _, p: p, updates, params)
        before = map_leaves(_joined, params, state.low)
        moves, inner = run.update(map_leaves(wide, updates), state.inner_state, before, **extra)
        step, leaf = optax.safe_increment(state.step), itertools.count(1)

        def upper(after: jax.Array) -> jax.Array:
            if split:
                return upper_half(after)
            return to_bfloat16(after, random_bits(after, seed, step, -next(leaf)))

        after = map_leaves(
            lambda u, b, p: b + u.real.astype(b.dtype) if _is_bf16(p) else None,
            moves,
            before,
            params,
        )
        seen = map_leaves(upper, after)
        moves = map_leaves(
            lambda u, s, p: u if s is None else _change(s, wide(p)), moves, seen, params
        )
        low = map_leaves(
            lambda old, *new: old if new[0] is None else _low(*new), state.low, after, moves, params
        )
        return moves, Bf16State(step, low, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_bf16(x: Any) -> bool:
    return jnp.result_type(x) == jnp.bfloat16


def _joined(param: Any, low: jax.Array | None) -> jax.Array:
    upper = wide(param)
    if low is None:
        return upper
    whole = floats(words(upper) + low.astype(jnp.int32).astype(jnp.uint32))
    return straight_through(upper, jnp.where(upper == 0, upper, whole))


def _change(new: jax.Array, old: jax.Array) -> jax.Array:
    """What is to be added, -0.0 for nothing: it alone leaves both zeros as they are."""
    return straight_through(new - old, jnp.where(new == old, -0.0, new - old))


def _low(after: jax.Array, move: jax.Array, param: jax.Array) -> jax.Array:
    """What is beyond the parameter that will be: of it, so that a TPU makes both in one pass."""
    landed = wide((wide(param) + move).astype(param.dtype))
    beyond = (words(after) - words(landed)).astype(jnp.int32)
    return jnp.clip(beyond, -(2**15), 2**15 - 1).astype(jnp.int16)
