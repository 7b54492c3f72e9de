"""Stochastic rounding to bfloat16, by bits that know their place and nothing else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_WORD = 0xFFFFFFFF


def random_bits(like: jax.Array, seed: ArrayLike, step: ArrayLike, leaf: int) -> jax.Array:
    """Draw 32 bits for each entry by a hash of its global index, the step, the leaf and the seed.

    No key and no state: what an entry gets does not depend on how its array is split over devices,
    and the compiler makes the bits where they are used (`jax.random` costs ten times the step).
    """
    parts = (_number(seed), 0x9E3779B9), (step, 0x85EBCA6B), (leaf, 0xC2B2AE35)
    stream = _mixed(sum((_word(x) * np.uint32(odd) for x, odd in parts), jnp.uint32(0)))
    place, stride = jnp.zeros_like(like, jnp.uint32), 1
    for axis in reversed(range(like.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, like.shape, axis)
        place, stride = place + along * np.uint32(stride & _WORD), stride * like.shape[axis]
    return _mixed(_mixed(place ^ stream) + stream)


def to_bfloat16(x: jax.Array, bits: jax.Array | None = None) -> jax.Array:
    """Round float32 to what bfloat16 holds, up or down by chance so that the mean is x.

    Without `bits`, to nearest. By masks, and still float32, since XLA removes casts there and back.
    The derivative is that of x.
    """
    if bits is None:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return _upper_half(x, bits & np.uint32(0xFFFF))


def upper_half(x: jax.Array) -> jax.Array:
    """Round float32 to bfloat16, ties away from zero, so that 16 bits hold what is left."""
    return _upper_half(x, np.uint32(0x8000))


@jax.custom_jvp
def straight_through(x: jax.Array, seen: jax.Array) -> jax.Array:
    """`seen`, with the derivative of x."""
    del x
    return seen


@straight_through.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[1], tangents[0]


def words(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def floats(words: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(words, jnp.float32)


def _upper_half(x: jax.Array, more: ArrayLike) -> jax.Array:
    rounded = floats((words(x) + more) & np.uint32(0xFFFF0000))
    return straight_through(x, jnp.where(jnp.isfinite(x), rounded, x))


def _number(seed: ArrayLike) -> ArrayLike:
    """A word of a key, or an integer as it is."""
    if jnp.issubdtype(jnp.result_type(seed), jax.dtypes.prng_key):
        return jax.random.bits(jnp.asarray(seed), (), jnp.uint32)
    if jnp.ndim(seed) or not jnp.issubdtype(jnp.result_type(seed), jnp.integer):
        raise TypeError(f"a seed should be an integer or a key of jax.random.key, got {seed!r}")
    return seed


def _word(x: ArrayLike) -> jax.Array:
    return jnp.uint32(x & _WORD) if isinstance(x, int) else jnp.asarray(x).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of words in which each bit depends on all (Wellons, "hash-prospector", 2018)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97)
    return x ^ (x >> np.uint32(15))
