"""Metrics: scikit-learn's numbers, and what is true of counts that add up."""

import functools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import metrics as sklearn

import jloss
from jloss.metrics import (
    ClassificationCounts,
    accuracy,
    classification_counts,
    confusion_matrix,
    f1_score,
    fbeta_score,
    precision,
    recall,
    top_k_accuracy,
)

CLASSES, ENTRIES = 4, 8
AVERAGES = [None, "micro", "macro", "weighted"]
BETAS = jnp.array([0.5, 1.0, 2.0, 0.0, jnp.inf])

count = functools.partial(classification_counts, num_classes=CLASSES)
matrix = functools.partial(confusion_matrix, num_classes=CLASSES)
quick_count, quick_matrix = jax.jit(count), jax.jit(matrix)


@functools.cache
def quick(score, average):
    return jax.jit(functools.partial(score, average=average))


@functools.cache
def quick_betas(average):
    def scores(counts, zero_division):
        def score(beta):
            return fbeta_score(counts, beta=beta, average=average, zero_division=zero_division)

        return jax.vmap(score)(BETAS)

    return jax.jit(scores)


quick_top_k = jax.jit(top_k_accuracy, static_argnames=("axis", "reduction"))


def numbers(low=0, high=CLASSES - 1):
    entry = st.integers(low, high)
    return st.lists(entry, min_size=ENTRIES, max_size=ENTRIES).map(lambda n: np.array(n, np.int32))


masks = st.lists(st.booleans(), min_size=ENTRIES, max_size=ENTRIES).map(np.array)
repeats = numbers(0, 3).filter(np.any) | st.none()  # scikit-learn refuses weights of 0 alone
few = settings(max_examples=40, deadline=None)


def random_batch(seed=0, entries=64, low=0, high=CLASSES):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.integers(low, high, entries, np.int32)) for _ in range(2))


def subset(mask, *arrays):
    return (None if array is None else array[mask] for array in arrays)


# Counts


@few
@given(numbers(-2, CLASSES + 1), numbers(-2, CLASSES + 1), masks, repeats)
def test_counts_are_scikit_learns_with_numbers_of_no_class(predictions, labels, mask, weights):
    p, y, w = subset(mask, predictions, labels, weights)
    assume(mask.any() and (w is None or w.any()))
    want = sklearn.multilabel_confusion_matrix(y, p, labels=range(CLASSES), sample_weight=w)
    predictions[~mask], labels[~mask] = 10**9, -100
    got = quick_count(predictions, labels, where=mask, weights=weights)
    assert_array_equal(np.stack([got.tn, got.fp, got.fn, got.tp], -1), want.reshape(-1, 4))


@few
@given(numbers(-2, CLASSES + 1), numbers(-2, CLASSES + 1), masks, repeats)
def test_confusion_matrix_is_scikit_learns(predictions, labels, mask, weights):
    p, y, w = subset(mask, predictions, labels, weights)
    assume(np.isin(y, range(CLASSES)).any() and (w is None or w.any()))
    want = sklearn.confusion_matrix(y, p, labels=range(CLASSES), sample_weight=w)
    predictions[~mask], labels[~mask] = -1, 10**9
    got = quick_matrix(predictions, labels, where=mask, weights=weights)
    assert_array_equal(got, want)


def test_a_label_of_no_class_is_a_false_positive_and_a_prediction_of_none_a_false_negative():
    got = count(jnp.array([1, -1, 7, -1]), jnp.array([CLASSES, 2, 3, -1]))
    assert_array_equal(got.fp, [0, 1, 0, 0])
    assert_array_equal(got.fn, [0, 0, 1, 1])
    assert_array_equal(got.tp, [0, 0, 0, 0])
    assert_array_equal(got.tn, [4, 3, 3, 3])


def test_confusion_matrix_holds_the_counts():
    p, y = random_batch(1)
    counts, table = count(p, y), matrix(p, y)
    assert_array_equal(jnp.diag(table), counts.tp)
    assert_array_equal(jnp.sum(table, 1), counts.tp + counts.fn)
    assert_array_equal(jnp.sum(table, 0), counts.tp + counts.fp)
    assert_array_equal(counts.tp + counts.fp + counts.fn + counts.tn, [p.size] * CLASSES)


@pytest.mark.parametrize("counting", [count, matrix])
def test_weights_repeat(counting):
    p, y = random_batch(2)
    w = np.random.default_rng(2).integers(0, 4, p.size)
    weighted, repeated = counting(p, y, weights=w), counting(np.repeat(p, w), np.repeat(y, w))
    jax.tree.map(assert_array_equal, weighted, repeated)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=3))
def test_any_shape_counts_like_its_entries_in_a_row(shape):
    p, y = random_batch(3, tuple(shape))
    jax.tree.map(assert_array_equal, quick_count(p, y), quick_count(p.ravel(), y.ravel()))


def test_masks_and_weights_lie_along_leading_axes():
    p, y = random_batch(4, (3, 4))
    where, weights = jnp.array([True, False, True]), jnp.array([2.0, jnp.nan, 0.5])
    rows = count(p[::2], y[::2], weights=jnp.array([[2.0] * 4, [0.5] * 4]))
    jax.tree.map(assert_array_equal, count(p, y, where=where, weights=weights), rows)


def test_counts_without_weights_are_exact_where_float32_is_not():
    seen = 2**24
    assert np.float32(seen) + np.float32(1) == np.float32(seen)
    state = ClassificationCounts(*[jnp.full(CLASSES, seen, jnp.int32)] * 4)
    one = count(jnp.array([1]), jnp.array([1]))
    assert_array_equal((state + one).tp, [seen, seen + 1, seen, seen])
    assert_array_equal((one + state + one + one).tn, [seen + 3, seen, seen + 3, seen + 3])


def test_dtypes():
    p, y = random_batch(5)
    for weights, dtype in [(None, jnp.int32), (jnp.ones(p.size, jnp.bfloat16), jnp.float32)]:
        got = count(p.astype(jnp.int8), y.astype(jnp.uint16), weights=weights)
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
        assert matrix(p, y, weights=weights).dtype == dtype
        for average in AVERAGES:
            assert f1_score(got, average=average).dtype == jnp.float32
        assert accuracy(got).dtype == jnp.float32


@pytest.mark.parametrize("counting", [count, matrix])
def test_batches_add_up(counting):
    p, y = random_batch(6, low=-1)
    whole = counting(p, y)
    halves = jax.tree.map(jnp.add, counting(p[:20], y[:20]), counting(p[20:], y[20:]))

    def step(total, batch):
        return jax.tree.map(jnp.add, total, counting(*batch)), None

    batches = p.reshape(8, 8), y.reshape(8, 8)
    scanned, _ = jax.jit(lambda b: jax.lax.scan(step, jax.tree.map(jnp.zeros_like, whole), b))(
        batches
    )
    mapped = jax.vmap(counting)(*batches)
    summed = jax.tree.map(lambda c: jnp.sum(c, 0), mapped)
    named = jax.vmap(functools.partial(counting, axis_name="i"), axis_name="i", out_axes=None)
    for total in halves, scanned, summed, named(*batches):
        jax.tree.map(assert_array_equal, total, whole)


def test_only_counts_add_to_counts():
    with pytest.raises(TypeError):
        count(jnp.array([0]), jnp.array([0])) + 1


@pytest.mark.parametrize("counting", [count, matrix])
@pytest.mark.parametrize("weighted", [False, True])
def test_three_sharding_modes(counting, weighted):
    p, y = random_batch(7, low=-1)
    w = jnp.ones(p.size) * 2 if weighted else None
    whole = counting(p, y, weights=w)
    for kind in AxisType.Explicit, AxisType.Auto:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(kind,))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        batch = jax.device_put((p, y, w), rows)
        got = jax.jit(lambda p, y, w: counting(p, y, weights=w))(*batch)
        jax.tree.map(assert_array_equal, got, whole)
        manual = jax.shard_map(
            lambda p, y, w: counting(p, y, weights=w, axis_name="data"),
            mesh=mesh,
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec(),
        )
        jax.tree.map(assert_array_equal, jax.jit(manual)(*batch), whole)


def test_memory_grows_with_entries_and_classes_not_their_product():
    n = 4096
    entries = jax.ShapeDtypeStruct((n,), jnp.int32)
    many = jax.jit(functools.partial(classification_counts, num_classes=n))
    memory = many.lower(entries, entries).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 2 * n < n * n


# Ratios


@pytest.mark.parametrize("average", AVERAGES)
@few
@given(
    predictions=numbers(-1, CLASSES),
    labels=numbers(-1, CLASSES),
    weights=repeats,
    zero_division=st.sampled_from([0.0, 1.0, math.nan]),
)
def test_scores_are_scikit_learns(average, predictions, labels, weights, zero_division):
    counts = quick_count(predictions, labels, weights=weights)
    wants = [
        sklearn.precision_recall_fscore_support(
            labels,
            predictions,
            beta=float(beta),
            labels=range(CLASSES),
            average=average,
            sample_weight=weights,
            zero_division=zero_division,
        )
        for beta in BETAS
    ]
    p, r, _, support = wants[0]
    assert_allclose(quick(precision, average)(counts, zero_division=zero_division), p, 1e-6)
    assert_allclose(quick(recall, average)(counts, zero_division=zero_division), r, 1e-6)
    got = quick_betas(average)(counts, zero_division)
    assert_allclose(got, np.stack([f for _, _, f, _ in wants]), 2e-6)
    one = quick(f1_score, average)(counts, zero_division=zero_division)
    assert_allclose(one, got[1], 2e-7)
    if average is None:
        assert_array_equal(counts.tp + counts.fn, support)


@few
@given(numbers(), numbers(), repeats)
def test_accuracy_is_scikit_learns(predictions, labels, weights):
    want = sklearn.accuracy_score(labels, predictions, sample_weight=weights)
    assert_allclose(accuracy(quick_count(predictions, labels, weights=weights)), want, 1e-6)


def test_a_label_of_no_class_is_wrong_whatever_was_predicted():
    assert accuracy(count(jnp.array([0, 1, -1, 9]), jnp.array([0, -1, -1, 9]))) == 0.25


def test_micro_averages_are_the_accuracy():
    counts = count(*random_batch(8))
    for score in precision, recall, f1_score, functools.partial(fbeta_score, beta=3.0):
        assert_allclose(score(counts, average="micro"), accuracy(counts), 1e-7)


def test_weighted_recall_is_the_accuracy():
    counts = count(*random_batch(9))
    assert_allclose(recall(counts, average="weighted"), accuracy(counts), 2e-7)


def test_transposing_the_confusion_swaps_precision_and_recall():
    p, y = random_batch(10)
    assert_array_equal(precision(count(p, y)), recall(count(y, p)))
    got, swapped = (fbeta_score(count(*b), beta=b_) for b, b_ in [((p, y), 2.0), ((y, p), 0.5)])
    assert_allclose(got, swapped, 1e-6)


def test_nothing_counted_is_zero_or_what_was_asked_for():
    nothing = count(jnp.array([7, -3]), jnp.array([0, 1]), where=jnp.zeros(2, bool))
    assert accuracy(nothing) == 0
    for average in AVERAGES:
        for otherwise in 0, 1, math.nan:
            got = fbeta_score(nothing, beta=1, average=average, zero_division=otherwise)
            assert_array_equal(got, np.full(got.shape, otherwise))


def test_a_bad_weight_is_not_averaged_away():
    weights = jnp.array([1.0, jnp.nan, 1.0])
    counts = count(jnp.array([0, 1, 2]), jnp.array([0, 1, 2]), weights=weights)
    assert jnp.isnan(f1_score(counts, average="macro", zero_division=math.nan))


def test_slope_in_beta():
    counts = jax.tree.map(jnp.float32, count(*random_batch(11)))
    tp, real, predicted = counts.tp, counts.tp + counts.fn, counts.tp + counts.fp
    for beta in 0.0, 0.5, 1.0, 2.0, 30.0:
        slope = jax.jacfwd(lambda b: fbeta_score(counts, beta=b))(beta)
        want = 2 * beta * tp * (predicted - real) / (beta**2 * real + predicted) ** 2
        assert_allclose(slope, want, 1e-5, 1e-7)


def test_no_square_of_beta_overflows():
    counts = count(*random_batch(12))
    assert_allclose(fbeta_score(counts, beta=1e30), recall(counts), 1e-6)


def test_a_negative_beta_is_nan():
    assert jnp.isnan(fbeta_score(count(*random_batch(13)), beta=-1.0, average="macro"))


def test_scores_lie_along_the_last_axis():
    p, y = random_batch(14, (3, 16))
    stacked = jax.vmap(count)(p, y)
    for average in AVERAGES:
        score = quick(f1_score, average)
        assert_array_equal(score(stacked), jax.vmap(score)(stacked))
    assert_array_equal(accuracy(stacked), jax.vmap(accuracy)(stacked))


TWO = jnp.array([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: count(jnp.ones(2), TWO), TypeError, "`predictions`"),
        (lambda: count(TWO, TWO > 0), TypeError, "`labels`"),
        (lambda: matrix(TWO, jnp.ones(2)), TypeError, "`labels`"),
        (lambda: count(TWO, TWO[:, None]), ValueError, "`labels`"),
        (lambda: matrix(TWO, TWO[:1]), ValueError, "`labels`"),
        (lambda: count(TWO, TWO, where=TWO), TypeError, "`where`"),
        (lambda: count(TWO, TWO, weights=jnp.ones(3)), ValueError, "`weights`"),
        (lambda: classification_counts(TWO, TWO, num_classes=0), ValueError, "`num_classes`"),
        (lambda: recall(count(TWO, TWO), average="samples"), ValueError, "'macro'"),
        (lambda: fbeta_score(count(TWO, TWO), beta=jnp.ones(4)), ValueError, "`beta`"),
        (lambda: top_k_accuracy(TWO, TWO[0]), TypeError, "`logits`"),
        (lambda: top_k_accuracy(jnp.eye(2), jnp.ones(2)), TypeError, "`labels`"),
        (lambda: top_k_accuracy(jnp.eye(3), TWO), ValueError, "`labels`"),
        (lambda: top_k_accuracy(jnp.eye(2), TWO, k=1.5), TypeError, "`k`"),
        (lambda: top_k_accuracy(jnp.eye(2), TWO, k=TWO), ValueError, "`k`"),
        (lambda: top_k_accuracy(jnp.eye(2), TWO, reduction="mean"), TypeError, "jloss.mean"),
    ],
)
def test_what_is_wrong_is_told_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()


# Top k


@few
@given(st.data(), numbers(), masks, repeats, st.integers(1, CLASSES - 1))
def test_top_k_is_scikit_learns_with_ties(data, labels, mask, weights, k):
    logits = np.stack([data.draw(numbers(0, 3)) for _ in range(CLASSES)], -1).astype(np.float32)
    x, y, w = subset(mask, logits, labels, weights)
    assume(mask.any() and (w is None or w.any()))
    want = sklearn.top_k_accuracy_score(y, x, k=k, labels=range(CLASSES), sample_weight=w)
    logits[~mask], labels[~mask] = np.nan, -100
    assert_allclose(quick_top_k(logits, labels, k=k, where=mask, weights=weights), want, 1e-6)


def random_logits(seed, entries=64, classes=CLASSES):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(entries, classes)).astype(np.float32))
    return x, jnp.asarray(rng.integers(0, classes, entries))


def test_of_equal_logits_the_larger_class_ranks_first():
    hits = top_k_accuracy(jnp.zeros((3, 3)), jnp.arange(3), k=2, reduction=jloss.each)
    assert_array_equal(hits, [0, 1, 1])


def test_one_guess_is_the_accuracy_and_all_classes_are_always_right():
    x, y = random_logits(0)
    assert_allclose(top_k_accuracy(x, y, k=1), accuracy(count(jnp.argmax(x, -1), y)), 1e-7)
    assert_array_equal(top_k_accuracy(x, y, k=CLASSES), 1)
    assert_array_equal(top_k_accuracy(x, y, k=CLASSES + 1), 1)
    assert_array_equal(top_k_accuracy(x, y, k=0), 0)


def test_every_entry_is_first_hit_at_one_k():
    x, y = random_logits(1)
    hits = jax.vmap(lambda k: top_k_accuracy(x, y, k=k, reduction=jloss.each))(
        jnp.arange(CLASSES + 1)
    )
    rank = jnp.argmax(jnp.argsort(-x, -1) == y[:, None], -1)
    assert_array_equal(jnp.argmax(hits, 0), rank + 1)


def test_nan_ranks_above_all_and_is_no_hit():
    x, y = random_logits(2)
    x = x.at[::3, 1].set(jnp.nan).at[::4, 2].set(jnp.nan)
    own = jnp.take_along_axis(x, y[:, None], -1)[:, 0]
    for k in range(1, CLASSES + 2):
        hits = quick_top_k(x, y, k=k, reduction=jloss.each)
        clean = quick_top_k(jnp.nan_to_num(x, nan=jnp.inf), y, k=k, reduction=jloss.each)
        assert_array_equal(hits, jnp.where(jnp.isnan(own), 0, clean))


def test_a_class_mask_takes_the_class_away():
    x, y = random_logits(3)
    classes = jnp.array([True, True, False, True])
    there = y != 2
    kept, renumbered = x[there][:, classes], jnp.where(y > 2, y - 1, y)[there]
    for k in 1, 2, 3:
        got = quick_top_k(x, y, k=k, where=classes[None, :], reduction=jloss.each)
        assert_array_equal(jnp.isnan(got), ~there)
        want = quick_top_k(kept, renumbered, k=k, reduction=jloss.each)
        assert_array_equal(got[there], want)


def test_a_label_of_no_class_is_nan_alone_and_an_error_under_checked():
    x, y = random_logits(4)
    step = functools.partial(quick_top_k, k=2, reduction=jloss.each)
    want = step(x, y)
    assert set(np.asarray(want).tolist()) == {0, 1}
    for label in -1, CLASSES:
        bad = jnp.full_like(y, label).at[7].set(y[7])  # misses and hits alike
        assert_array_equal(step(x, bad), jnp.where(jnp.arange(y.size) == 7, want, jnp.nan))
    there = jnp.arange(y.size) == 7
    assert_array_equal(jloss.checked(step)(x, y), want)
    assert_array_equal(jloss.checked(step)(x, bad, where=there), jnp.where(there, want, 0))
    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(step)(x, bad)


def test_top_k_tallies_add_up():
    x, y = random_logits(5)
    part = functools.partial(quick_top_k, k=2, reduction=jloss.tally)
    total = part(x[:10], y[:10]) + part(x[10:], y[10:])
    assert_allclose(total.mean(), top_k_accuracy(x, y, k=2), 1e-7)


def test_classes_may_lie_along_any_axes():
    x, y = random_logits(6, classes=6)
    want = quick_top_k(x, y, k=2)
    assert_array_equal(quick_top_k(x.T, y, k=2, axis=0), want)
    assert_array_equal(quick_top_k(x.reshape(-1, 2, 3), y, k=2, axis=(1, 2)), want)


def test_half_precision_ranks_alike_in_float32():
    x, y = random_logits(7)
    half = x.astype(jnp.bfloat16)
    got = top_k_accuracy(half, y, k=2)
    assert got.dtype == jnp.float32
    assert_array_equal(got, top_k_accuracy(half.astype(jnp.float32), y, k=2))


@pytest.mark.parametrize("spec", [("data", None), (None, "data")])
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_top_k_sharded(spec, kind):
    x, y = random_logits(8, classes=8)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(kind,))
    shared = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    labels = jax.device_put(y, NamedSharding(mesh, PartitionSpec(spec[0])))
    got = jax.jit(functools.partial(top_k_accuracy, k=3))(shared, labels)
    assert_allclose(got, top_k_accuracy(x, y, k=3), 1e-7)


@pytest.mark.parametrize("counting", [count, matrix])
@pytest.mark.parametrize("name", ["predictions", "labels"])
def test_a_number_of_no_class_is_an_error_under_checked(counting, name):
    good, bad = jnp.arange(3), jnp.array([0, -1, CLASSES])
    batch = {"predictions": good, "labels": good, name: bad}
    there = jnp.array([True, False, False])
    step = jloss.checked(jax.jit(counting))
    jax.tree.map(assert_array_equal, step(**batch, where=there), counting(**batch, where=there))
    with pytest.raises(ValueError, match=f"`{name}`"):
        step(**batch)
