"""The door out: what becomes of a loss's values.

A reduction is any function `(values, *, where, weights) -> result`. Two laws say what the two
keywords mean, in every reduction and in every loss:

    where    deletes:  an entry that is False might as well not be in the batch.
    weights  repeat:   an entry of weight 2 counts as two entries, one of weight 0 as none.

In a loss, `where` is boolean. With fewer axes than the model's output it lies along the values,
leading axes first: `[batch]` deletes rows, `[batch, time]` steps. With as many axes (1 long or
whole) it reaches the axis that the loss consumes, and deletes classes or features there. `weights`
are any real numbers along the values, leading axes first. Whatever is stored in a deleted entry,
NaN included, reaches no value and no gradient. Where nothing is left, sums and means are 0.

A weight of exactly 0 deletes, so the gradient with respect to that weight is 0 too; to learn
weights from 0, multiply the values of `each` by them.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from typing_extensions import TypeVar

from jloss._core.inputs import align, as_array, at_least_float32, blank, masks

T = TypeVar("T")
R = TypeVar("R", default=Array)
R_co = TypeVar("R_co", default=Array, covariant=True)
AxisName = str | tuple[str, ...] | None


class Reduction(Protocol[R_co]):
    """What turns values into a result: `each`, `mean`, `sum`, `tally`, or a function of yours.

    It gets `where` and `weights` as None or with the shape of the values; `where` is False where
    the weight is 0 as well.
    """

    def __call__(
        self, values: Array, *, where: ArrayLike | None, weights: ArrayLike | None
    ) -> R_co:
        """The result, of whatever type."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tally:
    """A weighted sum and its weight: what may be added up over microbatches and devices.

    Attributes:
        total: the sum of the values times their weights.
        weight: the sum of the weights; the count of entries where none were given.

    >>> two, one = tally(jnp.array([1.0, 5.0])), tally(jnp.array([3.0]))
    >>> (two + one).mean()
    Array(3., dtype=float32)
    """

    total: Array
    weight: Array

    def __add__(self, other: Tally) -> Tally:
        if not isinstance(other, Tally):
            return NotImplemented
        return Tally(self.total + other.total, self.weight + other.weight)

    def __radd__(self, other: int) -> Tally:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # for `sum`

    def mean(self) -> Array:
        """Total over weight; 0, not NaN, where nothing was counted."""
        return self.divide(self.total)

    def divide(self, totals: T) -> T:
        """A pytree of totals (gradients of `total`, say) over the weight; 0 if nothing counted."""
        nothing = (self.weight == 0) & (self.total == 0)
        weight = jnp.where(nothing, 1, self.weight)  # weights that cancel do divide by 0

        def over_weight(total: Array) -> Array:
            total = jnp.asarray(total)
            (wide,) = at_least_float32(total)
            return (wide / weight.astype(wide.dtype)).astype(total.dtype)

        return jax.tree.map(over_weight, totals)


def each(
    values: Array, *, where: ArrayLike | None = None, weights: ArrayLike | None = None
) -> Array:
    """The values themselves: 0 where deleted, times their weights.

    `each(...).mean()` therefore divides by every entry, deleted or not: that is not `mean`.

    >>> each(jnp.array([1.0, 2.0, 3.0]), where=jnp.array([True, False, True]))
    Array([1., 0., 3.], dtype=float32)
    """
    return _counted(values, where, weights)[0]


def _counted(
    values: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None
) -> tuple[Array, Array]:
    """The values times their weights, and the weights; both 0 where deleted."""
    (values,) = at_least_float32(as_array("values", values))
    _, there = masks(where, weights, values.shape)
    values = blank(values, there)
    if weights is None:
        return values, blank(jnp.ones_like(values), there)
    weights = blank(align("weights", weights, values.shape).astype(values.dtype), there)
    return values * weights, weights


def tally(
    values: Array,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
    axis_name: AxisName = None,
) -> Tally:
    """The weighted sum of the values and the sum of their weights, to be added up and divided last.

    Args:
        values: what is counted.
        where, weights: see `jloss.reduction`.
        axis: the axes of the values to sum over; None for all.
        axis_name: the mesh axes to sum over, inside `shard_map` or a `vmap` that names its axis.

    >>> tally(jnp.array([1.0, 2.0, 6.0]), weights=jnp.array([1, 1, 2]))
    Tally(total=Array(15., dtype=float32), weight=Array(4., dtype=float32))
    """
    values, amounts = _counted(values, where, weights)
    counted = Tally(jnp.sum(values, axis), jnp.sum(amounts, axis))
    return counted if axis_name is None else jax.lax.psum(counted, axis_name)


def sum(
    values: Array,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
    axis_name: AxisName = None,
) -> Array:
    """The weighted sum of the values that are there. Arguments as in `tally`.

    >>> sum(jnp.array([1.0, 2.0, 6.0]), weights=jnp.array([1, 1, 2]))
    Array(15., dtype=float32)
    """
    return tally(values, where=where, weights=weights, axis=axis, axis_name=axis_name).total


def mean(
    values: Array,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis: int | tuple[int, ...] | None = None,
    axis_name: AxisName = None,
) -> Array:
    """The weighted mean of the values that are there; 0 if none is. Arguments as in `tally`.

    It divides by the sum of the weights, always. (torch divides by that sum for index targets and
    by the count otherwise, Keras by the count.)

    >>> mean(jnp.array([1.0, 2.0, 6.0]), weights=jnp.array([1, 1, 2]))
    Array(3.75, dtype=float32)
    """
    return tally(values, where=where, weights=weights, axis=axis, axis_name=axis_name).mean()


def finish(
    values: Array,
    reduction: Reduction[R],
    *,
    where: Array | None = None,
    weights: ArrayLike | None = None,
) -> R:
    """The door out of a loss: mask and weights aligned with the values, a string told by name."""
    try:
        inspect.signature(reduction).bind(values, where=where, weights=weights)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`reduction` should be jloss.each, jloss.mean, jloss.sum, jloss.tally or a function "
            f"of (values, *, where, weights), but is {reduction!r}"
        ) from error
    where = None if where is None else align("where", where, values.shape)
    if weights is not None:
        weights = align("weights", weights, values.shape).astype(values.dtype)
    return reduction(values, where=where, weights=weights)
