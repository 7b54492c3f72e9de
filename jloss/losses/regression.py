"""Losses between numbers: a prediction and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.inputs import hyperparameter, paired
from jloss._core.numerics import absolute
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Real


def _error(
    predictions: ArrayLike,
    targets: ArrayLike | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Array, Array | None]:
    """The door in: predictions less targets (None is 0), and which entries are there."""
    x, y, there = paired(predictions, 0.0 if targets is None else targets, where, weights)
    return x - y, there


def squared_error(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the mean: the constant that minimises it is the mean of the targets.

    $$\ell = (x - y)^2$$

    With `reduction=mean` this is the mean squared error of statistics, without the factor 1/2;
    `l2_loss` is the one with it.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    Differs from optax: float32 results for half-precision inputs; no silent broadcast.

    References:
        Gauss, "Theoria combinationis observationum erroribus minimis obnoxiae", 1823.

    >>> squared_error(jnp.array([1.0, 4.0]), jnp.array([0.0, 1.0]))
    Array([1., 9.], dtype=float32)
    """
    error, there = _error(predictions, targets, where, weights)
    return finish(error**2, reduction, where=there, weights=weights)


def l2_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Half the squared error, whose gradient is the error itself.

    $$\ell = \frac{1}{2} (x - y)^2$$

    With `reduction=mean` this is the mean squared error of pattern recognition, with the factor
    1/2; `squared_error` is the one without it.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    Differs from optax: float32 results for half-precision inputs; no silent broadcast.

    References:
        Bishop, "Pattern Recognition and Machine Learning", Springer, 2006, eq. 1.2.

    >>> l2_loss(jnp.array([1.0, 4.0]), jnp.array([0.0, 1.0]))
    Array([0.5, 4.5], dtype=float32)
    """
    error, there = _error(predictions, targets, where, weights)
    return finish(0.5 * error**2, reduction, where=there, weights=weights)


def absolute_error(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the median: the constant that minimises it is a median of the targets.

    $$\ell = |x - y|$$

    The gradient is the sign of the error, and 0 where the error is 0.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Laplace, "Mémoire sur la probabilité des causes par les événements", 1774.

    >>> absolute_error(jnp.array([1.0, -4.0]), jnp.array([0.0, 1.0]))
    Array([1., 5.], dtype=float32)
    """
    error, there = _error(predictions, targets, where, weights)
    return finish(absolute(error), reduction, where=there, weights=weights)


def huber_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    delta: Real[ArrayLike, "..."] = 1.0,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Squared error near zero, absolute beyond `delta`: an outlier pulls no harder than that.

    $$\ell = \begin{cases} e^2/2 & |e| \le \delta \\ \delta(|e| - \delta/2) & |e| > \delta
    \end{cases}, \qquad e = x - y$$

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        delta: $\delta > 0$, in units of the targets: the error at which the parabola turns into a
            line. A scalar, or as many axes as the predictions.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    Differs from optax: float32 results for half-precision inputs; no silent broadcast.

    References:
        Huber, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics, 1964.

    >>> huber_loss(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0]))
    Array([0.125, 2.5  ], dtype=float32)
    """
    error, there = _error(predictions, targets, where, weights)
    delta = hyperparameter("delta", delta, error, there, above=0)
    size = jnp.abs(error)
    near = size <= delta
    slope = jnp.where(near, 1, delta)  # an infinite delta, or error, reaches no gradient
    parabola = 0.5 * jnp.where(near, error, 0) ** 2
    values = jnp.where(near, parabola, slope * (size - 0.5 * slope))
    return finish(values, reduction, where=there, weights=weights)


def log_cosh(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""A smooth absolute error: $e^2/2$ near zero, $|e| - \log 2$ far away.

    $$\ell = \log \cosh(x - y)$$

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    Differs from optax: right near 0, where the difference of two terms near log 2 loses every
    digit (in float32, all of them below 3e-4); float32 results for half-precision inputs; no
    silent broadcast.

    References:
        Chen, Chen, Yang, Wang and Ma, "Log Hyperbolic Cosine Loss Improves Variational
        Auto-Encoder", 2019.

    >>> print([f"{loss:.4g}" for loss in log_cosh(jnp.array([1e-4, 100.0]))])
    ['5e-09', '99.31']
    """
    error, there = _error(predictions, targets, where, weights)
    size = jnp.abs(error)
    near = size < 1
    parabola = -0.5 * jnp.log1p(-(jnp.tanh(jnp.where(near, error, 0)) ** 2))
    line = size + jnp.log1p(jnp.exp(-2 * size)) - jnp.log(2.0).astype(size.dtype)
    return finish(jnp.where(near, parabola, line), reduction, where=there, weights=weights)
