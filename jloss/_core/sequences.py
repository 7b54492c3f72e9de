"""Padded sequences: which of their steps are there."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jloss._core.inputs import as_array, expect_shape, integers, masks, required


def sequences(name: str, data: ArrayLike, axes: tuple[str, ...]) -> Array:
    """Data whose last axes are these, still in the dtype that it came in."""
    array = as_array(name, data)
    if array.ndim < len(axes):
        wanted = ", ".join(("...", *axes))
        raise ValueError(f"`{name}` should be [{wanted}], but has shape {array.shape}")
    return array


def rows_there(
    where: ArrayLike | None, weights: ArrayLike | None, shape: tuple[int, ...], consumed: int
) -> Array | None:
    """Which sequences are there; `where` says nothing of what is in them."""
    axis = tuple(range(len(shape) - consumed, len(shape)))
    entries, rows = masks(where, weights, shape, axis)
    if entries is not None:
        lead = shape[: len(shape) - consumed]
        raise ValueError(f"`where` should lie along the sequences, {lead}: lengths delete steps")
    return rows


def present(
    name: str, lengths: ArrayLike | None, shape: tuple[int, ...], rows: Array | None
) -> tuple[Array, Array]:
    """Which of [..., steps] are within the lengths (None: all), and whether these are right."""
    step = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    there = jnp.ones(shape, bool) if rows is None else jnp.broadcast_to(rows[..., None], shape)
    if lengths is None:
        return there, jnp.ones(shape[:-1], bool)
    lengths = integers(name, lengths)
    expect_shape(name, lengths, shape[:-1])
    good = (lengths >= 0) & (lengths <= shape[-1])
    good = required(good, rows, f"`{name}` should lie in [0, {shape[-1]}]")
    return there & (step < lengths[..., None]), good


def unpadded(name: str, paddings: ArrayLike | None, there: Array) -> Array:
    """What of `there` is no padding either, where that is 1."""
    if paddings is None:
        return there
    paddings = as_array(name, paddings)
    expect_shape(name, paddings, there.shape)
    return there & ~paddings.astype(bool)


def packed(array: Array, there: Array, fill: ArrayLike) -> Array:
    """What is there of [..., steps], moved together to the left, and then `fill`."""
    order = jnp.argsort(~there, axis=-1, stable=True)
    return jnp.take_along_axis(jnp.where(there, array, fill), order, -1)
