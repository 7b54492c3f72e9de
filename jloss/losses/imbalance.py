"""Losses for classes that are not equally frequent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jloss._core.checks import insist, nan_unless
from jloss._core.classes import counts_of_classes, is_label, labelled, surprises
from jloss._core.inputs import (
    Axis,
    as_array,
    at_least_float32,
    consumed,
    hyperparameter,
    paired,
    probable,
)
from jloss._core.numerics import expm1_over, product, sigmoid
from jloss.reduction import R, Reduction, each, finish, mean

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Int, Real


def class_balanced_weights(
    class_counts: Real[ArrayLike, "classes"], *, beta: Real[ArrayLike, ""] = 0.999
) -> Array:
    r"""Weights for rare classes, for the `class_weights` of a loss: they count what examples add.

    $$w_j \propto \frac{1 - \beta}{1 - \beta^{n_j}}, \qquad \text{mean of the } w_j = 1$$

    Args:
        class_counts: $n_j \ge 0$, how many examples each class has, along the last axis.
        beta: $\beta$ in [0, 1]: 0 weighs all classes alike, 1 by the inverse of their counts, and
            between the examples beyond about $1 / (1 - \beta)$ add nothing.

    Returns:
        The shape of the counts, in float32 at least. A class without examples has weight 0, and
        the mean is over the others.

    Raises:
        TypeError: for counts that are not real.

    A negative count, or a $\beta$ outside [0, 1], gives NaN.

    References:
        Cui, Jia, Lin, Song and Belongie, "Class-Balanced Loss Based on Effective Number of
        Samples", CVPR 2019.

    >>> class_balanced_weights(jnp.array([1, 3]), beta=1.0)
    Array([1.5, 0.5], dtype=float32)
    """
    (counts,) = at_least_float32(as_array("class_counts", class_counts))
    beta = hyperparameter("beta", beta, counts, least=0, most=1)
    insist(counts >= 0, "`class_counts` should not be negative")
    counts, there = nan_unless(counts >= 0, counts), counts != 0
    n, rate = jnp.where(there, counts, 1), jnp.log(jnp.where(beta < 0.5, 0.5, beta))
    small = jnp.where(beta < 0.5, beta, 0)
    of_small = (1 - small**n) / (1 - small)
    effective = jnp.where(beta < 0.5, of_small, n * expm1_over(n * rate) / expm1_over(rate))
    return each(1 / effective, where=there) / mean(1 / effective, where=there, axis=-1)[..., None]


def logit_adjusted_cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    class_counts: Real[ArrayLike, "classes"],
    temperature: Real[ArrayLike, "..."] = 1.0,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Cross-entropy that knows how rare classes are: rewards being right in each class alike.

    $$\ell = -\log \operatorname{softmax}(x + \tau \log n)_y$$

    Train with it, and predict with the logits as they are. A class without examples is forbidden.

    Args:
        logits: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the logits without `axis`.
        axis: the axes along which the classes lie.
        class_counts: $n_j \ge 0$, how many examples each class has (or any multiple of that), of
            the shape of the logits along `axis`.
        temperature: $\tau \ge 0$; 0 is cross-entropy. A scalar, or as many axes as the logits.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the logits without `axis`.
        TypeError: for logits that are not floating or labels that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN, in value and gradient
    of its own row; a negative count gives NaN in the rows that it reaches.

    References:
        Menon, Jayasumana, Rawat, Jain, Veit and Kumar, "Long-tail Learning via Logit Adjustment",
        ICLR 2021.

    >>> counts = jnp.array([1, 3])
    >>> logit_adjusted_cross_entropy(jnp.zeros((1, 2)), jnp.array([0]), class_counts=counts)
    Array([1.3862944], dtype=float32)
    """
    logits, axis = consumed("logits", logits, axis)
    y = labelled(labels, logits.shape, axis, where, weights)

    def adjusted(x):
        factor = hyperparameter("temperature", temperature, x, least=0)
        counts = counts_of_classes(class_counts, x, axis)
        adjusted = x + factor * jnp.log(jnp.where(counts == 0, 1, counts))
        return jnp.where((counts == 0) & (factor > 0), -jnp.inf, adjusted)

    values = surprises(logits, y, axis, adjusted)
    return finish(nan_unless(y.known, values), reduction, where=y.rows, weights=y.weights)


def ldam_loss(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    class_counts: Real[ArrayLike, "classes"],
    max_margin: Real[ArrayLike, "..."] = 0.5,
    scale: Real[ArrayLike, "..."] = 30.0,
    class_weights: Real[ArrayLike, "classes"] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Cross-entropy with a margin, which is wider for rarer classes.

    $$\ell = -\log \operatorname{softmax}(s \, (x - m_y e_y))_y, \qquad m_j \propto n_j^{-1/4}$$

    Meant for cosines of features and class vectors, between -1 and 1. The paper's deferred
    re-weighting is `class_weights=class_balanced_weights(...)` after some epochs.

    Args:
        logits: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the logits without `axis`.
        axis: the axes along which the classes lie.
        class_counts: $n_j \ge 0$, how many examples each class has (or any multiple of that), of
            the shape of the logits along `axis`.
        max_margin: the margin of the rarest class. A scalar, or as many axes as the logits.
        scale: $s > 0$, which makes up for scores that are cosines. A scalar, or as many axes as the
            logits.
        class_weights: a weight for each class, which multiplies the weight of the entries it
            labels, and so enters the denominator of `mean`.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the logits without `axis`.
        TypeError: for logits that are not floating or labels that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN, in value and gradient
    of its own row; a negative count gives NaN in the rows that it reaches.

    References:
        Cao, Wei, Gaidon, Arechiga and Ma, "Learning Imbalanced Datasets with
        Label-Distribution-Aware Margin Loss", NeurIPS 2019.

    >>> ldam_loss(jnp.array([[0.5, 0.0]]), jnp.array([0]), class_counts=jnp.array([1, 16]))
    Array([0.6931472], dtype=float32)
    """
    logits, axis = consumed("logits", logits, axis)
    y = labelled(labels, logits.shape, axis, where, weights, class_weights)

    def with_margin(x):
        counts = counts_of_classes(class_counts, x, axis)
        rarest = jnp.min(counts, where=counts > 0, initial=jnp.inf)
        share = jnp.where(counts == 0, 1, rarest / jnp.where(counts == 0, 1, counts)) ** 0.25
        margin = hyperparameter("max_margin", max_margin, x) * share
        less = jnp.where(is_label(x, y.number, axis), margin, 0)
        allowed, factor = x > -jnp.inf, hyperparameter("scale", scale, x, above=0)
        return jnp.where(allowed, factor * (jnp.where(allowed, x, 0) - less), x)

    values = surprises(logits, y, axis, with_margin)
    return finish(nan_unless(y.known, values), reduction, where=y.rows, weights=y.weights)


def asymmetric_loss(
    logits: Float[ArrayLike, "*shape"],
    labels: Real[ArrayLike, "*shape"],
    *,
    gamma_positive: Real[ArrayLike, "..."] = 1.0,
    gamma_negative: Real[ArrayLike, "..."] = 4.0,
    margin: Real[ArrayLike, "..."] = 0.05,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Binary cross-entropy for many labels, few of them true: turns away from negatives harder.

    $$\ell = -y \, (1 - p)^{\gamma_+} \log p - (1 - y) \, q^{\gamma_-} \log(1 - q), \qquad
    p = \sigma(x), \quad q = \max(p - m, 0)$$

    For labels of 0 and 1, `sigmoid_focal_loss` is the case of equal gammas and no margin.

    Args:
        logits: $x$, the log-odds, any shape.
        labels: $y$ in [0, 1], of the same shape, or a scalar: 0, 1, or the probability of 1.
        gamma_positive: $\gamma_+ \ge 0$. A scalar, or as many axes as the logits, as the other two.
        gamma_negative: $\gamma_- \ge 0$.
        margin: $m$ in [0, 1]: negatives below this probability are forgotten.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar label.
        TypeError: for logits that are not floating.

    A label outside [0, 1] gives NaN, in value and gradient of its own entry.

    References:
        Ridnik, Ben-Baruch, Zamir, Noy, Friedman, Protter and Zelnik-Manor, "Asymmetric Loss for
        Multi-Label Classification", ICCV 2021.

    >>> asymmetric_loss(jnp.array([0.0, -4.0]), jnp.array([1, 0]))
    Array([0.3465736, 0.       ], dtype=float32)
    """
    x, y, there = paired(logits, labels, where, weights, names=("logits", "labels"))
    on = hyperparameter("gamma_positive", gamma_positive, x, there, least=0)
    off = hyperparameter("gamma_negative", gamma_negative, x, there, least=0)
    m = hyperparameter("margin", margin, x, there, least=0, most=1)
    x = nan_unless(off >= 0, x)
    positive = jnp.exp(-product(on, jax.nn.softplus(x))) * jax.nn.softplus(-x)
    forgotten = sigmoid(x) <= m
    q = jnp.where(forgotten, 1, sigmoid(x) - m)
    log_m = jnp.where(m == 0, -jnp.inf, jnp.log(jnp.where(m == 0, 1, m)))
    log_miss = jnp.where(
        x < 80,  # beyond, sigmoid(-x) underflows
        jnp.log(sigmoid(-jnp.where(x < 80, x, 80)) + m),
        jnp.logaddexp(-jax.nn.softplus(x), log_m),
    )
    log_miss = jnp.where(q < 0.5, jnp.log1p(-jnp.where(q < 0.5, q, 0)), log_miss)
    negative = jnp.where(forgotten, 0, -(q**off) * log_miss)
    values = product(y, positive) + product(1 - y, negative)
    values = nan_unless(probable("labels", y, labels), values)
    return finish(values, reduction, where=there, weights=weights)
