"""The door in: what every loss does to its arrays before the formula."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Axis = int | tuple[int, ...] | None


def floats(**arrays: ArrayLike) -> tuple[Array, ...]:
    """The arrays in one floating dtype, never narrower than float32; the first must be floating."""
    for i, (name, array) in enumerate(arrays.items()):
        kind = jnp.result_type(array)
        numbers = jnp.floating if i == 0 else (jnp.floating, jnp.integer, jnp.bool_)
        if not any(jnp.issubdtype(kind, k) for k in jax.tree.leaves(numbers)):
            wanted = "floating: cast it first" if i == 0 else "real"
            raise TypeError(f"`{name}` should be {wanted}, but is {kind}")
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*map(_widened, arrays.values()), jnp.float32)
    return tuple(jnp.asarray(array).astype(dtype) for array in arrays.values())


def _widened(array: ArrayLike) -> ArrayLike | jnp.dtype:
    """8-bit floats promote with nothing: they count as float32."""
    kind = jnp.result_type(array)
    narrow = jnp.issubdtype(kind, jnp.floating) and kind.itemsize == 1
    return jnp.dtype(jnp.float32) if narrow else array


def integers(name: str, array: ArrayLike) -> Array:
    """Class numbers, in a dtype that holds any number of classes."""
    array = jnp.asarray(array)
    message = f"`{name}` should be integers, but is {array.dtype}"
    chex.assert_type(array, jnp.integer, custom_message=message, exception_type=TypeError)
    with jax.numpy_dtype_promotion("standard"):
        return array.astype(jnp.promote_types(array.dtype, jnp.int32))


def expect_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Raises unless `array` has exactly `shape`: data is never broadcast silently."""
    message = f"`{name}` should have shape {shape}, but has shape {array.shape}"
    chex.assert_shape(array, shape, custom_message=message, exception_type=ValueError)


def canonical_axis(axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` as a tuple of numbers from 0; None is all axes."""
    if axis is None:
        return tuple(range(ndim))
    axis = axis if isinstance(axis, tuple) else (axis,)
    if any(not -ndim <= a < ndim for a in axis) or len({a % ndim for a in axis}) < len(axis):
        raise ValueError(f"`axis` should name axes of an array with {ndim}, but is {axis}")
    return tuple(a % ndim for a in axis)


def without(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the values of a loss that consumes `axis`."""
    return tuple(n for a, n in enumerate(shape) if a not in axis)


def align(name: str, entries: ArrayLike, shape: tuple[int, ...]) -> Array:
    """`entries` broadcast to `shape`, matched from the left: [batch] goes with [batch, time]."""
    entries = jnp.asarray(entries)
    padded = jnp.expand_dims(entries, tuple(range(entries.ndim, max(entries.ndim, len(shape)))))
    message = (
        f"`{name}` of shape {entries.shape} should lie along {shape}, leading axes first "
        f"(data is never broadcast along a trailing axis)"
    )
    chex.assert_is_broadcastable(
        padded.shape, shape, custom_message=message, exception_type=ValueError
    )
    if padded.ndim > len(shape):
        raise ValueError(message)
    return jnp.broadcast_to(padded, shape)


def hyperparameter(name: str, value: ArrayLike, like: Array) -> Array:
    """A number, or one for each entry (as many axes as the data), in the data's dtype."""
    value = jnp.asarray(value).astype(like.dtype)
    if value.ndim not in (0, like.ndim):
        message = f"`{name}` should be a scalar or have {like.ndim} axes, but has {value.ndim}"
        raise ValueError(message)
    return value if value.ndim == 0 else align(name, value, like.shape)


def masks(
    where: ArrayLike | None,
    weights: ArrayLike | None,
    shape: tuple[int, ...],
    axis: tuple[int, ...] = (),
) -> tuple[Array | None, Array | None]:
    """What is there of data of `shape` whose loss consumes `axis`; None for all of it.

    Returns:
        A mask over the entries along `axis`, of `shape` (None if `where` does not reach them), and
        a mask over the values. A value is there if any of its entries and its weight are.
    """
    inner, rows, values = None, None, without(shape, axis)
    if where is not None:
        where = jnp.asarray(where)
        message = f"`where` should be boolean, but is {where.dtype}"
        chex.assert_type(where, bool, custom_message=message, exception_type=TypeError)
        if axis and where.ndim == len(shape):
            if any(where.shape[a] != 1 for a in axis):
                inner = align("where", where, shape)
                rows = jnp.any(inner, axis)
            else:
                rows = align("where", jnp.squeeze(where, axis), values)
        else:
            rows = align("where", where, values)
    if weights is not None:
        counted = align("weights", weights, values).astype(bool)
        rows = counted if rows is None else rows & counted
    return inner, rows


def blank(
    array: Array, mask: Array | None, fill: float = 0, *, axis: tuple[int, ...] = ()
) -> Array:
    """`fill` for what is not there, so that no NaN in it reaches a value or a gradient.

    Args:
        axis: the axes of `array` that `mask` lacks.
    """
    return array if mask is None else jnp.where(jnp.expand_dims(mask, axis), array, fill)


def paired(
    predictions: ArrayLike,
    targets: ArrayLike | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    axis: tuple[int, ...] = (),
    *,
    names: tuple[str, str] = ("predictions", "targets"),
) -> tuple[Array, Array, Array | None]:
    """Two arrays of one shape, as floats, 0 where deleted; and which values are there.

    A scalar target (None is 0) serves every entry.
    """
    x, y = floats(**dict(zip(names, (predictions, 0.0 if targets is None else targets))))
    y = jnp.broadcast_to(y, x.shape) if y.ndim == 0 else y
    expect_shape(names[1], y, x.shape)
    inner, rows = masks(where, weights, x.shape, axis)
    x, y = (blank(blank(array, inner), rows, axis=axis) for array in (x, y))
    return x, y, rows


def probable(probabilities: Array, given: ArrayLike) -> Array:
    """Whether each lies in [0, 1], but for a few roundings in the dtype that it was given in."""
    kind = jnp.result_type(given)
    stray = 8 * float(jnp.finfo(kind).eps) if jnp.issubdtype(kind, jnp.floating) else 0.0
    return (-stray <= probabilities) & (probabilities <= 1 + stray)
