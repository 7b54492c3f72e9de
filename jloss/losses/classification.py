"""Losses between logits and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.checks import nan_unless
from jloss._core.classes import first_largest, is_label, labelled, pick, softmax_surprise
from jloss._core.inputs import (
    Axis,
    as_array,
    clean,
    consumed,
    expect_shape,
    floats,
    hyperparameter,
    masks,
    probable,
)
from jloss._core.numerics import lean, product
from jloss.reduction import R, Reduction, each, finish, mean

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Bool, Float, Int, Real


def softmax_cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Real[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards probability on the classes in proportion to the labels' distribution over them.

    $$\ell = -\sum_j y_j \log \operatorname{softmax}(x)_j$$

    Exact for confident rows, where log-sum-exp less logit cancels. A logit of -inf forbids a class:
    the loss is infinite, with a finite gradient, if the labels give it any weight, and untouched
    otherwise.

    Args:
        logits: $x$, any shape.
        labels: $y$, of the same shape: probabilities, which sum to 1 along `axis` (that they do is
            not checked).
        axis: the axes along which the classes lie; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the logits without `axis`, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for logits that are not floating.

    A label outside [0, 1] gives NaN, in value and gradient of its own row.

    Differs from optax: a confident row keeps its digits; no NaN at a logit of -inf; float32 results
    for half-precision inputs; no silent broadcast.

    References:
        Cox, "The Regression Analysis of Binary Sequences", Journal of the Royal Statistical
        Society B, 1958. Bridle, "Probabilistic Interpretation of Feedforward Classification
        Network Outputs", Neurocomputing, 1990.

    >>> logits = jnp.array([[0.0, 0.0], [20.0, 0.0]])
    >>> losses = softmax_cross_entropy(logits, jnp.array([[0.5, 0.5], [1.0, 0.0]]))
    >>> print([f"{loss:.3g}" for loss in losses])
    ['0.693', '2.06e-09']
    """
    (logits, axis), labels = consumed("logits", logits, axis), as_array("labels", labels)
    hint = "class numbers go to softmax_cross_entropy_with_integer_labels"
    expect_shape("labels", labels, logits.shape, hint)
    classes, rows = masks(where, weights, logits.shape, axis)

    @lean
    def formula(x, y):
        x, y = floats(logits=x, labels=y)
        x, y = clean(x, classes, rows, axis, -jnp.inf), clean(y, classes, rows, axis)
        top = first_largest(x, axis, jnp.int32)
        surprise, _ = softmax_surprise(x, top, axis)
        behind = jnp.expand_dims(pick(x, top, axis), axis) - x
        behind = jnp.where(is_label(x, top, axis), 0, behind)  # or the slopes of a - a would round
        values = jnp.sum(product(y, jnp.expand_dims(surprise, axis) + behind), axis)
        return nan_unless(probable("labels", y, labels, axis), values)

    return finish(formula(logits, labels), reduction, where=rows, weights=weights)


def softmax_cross_entropy_with_integer_labels(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    label_smoothing: Real[ArrayLike, ""] | None = None,
    class_weights: Real[ArrayLike, "classes"] | None = None,
    z_loss: Real[ArrayLike, ""] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards probability on the labelled class: the negative log-likelihood of the label.

    $$\ell = -\log \operatorname{softmax}(x)_y$$

    Exact for confident rows, where log-sum-exp less logit cancels, and never a one-hot array. A
    logit of -inf forbids a class: the loss is infinite, with a finite gradient, if it is the label
    (and NaN if no class is left).

    Args:
        logits: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the logits without `axis`. Where several
            axes hold the classes, the flat index into them. Labels that mark padding (-100, -1)
            have to be deleted: `where=labels != -100`.
        axis: the axes along which the classes lie.
        label_smoothing: $\alpha$ in [0, 1], the share of the label that is spread evenly over the
            classes (those that `where` leaves).
        class_weights: a weight for each class, which multiplies the weight of the entries it
            labels, and so enters the denominator of `mean`. (With `label_smoothing` torch weighs
            the smoothed part class by class instead.)
        z_loss: the factor of $(\log \sum_j e^{x_j})^2$, which is added (`z_loss` gives it apart).
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the logits without `axis`.
        TypeError: for logits that are not floating or labels that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN, in value and gradient
    of its own row.

    Differs from optax: labels below 0 do not count from the end; a class mask that hides the label
    is NaN, not a negative loss; a confident row keeps its digits; float32 results for
    half-precision inputs.

    References:
        Cox, "The Regression Analysis of Binary Sequences", Journal of the Royal Statistical
        Society B, 1958. Label smoothing: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking
        the Inception Architecture for Computer Vision", CVPR 2016. z-loss: Chowdhery et al.,
        "PaLM: Scaling Language Modeling with Pathways", JMLR 2023.

    >>> logits = jnp.array([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0]])
    >>> losses = softmax_cross_entropy_with_integer_labels(logits, jnp.array([2, 0]))
    >>> print([f"{loss:.3g}" for loss in losses])
    ['1.1', '4.12e-09']
    """
    logits, axis = consumed("logits", logits, axis)
    y = labelled(labels, logits.shape, axis, where, weights, class_weights)

    @lean
    def formula(x):
        (x,) = floats(logits=x)
        x = clean(x, y.classes, y.rows, axis, -jnp.inf)
        values, logsumexp = softmax_surprise(x, y.number, axis)
        if label_smoothing is not None:
            share = hyperparameter(
                "label_smoothing", label_smoothing, values, y.rows, least=0, most=1
            )
            even = logsumexp - mean(x, where=y.classes, axis=axis)
            values = product(1 - share, values) + product(share, even)
        if z_loss is not None:
            values += hyperparameter("z_loss", z_loss, values, y.rows) * logsumexp**2
        return values

    values = nan_unless(y.known, formula(logits))
    return finish(values, reduction, where=y.rows, weights=y.weights)
