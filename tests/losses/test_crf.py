"""What is true of conditional random fields."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss
from jloss import crf_decode, crf_log_likelihood

decode = jax.jit(crf_decode)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
spans = functools.partial(pytest.mark.parametrize, "span")


SMALL = 4, 6, 3
FULL = np.array([6, 6, 6, 6])


def draw(batch, time, tags, seed=0, span=4.0):
    """Scores, tags, transitions, start and end, all random."""
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=(batch, time, tags))
    transitions = span * rng.uniform(size=(tags, tags))
    floats = (np.float32(a) for a in (scores, transitions, *rng.normal(size=(2, tags))))
    scores, transitions, start, end = floats
    return scores, rng.integers(tags, size=(batch, time)), transitions, start, end


@functools.partial(jax.jit, static_argnames="reduction")
def likelihood(scores, tags, transitions, start, end, **options):
    return crf_log_likelihood(scores, tags, transitions, start=start, end=end, **options)


def all_paths(time, tags):
    return np.array(list(itertools.product(range(tags), repeat=time)))


def path_scores(scores, paths, transitions, start, end):
    """Of every path through one sequence, [paths]."""
    own = jnp.sum(scores[np.arange(len(scores)), paths], 1)
    return (
        own
        + jnp.sum(transitions[paths[:, :-1], paths[:, 1:]], 1)
        + start[paths[:, 0]]
        + end[paths[:, -1]]
    )


def oracle(scores, tags, transitions, start, end):
    """By forward and backward sums in float64: value and gradients for one sequence."""
    x, a, start, end = (np.asarray(v, np.float64) for v in (scores, transitions, start, end))
    time, size = x.shape
    lse = scipy.special.logsumexp
    to, back = np.zeros((2, time, size))
    to[0], back[-1] = start + x[0], end
    for t in range(1, time):
        to[t] = lse(to[t - 1][:, None] + a, 0) + x[t]
    for t in range(time - 2, -1, -1):
        back[t] = lse(a + x[t + 1] + back[t + 1], 1)
    total = lse(to[-1] + end)
    pairs = to[:-1, :, None] + a + (x[1:] + back[1:])[:, None] - total
    one_hot, score = np.eye(size)[tags], np.sum(x[np.arange(time), tags])
    counts = np.zeros((size, size))
    np.add.at(counts, (tags[:-1], tags[1:]), 1)
    score += np.sum(a[tags[:-1], tags[1:]]) + start[tags[0]] + end[tags[-1]]
    slope = one_hot - np.exp(to + back - total)
    return score - total, slope, counts - np.exp(pairs).sum(0), slope[0], slope[-1]


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 2, 3, 4), has_aux=True)
def value_and_gradients(scores, tags, *shared, lengths=None):
    values = likelihood(scores, tags, *shared, lengths=lengths)
    return jnp.sum(values), values


def agrees(args, rtol):
    """With the oracle: values relatively, gradients relatively to the largest."""
    (_, values), gradients = value_and_gradients(*args)
    scores, tags, *shared = args
    with np.errstate(all="ignore"):
        rows = [oracle(x, y, *shared) for x, y in zip(scores, tags)]
    close(values, [row[0] for row in rows], rtol=rtol, atol=1e-11)
    exact = [np.stack([row[1] for row in rows])]
    exact += [sum(row[i] for row in rows) for i in (2, 3, 4)]
    for got, expected in zip(gradients, exact):
        close(got, expected, rtol=0, atol=rtol * np.abs(expected).max() + 1e-11)  # the oracle's


# against all paths ----------------------------------------------------------------------------


def test_it_is_the_share_of_all_paths():
    scores, _, *shared = draw(1, 4, 3)
    paths = all_paths(4, 3)
    got = likelihood(np.repeat(scores, len(paths), 0), paths, *shared)
    close(got, jax.nn.log_softmax(path_scores(scores[0], paths, *shared)))
    close(np.exp(got).sum(), 1)


def test_the_best_path_is_the_best_of_all():
    scores, _, *shared = draw(20, 4, 3)
    paths, (matrix, start, end) = all_paths(4, 3), shared
    every = np.stack([path_scores(x, paths, *shared) for x in scores])
    best = decode(scores, matrix, start=start, end=end)
    np.testing.assert_array_equal(best.tags, paths[every.argmax(1)])
    close(best.score, every.max(1))
    slope = jax.grad(lambda x: decode(x, matrix, start=start, end=end).score.sum())(scores)
    np.testing.assert_array_equal(slope, jax.nn.one_hot(best.tags, 3))


def test_without_transitions_it_is_cross_entropy_of_each_step():
    scores, tags, *shared = draw(*SMALL)
    (_, got), _ = value_and_gradients(scores, tags, *(0 * a for a in shared), lengths=FULL)
    close(got, -jloss.softmax_cross_entropy_with_integer_labels(scores, tags).sum(1))


def test_second_and_third_derivatives_are_those_of_all_paths():
    """In single precision, with sums down to those of a product's last digits."""
    scores, tags, *shared = draw(1, 3, 3, span=60.0)
    paths = all_paths(3, 3)
    at = int(np.flatnonzero((paths == tags[0]).all(1))[0])
    by_paths = lambda args: jax.nn.log_softmax(path_scores(args[0], paths, *args[1:]))[at]
    by_scan = lambda args: likelihood(args[0][None], tags, *args[1:])[0]

    def derivatives(f, dtype):
        args = [jnp.asarray(a, dtype) for a in (scores[0], *shared)]
        return jax.jit(lambda: jax.jvp(jax.hessian(f), (args,), (args,)))()

    with jax.enable_x64(True):
        exact = derivatives(by_paths, jnp.float64)
    compare = lambda got, exact: close(got, exact, rtol=1e-4, atol=1e-4)
    jax.tree.map(compare, derivatives(by_scan, jnp.float32), exact)


# against sums in float64 ----------------------------------------------------------------------

LONG = 4, 200, 15


@spans([0.0, 10.0, 80.0, 200.0, 1e4])
def test_it_is_exact_however_far_transitions_span(span):
    agrees(draw(*LONG, span=span), 2e-5)


def bio(tags, transitions, never):
    """Types of entities: 0 is outside, odd tags begin one, and the even after goes on with it."""
    kind, inside = (np.arange(tags) + 1) // 2, (np.arange(tags) % 2 == 0) & (np.arange(tags) > 0)
    bad = inside & (kind[:, None] != kind)
    return np.where(bad, np.float32(never), transitions)


def allowed(time, tags, rng):
    path = [0]
    for _ in range(time - 1):
        path.append(
            rng.choice(np.flatnonzero(bio(tags, np.zeros((tags, tags)), -1)[path[-1]] == 0))
        )
    return path


@pytest.mark.parametrize("never", [-np.inf, -1e4, np.finfo(np.float32).min])
@spans([1.0, 100.0])
def test_it_is_exact_where_tags_may_not_follow(never, span):
    """With scores that span more than float32's exponents too."""
    scores, _, transitions, start, end = draw(4, 200, 15)
    tags = np.array([allowed(200, 15, np.random.default_rng(i)) for i in range(4)])
    start = np.where(np.arange(15) % 2 == 0, np.float32(never), start)
    start[0] = 0
    agrees((span * scores, tags, bio(15, transitions, never), start, end), 2e-5)


def test_it_is_exact_for_scores_of_minus_infinity():
    scores, tags, *shared = draw(*LONG)
    hidden = np.random.default_rng(1).uniform(size=scores.shape) < 0.8
    hidden[np.arange(4)[:, None], np.arange(200), tags] = False
    agrees((np.where(hidden, -np.inf, scores).astype(np.float32), tags, *shared), 2e-5)


def test_a_confident_sequence_keeps_its_digits():
    scores, tags, *shared = draw(*LONG)
    for margin in (30, 60, 100):
        sure = scores + np.float32(margin) * np.eye(15, dtype=np.float32)[tags]
        agrees((sure, tags, *shared), 2e-5)
        assert likelihood(sure, tags, *shared).max() < 0 or margin == 100


def test_thousands_of_steps():
    agrees(draw(1, 8000, 3), 2e-5)


def test_float64():
    with jax.enable_x64(True):
        args = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in draw(*LONG, span=200.0)]
        exact = [oracle(x, y, *args[2:])[0] for x, y in zip(*args[:2])]
        close(likelihood(*args), exact, rtol=1e-12)


def test_nothing_becomes_64_bit_of_itself():
    with jax.enable_x64(True):
        args = (jnp.asarray(a, f"{a.dtype.kind}4") for a in draw(*SMALL))
        scores, tags, matrix, *ends = args
        lengths = jnp.asarray(FULL, jnp.int32)
        f = functools.partial(value_and_gradients, scores, tags, matrix, *ends)
        for program in (f, functools.partial(decode, scores, matrix)):
            jaxpr = str(jax.make_jaxpr(lambda n, f=program: f(lengths=n))(lengths))
            assert not re.search(r"[fi]64\[\d", jaxpr)


def test_half_precision_in_single_precision_inside():
    dtype = jnp.bfloat16
    scores, tags, *shared = (jnp.asarray(a) for a in draw(*LONG))
    half = scores.astype(dtype)
    (_, values), (slope, *_) = value_and_gradients(half, tags, *shared)
    (_, expected), (exact, *_) = value_and_gradients(half.astype(jnp.float32), tags, *shared)
    assert values.dtype == jnp.float32
    assert slope.dtype == dtype
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(slope, exact.astype(dtype))


# lengths, masks and bad values ----------------------------------------------------------------

LENGTHS = np.array([0, 1, 3, 6])


def test_lengths_delete():
    scores, tags, *shared = draw(*SMALL)
    beyond = np.arange(6) >= LENGTHS[:, None]
    dirty = np.where(beyond[..., None], np.float32([np.nan, np.inf, -np.inf]), scores)
    _, clean = value_and_gradients(scores, tags, *shared, lengths=LENGTHS)
    tags = np.where(beyond, -100, tags)
    (_, values), slopes = value_and_gradients(dirty, tags, *shared, lengths=LENGTHS)
    parts = zip(scores, tags, LENGTHS)
    expected = [oracle(x[:n], y[:n], *shared)[0] if n else 0 for x, y, n in parts]
    close(values, expected)
    jax.tree.map(np.testing.assert_array_equal, slopes, clean)
    assert (np.asarray(slopes[0])[beyond] == 0).all()


def test_decoding_within_lengths():
    scores, _, matrix, start, end = draw(*SMALL)
    beyond = np.arange(6) >= LENGTHS[:, None]
    dirty = np.where(beyond[..., None], np.float32(np.nan), scores)
    best = decode(dirty, matrix, start=start, end=end, lengths=LENGTHS)
    np.testing.assert_array_equal(best.tags == -1, beyond)
    assert best.score[0] == 0
    for x, tags, score, n in zip(scores[1:], best.tags[1:], best.score[1:], LENGTHS[1:]):
        every = path_scores(x[:n], all_paths(n, 3), matrix, start, end)
        np.testing.assert_array_equal(tags[:n], all_paths(n, 3)[every.argmax()])
        close(score, every.max())
    bad = decode(scores, matrix, start=start, end=end, lengths=LENGTHS + 1)
    np.testing.assert_array_equal(np.isnan(bad.score), [False, False, False, True])


def test_mask_and_weights_go_by_sequence():
    scores, tags, *shared = draw(*SMALL)
    (_, values), _ = value_and_gradients(scores, tags, *shared, lengths=FULL)
    there, weights = np.array([True, False, True, True]), np.float32([1, 1, 2, 0])
    scores[~there], tags[~there] = np.nan, -100
    scores[3], tags[3] = np.inf, 99
    lengths = np.array([6, -5, 6, 77])
    doors = {"where": there, "weights": weights, "lengths": lengths, "reduction": jloss.mean}
    f = jax.jit(jax.value_and_grad(lambda x: likelihood(x, tags, *shared, **doors)))
    value, slope = f(scores)
    close(value, (values[0] + 2 * values[2]) / 3)
    assert np.isfinite(slope).all()
    assert (np.asarray(slope)[[1, 3]] == 0).all()


def test_what_is_forbidden_is_infinite_with_gradient_0():
    scores, tags, matrix, start, end = draw(*SMALL)
    matrix[0, 1] = -np.inf
    tags[:] = 2
    tags[0, 2:4] = 0, 1
    scores[2, 1, 2] = -np.inf  # one tag of its own path
    scores[3, 1] = -np.inf  # all paths
    (_, values), gradients = value_and_gradients(scores, tags, matrix, start, end, lengths=FULL)
    np.testing.assert_array_equal(np.isneginf(values), [True, False, True, True])
    assert all(np.isfinite(g).all() for g in gradients)
    slope = np.asarray(gradients[0])
    assert (slope[[0, 2, 3]] == 0).all()
    assert (slope[1] != 0).any()
    assert gradients[1][0, 1] == 0
    best = decode(scores, matrix, start=start, end=end, lengths=FULL)
    np.testing.assert_array_equal(np.isneginf(best.score), [False, False, False, True])


def test_one_tag_is_certain():
    (_, values), slopes = value_and_gradients(*draw(2, 5, 1))
    for zero in (values, *slopes):
        np.testing.assert_array_equal(zero, np.zeros_like(zero))


def test_bad_values_are_nan_in_their_own_sequence():
    scores, tags, *shared = draw(*SMALL)
    lengths = np.array([6, 4, -1, 7])
    tags[0, 2], tags[1, 5] = 3, -1  # the other one lies beyond its length
    scores[1, 5] = np.nan
    bad = np.array([True, False, True, True])
    (_, values), slopes = value_and_gradients(scores, tags, *shared, lengths=lengths)
    np.testing.assert_array_equal(np.isnan(values), bad)
    np.testing.assert_array_equal(np.isnan(slopes[0]).any((1, 2)), bad)
    with pytest.raises(ValueError, match="`tags`"):
        jloss.checked(likelihood)(scores, tags, *shared, lengths=lengths)


def test_a_nan_score_stays_in_its_sequence():
    scores, tags, *shared = draw(*SMALL)
    scores[1, 2, 0] = np.nan
    bad = np.array([False, True, False, False])
    (_, values), slopes = value_and_gradients(scores, tags, *shared, lengths=FULL)
    np.testing.assert_array_equal(np.isnan(values), bad)
    np.testing.assert_array_equal(np.isnan(slopes[0]).any((1, 2)), bad)


def test_what_does_not_fit_is_told_by_name():
    scores, tags, matrix, start, _ = draw(2, 5, 3)
    with pytest.raises(ValueError, match="`tags`"):
        crf_log_likelihood(scores, tags[:, :4], matrix)
    with pytest.raises(ValueError, match="`transitions`"):
        crf_log_likelihood(scores, tags, matrix[:2])
    with pytest.raises(ValueError, match="`start`"):
        crf_log_likelihood(scores, tags, matrix, start=start[:2])
    with pytest.raises(ValueError, match="`lengths`"):
        crf_decode(scores, matrix, lengths=np.array([5]))
    with pytest.raises(ValueError, match="`scores`"):
        crf_decode(scores[:, :0], matrix)
    with pytest.raises(TypeError, match="`scores`"):
        crf_log_likelihood(tags, tags, matrix)
    with pytest.raises(TypeError, match="`lengths`"):
        crf_decode(scores, matrix, lengths=np.array([5.0, 5.0]))


# transformations and meshes -------------------------------------------------------------------


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(1, 3, 4, 5))
def whole(lengths, *args):
    return -likelihood(*args, lengths=lengths, reduction=jloss.mean)


@functools.cache
def mixed():
    """A batch whose last sequences need the slow sum, and the first ones do not."""
    scores, tags, matrix, start, end = draw(8, 7, 4)
    matrix[0, 1:] = -np.inf  # no way from 0 but to 0
    tags = np.maximum(tags, 1)
    scores[6:, :5, 0] += 500
    scores[6:, 5:, 0] -= 500
    args = np.arange(8), scores, tags, matrix, start, end
    best = decode(scores, matrix, start=start, end=end, lengths=args[0])
    value, slopes = whole(*args)
    assert np.isfinite(value)
    assert all(np.isfinite(s).all() for s in slopes)
    return args, (value, slopes), best.tags


@spans([4.0, 200.0])
def test_transformations_change_nothing(span):
    args = [jnp.asarray(a) for a in draw(*SMALL, span=span)]
    (_, alone), (gradient, *_) = value_and_gradients(*args, lengths=FULL)
    for got, expected in zip(transformed(*args), (alone, gradient, gradient, alone)):
        close(got, expected, atol=1e-5)
    _, along = jax.jit(lambda x, *rest: jax.jvp(lambda x: likelihood(x, *rest), (x,), (x,)))(*args)
    close(along, jnp.sum(gradient * args[0], (1, 2)), rtol=1e-4, atol=1e-4)


@jax.jit
def transformed(scores, tags, *shared):
    one = lambda x, y: likelihood(x, y, *shared)
    _, scanned = jax.lax.scan(lambda c, b: (c, jax.grad(one)(*b)), 0, (scores, tags))
    mapped = jax.vmap(jax.value_and_grad(jax.checkpoint(one)))(scores, tags)
    square = one(scores.reshape(2, 2, *scores.shape[1:]), tags.reshape(2, 2, -1))
    return *mapped, scanned, square.ravel()


def test_vmap_does_not_run_both_sums():
    scores, tags, *shared = draw(4, 5, 3)
    one = lambda x, y: likelihood(x, y, *shared)
    assert " cond[" in str(jax.make_jaxpr(jax.vmap(jax.grad(one)))(scores, jnp.asarray(tags)))


def test_by_hand_over_devices_of_which_some_take_the_slow_sum():
    """And with transitions that vary over an axis that the scores do not vary over."""
    (lengths, *args), (value, slopes), tags = mixed()
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    everywhere = functools.partial(jloss.mean, axis_name="data")

    def local(lengths, scores, tags, matrix, start, end):
        whole = jax.lax.all_gather(matrix, "model", axis=1, tiled=True)
        shared = {"start": start, "end": end, "lengths": lengths}
        value = -crf_log_likelihood(scores, tags, whole, **shared, reduction=everywhere)
        best = crf_decode(scores, whole, **shared).tags
        return jax.lax.pmean(value, "model"), jax.lax.pmax(best, "model")

    specs = (P("data"),) * 3 + (P(None, "model"), P(), P())
    step = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P(), P("data")))
    step = jax.jit(jax.value_and_grad(step, argnums=(1, 3, 4, 5), has_aux=True))
    (got, best), gradients = step(lengths, *args)
    close(got, value)
    np.testing.assert_array_equal(best, tags)
    jax.tree.map(functools.partial(close, atol=1e-5), gradients, slopes)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_where_a_mesh_shards_the_batch(kind):
    args, expected, tags = mixed()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    specs = (P("data"),) * 3 + (P(), P(), P())
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(args, specs)]
    jax.tree.map(functools.partial(close, atol=1e-5), whole(*placed), expected)
    lengths, scores, _, matrix, start, end = placed
    best = decode(scores, matrix, start=start, end=end, lengths=lengths).tags
    np.testing.assert_array_equal(best, tags)
