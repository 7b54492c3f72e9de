"""Losses between distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.checks import nan_unless
from jloss._core.inputs import (
    Axis,
    as_array,
    clean,
    consumed,
    expect_shape,
    floats,
    log_probable,
    masks,
    probable,
)
from jloss._core.numerics import lean
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Bool, Float, Real


def kl_divergence(
    log_predictions: Float[ArrayLike, "*batch classes"],
    targets: Real[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards a predicted distribution that covers the target one: the nats it wastes coding it.

    $$\ell = \sum_j p_j (\log p_j - \log q_j), \qquad 0 \log 0 = 0$$

    Where $p_j = 0$ the term is 0 whatever $\log q_j$ is, -inf included, and its gradients are 0
    (the true slope in $p_j$ is -inf there). Where $q_j = 0 < p_j$ it is infinite, with a finite
    gradient.

    Args:
        log_predictions: $\log q$, any shape.
        targets: $p$, of the same shape: probabilities, which sum to 1 along `axis` (that they do is
            not checked).
        axis: the axes along which a distribution lies; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the predictions without `axis`, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for predictions that are not floating.

    A target outside [0, 1], or a log-prediction above 0 (a probability, given for its logarithm, is
    one), gives NaN, in value and gradient of its own row.

    Differs from optax: no NaN gradient at a target of 0, nor NaN for a log-prediction of -inf
    there; NaN for what is no distribution; float32 results for half-precision inputs; no silent
    broadcast.

    References:
        Kullback and Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics,
        1951.

    >>> kl_divergence(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([[1.0, 0.0]]))
    Array([1.3862944], dtype=float32)
    """
    log_predictions, axis = consumed("log_predictions", log_predictions, axis)
    targets = as_array("targets", targets)
    expect_shape("targets", targets, log_predictions.shape)
    classes, rows = masks(where, weights, log_predictions.shape, axis)

    @lean
    def formula(log_q, p):
        log_q, p = floats(log_predictions=log_q, targets=p)
        log_q, p = (clean(a, classes, rows, axis) for a in (log_q, p))
        some = p != 0
        log_ratio = jnp.log(jnp.abs(jnp.where(some, p, 1))) - jnp.where(some, log_q, 0)
        values = jnp.sum(jnp.where(some, p * log_ratio, 0), axis)
        ok = log_probable("log_predictions", log_q, log_predictions, axis)
        return nan_unless(ok & probable("targets", p, targets, axis), values)

    return finish(formula(log_predictions, targets), reduction, where=rows, weights=weights)
