"""A loss of your own, a chunk of tokens at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax import Array
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jloss._core.inputs import as_array, blank, expect_shape, floats, masks
from jloss.fused._chunks import (
    Given,
    Plans,
    alike,
    apart,
    flat,
    mapped,
    number_of,
    reverse_only,
    weighted_sum,
)
from jloss.fused._ends import end_of, reduced_inside
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jaxtyping import Bool, Real

    from jloss.fused.linear import Implementation


def chunked(
    f: Callable[..., Array],
    params: Any,
    *tokens: Any,
    chunk: int = 1024,
    implementation: Implementation = None,
    where: Bool[ArrayLike, "tokens"] | None = None,
    weights: Real[ArrayLike, "tokens"] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    """`f(params, *tokens)`, of which only a chunk of tokens is there at once: a loss of your own.

    What `f` makes of a token (logits, say) is never held for all of them, neither for the value nor
    for the gradient. Slopes in `params` are added up in float32 at least, whatever their dtype.

    Args:
        f: gets `params` and some of the tokens, `[n, ...]` each, and gives their values `[n]`; each
            token's from that token alone. What is differentiated has to come in as an argument.
        params: what `f` needs for every token: a pytree of arrays.
        tokens: arrays, or pytrees of them, `[tokens, ...]`.
        chunk: how many tokens at once, at most.
        implementation: see `jloss.fused.linear`.
        where, weights, reduction: as in every loss, see `jloss.reduction`. A deleted token comes to
            `f` as zeros.

    Returns:
        [tokens], unless `reduction` says otherwise.

    Raises:
        ValueError: for tokens of unequal number, or values that are not one for each.

    >>> import jax.numpy as jnp
    >>> from jloss import softmax_cross_entropy_with_integer_labels
    >>> def surprise(matrix, hidden, labels):
    ...     return softmax_cross_entropy_with_integer_labels(hidden @ matrix, labels)
    >>> loss = chunked(surprise, jnp.zeros((4, 5)), jnp.ones((6, 4)), jnp.arange(6) % 5, chunk=2)
    >>> print(f"{loss[0]:.4f}")
    1.6094
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"`chunk` should be a number of tokens, at least 1, but is {chunk!r}")
    params, tokens = jax.tree.map(functools.partial(as_array, "params"), (params, tokens))
    shapes = {a.shape[:1] for a in jax.tree.leaves(tokens)}
    if len(shapes) != 1 or shapes == {()}:
        raise ValueError(f"`tokens` should all be [tokens, ...], but begin with {sorted(shapes)}")
    (shape,) = shapes
    _, rows = masks(where, weights, shape)

    def values(params, *some):
        (result,) = floats(values=f(params, *some))
        expect_shape("f(params, *tokens)", result, (number_of(some),), "one value for each token")
        return result

    doors, plans, given = (rows, weights), Plans(chunk, chunk), Given(params, tokens)
    return in_chunks(values, given, shape, doors, plans, implementation, reduction)


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

        def total(shares):
            everywhere, shares = over_devices(given, flat(shares, len(batch)))
            with reverse_only():
                return weighted_sum(plans, f, *apart(everywhere), shares)

        return reduced_inside(total, batch, rows, weights, dtype, end, axes)
    return finish(values.reshape(batch), reduction, where=rows, weights=weights)


def over_devices(given: Given, shares: Array | None = None) -> tuple[Given, Any]:
    """Tokens and their shares on the same devices, and parameters on all of these."""
    tokens, shares = alike(given.tokens, shares)
    there = jax.typeof(jax.tree.leaves(tokens)[0]).sharding
    if shares is not None and AxisType.Explicit in there.mesh.axis_types:
        shares = jax.sharding.reshard(shares, NamedSharding(there.mesh, P(there.spec[0])))
    params = jax.tree.map(lambda a: alike(a, tokens)[0], given.params)
    return Given(params, tokens), shares
