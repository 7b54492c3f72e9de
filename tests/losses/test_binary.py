"""What is true of each loss between yes and no."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
integer_ce = jloss.softmax_cross_entropy_with_integer_labels
binary_ce = jloss.sigmoid_binary_cross_entropy
N, C = 8, 5
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(N, C)) * 3, jnp.float32)
LABELS = jnp.array([0, 1, 2, 3, 4, 0, 1, 0])
ONE_HOT = jax.nn.one_hot(LABELS, C)


def test_two_classes_are_one_question():
    x, y = LOGITS[:, 0], (LABELS == 0).astype(int)
    as_softmax = integer_ce(jnp.stack([jnp.zeros(N), x], -1), y)
    close(binary_ce(x, y), as_softmax)


def test_binary_cross_entropy_is_symmetric():
    p = jax.nn.sigmoid(LOGITS[::-1])
    close(binary_ce(LOGITS, p), binary_ce(-LOGITS, 1 - p))


def test_binary_label_smoothing_pulls_to_one_half():
    pulled = binary_ce(LOGITS, 0.8 * ONE_HOT + 0.1)
    close(binary_ce(LOGITS, ONE_HOT, label_smoothing=0.2), pulled)
    close(binary_ce(LOGITS, ONE_HOT, label_smoothing=1.0), binary_ce(LOGITS, 0.5))


def test_the_probability_minimises_binary_cross_entropy():
    p = jax.nn.sigmoid(LOGITS)
    slope = jax.grad(lambda x: binary_ce(x, p).sum())(LOGITS)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("loss", [binary_ce, jloss.sigmoid_focal_loss])
def test_infinite_logits(loss):
    x, y = jnp.array([jnp.inf, -jnp.inf, jnp.inf, -jnp.inf]), jnp.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(loss(x, y), [0, 0, np.inf, np.inf])
    if loss is binary_ce:
        np.testing.assert_array_equal(jax.grad(lambda x: loss(x, y).sum())(x), [0, 0, 1, -1])


def test_focal_loss_without_focus_is_binary_cross_entropy():
    close(jloss.sigmoid_focal_loss(LOGITS, ONE_HOT, gamma=0), binary_ce(LOGITS, ONE_HOT))
    half = jloss.sigmoid_focal_loss(LOGITS, ONE_HOT, gamma=0, alpha=0.5)
    close(half, 0.5 * binary_ce(LOGITS, ONE_HOT))


def test_more_focus_is_less_loss():
    by_gamma = jax.vmap(lambda g: jloss.sigmoid_focal_loss(LOGITS, ONE_HOT, gamma=g))(
        jnp.arange(5.0)
    )
    assert (jnp.diff(by_gamma, axis=0) <= 0).all()


def test_focal_loss_at_saturation():
    """Keras says 0 and 0 for a logit of 30 that should be 0; torchvision NaN at gamma = 1/2."""
    value, slope = jax.value_and_grad(jloss.sigmoid_focal_loss)(30.0, 0)
    close([value, slope], [30, 1])
    for x, y in ((200.0, 1), (-200.0, 0)):
        for order in (jloss.sigmoid_focal_loss, jax.grad(jloss.sigmoid_focal_loss)):
            assert order(x, y, gamma=0.5) == 0


def test_focal_loss_of_labels_between_is_optax_s():
    labels = jax.nn.sigmoid(LOGITS[::-1] / 3)
    with jax.numpy_dtype_promotion("standard"):
        expected = optax.sigmoid_focal_loss(LOGITS, labels, alpha=0.25, gamma=1.5)
    close(jloss.sigmoid_focal_loss(LOGITS, labels, alpha=0.25, gamma=1.5), expected)


def test_the_slope_in_hard_labels_is_finite():
    slope = jax.grad(lambda y: jloss.sigmoid_focal_loss(LOGITS, y).sum())(ONE_HOT)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_the_slope_of_the_focal_loss_in_hard_labels(y):
    x = np.array([-5.0, -1.0, 0.1, 1.0, 5.0])
    slope = jax.jit(jax.grad(lambda y: jloss.sigmoid_focal_loss(jnp.asarray(x, "f4"), y).sum()))
    on, off = 1 / (1 + np.exp(x)), 1 / (1 + np.exp(-x))  # the miss at labels 1 and 0
    miss = y * on + (1 - y) * off
    entropy = -y * np.log(off) - (1 - y) * np.log(on)
    close(slope(jnp.full(5, y)), 2 * miss * (on - off) * entropy - x * miss**2)


def test_binary_cross_entropy_of_probabilities_is_that_of_their_logits():
    x, y = LOGITS, jax.nn.sigmoid(LOGITS[::-1])
    close(jloss.binary_cross_entropy(jax.nn.sigmoid(x), y), binary_ce(x, y), rtol=1e-4)
    p = jax.nn.sigmoid(x[:, 0])
    close(
        jloss.binary_cross_entropy(p, LABELS % 2, reduction=jloss.mean),
        sklearn.metrics.log_loss(LABELS % 2, p),
    )


def test_small_probabilities_keep_their_digits():
    close(jloss.binary_cross_entropy(1e-9, 0), 1e-9, rtol=1e-6, atol=0)
    close(jloss.binary_cross_entropy(1e-30, 1), 30 * np.log(10.0))


def test_what_was_ruled_out_costs_infinitely_and_pulls_the_right_way():
    """torch clamps the logarithm at -100, Keras clips at 1e-7 with no gradient at all."""
    p, y = jnp.array([0.0, 1.0, 0.0, 1.0]), jnp.array([1, 0, 0, 1])
    np.testing.assert_array_equal(jloss.binary_cross_entropy(p, y), [np.inf, np.inf, 0, 0])
    slope = jax.grad(lambda p: jloss.binary_cross_entropy(p, y).sum())(p)
    assert np.isfinite(slope).all()
    assert slope[0] < -1e37
    assert slope[1] > 1e6
    close(slope[2:], [1, -1])


def test_a_probability_may_stray_by_roundings_alone():
    stray = jnp.float32(1 + 2e-7)
    assert jloss.binary_cross_entropy(stray, 1) == 0
    assert np.isfinite(jax.grad(jloss.binary_cross_entropy)(stray, 1))
    assert np.isnan(jloss.binary_cross_entropy(1.01, 1))
    with pytest.raises(ValueError, match="`probabilities`"):
        jloss.checked(jloss.binary_cross_entropy)(1.01, 1)


def test_probabilities_have_second_derivatives_wherever_the_truth_allows():
    second = jax.grad(jax.grad(jloss.binary_cross_entropy))
    for p in (0.0, 1e-20, 0.25):
        close(second(p, 0), 1 / (1 - p) ** 2)
        close(second(1 - p, 1), 1 / (1 - p) ** 2)
    slope = jax.grad(jloss.binary_cross_entropy, argnums=1)
    for y in (0.0, 0.5, 1.0):
        close(slope(0.25, y), np.log(3.0), rtol=1e-5)
    confident = lambda x: jloss.categorical_cross_entropy(jax.nn.softmax(x), jnp.array([1.0, 0.0]))
    assert np.isfinite(jax.hessian(confident)(jnp.array([60.0, 0.0]))).all()


@pytest.mark.parametrize("loss", [jloss.sigmoid_focal_loss, jloss.sigmoid_binary_cross_entropy])
def test_an_infinite_logit_on_the_wrong_side_has_a_slope(loss):
    assert jax.value_and_grad(loss)(-jnp.inf, 1) == (jnp.inf, -1)
    assert jax.value_and_grad(loss)(jnp.inf, 0) == (jnp.inf, 1)
    assert binary_ce(-jnp.inf, 1, pos_weight=0.0) == 0
