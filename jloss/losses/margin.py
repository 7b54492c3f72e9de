"""Losses that stop caring beyond a margin: hinges, perceptrons, sparsemax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jloss._core.checks import insist, nan_unless
from jloss._core.classes import Labels, is_label, labelled, over_classes, pick
from jloss._core.inputs import Axis, clean, consumed, floats, paired, required
from jloss._core.numerics import lean, product, simplex_threshold
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Int, Real


def hinge_loss(
    predictor_outputs: Float[ArrayLike, "*shape"],
    targets: Int[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the right side by a margin: the loss of support vector machines.

    $$\ell = \max(0, 1 - y \, x)$$

    Args:
        predictor_outputs: $x$, scores whose sign is the prediction, any shape.
        targets: $y$, -1 or 1, of the same shape, or a scalar.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for outputs that are not floating.

    A target that is neither -1 nor 1 (a 0, say, for no) gives NaN, in value and gradient of its own
    entry.

    Differs from optax: NaN for targets that are neither -1 nor 1; the slope at the corner is 0;
    float32 results for half-precision inputs; no silent broadcast.

    References:
        Cortes and Vapnik, "Support-Vector Networks", Machine Learning, 1995.

    >>> hinge_loss(jnp.array([0.25, -2.0]), jnp.array([1, 1]))
    Array([0.75, 3.  ], dtype=float32)
    """
    agreement, ok, there = _agreement(predictor_outputs, targets, where, weights)
    values = jnp.where(agreement < 1, 1 - agreement, 0)
    return finish(nan_unless(ok, values), reduction, where=there, weights=weights)


def squared_hinge_loss(
    predictor_outputs: Float[ArrayLike, "*shape"],
    targets: Int[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""A hinge loss without a corner, which pulls harder the further off it is.

    $$\ell = \max(0, 1 - y \, x)^2$$

    Args:
        predictor_outputs: $x$, scores whose sign is the prediction, any shape.
        targets: $y$, -1 or 1, of the same shape, or a scalar.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for outputs that are not floating.

    A target that is neither -1 nor 1 (a 0, say, for no) gives NaN, in value and gradient of its own
    entry.

    References:
        Chang, Hsieh and Lin, "Coordinate Descent Method for Large-scale L2-loss Linear Support
        Vector Machines", JMLR 2008.

    >>> squared_hinge_loss(jnp.array([0.5, -2.0]), jnp.array([1, 1]))
    Array([0.25, 9.  ], dtype=float32)
    """
    agreement, ok, there = _agreement(predictor_outputs, targets, where, weights)
    values = jnp.where(agreement < 1, 1 - agreement, 0) ** 2
    return finish(nan_unless(ok, values), reduction, where=there, weights=weights)


def perceptron_loss(
    predictor_outputs: Float[ArrayLike, "*shape"],
    targets: Int[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the right side, by however little: the loss of Rosenblatt's perceptron.

    $$\ell = \max(0, -y \, x)$$

    Args:
        predictor_outputs: $x$, scores whose sign is the prediction, any shape.
        targets: $y$, -1 or 1, of the same shape, or a scalar.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar target.
        TypeError: for outputs that are not floating.

    A target that is neither -1 nor 1 (a 0, say, for no) gives NaN, in value and gradient of its own
    entry.

    Differs from optax: NaN for targets that are neither -1 nor 1; the slope at the corner is 0;
    float32 results for half-precision inputs; no silent broadcast.

    References:
        Rosenblatt, "The Perceptron: A Probabilistic Model for Information Storage and Organization
        in the Brain", Psychological Review, 1958.

    >>> perceptron_loss(jnp.array([0.25, -2.0]), jnp.array([1, 1]))
    Array([0., 2.], dtype=float32)
    """
    agreement, ok, there = _agreement(predictor_outputs, targets, where, weights)
    values = jnp.where(agreement < 0, -agreement, 0)
    return finish(nan_unless(ok, values), reduction, where=there, weights=weights)


def _agreement(
    predictor_outputs: ArrayLike,
    targets: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Array, Array, Array | None]:
    """The door in for signs: target times output, whether the target is a sign, what is there."""
    names = ("predictor_outputs", "targets")
    x, y, there = paired(predictor_outputs, targets, where, weights, names=names)
    ok = required(jnp.abs(y) == 1, there, "`targets` should be -1 or 1")
    return nan_unless(ok, y) * x, ok, there


def multiclass_hinge_loss(
    scores: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    *,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the labelled class by a margin over the best of the others.

    $$\ell = \max(0, 1 + \max_{j \ne y} x_j - x_y)$$

    (torch's `MultiMarginLoss` sums over all other classes and divides by their number.)

    Args:
        scores: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the scores without `axis`.
        axis: the axes along which the classes lie.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the scores without `axis`.
        TypeError: for scores that are not floating or labels that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN, in value and gradient
    of its own row.

    Differs from optax: NaN, not a number, for labels that are no class; any `axis`, and classes may
    be deleted; float32 results for half-precision inputs.

    References:
        Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
        Machines", JMLR 2001.

    >>> multiclass_hinge_loss(jnp.array([[0.0, 0.25], [3.0, 1.0]]), jnp.array([1, 0]))
    Array([0.75, 0.  ], dtype=float32)
    """
    lead, y = _lead(scores, labels, axis, where, weights)
    values = jnp.where(lead < 1, 1 - lead, 0)
    return finish(nan_unless(y.known, values), reduction, where=y.rows, weights=y.weights)


def multiclass_perceptron_loss(
    scores: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    *,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the labelled class as the best one, by however little.

    $$\ell = \max(0, \max_{j \ne y} x_j - x_y)$$

    Args:
        scores: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the scores without `axis`.
        axis: the axes along which the classes lie.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the scores without `axis`.
        TypeError: for scores that are not floating or labels that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN, in value and gradient
    of its own row.

    Differs from optax: NaN, not a number, for labels that are no class; any `axis`, and classes may
    be deleted; float32 results for half-precision inputs.

    References:
        Collins, "Discriminative Training Methods for Hidden Markov Models", EMNLP 2002.

    >>> multiclass_perceptron_loss(jnp.array([[0.0, 0.25], [3.0, 5.0]]), jnp.array([1, 0]))
    Array([0., 2.], dtype=float32)
    """
    lead, y = _lead(scores, labels, axis, where, weights)
    values = jnp.where(lead < 0, -lead, 0)
    return finish(nan_unless(y.known, values), reduction, where=y.rows, weights=y.weights)


def _lead(
    scores: ArrayLike,
    labels: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Array, Labels]:
    """The door in for scores: by how much the label's exceeds the best of the others."""
    scores, axis = consumed("scores", scores, axis)
    y = labelled(labels, scores.shape, axis, where, weights)

    @lean
    def formula(x):
        (x,) = floats(scores=x)
        x = clean(x, y.classes, y.rows, axis, -jnp.inf)
        x = nan_unless(jnp.expand_dims(y.known, axis), x)  # or the corner would stop the slope's
        others = jnp.max(jnp.where(is_label(x, y.number, axis), -jnp.inf, x), axis)
        return pick(x, y.number, axis) - others

    return formula(scores), y


def sparsemax_loss(
    logits: Float[ArrayLike, "*shape"],
    labels: Int[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""A logistic loss that is exactly 0 from a margin of 1 on.

    $$\ell = \begin{cases} 0 & s \le -1 \\ (s + 1)^2 / 4 & |s| < 1 \\ s & s \ge 1 \end{cases},
    \qquad s = (1 - 2 y) \, x$$

    Args:
        logits: $x$, any shape.
        labels: $y$, 0 or 1, of the same shape, or a scalar.
        where, weights, reduction: as in every loss, see `jloss.reduction`.

    Returns:
        One value per entry, in float32 at least, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that differ; nothing is broadcast but a scalar label.
        TypeError: for logits that are not floating.

    A label that is neither 0 nor 1 gives NaN, in value and gradient of its own entry.

    Differs from optax: NaN for labels that are neither 0 nor 1, where optax takes any but 0 for 1;
    float32 results for half-precision inputs; no silent broadcast.

    References:
        Martins and Astudillo, "From Softmax to Sparsemax: A Sparse Model of Attention and
        Multi-Label Classification", ICML 2016.

    >>> sparsemax_loss(jnp.array([0.0, 3.0, 3.0]), jnp.array([1, 1, 0]))
    Array([0.25, 0.  , 3.  ], dtype=float32)
    """
    x, y, there = paired(logits, labels, where, weights, names=("logits", "labels"))
    ok = (y == 0) | (y == 1)
    insist(ok, "`labels` should be 0 or 1")
    wrong = nan_unless(ok, 1 - 2 * y) * x
    parabola = jnp.where(jnp.abs(wrong) < 1, wrong + 1, 0) ** 2 / 4
    values = parabola + jnp.where(wrong >= 1, wrong, 0)
    return finish(nan_unless(ok, values), reduction, where=there, weights=weights)


def multiclass_sparsemax_loss(
    scores: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    *,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""A cross-entropy whose probabilities may be exactly 0, and which is 0 from a margin on.

    $$\ell = \tfrac12 \|e_y - p\|^2 + \max(0, \tau - x_y), \qquad p_j = \max(0, x_j - \tau), \quad
    \textstyle\sum_j p_j = 1$$

    $p$ is the projection of the scores onto the probabilities, and the gradient $p - e_y$. It is
    found without sorting, so that classes may be sharded.

    Args:
        scores: $x$, any shape.
        labels: $y$, class numbers from 0, of the shape of the scores without `axis`.
        axis: the axes along which the classes lie.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for labels whose shape is not that of the scores without `axis`.
        TypeError: for scores that are not floating or labels that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN, in value and gradient
    of its own row.

    Differs from optax: any number of axes; right in half precision; any `axis`, and classes may be
    deleted; NaN for labels that are no class.

    References:
        Martins and Astudillo, "From Softmax to Sparsemax: A Sparse Model of Attention and
        Multi-Label Classification", ICML 2016. Blondel, Martins and Niculae, "Learning with
        Fenchel-Young Losses", JMLR 2020.

    >>> multiclass_sparsemax_loss(jnp.array([[0.0, 0.0], [3.0, 1.0]]), jnp.array([0, 0]))
    Array([0.25, 0.  ], dtype=float32)
    """
    scores, axis = consumed("scores", scores, axis)
    y = labelled(labels, scores.shape, axis, where, weights)

    @lean
    def formula(x):
        (x,) = floats(scores=x)
        x = clean(x, y.classes, y.rows, axis, -jnp.inf)
        x = nan_unless(jnp.expand_dims(y.known, axis), x)
        x = x - jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True))
        threshold = simplex_threshold(x, axis)
        p = jnp.where(x > threshold, x - threshold, 0)
        off = p - is_label(x, y.number, axis).astype(p.dtype)
        short = jnp.squeeze(threshold, axis) - pick(x, y.number, axis)
        return 0.5 * jnp.sum(off**2, axis) + jnp.where(short >= 0, short, 0)

    values = nan_unless(y.known, formula(scores))
    return finish(values, reduction, where=y.rows, weights=y.weights)


def make_fenchel_young_loss(max_fun: Callable[[Array], ArrayLike]) -> Callable[..., Any]:
    r"""The loss that belongs to a maximum over a convex set: least where that is attained at `y`.

    $$\ell = \max_{p} \big( \langle x, p \rangle - \Omega(p) \big) - \langle x, y \rangle$$

    which is the loss up to $\Omega(y)$, as in optax; its gradient is the maximiser less $y$.

    Args:
        max_fun: the maximum, a function from scores `[classes]` to a scalar: `jax.nn.logsumexp`
            for the cross-entropy, `jnp.max` for the perceptron. Deleted classes have scores of
            -inf.

    Returns:
        A loss `(scores, targets, *, where=None, weights=None, reduction=each)`. Its `scores` $x$
        and `targets` $y$ have the shape `[*batch, classes]`, and its values `[*batch]`; `where`,
        `weights`, `reduction` as in every loss, see `jloss.reduction`.

    Differs from optax: the two laws; float32 results for half-precision inputs; no silent
    broadcast. Further arguments of `max_fun` are bound with `functools.partial`.

    References:
        Blondel, Martins and Niculae, "Learning with Fenchel-Young Losses", JMLR 2020.

    >>> loss = make_fenchel_young_loss(jax.nn.logsumexp)
    >>> loss(jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0]]))
    Array([0.6931472], dtype=float32)
    """
    of_each = jnp.vectorize(max_fun, signature="(n)->()")

    def fenchel_young_loss(
        scores: Float[ArrayLike, "*batch classes"],
        targets: Real[ArrayLike, "*batch classes"],
        *,
        where: Bool[ArrayLike, "..."] | None = None,
        weights: Real[ArrayLike, "..."] | None = None,
        reduction: Reduction[R] = each,
    ) -> R:
        def formula(x, y, axis):
            return of_each(x) - jnp.sum(product(y, x), axis)

        values, rows = over_classes(
            formula,
            scores,
            targets,
            -1,
            where,
            weights,
            names=("scores", "targets"),
            fills=(-jnp.inf, 0),
        )
        return finish(values, reduction, where=rows, weights=weights)

    return fenchel_young_loss
