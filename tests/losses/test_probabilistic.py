"""What is true of each likelihood."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
RNG = np.random.default_rng(0)
LOG_MEAN = jnp.asarray(RNG.normal(size=30), jnp.float32)
MEAN = np.exp(np.asarray(LOG_MEAN, float))
COUNTS, AMOUNTS = RNG.poisson(MEAN), RNG.gamma(2, MEAN / 2)
DEVIANCE = {
    1.0: sklearn.metrics.mean_poisson_deviance,
    1.5: functools.partial(sklearn.metrics.mean_tweedie_deviance, power=1.5),
    2.0: sklearn.metrics.mean_gamma_deviance,
    3.0: functools.partial(sklearn.metrics.mean_tweedie_deviance, power=3),
}


@pytest.mark.parametrize("power", DEVIANCE)
def test_tweedie_deviance_is_scikit_learn_s(power):
    y = COUNTS if power < 2 else AMOUNTS
    got = jloss.tweedie_deviance(LOG_MEAN, y, power=power, reduction=jloss.mean)
    close(got, DEVIANCE[power](y, MEAN))


@pytest.mark.parametrize("power", [1.0, 1.25, 1.5, 2.0, 2.5, 3.0])
def test_a_deviance_is_0_where_the_mean_is_right_and_nowhere_below(power):
    f = functools.partial(jloss.tweedie_deviance, power=power)
    y = jnp.asarray(AMOUNTS, jnp.float32)
    assert f(jnp.log(y), y).max() <= 1e-12
    close(jax.grad(lambda x: f(x, y).sum())(jnp.log(y)), 0, atol=1e-6)
    assert (f(LOG_MEAN, y) >= 0).all()
    curvature = jax.vmap(jax.grad(jax.grad(f)))(jnp.log(y), y)
    close(curvature, 2 * y ** (2 - power))  # twice the variance of the log-mean, inverted


@pytest.mark.parametrize("through", [1.0, 2.0])
def test_tweedie_deviance_goes_smoothly_through_its_singular_powers(through):
    y = jnp.asarray(AMOUNTS, jnp.float32)
    f = lambda power: jloss.tweedie_deviance(LOG_MEAN, y, power=power)
    at, slope = jax.jvp(f, (through,), (1.0,))
    step = 1e-3 if through > 1 else 0.0
    between = (f(through + 1e-3) - f(through - step)) / (1e-3 + step)
    np.testing.assert_allclose(slope, between, rtol=2e-2, atol=2e-2)
    assert np.isfinite(at).all()


def test_gamma_deviance_is_tweedie_s_at_2():
    close(
        jloss.gamma_deviance(LOG_MEAN, AMOUNTS),
        jloss.tweedie_deviance(LOG_MEAN, AMOUNTS, power=2.0),
    )
    scaled = jloss.gamma_deviance(LOG_MEAN + np.log(8.0), 8 * AMOUNTS)
    close(scaled, jloss.gamma_deviance(LOG_MEAN, AMOUNTS))


def test_poisson_nll_is_scipy_s_up_to_log_factorials():
    exact = -scipy.stats.poisson.logpmf(COUNTS, MEAN)
    close(jloss.poisson_nll_loss(LOG_MEAN, COUNTS) + jax.scipy.special.gammaln(COUNTS + 1.0), exact)
    excess = 2 * (jloss.poisson_nll_loss(LOG_MEAN, AMOUNTS) - AMOUNTS * (1 - np.log(AMOUNTS)))
    close(jloss.tweedie_deviance(LOG_MEAN, AMOUNTS, power=1.0), excess, rtol=1e-3, atol=1e-5)


def test_a_rate_of_0_is_right_where_nothing_happened():
    assert jloss.poisson_nll_loss(-jnp.inf, 0) == 0
    assert jax.grad(jloss.poisson_nll_loss)(-jnp.inf, 0) == 0
    assert jloss.poisson_nll_loss(-jnp.inf, 1) == jnp.inf


def test_gaussian_nll_is_scipy_s_up_to_a_constant():
    log_variance = np.linspace(-3, 3, 30)
    exact = -scipy.stats.norm.logpdf(AMOUNTS, LOG_MEAN, np.exp(log_variance / 2))
    got = jloss.gaussian_nll_loss(LOG_MEAN, AMOUNTS, log_variance)
    close(got + 0.5 * np.log(2 * np.pi), exact)


def test_the_variance_of_the_targets_minimises_gaussian_nll():
    y = jnp.asarray(AMOUNTS, jnp.float32)
    f = lambda s: jloss.gaussian_nll_loss(jnp.full_like(y, y.mean()), y, s, reduction=jloss.mean)
    close(jax.grad(f)(jnp.log(y.var())), 0, atol=1e-6)


def test_a_variance_of_almost_nothing_has_a_right_gradient():
    """torch clamps the variance at 1e-6 and gives -5e11 at 1e-9."""
    s = float(np.log(1e-9))
    slope = jax.grad(jloss.gaussian_nll_loss, argnums=2)(1.0, 1.0 + 1e-4, s)
    close(slope, 0.5 * (1 - (1 - np.float32(1 + 1e-4)) ** 2 * 1e9), rtol=1e-4)
    assert jax.grad(jloss.gaussian_nll_loss, argnums=2)(1.0, 1.0, -1e4) == 0.5


def test_a_log_variance_is_masked_like_the_predictions():
    where = np.arange(30) % 3 != 0
    stored = jnp.where(where, 0.5, jnp.nan)
    f = lambda x, s, m: jloss.gaussian_nll_loss(x, AMOUNTS, s, where=m, reduction=jloss.mean)
    value, slopes = jax.value_and_grad(f, argnums=(0, 1))(LOG_MEAN, stored, where)
    left = jloss.gaussian_nll_loss(LOG_MEAN[where], AMOUNTS[where], 0.5, reduction=jloss.mean)
    close(value, left)
    for slope in slopes:
        assert (slope[~where] == 0).all()
        assert np.isfinite(slope).all()


def test_errors_and_variances_of_any_size():
    """Their squares over- and underflow where their ratio does not."""
    close(jloss.gaussian_nll_loss(1e-23, 0.0, -100.0), -50 + 0.5e-46 * np.exp(100.0), rtol=1e-6)
    close(jloss.gaussian_nll_loss(1e20, 0.0, 40 * np.log(10.0)), 0.5 + 20 * np.log(10.0))


def test_tweedie_deviance_far_from_the_mean():
    value, slope = jax.value_and_grad(lambda x: jloss.tweedie_deviance(x, 0.0, power=1.9))(-100.0)
    close([value, slope], [20 * np.exp(-10.0), 2 * np.exp(-10.0)], rtol=1e-4, atol=0)
    inverse_gaussian = lambda x, y: jloss.tweedie_deviance(x, y, power=3.0)
    for x in (60.0, 85.0, 90.0):
        value, slope = jax.value_and_grad(inverse_gaussian)(x, 1.0)
        close(value, 1)
        close(slope, 0)
    close(inverse_gaussian(66.0, 1e-10), 1e10)
    assert jloss.gamma_deviance(-jnp.inf, 1.0) == jnp.inf
