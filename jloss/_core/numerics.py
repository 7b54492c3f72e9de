"""Safe maths: functions whose value and gradient are finite where the textbook's are not."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

# Wraps the formula of a loss over a wide axis, cast included: where the backward pass is far from
# the forward one, it keeps the inputs as they came and no float32 copy of them.
lean = functools.partial(jax.checkpoint, prevent_cse=False)


def product(weight: Array, value: Array) -> Array:
    """`weight * value`, where a weight of 0 silences even an infinite value and its gradient."""
    return weight * jnp.where((weight == 0) & jnp.isinf(value), 0, value)


def absolute(x: Array) -> Array:
    """|x|, whose slope at 0 is 0 (that of `jnp.abs` is 1 there)."""
    return jnp.abs(x) if jnp.iscomplexobj(x) else x * jnp.sign(x)


def unit(x: Array, axis: tuple[int, ...], epsilon: Array) -> tuple[Array, Array]:
    """`x` over its norm, and by how much the square of that falls short of 1.

    The squared norm counts as at least `epsilon`; a zero vector stays 0, and falls short by 1.
    """
    largest = jnp.max(jnp.abs(x), axis, keepdims=True, initial=0)
    size = jax.lax.stop_gradient(jnp.maximum(largest, jnp.sqrt(epsilon)))
    size = jnp.where(size >= jnp.finfo(x.dtype).tiny, size, 1)  # keeps squares within range
    x = x / size
    square = jnp.sum(x * x, axis, keepdims=True)
    least = jnp.maximum(square, epsilon / size / size)
    least = jnp.where(least == 0, 1, least)
    return x * jax.lax.rsqrt(least), jnp.squeeze(1 - square / least, axis)
