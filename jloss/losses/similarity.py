"""Losses between directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.inputs import (
    Axis,
    consumed,
    hyperparameter,
    paired,
)
from jloss._core.numerics import unit
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Bool, Float, Real


def cosine_similarity(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"],
    *,
    epsilon: Real[ArrayLike, ""] = 0.0,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""The cosine of the angle between two vectors: 1 for the same direction. A score, not a loss.

    $$s = \frac{\langle x, y \rangle}{\|x\| \, \|y\|}$$

    A zero vector has similarity 0 with everything, and a finite gradient towards the other vector.
    Norms may be as large or as small as the dtype holds.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar.
        epsilon: the least squared norm to divide by.
        axis: the axes along which a vector lies; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes features.

    Returns:
        The shape of the predictions without `axis`, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for predictions that are not floating.

    Differs from optax: 0 and not NaN at zero vectors; right for norms beyond 1e19 and below 1e-19;
    a NaN under `where` reaches no gradient; float32 results for half-precision inputs; no silent
    broadcast.

    References:
        Salton, Wong and Yang, "A Vector Space Model for Automatic Indexing", Communications of
        the ACM, 1975.

    >>> cosine_similarity(jnp.array([[0.0, 2.0], [0.0, 0.0]]), jnp.array([[3.0, 4.0], [1.0, 1.0]]))
    Array([0.8, 0. ], dtype=float32)
    """
    predictions, axis = consumed("predictions", predictions, axis)
    x, y, there = paired(predictions, targets, where, weights, axis)
    epsilon = hyperparameter("epsilon", epsilon, x, least=0)
    (u, _), (v, _) = unit(x, axis, epsilon), unit(y, axis, epsilon)
    return finish(jnp.sum(u * v, axis), reduction, where=there, weights=weights)


def cosine_distance(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"],
    *,
    epsilon: Real[ArrayLike, ""] = 0.0,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the same direction at any length: 0 for parallel vectors, 2 for opposite ones.

    $$\ell = 1 - \frac{\langle x, y \rangle}{\|x\| \, \|y\|}$$

    It is computed as half the squared distance of the unit vectors, which keeps its digits where
    vectors are nearly parallel, and is never negative.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar.
        epsilon: the least squared norm to divide by.
        axis: the axes along which a vector lies; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes features.

    Returns:
        The shape of the predictions without `axis`, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for predictions that are not floating.

    Differs from optax: as `cosine_similarity`; 1 at zero vectors.

    References:
        Salton, Wong and Yang, "A Vector Space Model for Automatic Indexing", Communications of
        the ACM, 1975.

    >>> cosine_distance(jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[0.0, 2.0], [1.0, 1.0]]))
    Array([1., 1.], dtype=float32)
    """
    predictions, axis = consumed("predictions", predictions, axis)
    x, y, there = paired(predictions, targets, where, weights, axis)
    epsilon = hyperparameter("epsilon", epsilon, x, least=0)
    (u, short_u), (v, short_v) = unit(x, axis, epsilon), unit(y, axis, epsilon)
    values = 0.5 * (jnp.sum((u - v) ** 2, axis) + short_u + short_v)
    return finish(values, reduction, where=there, weights=weights)
