"""Losses between numbers: a prediction and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.checks import insist, nan_unless
from jloss._core.inputs import hyperparameter, paired, residual
from jloss._core.numerics import absolute, barron, smooth_absolute
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Bool, Float, Real


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
    error, there = residual(predictions, targets, where, weights)
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
    error, there = residual(predictions, targets, where, weights)
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
    error, there = residual(predictions, targets, where, weights)
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
    error, there = residual(predictions, targets, where, weights)
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
        Chen, Chen and Zhang, "Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder", 2018.

    >>> print([f"{loss:.4g}" for loss in log_cosh(jnp.array([1e-4, 100.0]))])
    ['5e-09', '99.31']
    """
    error, there = residual(predictions, targets, where, weights)
    size = jnp.abs(error)
    near = size < 1
    parabola = -0.5 * jnp.log1p(-(jnp.tanh(jnp.where(near, error, 0)) ** 2))
    line = size + jnp.log1p(jnp.exp(-2 * size)) - jnp.log(2.0).astype(size.dtype)
    return finish(jnp.where(near, parabola, line), reduction, where=there, weights=weights)


def smooth_l1_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    beta: Real[ArrayLike, "..."] = 1.0,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Absolute error with its corner rounded off: far away its slope is 1, whatever `beta` is.

    $$\ell = \begin{cases} e^2 / (2 \beta) & |e| < \beta \\ |e| - \beta/2 & |e| \ge \beta
    \end{cases}, \qquad e = x - y$$

    `huber_loss` with `delta=beta` is `beta` times as large.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        beta: $\beta \ge 0$, in units of the targets: where the parabola turns into a line; 0 is
            `absolute_error`. A scalar, or as many axes as the predictions.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Girshick, "Fast R-CNN", ICCV 2015.

    >>> smooth_l1_loss(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), beta=2.0)
    Array([0.25, 2.  ], dtype=float32)
    """
    error, there = residual(predictions, targets, where, weights)
    beta = hyperparameter("beta", beta, error, there, least=0)
    values = smooth_absolute(nan_unless(beta >= 0, error), beta)
    return finish(values, reduction, where=there, weights=weights)


def epsilon_insensitive_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    epsilon: Real[ArrayLike, "..."] = 0.1,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Absolute error that forgives what is small: the loss of support vector regression.

    $$\ell = \max(|x - y| - \epsilon, 0)$$

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        epsilon: $\epsilon \ge 0$, in units of the targets: the error that is forgiven. A scalar, or
            as many axes as the predictions.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Vapnik, "The Nature of Statistical Learning Theory", Springer, 1995.

    >>> epsilon_insensitive_loss(jnp.array([0.25, -2.0]), jnp.array([0.0, 0.0]), epsilon=0.5)
    Array([0. , 1.5], dtype=float32)
    """
    error, there = residual(predictions, targets, where, weights)
    epsilon = hyperparameter("epsilon", epsilon, error, there, least=0)
    beyond = absolute(nan_unless(epsilon >= 0, error)) - epsilon
    return finish(jnp.where(beyond <= 0, 0, beyond), reduction, where=there, weights=weights)


def absolute_percentage_error(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"],
    *,
    epsilon: Real[ArrayLike, "..."] = 1e-7,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""The error as a share of the target: rewards being close in proportion.

    $$\ell = \frac{|x - y|}{\max(|y|, \epsilon)}$$

    A fraction, as in scikit-learn, where Keras has percent. Its minimiser is not the median but
    lies below: too high a prediction costs more than one too low by the same factor.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar.
        epsilon: $\epsilon > 0$, in units of the targets: the least size to divide by. A scalar, or
            as many axes as the predictions.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Makridakis, "Accuracy Measures: Theoretical and Practical Concerns", International Journal
        of Forecasting, 1993.

    >>> absolute_percentage_error(jnp.array([90.0, 0.5]), jnp.array([100.0, 2.0]))
    Array([0.1 , 0.75], dtype=float32)
    """
    x, y, there = paired(predictions, targets, where, weights)
    epsilon = hyperparameter("epsilon", epsilon, x, there, above=0)
    values = absolute(x - y) / jnp.maximum(absolute(y), epsilon)
    return finish(values, reduction, where=there, weights=weights)


def squared_log_error(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Squared error between logarithms: rewards the right order of magnitude.

    $$\ell = (\log(1 + x) - \log(1 + y))^2$$

    Args:
        predictions: $x > -1$, any shape.
        targets: $y > -1$, of the same shape, or a scalar.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    A prediction or a target of -1 or less gives NaN, in value and gradient of its own entry.

    References:
        Keene, "The Log Transformation is Special", Statistics in Medicine, 1995.

    >>> squared_log_error(jnp.array([0.0, 9.0]), jnp.array([0.0, 99.0]))
    Array([0.       , 5.3018985], dtype=float32)
    """
    x, y, there = paired(predictions, targets, where, weights)
    for name, array in (("predictions", x), ("targets", y)):
        insist(array > -1, f"`{name}` should be above -1")
    x, y = (nan_unless((x > -1) & (y > -1), array) for array in (x, y))
    values = (jnp.log1p(x) - jnp.log1p(y)) ** 2
    return finish(values, reduction, where=there, weights=weights)


def general_robust_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"] | None = None,
    *,
    alpha: Real[ArrayLike, "..."] = 1.0,
    scale: Real[ArrayLike, "..."] = 1.0,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""One family from squared error to indifference: `alpha` says how little an outlier matters.

    $$\ell = \frac{|\alpha - 2|}{\alpha} \left( \Big( \frac{(x - y)^2 / c^2}{|\alpha - 2|} + 1
    \Big)^{\alpha / 2} - 1 \right)$$

    $\alpha = 2$ is `l2_loss` (of errors over $c$), 1 the pseudo-Huber loss, 0 Cauchy's, -2 that of
    Geman and McClure, $-\infty$ Welsch's. Exact through all of them, where the formula divides 0 by
    0; the slope in `alpha` is that of the formula, but finite at 2, where the true one is not.

    Args:
        predictions: $x$, any shape.
        targets: $y$, of the same shape, or a scalar; None is 0.
        alpha: $\alpha \le 2$, minus infinity included. A scalar, or as many axes as the
            predictions.
        scale: $c > 0$, in units of the targets: the error at which the loss begins to bend. A
            scalar, or as many axes as the predictions.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Barron, "A General and Adaptive Robust Loss Function", CVPR 2019.

    >>> general_robust_loss(jnp.array([1.0, 1.0]), alpha=jnp.array([2.0, 0.0]))
    Array([0.5      , 0.4054651], dtype=float32)
    """
    error, there = residual(predictions, targets, where, weights)
    alpha = hyperparameter("alpha", alpha, error, there, most=2)
    scale = hyperparameter("scale", scale, error, there, above=0)
    values = barron(error / scale, alpha)
    return finish(values, reduction, where=there, weights=weights)
