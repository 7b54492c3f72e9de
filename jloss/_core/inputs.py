"""The door in: what every loss does to its arrays before the formula."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jloss._core.checks import insist, nan_unless

Axis = int | tuple[int, ...] | None


def as_array(name: str, data: ArrayLike) -> Array:
    """An array of real numbers or booleans; what is none is told by name."""
    try:
        array = jnp.asarray(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"`{name}` should be an array of numbers, but is {data!r:.80}") from error
    if not any(jnp.issubdtype(array.dtype, k) for k in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"`{name}` should be real, but is {array.dtype}")
    return array


def floats(**arrays: ArrayLike) -> tuple[Array, ...]:
    """The arrays in one floating dtype, never narrower than float32; the first must be floating."""
    converted = {name: as_array(name, data) for name, data in arrays.items()}
    (name, first), *_ = converted.items()
    message = f"`{name}` should be floating, but is {first.dtype}: cast it first"
    chex.assert_type(first, jnp.floating, custom_message=message, exception_type=TypeError)
    return at_least_float32(*converted.values())


def at_least_float32(*arrays: Array) -> tuple[Array, ...]:
    """The arrays in one floating dtype; 8-bit floats, which promote with nothing, as float32."""
    with jax.numpy_dtype_promotion("standard"):
        kinds = (a.astype(jnp.float32) if a.dtype.itemsize == 1 else a for a in arrays)
        dtype = jnp.result_type(*kinds, jnp.float32)
    return tuple(array.astype(dtype) for array in arrays)


def integers(name: str, array: ArrayLike) -> Array:
    """Class numbers, in a dtype that holds any number of classes."""
    if isinstance(array, (np.ndarray, np.generic)) and array.dtype.kind in "iu":  # JAX would wrap
        array = np.clip(array, -(2**31), 2**31 - 1)
    array = as_array(name, array)
    message = (
        f"`{name}` should be integers, but is {array.dtype}: cast class numbers; one-hot rows and "
        f"probabilities go to the loss for distributions"
    )
    chex.assert_type(array, jnp.integer, custom_message=message, exception_type=TypeError)
    return array if array.dtype.itemsize >= 4 else array.astype(jnp.int32)


def expect_shape(name: str, array: Array, shape: tuple[int, ...], hint: str = "") -> None:
    """Raises unless `array` has exactly `shape`: data is never broadcast silently."""
    hint = hint or "nothing is broadcast; reshape it, or index a size-1 axis away"
    message = f"`{name}` should have shape {shape}, but has shape {array.shape}: {hint}"
    chex.assert_shape(array, shape, custom_message=message, exception_type=ValueError)


def consumed(name: str, data: ArrayLike, axis: Axis) -> tuple[Array, tuple[int, ...]]:
    """What a loss over `axis` gets, still in the dtype that it came in, and `axis` from 0."""
    array = as_array(name, data)
    numbers = canonical_axis(axis, array.ndim)
    if any(array.shape[a] == 0 for a in numbers):
        raise ValueError(f"`{name}` is empty along `axis` {axis}: it has shape {array.shape}")
    return array, numbers


def of_shape(name: str, data: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Data of exactly that shape, or a scalar that serves every entry."""
    array = as_array(name, data)
    array = jnp.broadcast_to(array, shape) if array.ndim == 0 else array
    expect_shape(name, array, shape)
    return array


def canonical_axis(axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` as a tuple of numbers from 0; None is all axes."""
    if axis is None:
        return tuple(range(ndim))
    numbers = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(a, (int, np.integer)) for a in numbers):
        raise TypeError(f"`axis` should be an integer, a tuple of them or None, but is {axis!r}")
    if any(not -ndim <= a < ndim for a in numbers):
        raise ValueError(f"`axis` should lie in [{-ndim}, {ndim}), but is {axis}: of {ndim} axes")
    if len({a % ndim for a in numbers}) < len(numbers):
        raise ValueError(f"`axis` should name no axis twice, but is {axis}")
    return tuple(int(a) % ndim for a in numbers)


def without(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the values of a loss that consumes `axis`."""
    return tuple(n for a, n in enumerate(shape) if a not in axis)


def align(name: str, entries: ArrayLike, shape: tuple[int, ...]) -> Array:
    """`entries` broadcast to `shape`, matched from the left: [batch] goes with [batch, time]."""
    entries = as_array(name, entries)
    padded = jnp.expand_dims(entries, tuple(range(entries.ndim, max(entries.ndim, len(shape)))))
    message = (
        f"`{name}` of shape {entries.shape} should lie along {shape}, leading axes first: along "
        f"a later axis, give it axes of size 1 before (`{name}[None]`)"
    )
    chex.assert_is_broadcastable(
        padded.shape, shape, custom_message=message, exception_type=ValueError
    )
    if padded.ndim > len(shape):
        raise ValueError(message)
    return jnp.broadcast_to(padded, shape)


def hyperparameter(
    name: str,
    value: ArrayLike,
    like: Array,
    there: Array | None = None,
    *,
    above: float | None = None,
    least: float = -jnp.inf,
    most: float = jnp.inf,
) -> Array:
    """A number, or one for each entry (as many axes as the data), in the data's dtype.

    One that is not within its bounds makes all that it enters NaN, but for what is not `there`.
    """
    value = as_array(name, value).astype(like.dtype)
    if value.ndim not in (0, like.ndim):
        message = f"`{name}` should be a scalar or have {like.ndim} axes, but has {value.ndim}"
        raise ValueError(f"{message}: write `{name}[None]` for one along the last of two axes")
    if value.ndim:
        value = blank(align(name, value, like.shape), there, 1)  # within all bounds
    bounds = f"in [{least}, {most}]" if above is None else f"above {above}"
    ok = (value >= least) & (value <= most) if above is None else value > above
    insist(ok, f"`{name}` should be {bounds}")
    return nan_unless(ok, value)


def masks(
    where: ArrayLike | None,
    weights: ArrayLike | None,
    shape: tuple[int, ...],
    axis: tuple[int, ...] = (),
    *,
    name: str = "where",
) -> tuple[Array | None, Array | None]:
    """What is there of data of `shape` whose loss consumes `axis`; None for all of it.

    Returns:
        A mask over the entries along `axis`, of `shape` (None if `where` does not reach them), and
        a mask over the values. A value is there if any of its entries and its weight are.
    """
    inner, rows, values = None, None, without(shape, axis)
    if where is not None:
        where = as_array(name, where)
        message = f"`{name}` should be boolean, but is {where.dtype}: write `{name} > 0`"
        chex.assert_type(where, bool, custom_message=message, exception_type=TypeError)
        if axis and where.ndim == len(shape):
            if any(where.shape[a] != 1 for a in axis):
                inner = align(name, where, shape)
                rows = jnp.any(inner, axis)
            else:
                rows = align(name, jnp.squeeze(where, axis), values)
        else:
            rows = align(name, where, values)
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


def clean(
    array: Array,
    entries: Array | None,
    rows: Array | None,
    axis: tuple[int, ...],
    fill: float = 0,
) -> Array:
    """`fill` for deleted entries along `axis`, 0 in all of a deleted row; masks as of `masks`."""
    return blank(blank(array, entries, fill), rows, axis=axis)


def paired(
    predictions: ArrayLike,
    targets: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    axis: tuple[int, ...] = (),
    *,
    names: tuple[str, str] = ("predictions", "targets"),
) -> tuple[Array, Array, Array | None]:
    """Two arrays of one shape, as floats, 0 where deleted; and which values are there.

    A scalar target serves every entry.
    """
    x, y = floats(**dict(zip(names, (predictions, targets))))
    y = of_shape(names[1], y, x.shape)
    inner, rows = masks(where, weights, x.shape, axis)
    return clean(x, inner, rows, axis), clean(y, inner, rows, axis), rows


def required(ok: Array, there: Array | None, message: str) -> Array:
    """Whether each value is as it should be, or deleted; an error under `checked` where not."""
    ok = ok if there is None else ok | ~there
    insist(ok, message)
    return ok


def residual(
    predictions: ArrayLike,
    targets: ArrayLike | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Array, Array | None]:
    """The door in: predictions less targets (None is 0), and which entries are there."""
    x, y, there = paired(predictions, 0.0 if targets is None else targets, where, weights)
    return x - y, there


def probable(
    name: str, probabilities: Array, given: ArrayLike, axis: tuple[int, ...] = ()
) -> Array:
    """Whether all along `axis` lie in [0, 1], but for a few roundings in the dtype of `given`."""
    kind = jnp.asarray(given).dtype
    stray = 8 * float(jnp.finfo(kind).eps) if jnp.issubdtype(kind, jnp.floating) else 0.0
    stray = min(stray, 1 / 16)
    ok = jnp.all((-stray <= probabilities) & (probabilities <= 1 + stray), axis)
    insist(ok, f"`{name}` should be probabilities, in [0, 1]")
    return ok


def log_probable(
    name: str, log_probabilities: Array, given: ArrayLike, axis: tuple[int, ...] = ()
) -> Array:
    """Whether all along `axis` are at most 0, but for what normalising in that dtype may leave."""
    stray = float(jnp.finfo(jnp.asarray(given).dtype).eps) ** 0.5
    ok = jnp.all(log_probabilities <= stray, axis)
    insist(ok, f"`{name}` should be log-probabilities, at most 0")
    return ok
