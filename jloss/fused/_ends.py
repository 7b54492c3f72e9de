"""What a function gives of each token, reduced: inside the engine, where the reduction is known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jloss._core.devices import alike
from jloss._core.inputs import blank
from jloss.fused._chunks import (
    Given,
    Plans,
    apart,
    flat,
    mapped,
    reverse_only,
    weighted_sum,
)
from jloss.reduction import R, Reduction, Tally, each, finish, mean, tally
from jloss.reduction import sum as total

Implementation = Literal["fused", "recompute", "plain"] | None


def expect_implementation(implementation: Any) -> None:
    """Raises unless it is one."""
    if implementation not in (None, "fused", "recompute", "plain"):
        told = f'None, "fused", "recompute" or "plain", but is {implementation!r}'
        raise ValueError(f"`implementation` should be {told}")


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


def in_chunks(
    f: Callable[..., Array],
    given: Given,
    batch: tuple[int, ...],
    doors: tuple[Array | None, ArrayLike | None],
    plans: Plans,
    implementation: Implementation,
    reduction: Reduction[R],
) -> R:
    """`f` of all tokens [*batch, ...], reduced, through the doors of `where` and `weights`."""
    expect_implementation(implementation)
    rows, weights = doors
    one_axis = lambda a: flat(blank(a, rows, axis=tuple(range(len(batch), a.ndim))), len(batch))
    given = given._replace(tokens=jax.tree.map(one_axis, given.tokens))
    dtype = jax.eval_shape(f, given.params, *given.tokens).dtype
    end, axes = end_of(reduction)
    if implementation == "plain":
        values: Any = jax.checkpoint(f)(given.params, *given.tokens)
    elif end is None or implementation == "recompute":
        with reverse_only():
            values = mapped(plans, f, *apart(over_devices(given)[0]))
    else:

        def of_all(shares):
            everywhere, shares = over_devices(given, flat(shares, len(batch)))
            with reverse_only():
                return weighted_sum(plans, f, *apart(everywhere), shares)

        return reduced_inside(of_all, batch, rows, weights, dtype, end, axes)
    return finish(values.reshape(batch), reduction, where=rows, weights=weights)


def over_devices(given: Given, shares: Array | None = None) -> tuple[Given, Any]:
    """Tokens and their shares on the same devices, and parameters on all of these."""
    tokens, shares = alike(given.tokens, shares)
    there = jax.typeof(jax.tree.leaves(tokens)[0]).sharding
    if shares is not None and AxisType.Explicit in there.mesh.axis_types:
        shares = jax.sharding.reshard(shares, NamedSharding(there.mesh, P(there.spec[0])))
    params = jax.tree.map(lambda a: alike(a, tokens)[0], given.params)
    return Given(params, tokens), shares
