"""What is true of quantile and expectile losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
X = jnp.asarray(np.random.default_rng(0).normal(size=40), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).normal(size=40), jnp.float32)
SHARES = pytest.mark.parametrize("share", [0.05, 0.5, 0.9])


def minimiser(loss, **options):
    """The constant that minimises the mean loss over Y, by bisection of its slope."""
    mean = lambda c: loss(jnp.full_like(Y, c), Y, **options, reduction=jloss.mean)
    slope, low, high = jax.jit(jax.grad(mean)), -5.0, 5.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return middle


@SHARES
def test_the_quantile_minimises_the_quantile_loss(share):
    below = np.mean(minimiser(jloss.quantile_loss, quantile=share) >= np.asarray(Y))
    assert abs(below - share) <= 1.01 / len(Y)


@SHARES
def test_the_expectile_minimises_the_expectile_loss(share):
    got = minimiser(jloss.expectile_loss, expectile=share)
    close(got, scipy.stats.expectile(np.asarray(Y, float), alpha=share), rtol=1e-4)


@SHARES
def test_quantile_loss_is_scikit_learn_s(share):
    expected = sklearn.metrics.mean_pinball_loss(Y, X, alpha=share)
    close(jloss.quantile_loss(X, Y, quantile=share, reduction=jloss.mean), expected)


def test_one_half_is_the_middle():
    close(jloss.quantile_loss(X, Y), 0.5 * jloss.absolute_error(X, Y))
    close(jloss.expectile_loss(X, Y), 0.5 * jloss.squared_error(X, Y))
    close(jloss.quantile_huber_loss(X, Y), 0.5 * jloss.huber_loss(X, Y))


def test_several_quantiles_at_once():
    shares = jnp.array([0.1, 0.5, 0.9])
    both = jloss.quantile_loss(*(jnp.stack([a] * 3, -1) for a in (X, Y)), quantile=shares[None])
    for i, share in enumerate(shares):
        close(both[:, i], jloss.quantile_loss(X, Y, quantile=share))


def test_quantile_huber_becomes_the_quantile_loss():
    close(
        jloss.quantile_huber_loss(X, Y, quantile=0.8, delta=0.0),
        jloss.quantile_loss(X, Y, quantile=0.8),
    )
    near = jloss.quantile_huber_loss(X, Y, quantile=0.8, delta=1e-4)
    close(near, jloss.quantile_loss(X, Y, quantile=0.8), atol=1e-4)


def test_quantile_huber_is_divided_by_delta():
    """rlax leaves the division out: 2.5 where the paper's formula gives 1.25."""
    got = jloss.quantile_huber_loss(jnp.array(0.0), jnp.array(2.25), quantile=1.0, delta=2.0)
    close(got, 1.25)
    assert jax.grad(jloss.quantile_huber_loss)(0.0, 0.0) == 0
