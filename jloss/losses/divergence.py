"""Losses between distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jloss._core.checks import nan_unless
from jloss._core.inputs import (
    Axis,
    as_array,
    blank,
    canonical_axis,
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
    axis = canonical_axis(axis, np.ndim(log_predictions))
    expect_shape("targets", as_array("targets", targets), np.shape(log_predictions))
    classes, rows = masks(where, weights, np.shape(log_predictions), axis)

    @lean
    def formula(log_q, p):
        log_q, p = floats(log_predictions=log_q, targets=p)
        log_q, p = (blank(blank(a, classes), rows, axis=axis) for a in (log_q, p))
        some = p != 0
        log_ratio = jnp.log(jnp.abs(jnp.where(some, p, 1))) - jnp.where(some, log_q, 0)
        values = jnp.sum(jnp.where(some, p * log_ratio, 0), axis)
        proper = log_probable(log_q, log_predictions)
        return values, jnp.all(proper, axis), jnp.all(probable(p, targets), axis)

    values, proper, ok = formula(jnp.asarray(log_predictions), jnp.asarray(targets))
    values = nan_unless(proper, values, "`log_predictions` should be log-probabilities, at most 0")
    values = nan_unless(ok, values, "`targets` should be probabilities, in [0, 1]")
    return finish(values, reduction, where=rows, weights=weights)
