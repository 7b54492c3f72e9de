"""Losses that a wrong label does not carry away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.checks import nan_unless
from jloss._core.classes import labelled, surprises
from jloss._core.inputs import Axis, consumed, hyperparameter
from jloss._core.numerics import decay, expm1_over, product
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Bool, Float, Int, Real


def generalized_cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    q: Real[ArrayLike, "..."] = 0.7,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Between cross-entropy and absolute error: labels that look wrong pull less.

    $$\ell = \frac{1 - p^q}{q}, \qquad p = \operatorname{softmax}(x)_y$$

    Exact through $q = 0$, where the formula divides 0 by 0.

    Args:
        logits: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the logits without `axis`.
        axis: the axes along which the classes lie.
        q: $q$ in [0, 1]: 0 is cross-entropy, 1 the error $1 - p$. A scalar, or as many axes as the
            labels.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the logits without `axis`.
        TypeError: for logits that are not floating or labels that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN, in value and gradient
    of its own row.

    References:
        Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with
        Noisy Labels", NeurIPS 2018.

    >>> generalized_cross_entropy(jnp.zeros((1, 2)), jnp.array([0]), q=1.0)
    Array([0.5], dtype=float32)
    """
    logits, axis = consumed("logits", logits, axis)
    y = labelled(labels, logits.shape, axis, where, weights)
    surprise = surprises(logits, y, axis)
    power = hyperparameter("q", q, surprise, y.rows, least=0, most=1)
    forbidden = jnp.isinf(surprise)
    exponent = power * jnp.where(forbidden, 0, surprise)
    near = jnp.where(forbidden, power == 0, exponent < 1)
    series = surprise * expm1_over(-jnp.where(near, exponent, 0))
    sure = jnp.where(forbidden, 1, decay(exponent))
    values = jnp.where(near, series, sure / jnp.where(near, 1, power))
    return finish(nan_unless(y.known, values), reduction, where=y.rows, weights=y.weights)


def symmetric_cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    alpha: Real[ArrayLike, "..."] = 0.1,
    beta: Real[ArrayLike, "..."] = 1.0,
    log_of_zero: Real[ArrayLike, "..."] = -4.0,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Cross-entropy both ways: the prediction judges the label too, and a wrong one does less.

    $$\ell = -\alpha \log p - \beta A \, (1 - p), \qquad p = \operatorname{softmax}(x)_y$$

    Args:
        logits: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the logits without `axis`.
        axis: the axes along which the classes lie.
        alpha: $\alpha$, the factor of the cross-entropy. A scalar, or as many axes as the labels,
            as the other two.
        beta: $\beta$, the factor of the reverse cross-entropy, whose labels are 0 or 1.
        log_of_zero: $A \le 0$, which stands for the logarithm of a label's 0.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the logits without `axis`.
        TypeError: for logits that are not floating or labels that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN, in value and gradient
    of its own row.

    References:
        Wang, Ma, Chen, Luo, Yi and Bailey, "Symmetric Cross Entropy for Robust Learning with Noisy
        Labels", ICCV 2019.

    >>> symmetric_cross_entropy(jnp.zeros((1, 2)), jnp.array([0]), alpha=0.0, beta=0.5)
    Array([1.], dtype=float32)
    """
    logits, axis = consumed("logits", logits, axis)
    y = labelled(labels, logits.shape, axis, where, weights)
    surprise = surprises(logits, y, axis)
    forward = hyperparameter("alpha", alpha, surprise, y.rows)
    backward = hyperparameter("beta", beta, surprise, y.rows)
    backward *= hyperparameter("log_of_zero", log_of_zero, surprise, y.rows, most=0)
    values = product(forward, surprise) - backward * decay(surprise)
    return finish(nan_unless(y.known, values), reduction, where=y.rows, weights=y.weights)
