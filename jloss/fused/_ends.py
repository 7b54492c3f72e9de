"""Reductions that are known before the values are: their weights go into the sum."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jloss.reduction import Tally, each, finish, mean, tally
from jloss.reduction import sum as total


def end_of(reduction: Any) -> tuple[Any, Any]:
    """`mean`, `sum` or `tally` and the axis names it was given; None for any other reduction."""
    names = None
    if isinstance(reduction, functools.partial) and set(reduction.keywords) == {"axis_name"}:
        names, reduction = reduction.keywords["axis_name"], reduction.func
    return (reduction if reduction in (mean, total, tally) else None), names


def reduced_inside(
    weighted_sum: Callable[[Array], Any],
    shape: tuple[int, ...],
    rows: Array | None,
    weights: ArrayLike | None,
    dtype: Any,
    end: Any,
    axes: Any,
) -> Any:
    """The reduction of values, by their sum with weights that are known before they are.

    Args:
        weighted_sum: gives the sum of the values times weights of their shape.
        shape, dtype: of the values.
        rows, weights: which values are there, and what they count for.
        end, axes: what `end_of` gives.
    """
    ones = jnp.ones(shape, dtype)
    shares = finish(ones, each, where=rows, weights=weights)
    count = finish(ones, functools.partial(tally, axis_name=axes), where=rows, weights=weights)
    result = weighted_sum(count.divide(shares) if end is mean else shares)
    result = result if axes is None else jax.lax.psum(result, axes)
    return Tally(result, count.weight) if end is tally else result
