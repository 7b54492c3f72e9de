"""Moving averages of gradients: their decays, their bias, and what keeps them from a bad step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from jloss.optimizers._precision import map_leaves, wide


def trace(
    decay: ArrayLike, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """`optax.trace`, with its state, that a bad step leaves as it is."""
    init = optax.trace(decay, nesterov, accumulator_dtype).init

    def update(updates: Any, state: Any, params: Any = None, *, _take: Any = None, **_: Any) -> Any:
        add = lambda g, m: g + decay * m
        new = gated(_take, map_leaves(add, updates, state.trace), state.trace)
        return map_leaves(add, updates, new) if nesterov else new, optax.TraceState(new)

    return optax.GradientTransformationExtraArgs(init, update)


def gated(take: jax.Array | None, new: Any, old: Any) -> Any:
    """`new` if the step is taken, else `old`; what follows is computed of it, in the same pass."""
    return new if take is None else map_leaves(lambda x, y: jnp.where(take, x, y), new, old)


def unbias(moments: Any, decay: ArrayLike, count: ArrayLike) -> Any:
    """Divide moving averages that began at 0 by 1 - decay^count, formed without cancellation."""

    @functools.cache
    def weight(real: jnp.dtype) -> jax.Array:
        less, t = jnp.asarray(decay - 1, real), jnp.asarray(count, real)
        far = less < -0.5  # from 1: there the power is exact, and has a derivative at decay 0
        near = -jnp.expm1(t * jnp.log1p(jnp.where(far, -0.5, less)))
        return jnp.where(far, 1 - jnp.asarray(decay, real) ** t, near)

    return map_leaves(lambda moment: moment / weight(jnp.finfo(moment.dtype).dtype), moments)


def at_least_float32(decay: ArrayLike) -> ArrayLike:
    """Widen a half-precision array, so that 1 - decay is exact; leave a Python float in double."""
    return wide(decay) if isinstance(decay, jax.Array) else decay


def decay_of_squares(name: str, decay: ArrayLike) -> ArrayLike:
    """Refuse half precision, which knows nothing between 0.996 and 1 (bfloat16)."""
    if jnp.result_type(decay) in (jnp.bfloat16, jnp.float16):
        raise TypeError(
            f"`{name}` is {jnp.result_type(decay)}, which rounds 0.999 away: give "
            "optax.inject_hyperparams its hyperparam_dtype=jnp.float32, or go through bf16_params"
        )
    return decay


def root(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0, not inf."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))
