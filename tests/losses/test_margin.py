"""What is true of each loss with a margin."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from optax.projections import projection_simplex

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
RNG = np.random.default_rng(0)
SCORES = jnp.asarray(RNG.normal(size=(12, 5)) * 2, jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 5, 12))
X, SIGNS = SCORES[:, 0], jnp.asarray(2 * RNG.integers(0, 2, 12) - 1)


def test_hinge_losses_are_scikit_learn_s():
    close(jloss.hinge_loss(X, SIGNS, reduction=jloss.mean), sklearn.metrics.hinge_loss(SIGNS, X))
    several = jloss.multiclass_hinge_loss(SCORES, LABELS, reduction=jloss.mean)
    close(several, sklearn.metrics.hinge_loss(LABELS, SCORES, labels=range(5)))


def test_the_squared_hinge_is_the_hinge_squared():
    close(jloss.squared_hinge_loss(X, SIGNS), jloss.hinge_loss(X, SIGNS) ** 2)
    assert jax.grad(jloss.squared_hinge_loss)(1.0, 1) == 0


def test_a_margin_of_0_makes_hinges_perceptrons():
    close(jloss.perceptron_loss(X, SIGNS), jloss.hinge_loss(X + SIGNS.astype(X.dtype), SIGNS))
    shifted = SCORES + jax.nn.one_hot(LABELS, 5)
    close(
        jloss.multiclass_perceptron_loss(SCORES, LABELS),
        jloss.multiclass_hinge_loss(shifted, LABELS),
    )


def test_beyond_the_margin_nothing_pulls():
    for loss in (jloss.hinge_loss, jloss.squared_hinge_loss, jloss.perceptron_loss):
        assert jax.grad(loss)(1.5, 1) == 0
        assert loss(1.5, 1) == 0
    for loss in (jloss.multiclass_hinge_loss, jloss.multiclass_sparsemax_loss):
        assert loss(jnp.array([2.0, 0.5, 0.0]), 0) == 0
        assert not jax.grad(loss)(jnp.array([2.0, 0.5, 0.0]), 0).any()


def test_labels_of_0_and_1_are_no_signs():
    value = jloss.hinge_loss(jnp.array([0.5, 0.5]), jnp.array([0, 1]))
    np.testing.assert_array_equal(np.isnan(value), [True, False])
    with pytest.raises(ValueError, match="`targets`"):
        jloss.checked(jloss.hinge_loss)(jnp.array([0.5, 0.5]), jnp.array([0, 1]))


def test_two_classes_are_one_sign():
    two = jnp.stack([-X, X], -1) / 2
    one = jnp.asarray(SIGNS > 0, int)
    close(jloss.multiclass_hinge_loss(two, one), jloss.hinge_loss(X, SIGNS))
    close(jloss.multiclass_sparsemax_loss(two, one), jloss.sparsemax_loss(X, one))


@pytest.mark.parametrize("classes", [1, 2, 7, 1000])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_slope_of_sparsemax_is_the_projection_less_the_label(classes, scale):
    """Against optax's projection, which sorts."""
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(4, classes)) * scale, jnp.float32)
    labels = jnp.arange(4) % classes
    slope = jax.jit(jax.grad(lambda x: jloss.multiclass_sparsemax_loss(x, labels).sum()))(scores)
    with jax.numpy_dtype_promotion("standard"):
        projected = jax.vmap(projection_simplex)(scores)
    close(slope, projected - jax.nn.one_hot(labels, classes), atol=1e-5)


def test_sparsemax_shifts_like_softmax():
    values = jloss.multiclass_sparsemax_loss(SCORES, LABELS)
    close(jloss.multiclass_sparsemax_loss(SCORES + 64, LABELS), values, atol=1e-4)


def test_sparsemax_of_ties():
    close(jloss.multiclass_sparsemax_loss(jnp.zeros(4), 2), 0.5 * (0.75**2 + 3 * 0.25**2))


def test_fenchel_young_losses_of_known_maxima():
    one_hot = jax.nn.one_hot(LABELS, 5)
    softmax = jloss.make_fenchel_young_loss(jax.nn.logsumexp)
    close(softmax(SCORES, one_hot), jloss.softmax_cross_entropy(SCORES, one_hot))
    perceptron = jloss.make_fenchel_young_loss(jnp.max)
    close(perceptron(SCORES, one_hot), jloss.multiclass_perceptron_loss(SCORES, LABELS))


def test_the_slope_of_a_fenchel_young_loss_is_the_maximiser_less_the_target():
    target = jax.nn.softmax(SCORES[::-1])
    loss = jloss.make_fenchel_young_loss(jax.nn.logsumexp)
    slope = jax.grad(lambda x: loss(x, target).sum())(SCORES)
    close(slope, jax.nn.softmax(SCORES) - target)


def test_a_fenchel_young_loss_keeps_the_two_laws():
    loss = jloss.make_fenchel_young_loss(jax.nn.logsumexp)
    target, there = jax.nn.softmax(SCORES[::-1]), np.arange(12) % 4 != 1
    stored = SCORES.at[~there].set(jnp.nan)
    f = lambda x: loss(x, target, where=there, reduction=jloss.mean)
    value, slope = jax.value_and_grad(f)(stored)
    close(value, loss(SCORES[there], target[there], reduction=jloss.mean))
    assert (slope[~there] == 0).all()
    classes = np.arange(5)[None] < 4
    less = target.at[:, 4].set(0)
    close(loss(SCORES, less, where=classes), loss(SCORES[:, :4], less[:, :4]))
    with pytest.raises(ValueError, match="`targets`"):
        loss(SCORES, target[0])
    assert loss(SCORES.astype(jnp.bfloat16), target).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sparsemax_has_its_whole_slope_at_the_seams(dtype):
    binary = jax.grad(lambda x, y: jloss.sparsemax_loss(x, y))
    for x, y, slope in ((1.0, 0, 1), (-1.0, 1, -1), (-1.0, 0, 0), (0.0, 0, 0.5)):
        assert binary(jnp.asarray(x, dtype), y) == slope
    several = jax.grad(jloss.multiclass_sparsemax_loss)
    for scores, label, slope in (
        ([1.0, 0.0], 1, [1, -1]),
        ([1.0, 0.0], 0, [0, 0]),
        ([1.0, 1.0, 0.5], 2, [0.5, 0.5, -1]),
    ):
        np.testing.assert_array_equal(several(jnp.asarray(scores, dtype), label), slope)
