"""What is true of each classification loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss
from jloss._core.classes import rounded_surprise

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
integer_ce = jloss.softmax_cross_entropy_with_integer_labels
binary_ce = jloss.sigmoid_binary_cross_entropy
N, C = 8, 5
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(N, C)) * 3, jnp.float32)
LABELS = jnp.array([0, 1, 2, 3, 4, 0, 1, 0])
ONE_HOT = jax.nn.one_hot(LABELS, C)


@pytest.mark.parametrize("reduction", [jloss.each, jloss.mean])
def test_a_confident_row_keeps_its_digits(reduction):
    logits = jnp.array([[20.0, 0.0, 0.0]])
    exact = np.log1p(2 * np.exp(-20.0))  # 4.12e-9
    for loss, labels in ((integer_ce, [0]), (jloss.softmax_cross_entropy, [[1.0, 0.0, 0.0]])):
        labels = jnp.array(labels)
        f = lambda x, loss=loss, y=labels: loss(x, y, reduction=reduction).sum()
        close(f(logits), exact, atol=0)
        slope = jax.grad(f)(logits)[0]
        share = np.exp(-20.0) / (1 + 2 * np.exp(-20.0))
        close(slope, [-2 * share, share, share], atol=0)
        assert abs(slope.sum()) <= 2 * jnp.finfo(slope).eps * abs(slope).sum()


def test_integers_are_one_hot_distributions():
    close(integer_ce(LOGITS, LABELS), jloss.softmax_cross_entropy(LOGITS, ONE_HOT))


def test_it_is_scikit_learn_s_log_loss():
    p = jax.nn.softmax(LOGITS).astype(jnp.float32)
    weights = np.linspace(0.5, 3, N)
    expected = sklearn.metrics.log_loss(LABELS, p, labels=range(C), sample_weight=weights)
    close(integer_ce(LOGITS, LABELS, weights=weights, reduction=jloss.mean), expected)


def test_the_true_distribution_minimises_it_to_its_entropy():
    p = jax.nn.softmax(LOGITS)
    entropy = -jnp.sum(p * jnp.log(p), -1)
    close(jloss.softmax_cross_entropy(jnp.log(p), p), entropy)
    slope = jax.grad(lambda x: jloss.softmax_cross_entropy(x, p).sum())(jnp.log(p))
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    assert (jloss.softmax_cross_entropy(LOGITS[::-1], p) >= entropy - 1e-6).all()


def test_logits_shifted_by_a_constant_change_nothing():
    close(integer_ce(LOGITS + 8, LABELS), integer_ce(LOGITS, LABELS))
    close(jloss.softmax_cross_entropy(LOGITS + 8, ONE_HOT), integer_ce(LOGITS, LABELS))


def test_no_preference_is_log_of_the_classes():
    close(integer_ce(jnp.zeros((N, C)), LABELS), np.log(C))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_label_smoothing_is_a_smoothed_distribution(alpha):
    with jax.numpy_dtype_promotion("standard"):
        smooth = optax.smooth_labels(ONE_HOT, alpha)
    smoothed = integer_ce(LOGITS, LABELS, label_smoothing=alpha)
    close(smoothed, jloss.softmax_cross_entropy(LOGITS, smooth))


def test_label_smoothing_spreads_over_the_classes_that_are_left():
    where = np.arange(C)[None] < C - 1
    labels = jnp.minimum(LABELS, C - 2)
    masked = integer_ce(LOGITS, labels, where=where, label_smoothing=0.3)
    close(masked, integer_ce(LOGITS[:, :-1], labels, label_smoothing=0.3))


def test_z_loss_in_one_pass_is_z_loss_apart():
    together = integer_ce(LOGITS, LABELS, z_loss=0.01)
    close(together, integer_ce(LOGITS, LABELS) + 0.01 * jloss.z_loss(LOGITS))
    close(jloss.z_loss(LOGITS), jax.nn.logsumexp(LOGITS, -1) ** 2)
    assert jloss.z_loss(jax.nn.log_softmax(LOGITS)).max() < 1e-10


def test_class_weights_are_weights_of_the_entries_they_label():
    by_class = np.array([0.0, 1.0, 2.0, 3.0, 0.5])
    weighted = integer_ce(LOGITS, LABELS, class_weights=by_class, reduction=jloss.tally)
    by_entry = integer_ce(LOGITS, LABELS, weights=by_class[LABELS], reduction=jloss.tally)
    close(weighted.total, by_entry.total)
    assert weighted.weight == by_entry.weight == by_class[LABELS].sum()
    both = integer_ce(
        LOGITS, LABELS, class_weights=by_class, weights=np.arange(N), reduction=jloss.tally
    )
    assert both.weight == (by_class[LABELS] * np.arange(N)).sum()


def test_a_bad_label_does_not_hide_behind_a_class_weight_of_0():
    value = integer_ce(LOGITS, LABELS.at[3].set(C), class_weights=np.zeros(C))
    np.testing.assert_array_equal(np.isnan(value), np.arange(N) == 3)


def test_a_class_mask_that_hides_the_label_is_nan():
    where = np.arange(C)[None] != 1
    value, slope = (
        integer_ce(LOGITS, LABELS, where=where),
        jax.grad(lambda x: integer_ce(x, LABELS, where=where).sum())(LOGITS),
    )
    np.testing.assert_array_equal(np.isnan(value), LABELS == 1)
    assert np.isfinite(slope[LABELS != 1]).all()
    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(jax.jit(integer_ce))(LOGITS, LABELS, where=where)


@pytest.mark.parametrize("label", [2**32, 2**40 + 1, -(2**63)])
def test_labels_of_64_bits_do_not_wrap_around(label):
    assert np.isnan(integer_ce(LOGITS[0], np.int64(label)))
    assert np.isnan(integer_ce(LOGITS[:1], np.array([label])))[0]


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.int32, jnp.uint32])
def test_labels_of_any_integer_dtype(dtype):
    logits = jax.random.normal(jax.random.key(0), (3, 300))
    labels = jnp.array([0, 5, 127])
    close(integer_ce(logits, labels.astype(dtype)), integer_ce(logits, labels))


def test_several_axes_of_classes_are_one():
    logits = jax.random.normal(jax.random.key(0), (4, 2, 3, 5))
    labels = jnp.arange(8).reshape(4, 2)
    flat = integer_ce(logits.reshape(4, 2, 15), labels)
    weights = np.arange(1.0, 16)
    close(integer_ce(logits, labels, axis=(2, 3)), flat)
    turned = integer_ce(logits.swapaxes(2, 3), labels, axis=(3, 2))
    close(turned, flat)
    close(
        integer_ce(logits, labels, axis=(2, 3), class_weights=weights.reshape(3, 5)),
        integer_ce(logits.reshape(4, 2, 15), labels, class_weights=weights),
    )


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_rule_is_plain_differentiation(order):
    """`rounded_surprise` has a rule for its derivative, and a plain twin: its own formula."""
    f = lambda core, x: sum(jnp.sum(out * (1 + i)) for i, out in enumerate(core(x, LABELS, (1,))))
    rule, plain = functools.partial(f, rounded_surprise), functools.partial(f, rounded_surprise.fun)
    for _ in range(order):
        rule, plain = (
            lambda x, g=g: jnp.sum(jax.grad(g)(x) * jnp.cos(jnp.arange(C)[None]))
            for g in (rule, plain)
        )
    close(jax.jit(rule)(LOGITS), jax.jit(plain)(LOGITS), rtol=1e-4)
    close(jax.grad(rule)(LOGITS), jax.grad(plain)(LOGITS), atol=1e-5)


def test_value_and_gradient_hold_no_array_of_the_size_of_the_logits():
    logits, labels = jnp.zeros((512, 4096)), jnp.zeros(512, jnp.int32)
    f = jax.jit(jax.value_and_grad(lambda x: integer_ce(x, labels, reduction=jloss.mean)))
    temporary = f.lower(logits).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 0.01 * logits.nbytes


# torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_is_torch_s(label_smoothing, reduction):
    torch = pytest.importorskip("torch")
    labels = np.where(np.arange(N) == 2, -100, LABELS)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(LOGITS)),
        torch.tensor(labels).long(),
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    got = integer_ce(
        LOGITS,
        labels,
        where=labels != -100,
        label_smoothing=label_smoothing,
        reduction=getattr(jloss, reduction),
    )
    close(got, expected.item())


def test_class_weights_are_torch_s():
    torch = pytest.importorskip("torch")
    by_class = np.array([0.5, 1, 2, 3, 4], np.float32)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(LOGITS)),
        torch.tensor(np.asarray(LABELS)).long(),
        weight=torch.tensor(by_class),
    )
    got = integer_ce(LOGITS, LABELS, class_weights=by_class, reduction=jloss.mean)
    close(got, expected.item())


def test_pos_weight_is_torch_s():
    torch = pytest.importorskip("torch")
    labels, pos_weight = np.asarray(ONE_HOT), np.linspace(1, 3, C, dtype=np.float32)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(np.asarray(LOGITS)), torch.tensor(labels), pos_weight=torch.tensor(pos_weight)
    )
    close(binary_ce(LOGITS, labels, pos_weight=pos_weight[None], reduction=jloss.mean), expected)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_every_option_where_a_mesh_shards_the_classes(kind):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)), jnp.float32)
    where = np.arange(64).reshape(8, 8) % 7 != 6
    by_class = jnp.linspace(0.5, 2, 8)
    labels = jnp.array([0, 1, 2, 2, 0, 5, 6, 1])

    def f(x, y, where, by_class, alpha, z):
        options = {"class_weights": by_class, "label_smoothing": alpha, "z_loss": z}
        return integer_ce(x, y, where=where, **options, reduction=jloss.mean)

    step = jax.jit(jax.value_and_grad(f, argnums=(0, 3, 4, 5)))
    arrays = logits, labels, where, by_class
    specs = P("data", "model"), P("data"), P("data", "model"), P("model")
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs)]
    got, expected = step(*placed, 0.1, 1e-3), step(*arrays, 0.1, 1e-3)
    assert np.isfinite(expected[0])
    jax.tree.map(close, got, expected)


def test_slope_in_class_weights():
    f = lambda w: integer_ce(LOGITS, LABELS, class_weights=w, reduction=jloss.mean)
    by_class = jnp.linspace(0.5, 2, C)
    values, of_label = integer_ce(LOGITS, LABELS), jax.nn.one_hot(LABELS, C)
    less = values - f(by_class)
    expected = of_label.T @ less / by_class[LABELS].sum()
    close(jax.grad(f)(by_class), expected)


# from probabilities, and with a focus ---------------------------------------------------------


def test_probabilities_give_what_their_logits_give():
    p, y = jax.nn.softmax(LOGITS), jax.nn.softmax(LOGITS[::-1])
    close(jloss.categorical_cross_entropy(p, y), jloss.softmax_cross_entropy(LOGITS, y))
    close(jloss.nll_loss(jax.nn.log_softmax(LOGITS), LABELS), integer_ce(LOGITS, LABELS))
    close(jloss.safe_softmax_cross_entropy(LOGITS, y), jloss.softmax_cross_entropy(LOGITS, y))


def test_an_impossible_truth_costs_infinitely_and_has_a_finite_slope():
    p, y = jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    value, slope = (
        jloss.categorical_cross_entropy(p, y),
        jax.grad(lambda p: jloss.categorical_cross_entropy(p, y).sum())(p),
    )
    np.testing.assert_array_equal(value, [np.inf, 0])
    assert np.isfinite(slope).all()
    assert slope[0, 0] < -1e37
    assert slope[1, 0] == 0


def test_class_weights_of_nll_are_those_of_cross_entropy():
    options = {"class_weights": np.linspace(0.5, 2, C), "reduction": jloss.mean}
    got = jloss.nll_loss(jax.nn.log_softmax(LOGITS), LABELS, **options)
    close(got, integer_ce(LOGITS, LABELS, **options))


def test_bad_probabilities_are_told():
    bad = jax.nn.softmax(LOGITS).at[2, 0].set(1.5)
    np.testing.assert_array_equal(
        np.isnan(jloss.categorical_cross_entropy(bad, ONE_HOT)), np.arange(N) == 2
    )
    with pytest.raises(ValueError, match="`log_predictions`"):
        jloss.checked(jloss.nll_loss)(LOGITS + 9, LABELS)


def test_softmax_focal_of_two_classes_is_the_binary_one():
    x, y = LOGITS[:, 0], jnp.asarray(LABELS % 2)
    two = jnp.stack([jnp.zeros_like(x), x], -1)
    for gamma in (0.0, 0.5, 2.0, 5.0):
        got = jloss.softmax_focal_loss(two, y, gamma=gamma)
        close(got, jloss.sigmoid_focal_loss(x, y, gamma=gamma))
    close(jloss.softmax_focal_loss(LOGITS, LABELS, gamma=0.0), integer_ce(LOGITS, LABELS))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("lead", [-200.0, -99.0, -1.0, 0.0, 30.0, 200.0])
def test_softmax_focal_is_finite_to_the_second_order(lead, gamma):
    f = lambda x: jloss.softmax_focal_loss(x, 0, gamma=gamma)
    x = jnp.array([lead, 0.0])
    assert np.isfinite(jax.hessian(f)(x)).all()
    slope = jax.grad(f)(x)
    close(slope.sum(), 0, atol=1e-5)
    assert slope[0] <= 0


def test_poly_loss_without_epsilon_is_cross_entropy():
    y = jax.nn.softmax(LOGITS[::-1])
    close(
        jloss.poly_loss_cross_entropy(LOGITS, y, epsilon=0.0),
        jloss.softmax_cross_entropy(LOGITS, y),
    )
    miss = 1 - jax.nn.softmax(LOGITS)[jnp.arange(N), LABELS]
    poly = jloss.poly_loss_cross_entropy(LOGITS, ONE_HOT, epsilon=3.0)
    close(poly, integer_ce(LOGITS, LABELS) + 3 * miss)


def test_smooth_labels_keep_their_sum():
    with jax.numpy_dtype_promotion("standard"):
        close(jloss.smooth_labels(ONE_HOT, 0.3), optax.smooth_labels(ONE_HOT, 0.3))
    close(jloss.smooth_labels(ONE_HOT, 0.3).sum(-1), 1)
    where = np.arange(C)[None] < C - 1
    fewer = ONE_HOT.at[:, -1].set(0)
    masked = jloss.smooth_labels(fewer, 0.3, where=where)
    close(masked[:, :-1], jloss.smooth_labels(fewer[:, :-1], 0.3))
    assert not masked[:, -1].any()
    smoothed = jloss.softmax_cross_entropy(LOGITS, jloss.smooth_labels(ONE_HOT, 0.1))
    close(smoothed, integer_ce(LOGITS, LABELS, label_smoothing=0.1))
    assert np.isnan(jloss.smooth_labels(ONE_HOT, 1.5)).all()
    assert jloss.smooth_labels(np.eye(2, dtype=bool), 0.5).dtype == jnp.float32
    close(jloss.smooth_labels(ONE_HOT.T, 0.3, axis=0), jloss.smooth_labels(ONE_HOT, 0.3).T)


def test_softmax_focal_has_its_whole_slope_at_its_seam():
    f = jax.grad(lambda x: jloss.softmax_focal_loss(jnp.stack([x, 0 * x]), 0, gamma=2.0))
    seam = np.float32(-0.5413248)  # its surprise is 1 exactly
    near = [f(seam), f(np.nextafter(seam, np.float32(-1))), f(np.nextafter(seam, np.float32(0)))]
    close(near, near[1])


def test_smoothing_hides_no_bad_label():
    assert np.isnan(jloss.smooth_labels(jnp.array([1.5, -0.5]), 0.1)).all()
    where = jnp.array([True, True, False])
    alpha = lambda a: jloss.smooth_labels(jnp.array([1.0, 0.0, jnp.nan]), a, where=where)[0]
    close(jax.grad(alpha)(0.1), -0.5)


@pytest.mark.parametrize(("platform", "gathers"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_the_label_s_logit_is_gathered_on_cpu_alone(platform, gathers):
    """A TPU would hold bfloat16 logits in float32 for it: 1024 MiB at [8192, 32768]."""
    shapes = jax.ShapeDtypeStruct((4, 8), jnp.bfloat16), jax.ShapeDtypeStruct((4,), jnp.int32)
    loss = jax.jit(jloss.softmax_cross_entropy_with_integer_labels)
    text = loss.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("gather" in text) == gathers
