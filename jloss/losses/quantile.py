"""Losses whose minimiser lies off the middle: quantiles and expectiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.checks import nan_unless
from jloss._core.inputs import hyperparameter, residual
from jloss._core.numerics import absolute, smooth_absolute
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Real


def quantile_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    quantile: Real[ArrayLike, "..."] = 0.5,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the quantile: the constant that minimises it has that share of the targets below it.

    $$\ell = \max(q \, (y - x), \, (q - 1)(y - x))$$

    At one half it is half the absolute error. Also known as the pinball loss.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        quantile: $q$ in [0, 1]. A scalar, or as many axes as the predictions: `[1, quantiles]`.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Koenker and Bassett, "Regression Quantiles", Econometrica, 1978.

    >>> quantile_loss(jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0]), quantile=0.75)
    Array([0.75, 0.25], dtype=float32)
    """
    error, there = residual(predictions, targets, where, weights)
    quantile = hyperparameter("quantile", quantile, error, there, least=0, most=1)
    values = _tilt(error, quantile) * absolute(error)
    return finish(values, reduction, where=there, weights=weights)


def quantile_huber_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    quantile: Real[ArrayLike, "..."] = 0.5,
    delta: Real[ArrayLike, "..."] = 1.0,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""A quantile loss with its corner rounded off, for distributional reinforcement learning.

    $$\ell = |q - [e > 0]| \; L_\delta(e) / \delta, \qquad e = x - y$$

    with Huber's $L_\delta$ (`huber_loss`). The division by $\delta$ is that of the reference; some
    libraries leave it out.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        quantile: $q$ in [0, 1]. A scalar, or as many axes as the predictions: `[1, quantiles]`.
        delta: $\delta \ge 0$, in units of the targets; 0 is `quantile_loss`. A scalar, or as many
            axes as the predictions.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Dabney, Ostrovski, Silver and Munos, "Implicit Quantile Networks for Distributional
        Reinforcement Learning", ICML 2018.

    >>> quantile_huber_loss(jnp.array([0.0, 4.0]), jnp.array([4.0, 0.0]), quantile=0.75, delta=2.0)
    Array([2.25, 0.75], dtype=float32)
    """
    error, there = residual(predictions, targets, where, weights)
    quantile = hyperparameter("quantile", quantile, error, there, least=0, most=1)
    delta = hyperparameter("delta", delta, error, there, least=0)
    error = nan_unless(delta >= 0, error)
    values = _tilt(error, quantile) * smooth_absolute(error, delta)
    return finish(values, reduction, where=there, weights=weights)


def expectile_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    expectile: Real[ArrayLike, "..."] = 0.5,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the expectile, which is to the mean what a quantile is to the median.

    $$\ell = |\tau - [x > y]| \, (x - y)^2$$

    At one half it is half the squared error.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        expectile: $\tau$ in [0, 1]. A scalar, or as many axes as the predictions.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Newey and Powell, "Asymmetric Least Squares Estimation and Testing", Econometrica, 1987.

    >>> expectile_loss(jnp.array([0.0, 2.0]), jnp.array([2.0, 0.0]), expectile=0.75)
    Array([3., 1.], dtype=float32)
    """
    error, there = residual(predictions, targets, where, weights)
    expectile = hyperparameter("expectile", expectile, error, there, least=0, most=1)
    values = _tilt(error, expectile) * error**2
    return finish(values, reduction, where=there, weights=weights)


def _tilt(error: Array, share: Array) -> Array:
    """What an error weighs: `share` where the prediction is too low, the rest where too high."""
    return jnp.where(error > 0, 1 - share, share)
