"""Classes along axes: which is the label, what stands at it, and what it costs under a softmax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType
from jax.typing import ArrayLike

from jloss._core.checks import insist, nan_unless
from jloss._core.devices import total
from jloss._core.inputs import (
    Axis,
    align,
    as_array,
    at_least_float32,
    clean,
    consumed,
    expect_shape,
    floats,
    integers,
    masks,
    required,
    without,
)
from jloss._core.numerics import lean, product


class Labels(NamedTuple):
    """Class numbers through the door: what a loss of logits and labels knows of its rows."""

    number: Array  # the label; 0 where it is none
    known: Array  # whether it is a class, and one that is there; true of a deleted row
    classes: Array | None  # the mask over the logits, and
    rows: Array | None  # over the values, both as of `masks`
    weights: ArrayLike | None  # of the rows, times those of their labels


def labelled(
    labels: ArrayLike,
    shape: tuple[int, ...],
    axis: tuple[int, ...],
    where: ArrayLike | None,
    weights: ArrayLike | None,
    class_weights: ArrayLike | None = None,
) -> Labels:
    """The door in for class numbers that go with scores of `shape`, classes along `axis`."""
    y = integers("labels", labels)
    hint = "one-hot rows and probabilities go to softmax_cross_entropy"
    expect_shape("labels", y, without(shape, axis), hint)
    sizes = tuple(shape[a] for a in axis)
    known = (y >= 0) & (y < math.prod(sizes))
    y = jnp.where(known, y, 0)
    if class_weights is not None:
        weights = times_class_weight(weights, class_weights, sizes, y, known)
    classes, rows = masks(where, weights, shape, axis)
    if classes is not None:
        known &= jnp.any(is_label(classes, y, axis) & classes, axis)
    message = f"`labels` should lie in [0, {math.prod(sizes)}), at classes that `where` leaves"
    known = required(known, rows, message)
    return Labels(y, known, classes, rows, weights)


def surprises(
    logits: Array,
    y: Labels,
    axis: tuple[int, ...],
    before: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """-log softmax(before(logits)) at the labels: what losses of logits and labels begin with."""

    @lean
    def formula(x):
        (x,) = floats(logits=x)
        x = before(clean(x, y.classes, y.rows, axis))
        x = clean(x, y.classes, y.rows, axis, -jnp.inf)
        return softmax_surprise(x, y.number, axis)[0]

    return formula(logits)


def over_classes(
    formula: Callable[[Array, Array, tuple[int, ...]], Array],
    output: ArrayLike,
    truth: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    *,
    names: tuple[str, str],
    fills: tuple[float, float] = (0, 0),
    hint: str = "",
) -> tuple[Array, Array | None]:
    """The door in for two arrays that both lie along `axis`.

    Returns:
        `formula(x, y, axis)` of the arrays as floats, with `fills` for deleted entries and 0 in
        deleted rows; and which rows are there.
    """
    (x, axis), y = consumed(names[0], output, axis), as_array(names[1], truth)
    expect_shape(names[1], y, x.shape, hint)
    entries, rows = masks(where, weights, x.shape, axis)

    @lean
    def cleaned(x, y):
        x, y = floats(**dict(zip(names, (x, y))))
        x, y = (clean(a, entries, rows, axis, fill) for a, fill in zip((x, y), fills))
        return formula(x, y, axis)

    return cleaned(x, y), rows


def counts_of_classes(counts: ArrayLike, x: Array, axis: tuple[int, ...]) -> Array:
    """How many examples each class has, along `axis` of `x`; NaN for less than none."""
    counts = as_array("class_counts", counts)
    expect_shape("class_counts", counts, tuple(x.shape[a] for a in axis))
    counts = counts.transpose(sorted(range(len(axis)), key=axis.__getitem__)).astype(x.dtype)
    insist(counts >= 0, "`class_counts` should not be negative")
    counts = nan_unless(counts >= 0, counts)
    return jnp.expand_dims(counts, tuple(a for a in range(x.ndim) if a not in axis))


def times_class_weight(
    weights: ArrayLike | None,
    class_weights: ArrayLike,
    sizes: tuple[int, ...],
    labels: Array,
    known: Array,
) -> Array:
    """The weights of the entries times those of their labels; an unknown label has weight 1."""
    (by_class,) = at_least_float32(as_array("class_weights", class_weights))
    expect_shape("class_weights", by_class, sizes)
    by_class = by_class.reshape((1,) * labels.ndim + (-1,))
    of_label = jnp.where(known, pick(by_class, labels, (labels.ndim,)), 1)
    if weights is None:
        return of_label
    return of_label * align("weights", weights, labels.shape).astype(of_label.dtype)


def class_index(x: Array, axis: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """The number of each class along `axis`, several axes counted as one; 1 long elsewhere."""
    index = jnp.zeros((1,) * x.ndim, dtype)
    for a in axis:
        along = tuple(n if b == a else 1 for b, n in enumerate(x.shape))
        index = index * x.shape[a] + jax.lax.broadcasted_iota(dtype, along, a)
    return index


def is_label(x: Array, labels: Array, axis: tuple[int, ...]) -> Array:
    """Whether each class is the label: a one-hot array that XLA never has to hold."""
    return class_index(x, axis, labels.dtype) == jnp.expand_dims(labels, axis)


def pick(x: Array, labels: Array, axis: tuple[int, ...]) -> Array:
    """What `x` holds at the labels.

    A gather cannot be resolved over an axis that an Explicit mesh shards, and for bfloat16 logits
    it makes a TPU hold them in float32; a select does neither, but on CPU it holds an array of
    the size of `x`. Labels have to be classes.
    """
    select = lambda x, labels: jnp.sum(jnp.where(is_label(x, labels, axis), x, 0), axis)
    meshes = (jax.typeof(array).sharding.mesh for array in (x, labels))
    if len(axis) != 1 or any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        return select(x, labels)
    along = lambda labels: jnp.expand_dims(labels, axis)
    gather = lambda x, labels: jnp.take_along_axis(x, along(labels), axis[0]).squeeze(axis)
    return jax.lax.platform_dependent(x, labels, cpu=gather, default=select)


def costs(x: Array, axis: tuple[int, ...]) -> Array:
    """-log softmax(x) of every class, which keeps its digits for the likeliest too."""
    top = first_largest(x, axis, jnp.int32)
    surprise, _ = softmax_surprise(x, top, axis)
    behind = jnp.expand_dims(pick(x, top, axis), axis) - x
    behind = jnp.where(is_label(x, top, axis), 0, behind)  # or the slopes of a - a would round
    return jnp.expand_dims(surprise, axis) + behind


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def entropy(x: Array, axis: tuple[int, ...]) -> Array:
    """The entropy of softmax(x).

    Its rule is what plain differentiation gives (its twin is `entropy.fun`), but for terms that
    cancel: without it the slopes near the uniform distribution lose three digits of seven.
    """
    cost = costs(x, axis)
    return jnp.sum(product(jnp.exp(-cost), cost), axis)


@entropy.defjvp
def _(axis, primals, tangents):
    (x,), (tangent,) = primals, tangents
    p = jnp.exp(-costs(x, axis))
    behind = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True)) - x
    mean = jnp.sum(product(p, behind), axis, keepdims=True)
    return entropy(x, axis), jnp.sum(product(p, behind - mean) * tangent, axis)


def of_device(x: Array, classes: Array, axis_name: str | None) -> Array:
    """The numbers of classes among those of this device, which lie last; one beyond for others'."""
    if axis_name is None:
        return classes
    own = classes - jax.lax.axis_index(axis_name) * x.shape[-1]
    return jnp.where((own >= 0) & (own < x.shape[-1]), own, x.shape[-1])


def gather(x: Array, at: Array) -> Array:
    """What each of [batch, rows, classes] holds at its sequence's [batch, n]; 0 beyond them all."""
    look = lambda x, at: x.at[:, at].get(mode="fill", fill_value=0)
    return jax.vmap(look)(x, at)


def classes_over_devices(x: Array, axis_name: str | None) -> int:
    """How many classes there are on all devices."""
    return x.shape[-1] * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def log_sum_exp(x: Array, axis_name: str | None = None) -> Array:
    """Over the classes, which lie last and may be split over devices; -inf where there is none."""
    top, rest = log_sum_exp_parts(x, axis_name)
    return rest + top


def log_sum_exp_parts(x: Array, axis_name: str | None = None) -> tuple[Array, Array]:
    """The largest, and what is to be added: less the one and then the other rounds less."""
    top = jax.lax.stop_gradient(jnp.max(x, -1))
    top = top if axis_name is None else jax.lax.pmax(top, axis_name)
    top = jnp.where(jnp.isfinite(top), top, 0)
    e = total(jnp.sum(jnp.exp(x - top[..., None]), -1), axis_name)
    return top, jnp.where(e == 0, -jnp.inf, jnp.log(jnp.where(e == 0, 1, e)))


def first_largest(x: Array, axis: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """The number of the largest class along `axis` (argmax, over several and sharded axes too)."""
    largest = x == jnp.max(x, axis, keepdims=True)
    return jnp.min(jnp.where(largest, class_index(x, axis, dtype), jnp.iinfo(dtype).max), axis)


def softmax_surprise(x: Array, labels: Array, axis: tuple[int, ...]) -> tuple[Array, Array]:
    """-log softmax(x) at the labels, and the log-sum-exp; both exact for a confident row too.

    log(1 + sum of the others / own) keeps its digits where log-sum-exp less own cancels.
    """
    surprise, logsumexp, _ = rounded_surprise(x, labels, axis)
    return surprise, logsumexp


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def rounded_surprise(x: Array, labels: Array, axis: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """As `softmax_surprise`, and what exp(x - logsumexp) sums to: 1, but for rounding.

    The rule is what plain differentiation gives (its twin is `rounded_surprise.fun`), in one pass:
    for float32 [4096, 32768] on CPU value and gradient need 0.05 MiB where the twin needs 512.
    """
    top = jax.lax.stop_gradient(jnp.max(x, axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    rest = jnp.sum(jnp.where(is_label(x, labels, axis), 0, jnp.exp(x - top)), axis)
    top, own = jnp.squeeze(top, axis), pick(x, labels, axis)
    others = jnp.log(rest) + top
    logsumexp = jnp.logaddexp(others, own)
    one = (rest + jnp.exp(own - top)) * jnp.exp(top - logsumexp)
    return jax.nn.softplus(others - own), logsumexp, jax.lax.stop_gradient(one)


@rounded_surprise.defjvp
def _(axis, primals, tangents):
    (x, labels), (tangent, _) = primals, tangents
    surprise, logsumexp, one = rounded_surprise(x, labels, axis)
    share = jnp.exp(x - jnp.expand_dims(logsumexp, axis)) / jnp.expand_dims(one, axis)
    less = jnp.expand_dims(jnp.expm1(-surprise), axis)
    slope = jnp.where(is_label(x, labels, axis), less, share)
    along = jnp.sum(slope * tangent, axis), jnp.sum(share * tangent, axis), jnp.zeros_like(one)
    return (surprise, logsumexp, one), along
