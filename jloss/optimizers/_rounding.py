"""Stochastic rounding to bfloat16, by bits that know their place and nothing else."""

from __future__ import annotations

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
    parts = (seed, 0x9E3779B9), (step, 0x85EBCA6B), (leaf, 0xC2B2AE35)
    stream = _mixed(sum((_word(x) * np.uint32(odd) for x, odd in parts), jnp.uint32(0)))
    place, stride = jnp.zeros_like(like, jnp.uint32), 1
    for axis in reversed(range(like.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, like.shape, axis)
        place, stride = place + along * np.uint32(stride & _WORD), stride * like.shape[axis]
    return _mixed(_mixed(place ^ stream) + stream)


def to_bfloat16(x: jax.Array, bits: jax.Array | None = None) -> jax.Array:
    """Round float32 to what bfloat16 holds, up or down by chance so that the mean is x.

    Without `bits`, to nearest. By masks, and still float32, since XLA removes casts there and back.
    """
    if bits is None:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    whole = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rounded = (whole + (bits & np.uint32(0xFFFF))) & np.uint32(0xFFFF0000)
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(rounded, jnp.float32), x)


def _word(x: ArrayLike) -> jax.Array:
    return jnp.uint32(x & _WORD) if isinstance(x, int) else jnp.asarray(x).astype(jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of words in which each bit depends on all (Wellons, "hash-prospector", 2018)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0xD35A2D97)
    return x ^ (x >> np.uint32(15))
