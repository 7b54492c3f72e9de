"""Padded sequences: which of their steps are there."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jloss._core.checks import insist
from jloss._core.classes import log_sum_exp_parts
from jloss._core.devices import total
from jloss._core.inputs import as_array, consumed, expect_shape, floats, integers, masks, required


def sequences(name: str, data: ArrayLike, axes: tuple[str, ...]) -> Array:
    """Data whose last axes are these, still in the dtype that it came in."""
    array = as_array(name, data)
    if array.ndim < len(axes):
        wanted = ", ".join(("...", *axes))
        raise ValueError(f"`{name}` should be [{wanted}], but has shape {array.shape}")
    return array


def scores(name: str, data: ArrayLike, axes: tuple[str, ...]) -> Array:
    """The same of what a model gives, whose last axis may not be empty."""
    return consumed(name, sequences(name, data, axes), -1)[0]


def rows_there(
    where: ArrayLike | None, weights: ArrayLike | None, shape: tuple[int, ...], consumed: int
) -> Array | None:
    """Which sequences are there; `where` says nothing of what is in them."""
    lead, axis = shape[: len(shape) - consumed], tuple(range(len(shape) - consumed, len(shape)))
    steps = where is not None and len(lead) < np.ndim(where) < len(shape)
    entries, rows = (None, None) if steps else masks(where, weights, shape, axis)
    if steps or entries is not None:
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
    lengths = jnp.where(good, lengths, shape[-1]).astype(jnp.int32)  # all, for NaN to reach
    return there & (step < lengths[..., None]), good


def unpadded(name: str, paddings: ArrayLike | None, there: Array) -> Array:
    """What of `there` is no padding either, where that is 1."""
    if paddings is None:
        return there
    paddings = as_array(name, paddings)
    expect_shape(
        name, paddings, there.shape, f"{name} come before what they pad; lengths have names"
    )
    padded = paddings.astype(bool)
    insist(padded.astype(paddings.dtype) == paddings, f"`{name}` should be 0, or 1 for padding")
    return there & ~padded


def cleaned(x: Array, there: Array) -> Array:
    """Logits in float32 at least, 0 where nothing is there."""
    (x,) = floats(logits=x)
    return jnp.where(there[..., None], x, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def normalizer(x: Array, there: Array, axis_name: str | None) -> tuple[Array, Array]:
    """log sum exp(x) in two parts, 0 where nothing is there; NaN if any is inf: it has no share.

    The rule is what plain differentiation gives (its twin is `normalizer.fun`) of cleaned logits:
    to clean them before the sums would hold a copy of them.
    """
    (wide,) = floats(logits=x)
    top, rest = log_sum_exp_parts(wide, axis_name)
    rest = jnp.where(rest == jnp.inf, jnp.nan, rest)
    return jnp.where(there, top, 0), jnp.where(there, rest, 0)


@normalizer.defjvp
def _(axis_name, primals, tangents):
    (x, there), (along, _) = primals, tangents
    top, rest = normalizer(x, there, axis_name)
    moved = jnp.sum(shares(x, there, axis_name) * cleaned(along, there), -1)
    return (top, rest), (jnp.zeros_like(top), total(moved, axis_name))


def shares(x: Array, there: Array, axis_name: str | None) -> Array:
    """softmax(x) of the classes of this device."""
    top, rest = (part[..., None] for part in normalizer(x, there, axis_name))
    return jnp.exp(cleaned(x, there) - top - rest)


def packed(array: Array, there: Array, fill: ArrayLike) -> Array:
    """What is there of [..., steps], moved together to the left, and then `fill`."""
    order = jnp.argsort(~there, axis=-1, stable=True)
    return jnp.take_along_axis(jnp.where(there, array, fill), order, -1)


class Transcripts(NamedTuple):
    """Labels through the door in."""

    labels: Array  # [..., labels], the blank where one is none or not there
    length: Array  # how many there are, [...]
    blank: Array  # its number, or 0 if it has none
    good: Array  # whether all that are there are labels, [...]


def transcripts(
    labels: ArrayLike,
    label_paddings: ArrayLike | None,
    label_lengths: ArrayLike | None,
    blank_id: ArrayLike,
    size: int,  # of the vocabulary
    shape: tuple[int, ...],
    rows: Array | None,
) -> Transcripts:
    """The door in for sequences of labels, of which none is the blank."""
    y = integers("labels", labels)
    expect_shape("labels", y, shape, "[..., labels], with the leading axes of the logits")
    there, good = present("label_lengths", label_lengths, shape, rows)
    there = unpadded("label_paddings", label_paddings, there)
    blank, possible = blank_of(blank_id, size)
    blank = blank.astype(y.dtype)
    known = (y >= 0) & (y < size) & (y != blank)
    message = f"`labels` should lie in [0, {size}), and none be `blank_id`"
    good = good & possible & jnp.all(required(known, there, message), -1)
    y = jnp.where(known & there, y, blank)
    y = y if label_paddings is None else packed(y, there, blank)
    return Transcripts(y, jnp.sum(there, -1, dtype=jnp.int32), blank, good)


def blank_of(blank_id: ArrayLike, size: int) -> tuple[Array, Array]:
    """The number of the blank, 0 if that is no class; and whether it is one."""
    blank = integers("blank_id", blank_id)
    expect_shape("blank_id", blank, ())
    possible = (blank >= 0) & (blank < size)
    possible = required(possible, None, f"`blank_id` should lie in [0, {size})")
    return jnp.where(possible, blank, 0), possible


def first_place(there: Array, axis: int) -> Array:
    """The first place along `axis` that is there; -1 if none is."""
    size = there.shape[axis]
    place = jnp.where(there, lax.broadcasted_iota(jnp.int32, there.shape, axis), size)
    place = jnp.min(place, axis, initial=size)
    return jnp.where(place < size, place, -1)
