"""Losses between logits and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.checks import nan_unless
from jloss._core.classes import costs, labelled, over_classes, pick, softmax_surprise, surprises
from jloss._core.inputs import (
    Axis,
    at_least_float32,
    clean,
    consumed,
    floats,
    hyperparameter,
    log_probable,
    masks,
    probable,
)
from jloss._core.numerics import decay, expm1_over, lean, log_or_steep, product, weighted_log
from jloss.reduction import R, Reduction, each, finish, mean

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Int, Real


LOGITS = {
    "names": ("logits", "labels"),
    "fills": (-jnp.inf, 0.0),
    "hint": "class numbers go to softmax_cross_entropy_with_integer_labels",
}


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

    def formula(x, y, axis):
        ok = probable("labels", y, labels, axis)
        return nan_unless(ok, jnp.sum(product(y, costs(x, axis)), axis))

    values, rows = over_classes(formula, logits, labels, axis, where, weights, **LOGITS)
    return finish(values, reduction, where=rows, weights=weights)


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


def safe_softmax_cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Real[ArrayLike, "*batch classes"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""The same as `softmax_cross_entropy`, under the name that optax has for logits of -inf.

    $$\ell = -\sum_j y_j \log \operatorname{softmax}(x)_j, \qquad 0 \log 0 = 0$$

    In jloss every cross-entropy is safe there: a forbidden class that the labels give no weight
    takes no part in value, gradient or forward mode.

    Args:
        logits: $x$, any shape.
        labels: $y$, of the same shape: probabilities, which sum to 1 along `axis` (that they do is
            not checked).
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over the last
            axis deletes classes.

    Returns:
        The shape of the logits without the last axis, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for logits that are not floating.

    A label outside [0, 1] gives NaN, in value and gradient of its own row.

    Differs from optax: forward mode is no NaN at a logit of -inf; a confident row keeps its digits;
    float32 results for half-precision inputs; no silent broadcast.

    References:
        Cox, "The Regression Analysis of Binary Sequences", Journal of the Royal Statistical Society
        B, 1958.

    >>> logits = jnp.array([[0.0, 0.0, -jnp.inf]])
    >>> safe_softmax_cross_entropy(logits, jnp.array([[0.5, 0.5, 0.0]]))
    Array([0.6931472], dtype=float32)
    """
    return softmax_cross_entropy(logits, labels, where=where, weights=weights, reduction=reduction)


def categorical_cross_entropy(
    probabilities: Float[ArrayLike, "*batch classes"],
    labels: Real[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Cross-entropy of probabilities, for models that end in a softmax of their own.

    $$\ell = -\sum_j y_j \log p_j, \qquad 0 \log 0 = 0$$

    Prefer logits and `softmax_cross_entropy`: a probability rounds to 1 where a logit still has
    digits. Where $p_j = 0 < y_j$ the loss is infinite, with a finite gradient of the right sign.

    Args:
        probabilities: $p$, any shape, which sum to 1 along `axis` (that they do is not checked, nor
            mended).
        labels: $y$, of the same shape: probabilities, which sum to 1 along `axis` (that they do is
            not checked).
        axis: the axes along which the classes lie; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the probabilities without `axis`, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for probabilities that are not floating.

    A probability or a label outside [0, 1] gives NaN, in value and gradient of its own row.

    References:
        Good, "Rational Decisions", Journal of the Royal Statistical Society B, 1952.

    >>> categorical_cross_entropy(jnp.array([[0.5, 0.5, 0.0]]), jnp.array([[1.0, 0.0, 0.0]]))
    Array([0.6931472], dtype=float32)
    """

    def formula(p, y, axis):
        ok = probable("probabilities", p, probabilities, axis) & probable("labels", y, labels, axis)
        return nan_unless(ok, -jnp.sum(weighted_log(y, p, log_or_steep), axis))

    values, rows = over_classes(
        formula, probabilities, labels, axis, where, weights, names=("probabilities", "labels")
    )
    return finish(values, reduction, where=rows, weights=weights)


def nll_loss(
    log_predictions: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    class_weights: Real[ArrayLike, "classes"] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Cross-entropy of log-probabilities: for models that end in a log-softmax of their own.

    $$\ell = -x_y$$

    Args:
        log_predictions: $x$, log-probabilities, any shape.
        labels: $y$, class numbers from 0, of the shape of the predictions without `axis`.
        axis: the axes along which the classes lie.
        class_weights: a weight for each class, which multiplies the weight of the entries it
            labels, and so enters the denominator of `mean`.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the predictions without `axis`.
        TypeError: for predictions that are not floating or labels that are not integers.

    A label outside [0, classes), one that a class mask hides, or a log-prediction above 0 gives
    NaN, in value and gradient of its own row.

    References:
        Good, "Rational Decisions", Journal of the Royal Statistical Society B, 1952.

    >>> nll_loss(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0]))
    Array([1.3862944], dtype=float32)
    """
    log_predictions, axis = consumed("log_predictions", log_predictions, axis)
    y = labelled(labels, log_predictions.shape, axis, where, weights, class_weights)

    @lean
    def formula(x):
        (x,) = floats(log_predictions=x)
        x = clean(x, y.classes, y.rows, axis, -jnp.inf)
        ok = y.known & log_probable("log_predictions", x, log_predictions, axis)
        return -pick(nan_unless(jnp.expand_dims(ok, axis), x), y.number, axis)

    return finish(formula(log_predictions), reduction, where=y.rows, weights=y.weights)


def softmax_focal_loss(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    gamma: Real[ArrayLike, "..."] = 2.0,
    class_weights: Real[ArrayLike, "classes"] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Cross-entropy that turns away from rows which are right already.

    $$\ell = -(1 - p)^\gamma \log p, \qquad p = \operatorname{softmax}(x)_y$$

    The weight that is usual for each class, $\alpha$, is `class_weights`.

    Args:
        logits: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the logits without `axis`.
        axis: the axes along which the classes lie.
        gamma: $\gamma \ge 0$, how hard it turns away; 0 is cross-entropy. A scalar, or as many axes
            as the labels.
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
    of its own row.

    References:
        Lin, Goyal, Girshick, He and Dollár, "Focal Loss for Dense Object Detection", ICCV 2017.

    >>> softmax_focal_loss(jnp.zeros((1, 2)), jnp.array([0]), gamma=1.0)
    Array([0.3465736], dtype=float32)
    """
    logits, axis = consumed("logits", logits, axis)
    y = labelled(labels, logits.shape, axis, where, weights, class_weights)
    surprise = surprises(logits, y, axis)
    gamma = hyperparameter("gamma", gamma, surprise, y.rows, least=0)
    tiny = jnp.finfo(surprise.dtype).tiny  # 0 has no slopes of all orders
    small = jnp.where(surprise < 1, jnp.maximum(surprise, tiny), 1)
    focused = small ** (1 + gamma) * expm1_over(-small) ** gamma
    middle = jnp.where((surprise >= 1) & (surprise < 100), surprise, 1)  # beyond, 1 - p is 1
    wrong = jnp.where(surprise < 100, middle * decay(middle) ** gamma, surprise)
    values = jnp.where(surprise < 1, focused, wrong)
    return finish(nan_unless(y.known, values), reduction, where=y.rows, weights=y.weights)


def poly_loss_cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Real[ArrayLike, "*batch classes"],
    *,
    epsilon: Real[ArrayLike, "..."] = 2.0,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Cross-entropy with more of its first term: rewards the last points of probability too.

    $$\ell = \sum_j y_j \big( -\log p_j + \epsilon (1 - p_j) \big), \qquad
    p = \operatorname{softmax}(x)$$

    Args:
        logits: $x$, any shape.
        labels: $y$, of the same shape: probabilities, which sum to 1 along `axis` (that they do is
            not checked).
        epsilon: $\epsilon$, how much of $1 - p$ is added; 0 is cross-entropy. A scalar, or as many
            axes as the values.
        axis: the axes along which the classes lie; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the logits without `axis`, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ.
        TypeError: for logits that are not floating.

    A label outside [0, 1] gives NaN, in value and gradient of its own row.

    Differs from optax: a confident row keeps its digits; no NaN at a logit of -inf; labels may be
    integers or booleans; float32 results for half-precision inputs; no silent broadcast.

    References:
        Leng, Tan, Liu, Cubuk, Shi, Cheng and Anguelov, "PolyLoss: A Polynomial Expansion
        Perspective of Classification Loss Functions", ICLR 2022.

    >>> poly_loss_cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))
    Array([1.6931472], dtype=float32)
    """

    def formula(x, y, axis):
        cost = costs(x, axis)
        factor = hyperparameter("epsilon", epsilon, jnp.sum(y, axis))
        values = jnp.sum(product(y, cost), axis) + factor * jnp.sum(y * decay(cost), axis)
        return nan_unless(probable("labels", y, labels, axis), values)

    values, rows = over_classes(formula, logits, labels, axis, where, weights, **LOGITS)
    return finish(values, reduction, where=rows, weights=weights)


def smooth_labels(
    labels: Real[ArrayLike, "*batch classes"],
    alpha: Real[ArrayLike, ""],
    *,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Array:
    r"""Spreads a share of each label evenly over the classes: labels for a model to doubt.

    $$(1 - \alpha) \, y + \frac{\alpha}{K}$$

    Args:
        labels: $y$, distributions along `axis`, any shape.
        alpha: $\alpha$ in [0, 1], the share that is spread.
        axis: the axes along which the classes lie; None for all.
        where: the classes that are there, aligned as in `jloss.reduction`: $K$ counts them, and the
            others get 0.

    Returns:
        The shape of the labels, in float32 at least.

    Raises:
        TypeError: for labels that are not real.

    An $\alpha$ outside [0, 1] gives NaN, and so does a label outside it, in all of its row.

    Differs from optax: classes that `where` deletes get no share; float32 results for
    half-precision labels; labels may be integers or booleans.

    References:
        Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for
        Computer Vision", CVPR 2016.

    >>> smooth_labels(jnp.array([1.0, 0.0]), 0.25)
    Array([0.875, 0.125], dtype=float32)
    """
    labels, axis = consumed("labels", labels, axis)
    classes, rows = masks(where, None, labels.shape, axis)
    (y,) = at_least_float32(labels)
    y = clean(y, classes, rows, axis)
    y = nan_unless(jnp.expand_dims(probable("labels", y, labels, axis), axis), y)
    alpha = hyperparameter("alpha", alpha, y, least=0, most=1)
    even = jnp.ones_like(y) if classes is None else classes.astype(y.dtype)
    even /= jnp.maximum(jnp.sum(even, axis, keepdims=True), 1)
    return clean((1 - alpha) * y + alpha * even, classes, rows, axis)
