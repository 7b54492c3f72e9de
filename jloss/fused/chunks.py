"""A loss of your own, a chunk of tokens at a time."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jloss._core.inputs import expect_shape, floats, masks
from jloss.fused._chunks import Given, Plans, number_of
from jloss.fused._ends import in_chunks
from jloss.reduction import R, Reduction, each

if TYPE_CHECKING:
    from jaxtyping import Bool, Real

    from jloss.fused._ends import Implementation


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
        params: what `f` needs for every token: a pytree of arrays (a random key among them gives
            each chunk the same noise).
        tokens: arrays, or pytrees of them, `[tokens, ...]`; random keys as `jax.random.key_data`.
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
    if not isinstance(chunk, numbers.Integral) or chunk < 1:
        raise ValueError(f"`chunk` should be a number of tokens, at least 1, but is {chunk!r}")
    params, tokens = arrays("params", params), arrays("tokens", tokens)
    shapes = {a.shape[:1] for a in jax.tree.leaves(tokens)}
    if len(shapes) != 1 or shapes == {()}:
        raise ValueError(f"`tokens` should all be [tokens, ...], but begin with {sorted(shapes)}")
    (shape,) = shapes
    _, rows = masks(where, weights, shape)

    def values(params, *some):
        name = "f(params, *tokens)"
        (result,) = floats(**{name: f(params, *some)})
        expect_shape(name, result, (number_of(some),), "one value for each token")
        return result

    doors, plans, given = (rows, weights), Plans(int(chunk), int(chunk)), Given(params, tokens)
    return in_chunks(values, given, shape, doors, plans, implementation, reduction)


def arrays(name: str, tree: Any) -> Any:
    """A tree of arrays of any kind; what is none is told by name and place."""

    def array(path, leaf):
        try:
            return jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            place = name + jax.tree_util.keystr(path)
            message = f"`{place}` should be an array, but is {leaf!r:.80}: keep it out of `{name}`"
            raise TypeError(message) from error

    return jax.tree_util.tree_map_with_path(array, tree)
