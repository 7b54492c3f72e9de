"""What is true of each loss between directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import sklearn.metrics.pairwise

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-3, 1.0, 1e20, 1e30])
def test_cosine_does_not_see_length(scale):
    x, y = (jax.random.normal(key, (20, 3)) for key in jax.random.split(jax.random.key(0)))
    expected = np.diag(sklearn.metrics.pairwise.cosine_similarity(x, y))
    np.testing.assert_allclose(jloss.cosine_similarity(scale * x, y), expected, rtol=2e-5)
    slope = jax.grad(lambda x: jloss.cosine_similarity(x, y).sum())(scale * x)
    assert np.isfinite(slope).all()
    along = jnp.sum(slope * scale * x, -1)  # moving along x changes nothing
    np.testing.assert_allclose(along, 0, atol=1e-6)


def test_cosine_distance_is_scipy_s():
    x, y = (np.random.default_rng(s).normal(size=(20, 4)) for s in (0, 1))
    expected = [scipy.spatial.distance.cosine(a, b) for a, b in zip(x, y)]
    got = jloss.cosine_distance(jnp.asarray(x, "f4"), jnp.asarray(y, "f4"))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    similarity = jloss.cosine_similarity(jnp.asarray(x, "f4"), jnp.asarray(y, "f4"))
    np.testing.assert_allclose(got, 1 - similarity, atol=1e-6)


@pytest.mark.parametrize("angle", [1e-6, 1e-4, 1e-3, 1e-2])
def test_cosine_distance_keeps_its_digits_between_near_parallels(angle):
    """1 - cos(angle) = 2 sin(angle / 2)^2, half the squared angle: 1 - cos is all rounding."""
    x, y = jnp.array([0.0, 1.0]), jnp.array([np.sin(angle), np.cos(angle)], jnp.float32)
    close(jloss.cosine_distance(3 * x, y), 2 * np.sin(angle / 2) ** 2, rtol=1e-5)
    assert jloss.cosine_distance(3 * x, x) == 0


def test_a_zero_vector_points_nowhere():
    zero, y = jnp.zeros(3), jnp.array([0.0, 3.0, 4.0])
    assert jloss.cosine_similarity(zero, y) == 0
    assert jloss.cosine_distance(zero, y) == 1
    close(jax.grad(jloss.cosine_similarity)(zero, y), [0, 0.6, 0.8])
    assert jloss.cosine_similarity(zero, zero) == 0


def test_epsilon_bounds_the_squared_norm():
    x, y = jnp.array([0.003, 0.004]), jnp.array([3.0, 4.0])
    close(jloss.cosine_similarity(x, y, epsilon=1e-4), 0.5)  # a norm of 0.005 counts as 0.01
    close(jloss.cosine_distance(x, y, epsilon=1e-4), 0.5)
