"""Metrics of classifiers: counts that add up over microbatches and devices, and their ratios.

Count each batch with `classification_counts`, add the counts up, and divide last: the precision of
a whole data set is not the mean of the precisions of its batches.

    counts = counts + classification_counts(predictions, labels, num_classes=10, where=mask)
    f1_score(counts, average="macro")

Every field of the counts is a sum, so `+`, `jax.lax.psum`, `jax.tree.map(jnp.add, ...)` and the
carry of a `jax.lax.scan` merge them. `where` and `weights` mean what they mean in every loss, see
`jloss.reduction`: `where` deletes entries, `weights` repeat them. The ratios equal scikit-learn's,
and lie along the last axis of the counts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jloss._core.checks import insist, nan_unless
from jloss._core.classes import class_index, labelled, pick
from jloss._core.inputs import (
    Axis,
    align,
    blank,
    consumed,
    expect_shape,
    floats,
    integers,
    masks,
    required,
)
from jloss.reduction import AxisName, R, Reduction, finish, mean

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Bool, Float, Int, Real

Average = Literal["micro", "macro", "weighted"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassificationCounts:
    """How often each class was predicted and was right: what may be added up before it is divided.

    Attributes:
        tp: true positives `[classes]`, entries of the class that were predicted to be.
        fp: false positives `[classes]`, entries of another class that were predicted to be.
        fn: false negatives `[classes]`, entries of the class that were predicted to be another.
        tn: true negatives `[classes]`, all other entries.

    >>> def count(predictions, labels):
    ...     return classification_counts(jnp.array(predictions), jnp.array(labels), num_classes=2)
    >>> accuracy(count([0, 1], [0, 0]) + count([1, 1], [1, 1]))
    Array(0.75, dtype=float32)
    """

    tp: Array
    fp: Array
    fn: Array
    tn: Array

    def __add__(self, other: ClassificationCounts) -> ClassificationCounts:
        if not isinstance(other, ClassificationCounts):
            return NotImplemented
        with jax.numpy_dtype_promotion("standard"):  # weighted counts, and exact ones
            return jax.tree.map(jnp.add, self, other)

    def __radd__(self, other: int) -> ClassificationCounts:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # for `sum`


def classification_counts(
    predictions: Int[ArrayLike, "*batch"],
    labels: Int[ArrayLike, "*batch"],
    *,
    num_classes: int,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    axis_name: AxisName = None,
) -> ClassificationCounts:
    r"""Counts true and false positives and negatives of each class, each against all others.

    $$\text{tp}_c = \sum_i w_i [\hat y_i = c = y_i], \quad
    \text{fp}_c = \sum_i w_i [\hat y_i = c \ne y_i], \quad
    \text{fn}_c = \sum_i w_i [\hat y_i \ne c = y_i], \quad
    \text{tn}_c = \sum_i w_i [\hat y_i \ne c \ne y_i]$$

    Time and memory grow with the entries and with the classes, not with their product.

    Args:
        predictions: $\hat y$, class numbers from 0, any shape; of logits, `jnp.argmax(logits, -1)`.
        labels: $y$, class numbers from 0, of the same shape.
        num_classes: how many classes there are, not traced.
        where: the entries that are there, leading axes first; None for all.
        weights: $w$, how often each entry counts, leading axes first; None is 1.
        axis_name: the mesh axes to sum over, inside `shard_map` or a `vmap` that names its axis.

    Returns:
        Counts of shape `[classes]`: int32 and exact without `weights`, float32 at least with them.

    Raises:
        ValueError: for shapes that differ, or fewer than one class.
        TypeError: for predictions or labels that are not integers.

    A number outside [0, num_classes) is of no class, as in scikit-learn with
    `labels=range(num_classes)`. Such a label leaves the predicted class its false positive, such a
    prediction leaves the labelled class its false negative, and every other class gets a true
    negative. Labels that mark padding (-100, -1) have to be deleted: `where=labels != -100`.

    References:
        Sokolova and Lapalme, "A Systematic Analysis of Performance Measures for Classification
        Tasks", Information Processing and Management, 2009.

    >>> counts = classification_counts(jnp.array([0, 1, 1]), jnp.array([0, 0, 1]), num_classes=2)
    >>> print(counts.tp, counts.fp, counts.fn, counts.tn)
    [1 1] [0 1] [1 0] [1 1]
    """
    p, y, amount = _entries(predictions, labels, num_classes, where, weights)
    right, wrong = jnp.where(p == y, amount, 0), jnp.where(p == y, 0, amount)
    tp, fp, fn = (
        _sum_by((classes,), entries, (num_classes,))
        for classes, entries in ((p, right), (p, wrong), (y, wrong))
    )
    tn = jnp.sum(amount, dtype=amount.dtype) - tp - fp - fn
    counts = ClassificationCounts(tp, fp, fn, tn)
    return counts if axis_name is None else jax.lax.psum(counts, axis_name)


def confusion_matrix(
    predictions: Int[ArrayLike, "*batch"],
    labels: Int[ArrayLike, "*batch"],
    *,
    num_classes: int,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Counts how often entries of one class were predicted to be of another.

    $$C_{jk} = \sum_i w_i [y_i = j, \hat y_i = k]$$

    Args:
        predictions: $\hat y$, class numbers from 0, any shape; of logits, `jnp.argmax(logits, -1)`.
        labels: $y$, class numbers from 0, of the same shape.
        num_classes: how many classes there are, not traced.
        where, weights, axis_name: as in `classification_counts`.

    Returns:
        `[labels, predictions]`, each of `num_classes`: int32 and exact without `weights`, float32
        at least with them. Matrices of several batches may be added.

    Raises:
        ValueError: for shapes that differ, or fewer than one class.
        TypeError: for predictions or labels that are not integers.

    An entry whose label or prediction lies outside [0, num_classes) is not counted, as in
    scikit-learn with `labels=range(num_classes)`.

    References:
        Miller and Nicely, "An Analysis of Perceptual Confusions Among Some English Consonants",
        Journal of the Acoustical Society of America, 1955.

    >>> confusion_matrix(jnp.array([0, 1, 1]), jnp.array([0, 0, 1]), num_classes=2)
    Array([[1, 1], [0, 1]], dtype=int32)
    """
    p, y, amount = _entries(predictions, labels, num_classes, where, weights)
    amount = jnp.where((p < num_classes) & (y < num_classes), amount, 0)
    matrix = _sum_by((y, p), amount, (num_classes, num_classes))
    return matrix if axis_name is None else jax.lax.psum(matrix, axis_name)


def _entries(
    predictions: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Array, Array, Array]:
    """Predictions and labels, `num_classes` where they are of no class, and how often each counts.

    What counts 0 times may hold anything.
    """
    p, y = integers("predictions", predictions), integers("labels", labels)
    expect_shape("labels", y, p.shape)
    if num_classes < 1:
        raise ValueError(f"`num_classes` should be at least 1, but is {num_classes}")
    p, y = (
        jnp.where((number >= 0) & (number < num_classes), number, num_classes).astype(jnp.int32)
        for number in (p, y)
    )
    _, there = masks(where, weights, p.shape)
    for name, number in (("predictions", p), ("labels", y)):
        required(number < num_classes, there, f"`{name}` should lie in [0, {num_classes})")
    amount = jnp.ones(p.shape, jnp.int32)
    if weights is not None:
        _, weights = floats(once=1.0, weights=weights)
        amount = align("weights", weights, p.shape)
    return p, y, blank(amount, there)


def _sum_by(index: tuple[Array, ...], amount: Array, shape: tuple[int, ...]) -> Array:
    """The sum of the amounts at each index; an index beyond `shape` is in no sum."""
    # Over entries that an Explicit mesh shards, a scatter has to be told where its sums lie.
    whole = NamedSharding(jax.typeof(amount).sharding.mesh, PartitionSpec())
    sums = jnp.zeros(shape, amount.dtype)
    return sums.at[index].add(amount, mode="drop", out_sharding=whole)


def accuracy(counts: ClassificationCounts) -> Array:
    r"""The share of the entries whose class was predicted; 0 where nothing was counted.

    $$\text{accuracy} = \frac{\sum_c \text{tp}_c}{N}$$

    Args:
        counts: of `classification_counts`, or a sum of them.

    Returns:
        A scalar, in float32 at least.

    An entry whose label is of no class is wrong, whatever was predicted.

    References:
        Sokolova and Lapalme, "A Systematic Analysis of Performance Measures for Classification
        Tasks", Information Processing and Management, 2009.

    >>> predictions, labels = jnp.array([0, 1, 1, 1]), jnp.array([0, 0, 1, 1])
    >>> accuracy(classification_counts(predictions, labels, num_classes=2))
    Array(0.75, dtype=float32)
    """
    entries = counts.tp + counts.fp + counts.fn + counts.tn
    return _ratio(_as_float(jnp.sum(counts.tp, -1)), _as_float(entries[..., 0]), 0.0)


def precision(
    counts: ClassificationCounts,
    *,
    average: Average = None,
    zero_division: Real[ArrayLike, ""] = 0.0,
) -> Array:
    r"""Of the entries that were predicted to be of a class, the share that are.

    $$P_c = \frac{\text{tp}_c}{\text{tp}_c + \text{fp}_c}$$

    Args:
        counts: of `classification_counts`, or a sum of them.
        average, zero_division: as in `fbeta_score`; a class never predicted has no precision.

    Returns:
        `[classes]`, or a scalar with `average`, in float32 at least.

    Raises:
        ValueError: for an unknown `average`.

    References:
        Kent, Berry, Luehrs and Perry, "Machine Literature Searching VIII: Operational Criteria for
        Designing Information Retrieval Systems", American Documentation, 1955.

    >>> predictions, labels = jnp.array([0, 1, 1, 1]), jnp.array([0, 0, 0, 1])
    >>> print(precision(classification_counts(predictions, labels, num_classes=2)))
    [1.         0.33333334]
    """
    return fbeta_score(counts, beta=0.0, average=average, zero_division=zero_division)


def recall(
    counts: ClassificationCounts,
    *,
    average: Average = None,
    zero_division: Real[ArrayLike, ""] = 0.0,
) -> Array:
    r"""Of the entries that are of a class, the share that were predicted to be.

    $$R_c = \frac{\text{tp}_c}{\text{tp}_c + \text{fn}_c}$$

    Args:
        counts: of `classification_counts`, or a sum of them.
        average, zero_division: as in `fbeta_score`; a class without entries has no recall.

    Returns:
        `[classes]`, or a scalar with `average`, in float32 at least.

    Raises:
        ValueError: for an unknown `average`.

    References:
        Kent, Berry, Luehrs and Perry, "Machine Literature Searching VIII: Operational Criteria for
        Designing Information Retrieval Systems", American Documentation, 1955.

    >>> predictions, labels = jnp.array([0, 1, 1, 1]), jnp.array([0, 0, 0, 1])
    >>> print(recall(classification_counts(predictions, labels, num_classes=2)))
    [0.33333334 1.        ]
    """
    return fbeta_score(counts, beta=math.inf, average=average, zero_division=zero_division)


def fbeta_score(
    counts: ClassificationCounts,
    *,
    beta: Real[ArrayLike, ""],
    average: Average = None,
    zero_division: Real[ArrayLike, ""] = 0.0,
) -> Array:
    r"""The harmonic mean of precision and recall, where recall counts `beta` squared times.

    $$F_{\beta, c} = \frac{(1 + \beta^2) \, \text{tp}_c}{\beta^2 (\text{tp}_c + \text{fn}_c)
    + (\text{tp}_c + \text{fp}_c)}$$

    It is the precision at $\beta = 0$ and the recall at $\beta = \infty$.

    Args:
        counts: of `classification_counts`, or a sum of them.
        beta: $\beta \ge 0$, a scalar; infinity is allowed.
        average: None for the score of each class; "micro" for the score of the counts summed over
            the classes, which is the accuracy if every number is of a class; "macro" for the mean
            over the classes; "weighted" for the mean by the number of their entries,
            $\text{tp}_c + \text{fn}_c$ (all alike if there are none).
        zero_division: the score of a class without one, 0 over 0; NaN leaves it out of the means.

    Returns:
        `[classes]`, or a scalar with `average`, in float32 at least.

    Raises:
        ValueError: for an unknown `average`.

    A negative `beta` gives NaN. The macro average is the mean of F scores, not the F score of mean
    precision and mean recall, which is another number of the same name.

    References:
        van Rijsbergen, "Information Retrieval", Butterworths, 1979, chapter 7. The two macro
        averages: Opitz and Burst, "Macro F1 and Macro F1", 2019.

    >>> predictions, labels = jnp.array([0, 1, 1, 1]), jnp.array([0, 0, 0, 1])
    >>> counts = classification_counts(predictions, labels, num_classes=2)
    >>> fbeta_score(counts, beta=3.0, average="micro")
    Array(0.5, dtype=float32)
    """
    if average not in (None, "micro", "macro", "weighted"):
        choices = "None, 'micro', 'macro' or 'weighted'"
        raise ValueError(f"`average` should be {choices}, but is {average!r}")
    tp, real, predicted = counts.tp, counts.tp + counts.fn, counts.tp + counts.fp
    if average == "micro":
        tp, real, predicted = (jnp.sum(count, -1) for count in (tp, real, predicted))
    tp, beta, otherwise = floats(tp=_as_float(tp), beta=beta, zero_division=zero_division)
    expect_shape("beta", beta, ())
    expect_shape("zero_division", otherwise, ())
    # beta^2 and 1, over the larger of them: no square overflows.
    of_recall, of_precision = jnp.minimum(beta, 1) ** 2, (1 / jnp.maximum(beta, 1)) ** 2
    whole = of_recall * _as_float(real) + of_precision * _as_float(predicted)
    scores = _ratio((of_recall + of_precision) * tp, whole, otherwise)
    insist(beta >= 0, "`beta` should not be negative")
    scores = nan_unless(beta >= 0, scores)
    if average in (None, "micro"):
        return scores
    entries = real if average == "weighted" else jnp.ones_like(real)
    return _mean_over_classes(scores, entries, (whole != 0) | ~jnp.isnan(otherwise))


def f1_score(
    counts: ClassificationCounts,
    *,
    average: Average = None,
    zero_division: Real[ArrayLike, ""] = 0.0,
) -> Array:
    r"""The harmonic mean of precision and recall.

    $$F_{1, c} = \frac{2 \, \text{tp}_c}{2 \, \text{tp}_c + \text{fp}_c + \text{fn}_c}$$

    Args:
        counts: of `classification_counts`, or a sum of them.
        average, zero_division: as in `fbeta_score`; a class without entries and never predicted
            has no score.

    Returns:
        `[classes]`, or a scalar with `average`, in float32 at least.

    Raises:
        ValueError: for an unknown `average`.

    References:
        Dice, "Measures of the Amount of Ecologic Association Between Species", Ecology, 1945. van
        Rijsbergen, "Information Retrieval", Butterworths, 1979, chapter 7.

    >>> predictions, labels = jnp.array([0, 1, 1, 1]), jnp.array([0, 0, 0, 1])
    >>> f1_score(classification_counts(predictions, labels, num_classes=2))
    Array([0.5, 0.5], dtype=float32)
    """
    return fbeta_score(counts, beta=1.0, average=average, zero_division=zero_division)


def _as_float(counts: Array) -> Array:
    """Counts in the dtype that they are divided in, float32 at least."""
    return floats(once=1.0, counts=counts)[1]


def _ratio(part: Array, whole: Array, otherwise: ArrayLike) -> Array:
    """`part / whole`; `otherwise` where the whole is 0."""
    return jnp.where(whole == 0, otherwise, part / jnp.where(whole == 0, 1, whole))


def _mean_over_classes(scores: Array, entries: Array, left: Array) -> Array:
    """The mean of the scores that are left, by entries if there are any; NaN if none is left."""
    share = jnp.where(left, _as_float(entries), 0)
    share = jnp.where(jnp.any(share != 0, -1, keepdims=True), share, _as_float(left))
    return jnp.sum(share * jnp.where(left, scores, 0), -1) / jnp.sum(share, -1)


def top_k_accuracy(
    logits: Float[ArrayLike, "*batch classes"],
    labels: Int[ArrayLike, "*batch"],
    *,
    k: Int[ArrayLike, ""] = 5,
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = mean,
) -> R:
    r"""1 where the label is among the `k` classes with the largest logits, 0 where it is not.

    $$a = \big[\, |\{j : x_j > x_y\}| + |\{j > y : x_j = x_y\}| < k \,\big]$$

    Of equal logits the class with the larger number ranks first, as in scikit-learn. A logit that
    is NaN ranks above all others and is no hit.

    Args:
        logits: $x$, any shape; anything else that ranks the classes will do.
        labels: $y$, class numbers from 0, of the shape of the logits without `axis`.
        k: how many classes may be named; of all classes or more, everything is a hit.
        axis: the axes along which the classes lie.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes, which then rank nowhere.

    Returns:
        The mean over the entries, unless `reduction` says otherwise: `tally` gives what may be
        added up, `each` one value per label.

    Raises:
        ValueError: for labels whose shape is not that of the logits without `axis`.
        TypeError: for logits that are not floating, labels or `k` that are not integers.

    A label outside [0, classes), or one that a class mask hides, gives NaN.

    References:
        Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", International
        Journal of Computer Vision, 2015.

    >>> logits = jnp.array([[0.1, 0.3, 0.6], [0.5, 0.4, 0.1]])
    >>> top_k_accuracy(logits, jnp.array([1, 2]), k=2)
    Array(0.5, dtype=float32)
    """
    logits, axis = consumed("logits", logits, axis)
    y, k = labelled(labels, logits.shape, axis, where, weights), integers("k", k)
    expect_shape("k", k, ())
    (x,) = floats(logits=logits)
    own = jnp.expand_dims(pick(x, y.number, axis), axis)
    later = class_index(x, axis, y.number.dtype) > jnp.expand_dims(y.number, axis)
    above = ~((x < own) | ((x == own) & ~later))
    if y.classes is not None:
        above &= y.classes
    rank = jnp.sum(above, axis, dtype=k.dtype)
    values = ((rank < k) & ~jnp.isnan(jnp.squeeze(own, axis))).astype(x.dtype)
    return finish(nan_unless(y.known, values), reduction, where=y.rows, weights=y.weights)
