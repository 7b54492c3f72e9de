"""Losses between distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jloss._core.checks import insist, nan_unless
from jloss._core.classes import over_classes
from jloss._core.inputs import (
    Axis,
    clean,
    consumed,
    floats,
    log_probable,
    masks,
    of_shape,
    probable,
)
from jloss._core.numerics import absolute, expm1_less, product, square_over_variance
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Real


TARGETS = {"names": ("log_predictions", "targets"), "fills": (-jnp.inf, 0.0)}
LOG_TARGETS = {"names": ("log_predictions", "log_targets"), "fills": (-jnp.inf, -jnp.inf)}


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

    def formula(log_q, p, axis):
        ok = log_probable("log_predictions", log_q, log_predictions, axis)
        ok &= probable("targets", p, targets, axis)
        log_q, some = nan_unless(jnp.expand_dims(ok, axis), log_q), p != 0
        log_ratio = jnp.log(jnp.abs(jnp.where(some, p, 1))) - jnp.where(some, log_q, 0)
        return nan_unless(ok, jnp.sum(jnp.where(some, p * log_ratio, 0), axis))

    values, rows = over_classes(formula, log_predictions, targets, axis, where, weights, **TARGETS)
    return finish(values, reduction, where=rows, weights=weights)


def kl_divergence_with_log_targets(
    log_predictions: Float[ArrayLike, "*batch classes"],
    log_targets: Float[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""`kl_divergence` from the logarithms of both: for a teacher that is a model too.

    $$\ell = \sum_j p_j (\log p_j - \log q_j), \qquad 0 \log 0 = 0$$

    Args:
        log_predictions: $\log q$, any shape.
        log_targets: $\log p$, of the same shape.
        axis: the axes along which a distribution lies; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the predictions without `axis`, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for predictions that are not floating.

    A log-target or a log-prediction above 0 gives NaN, in value and gradient of its own row.

    Differs from optax: no NaN where both are -inf; NaN for what is no distribution; float32 results
    for half-precision inputs; no silent broadcast.

    References:
        Kullback and Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics,
        1951.

    >>> log_targets = jnp.array([[0.0, -jnp.inf]])
    >>> kl_divergence_with_log_targets(jnp.log(jnp.array([[0.25, 0.75]])), log_targets)
    Array([1.3862944], dtype=float32)
    """

    def formula(log_q, log_p, axis):
        ok = log_probable("log_predictions", log_q, log_predictions, axis)
        ok &= log_probable("log_targets", log_p, log_targets, axis)
        log_q, some = nan_unless(jnp.expand_dims(ok, axis), log_q), log_p > -jnp.inf
        log_ratio = jnp.where(some, log_p, 0) - jnp.where(some, log_q, 0)
        return nan_unless(ok, jnp.sum(product(jnp.exp(log_p), log_ratio), axis))

    values, rows = over_classes(
        formula, log_predictions, log_targets, axis, where, weights, **LOG_TARGETS
    )
    return finish(values, reduction, where=rows, weights=weights)


def generalized_kl_divergence(
    log_predictions: Float[ArrayLike, "*batch classes"],
    targets: Real[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""`kl_divergence` of amounts that need not sum to 1; it is convex, and no term is negative.

    $$\ell = \sum_j p_j (\log p_j - \log q_j) - p_j + q_j, \qquad 0 \log 0 = 0$$

    Args:
        log_predictions: $\log q$, any shape.
        targets: $p \ge 0$, of the same shape.
        axis: the axes along which a distribution lies; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the predictions without `axis`, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for predictions that are not floating.

    A negative target gives NaN, in value and gradient of its own row.

    Differs from optax: keeps its digits where the two are close, and each term its sign; no NaN
    gradient at a target of 0; NaN for negative targets; float32 results for half-precision inputs;
    no silent broadcast.

    References:
        Csiszár, "Why Least Squares and Maximum Entropy? An Axiomatic Approach to Inference for
        Linear Inverse Problems", Annals of Statistics, 1991.

    >>> generalized_kl_divergence(jnp.log(jnp.array([[2.0, 3.0]])), jnp.array([[0.0, 3.0]]))
    Array([2.], dtype=float32)
    """

    def formula(log_q, p, axis):
        insist(p >= 0, "`targets` should not be negative")
        log_ratio = log_q - jnp.log(jnp.where(p > 0, p, 1))
        more = log_ratio > 1  # there exp(log_q) is large, and the ratio may be too large
        near = product(p, expm1_less(jnp.where(more, 0, log_ratio)))
        far = jnp.exp(log_q) - p - p * jnp.where(more, log_ratio, 0)
        terms = jnp.where((p > 0) & ~more, near, jnp.where(p > 0, far, jnp.exp(log_q)))
        return nan_unless(jnp.all(p >= 0, axis), jnp.sum(terms, axis))

    values, rows = over_classes(formula, log_predictions, targets, axis, where, weights, **TARGETS)
    return finish(values, reduction, where=rows, weights=weights)


def jensen_shannon_divergence(
    log_predictions: Float[ArrayLike, "*batch classes"],
    targets: Real[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""A symmetric divergence: how much a draw from either tells of which one it came from.

    $$\ell = \tfrac12 \sum_j p_j \log \frac{p_j}{m_j} + q_j \log \frac{q_j}{m_j},
    \qquad m = \frac{p + q}{2}$$

    (scipy's `jensenshannon` is its square root, and so is Endres and Schindelin's metric.)

    Args:
        log_predictions: $\log q$, any shape.
        targets: $p$, of the same shape: probabilities, which sum to 1 along `axis` (that they do is
            not checked).
        axis: the axes along which a distribution lies; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the predictions without `axis`, unless `reduction` says otherwise. In nats,
        between 0 and $\log 2$.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for predictions that are not floating.

    A target outside [0, 1], or a log-prediction above 0, gives NaN, in value and gradient of its
    own row.

    References:
        Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information
        Theory, 1991.

    >>> jensen_shannon_divergence(jnp.array([[0.0, -jnp.inf]]), jnp.array([[0.0, 1.0]]))
    Array([0.6931472], dtype=float32)
    """

    def formula(log_q, p, axis):
        log_p, gap = jnp.log(jnp.where(p > 0, p, 1)), _gap(log_q, p)
        excess = _excess(p, log_p, -gap / 2) + _excess(jnp.exp(log_q), log_q, gap / 2)
        values = 0.5 * jnp.sum(excess, axis)
        ok = log_probable("log_predictions", log_q, log_predictions, axis)
        return nan_unless(ok & probable("targets", p, targets, axis), values)

    values, rows = over_classes(formula, log_predictions, targets, axis, where, weights, **TARGETS)
    return finish(values, reduction, where=rows, weights=weights)


def _gap(log_q: Array, p: Array) -> Array:
    """p - q, which keeps its digits where both are close to 1."""
    high = log_q > -0.5
    return jnp.where(high, (p - 1) - jnp.expm1(jnp.where(high, log_q, 0)), p - jnp.exp(log_q))


def _excess(p: Array, log_p: Array, more: Array) -> Array:
    """p log(p / q) - p + q where q = p + more: never negative, and right for the least `more`."""
    near, far = jnp.abs(more) < p, (p > 0) & ~(jnp.abs(more) < p)
    size = jax.lax.stop_gradient(jnp.where(near, p, 1))  # or the slope of a ratio would overflow
    share = jnp.where(near, more, 0) / size / jnp.where(near, (2 * p + more) / size, 1)
    log_ratio = jnp.where(far, log_p, 0) - jnp.log(jnp.where(far, p + more, 1))
    beyond = jnp.where(far, p * log_ratio, 0) + more
    return jnp.where(near, p * expm1_less(2 * jnp.arctanh(share)), beyond)


def total_variation_distance(
    log_predictions: Float[ArrayLike, "*batch classes"],
    targets: Real[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""The largest difference in probability that the two give to any event.

    $$\ell = \tfrac12 \sum_j |p_j - q_j|$$

    Args:
        log_predictions: $\log q$, any shape.
        targets: $p$, of the same shape: probabilities, which sum to 1 along `axis` (that they do is
            not checked).
        axis: the axes along which a distribution lies; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the predictions without `axis`, unless `reduction` says otherwise. Between 0
        and 1.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for predictions that are not floating.

    A target outside [0, 1], or a log-prediction above 0, gives NaN, in value and gradient of its
    own row.

    References:
        Levin, Peres and Wilmer, "Markov Chains and Mixing Times", AMS, 2009.

    >>> total_variation_distance(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[1.0, 0.0]]))
    Array([0.5], dtype=float32)
    """

    def formula(log_q, p, axis):
        values = 0.5 * jnp.sum(absolute(_gap(log_q, p)), axis)
        ok = log_probable("log_predictions", log_q, log_predictions, axis)
        return nan_unless(ok & probable("targets", p, targets, axis), values)

    values, rows = over_classes(formula, log_predictions, targets, axis, where, weights, **TARGETS)
    return finish(values, reduction, where=rows, weights=weights)


def gaussian_kl_divergence(
    means: Float[ArrayLike, "*batch features"],
    log_variances: Real[ArrayLike, "*batch features"],
    target_means: Real[ArrayLike, "*batch features"] | None = None,
    target_log_variances: Real[ArrayLike, "*batch features"] | None = None,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""From one Gaussian to another, by default the standard one: the price of a variational code.

    $$\ell = \tfrac12 \sum_j \frac{(\mu_j - \nu_j)^2 + \sigma_j^2}{\tau_j^2} - 1
    - \log \frac{\sigma_j^2}{\tau_j^2}$$

    This is KL(model || target), the order of variational inference, where `kl_divergence` has
    KL(target || model). No term is negative, and each keeps its digits where the two are close.

    Args:
        means: $\mu$, any shape.
        log_variances: $\log \sigma^2$, of the same shape, or a scalar.
        target_means: $\nu$, of the same shape, or a scalar; None is 0.
        target_log_variances: $\log \tau^2$, of the same shape, or a scalar; None is 0.
        axis: the axes along which the independent features lie; None for all, `()` for one value
            each.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes features.

    Returns:
        The shape of the means without `axis`, unless `reduction` says otherwise. In nats.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but scalars.
        TypeError: for means that are not floating.

    References:
        Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B.

    >>> gaussian_kl_divergence(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]]))
    Array([0.5], dtype=float32)
    """
    means, axis = consumed("means", means, axis)
    features, rows = masks(where, weights, means.shape, axis)
    arrays = {
        "means": means,
        "log_variances": log_variances,
        "target_means": 0.0 if target_means is None else target_means,
        "target_log_variances": 0.0 if target_log_variances is None else target_log_variances,
    }
    same = (of_shape(name, a, means.shape) for name, a in zip(arrays, floats(**arrays)))
    mu, s, nu, t = (clean(array, features, rows, axis) for array in same)
    terms = expm1_less(s - t) + square_over_variance(mu - nu, t)
    return finish(0.5 * jnp.sum(terms, axis), reduction, where=rows, weights=weights)
