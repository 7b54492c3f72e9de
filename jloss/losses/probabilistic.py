"""Losses that are likelihoods: of counts, amounts and numbers with an error of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.checks import insist, nan_unless
from jloss._core.inputs import hyperparameter, paired, required
from jloss._core.numerics import expm1_less, expm1_over, product, square_over_variance
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Real


NAMES = ("log_predictions", "targets")


def poisson_nll_loss(
    log_predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the rate at which events are counted: the negative log-likelihood of a Poisson law.

    $$\ell = e^x - y \, x$$

    Up to $\log y!$, which does not depend on the prediction (`jax.scipy.special.gammaln(y + 1)`).
    `tweedie_deviance` with `power=1` is twice its excess over the best prediction.

    Args:
        log_predictions: $x$, the logarithm of the rate, any shape.
        targets: $y \ge 0$, counts, of the same shape, or a scalar.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    A negative target gives NaN, in value and gradient of its own entry.

    References:
        Nelder and Wedderburn, "Generalized Linear Models", Journal of the Royal Statistical Society
        A, 1972.

    >>> poisson_nll_loss(jnp.array([0.0, 0.0]), jnp.array([0, 3]))
    Array([1., 1.], dtype=float32)
    """
    x, y, there = paired(log_predictions, targets, where, weights, names=NAMES)
    insist(y >= 0, "`targets` should not be negative")
    values = jnp.exp(x) - product(y, jnp.where(x == jnp.inf, 0, x))
    return finish(nan_unless(y >= 0, values), reduction, where=there, weights=weights)


def gamma_deviance(
    log_predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the right proportion: a prediction twice too high costs the same at every scale.

    $$\ell = 2 \left( \frac{y}{\mu} - 1 - \log \frac{y}{\mu} \right), \qquad \mu = e^x$$

    The deviance of the gamma law: twice the log-likelihood that is lost against the best
    prediction.

    Args:
        log_predictions: $x$, the logarithm of the predicted mean, any shape.
        targets: $y > 0$, of the same shape, or a scalar.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    A target of 0 or less gives NaN, in value and gradient of its own entry.

    References:
        Nelder and Wedderburn, "Generalized Linear Models", Journal of the Royal Statistical Society
        A, 1972.

    >>> gamma_deviance(jnp.log(jnp.array([1.0, 2.0])), jnp.array([1.0, 1.0]))
    Array([0.        , 0.38629436], dtype=float32)
    """
    x, y, there = paired(log_predictions, targets, where, weights, names=NAMES)
    ok = required(y > 0, there, "`targets` should be above 0")
    y = nan_unless(ok, jnp.where((y > 0) | ~ok, y, 1))
    values = 2 * expm1_less(jnp.log(y) - x)
    return finish(values, reduction, where=there, weights=weights)


def tweedie_deviance(
    log_predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"],
    *,
    power: Real[ArrayLike, "..."] = 1.5,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Between counts and amounts: for totals that are 0 or positive, as claims and rainfall are.

    $$\ell = 2 \left( \frac{y^{2-p}}{(1-p)(2-p)} - \frac{y \, \mu^{1-p}}{1-p}
    + \frac{\mu^{2-p}}{2-p} \right), \qquad \mu = e^x$$

    The deviance of Tweedie's laws: 1 is Poisson's, 2 gamma's (`gamma_deviance`), 3 the inverse
    Gaussian's, and between 1 and 2 a sum of gamma amounts, Poisson many. Exact through 1 and 2,
    where the formula divides by 0.

    Args:
        log_predictions: $x$, the logarithm of the predicted mean, any shape.
        targets: $y \ge 0$ (above 0 for a power of 2 or more), of the same shape, or a scalar.
        power: $p$ in [1, 3]: the variance grows as $\mu^p$. A scalar, or as many axes as the
            predictions.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    A negative target, or one of 0 where the power is 2 or more, gives NaN, in value and gradient of
    its own entry.

    References:
        Tweedie, "An Index which Distinguishes between Some Important Exponential Families",
        Statistics: Applications and New Directions, 1984.

    >>> tweedie_deviance(jnp.log(jnp.array([4.0, 1.0])), jnp.array([0.0, 1.0]))
    Array([8., 0.], dtype=float32)
    """
    x, y, there = paired(log_predictions, targets, where, weights, names=NAMES)
    q = 2 - hyperparameter("power", power, x, there, least=1, most=3)
    ok = (y > 0) | ((y == 0) & (q > 0))
    message = "`targets` should not be negative, and above 0 for a power of 2 or more"
    ok = required(ok, there, message)
    some = (y > 0) | ~ok
    log_y = jnp.where(some, jnp.log(nan_unless(ok, jnp.where(some, y, 1))), x)
    of_none = jnp.exp(q * x) / jnp.where(q > 0, q, 1)
    values = 2 * jnp.where(some, _half_deviance(x, log_y, q), of_none)
    return finish(values, reduction, where=there, weights=weights)


def _half_deviance(x: Array, log_y: Array, q: Array) -> Array:
    """Half of Tweedie's deviance; q is 2 less the power.

    With d = log(y / mean) it is mean^q times the divided difference, over q and 1, of
    expm1(q d) / q: a series where d is small, elsewhere a form that holds through q = 0 or 1.
    """
    d = log_y - x
    near = jnp.abs(d) < 1
    small, far = jnp.where(near, d, 0), jnp.where(near, 1, d)
    series, term, powers = jnp.zeros_like(d), small, jnp.ones_like(q)
    for n in range(2, 22):
        term = term * small / n
        series, powers = series + term * powers, 1 + q * powers
    whole, part = jnp.exp(log_y + (q - 1) * x), jnp.exp(q * x)
    low = q < 0.5
    q_low = jnp.where(low, q, 0)
    short = jnp.abs(q_low * far) < 1
    tail = part * far * expm1_over(jnp.where(short, q_low * far, 0))
    tail = jnp.where(short, tail, (jnp.exp(q_low * log_y) - part) / jnp.where(short, 1, q_low))
    by_gamma = whole - part - tail
    by_poisson = whole * (far * expm1_over(jnp.where(low, 0, q - 1) * far) - 1) + part
    beyond = jnp.where(low, by_gamma / jnp.where(low, 1 - q, 1), by_poisson / jnp.where(low, 1, q))
    return jnp.where(near, part * series, beyond)


def gaussian_nll_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Real[ArrayLike, "*shape"],
    log_variance: Real[ArrayLike, "..."],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards a prediction that knows how far off it may be: a Gaussian's negative log-likelihood.

    $$\ell = \frac{1}{2} \left( s + (x - y)^2 e^{-s} \right)$$

    Up to $\log(2 \pi) / 2$. With a logarithm no variance is negative, none has to be clamped, and
    the gradient is right wherever it is.

    Args:
        predictions: $x$, the mean, any shape.
        targets: $y$, of the same shape, or a scalar.
        log_variance: $s$, the logarithm of the variance: an output of the model too, of the shape
            of the predictions (or of as many axes), or a scalar.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for predictions that are not floating.

    References:
        Nix and Weigend, "Estimating the Mean and Variance of the Target Probability Distribution",
        ICNN 1994.

    >>> gaussian_nll_loss(jnp.array([0.0, 0.0]), jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]))
    Array([0.5, 2. ], dtype=float32)
    """
    x, y, there = paired(predictions, targets, where, weights)
    s = hyperparameter("log_variance", log_variance, x, there)
    values = 0.5 * (s + square_over_variance(x - y, s))
    return finish(values, reduction, where=there, weights=weights)
