"""Losses between yes and no: each entry a question of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jloss._core.checks import nan_unless
from jloss._core.inputs import (
    hyperparameter,
    paired,
    probable,
)
from jloss._core.numerics import log_or_steep, product, weighted_log
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Real


def sigmoid_binary_cross_entropy(
    logits: Float[ArrayLike, "*shape"],
    labels: Real[ArrayLike, "*shape"],
    *,
    pos_weight: Real[ArrayLike, "..."] | None = None,
    label_smoothing: Real[ArrayLike, ""] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the probability of what happened, each entry a yes-or-no question of its own.

    $$\ell = -y \log \sigma(x) - (1 - y) \log \sigma(-x)$$

    Args:
        logits: $x$, the log-odds, any shape.
        labels: $y$ in [0, 1], of the same shape, or a scalar: 0, 1, or the probability of 1.
        pos_weight: a factor on the term of $y$ alone, for rare positives (the mean still divides by
            the count). A scalar, or as many axes as the logits: `[1, classes]`.
        label_smoothing: $\alpha$ in [0, 1] pulls labels towards one half:
            $(1 - \alpha) y + \alpha / 2$.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar label.
        TypeError: for logits that are not floating.

    A label outside [0, 1] gives NaN, in value and gradient of its own entry.

    Differs from optax: no NaN at an infinite logit; float32 results for half-precision inputs; no
    silent broadcast.

    References:
        Cox, "The Regression Analysis of Binary Sequences", Journal of the Royal Statistical
        Society B, 1958.

    >>> sigmoid_binary_cross_entropy(jnp.array([0.0, 20.0]), jnp.array([1, 0]))
    Array([ 0.6931472, 20.       ], dtype=float32)
    """
    x, y, there = paired(logits, labels, where, weights, names=("logits", "labels"))
    ok = probable("labels", y, labels)
    if label_smoothing is not None:
        alpha = hyperparameter("label_smoothing", label_smoothing, x, there, least=0, most=1)
        y = (1 - alpha) * y + 0.5 * alpha
    positive = product(y, jax.nn.softplus(-x))
    if pos_weight is not None:
        factor = hyperparameter("pos_weight", pos_weight, x, there, least=0)
        positive = product(factor, positive)
    values = positive + product(1 - y, jax.nn.softplus(x))
    return finish(nan_unless(ok, values), reduction, where=there, weights=weights)


def sigmoid_focal_loss(
    logits: Float[ArrayLike, "*shape"],
    labels: Real[ArrayLike, "*shape"],
    *,
    alpha: Real[ArrayLike, "..."] | None = None,
    gamma: Real[ArrayLike, "..."] = 2.0,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Binary cross-entropy that turns away from entries which are right already.

    $$\ell = (1 - p)^\gamma \, \text{BCE}(x, y), \qquad
    p = y \, \sigma(x) + (1 - y) \, \sigma(-x)$$

    Right where entries are saturated, on either side, and for every $\gamma \ge 0$.

    Args:
        logits: $x$, the log-odds, any shape.
        labels: $y$ in [0, 1], of the same shape, or a scalar: 0, 1, or the probability of 1.
        alpha: a weight in [0, 1] for positives, against $1 - \alpha$ for negatives; None weighs
            them alike. A scalar, or as many axes as the logits.
        gamma: $\gamma \ge 0$, how hard it turns away; 0 is binary cross-entropy. A scalar, or as
            many axes as the logits.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar label.
        TypeError: for logits that are not floating.

    A label outside [0, 1] gives NaN, in value and gradient of its own entry.

    Differs from optax: gradients with respect to labels of 0 and 1 are finite; float32 results for
    half-precision inputs; no silent broadcast.

    References:
        Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017.

    >>> sigmoid_focal_loss(jnp.array([0.0, 0.0]), jnp.array([1, 0]), alpha=0.25, gamma=1.0)
    Array([0.0866434, 0.2599302], dtype=float32)
    """
    x, y, there = paired(logits, labels, where, weights, names=("logits", "labels"))
    gamma = hyperparameter("gamma", gamma, x, there, least=0)
    cross_entropy = product(y, jax.nn.softplus(-x)) + product(1 - y, jax.nn.softplus(x))
    certain = jnp.isinf(cross_entropy)  # and the miss is 1
    focus = jnp.exp(gamma * jnp.where(certain, 0, _log_miss(x, y)))
    values = cross_entropy * focus
    if alpha is not None:
        alpha = hyperparameter("alpha", alpha, x, there, least=0, most=1)
        values *= alpha * y + (1 - alpha) * (1 - y)
    values = nan_unless(probable("labels", y, labels), values)
    return finish(values, reduction, where=there, weights=weights)


def _log_miss(x: Array, y: Array) -> Array:
    """log(1 - p), as a log-sum: a power has no slope at 0, nor has a product there any digits."""
    on, off = -jax.nn.softplus(x), -jax.nn.softplus(-x)
    top = jnp.maximum(jnp.where(y > 0, on, -jnp.inf), jnp.where(y < 1, off, -jnp.inf))
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    on, off = (jnp.exp(jnp.minimum(side - top, 40)) for side in (on, off))
    rest = y * on + (1 - y) * off
    return top + jnp.log(jnp.where(rest > 0, rest, 1))


def binary_cross_entropy(
    probabilities: Float[ArrayLike, "*shape"],
    labels: Real[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Binary cross-entropy of probabilities, for models that end in a sigmoid of their own.

    $$\ell = -y \log p - (1 - y) \log(1 - p), \qquad 0 \log 0 = 0$$

    Prefer logits and `sigmoid_binary_cross_entropy`: a probability rounds to 1 where a logit still
    has digits. At $p = 0$ or $1$, where what happened had been ruled out, the loss is infinite,
    with a finite gradient of the right sign; nothing is clipped.

    Args:
        probabilities: $p$ in [0, 1], any shape.
        labels: $y$ in [0, 1], of the same shape, or a scalar: 0, 1, or the probability of 1.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar label.
        TypeError: for probabilities that are not floating.

    A probability or a label outside [0, 1] gives NaN, in value and gradient of its own entry.

    References:
        Good, "Rational Decisions", Journal of the Royal Statistical Society B, 1952.

    >>> binary_cross_entropy(jnp.array([0.25, 0.25]), jnp.array([1, 0]))
    Array([1.3862944 , 0.28768206], dtype=float32)
    """
    names = ("probabilities", "labels")
    p, y, there = paired(probabilities, labels, where, weights, names=names)
    ok = probable("probabilities", p, probabilities) & probable("labels", y, labels)
    p = p - jax.lax.stop_gradient(p - jnp.clip(p, 0, 1))  # what rounding left beyond the ends
    values = -weighted_log(y, p, log_or_steep) - weighted_log(1 - y, p, _log_of_the_rest)
    return finish(nan_unless(ok, values), reduction, where=there, weights=weights)


def _log_of_the_rest(p: Array) -> Array:
    """log(1 - p): log1p keeps its digits where p is small, and elsewhere 1 - p is exact."""
    low = p < 0.5
    of_low, of_high = jnp.where(low, p, 0), 1 - jnp.where(low, 0.5, p)
    return jnp.where(low, jnp.log1p(-of_low), log_or_steep(of_high))
