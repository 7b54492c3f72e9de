"""What is true of each regression loss."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import sklearn.metrics
from catalog import robust

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
ERRORS = jnp.array([-30.0, -2.0, -1.0, -0.25, -1e-3, 0.0, 1e-3, 0.25, 1.0, 2.0, 30.0])
TARGETS = jnp.array([0.0, 1.0, 1.5, 7.0, 40.0])


def minimiser(loss, low=-1.0, high=50.0):
    """Where the mean loss of one prediction for all targets turns, by bisection of its slope."""
    slope = jax.jit(
        jax.grad(lambda c: loss(jnp.full_like(TARGETS, c), TARGETS, reduction=jloss.mean))
    )
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return middle


def test_the_mean_minimises_squared_error():
    assert minimiser(jloss.squared_error) == pytest.approx(float(TARGETS.mean()), rel=1e-5)
    assert minimiser(jloss.l2_loss) == pytest.approx(float(TARGETS.mean()), rel=1e-5)


def test_no_error_has_no_slope():
    assert jax.grad(jloss.absolute_error)(2.0, 2) == 0


def test_the_median_minimises_absolute_error():
    assert minimiser(jloss.absolute_error) == pytest.approx(float(jnp.median(TARGETS)), rel=1e-5)


def test_huber_lies_between_median_and_mean():
    by_delta = [minimiser(functools.partial(jloss.huber_loss, delta=d)) for d in (0.01, 5.0, 100.0)]
    assert by_delta[0] == pytest.approx(float(jnp.median(TARGETS)), abs=0.05)
    assert by_delta[0] < by_delta[1] < by_delta[2]
    assert by_delta[2] == pytest.approx(float(TARGETS.mean()), rel=1e-5)


def test_l2_is_half_the_squared_error_and_its_gradient_the_error():
    close(jloss.l2_loss(ERRORS), 0.5 * jloss.squared_error(ERRORS))
    close(jax.grad(lambda e: jloss.l2_loss(e).sum())(ERRORS), ERRORS)


def test_huber_is_l2_within_delta_and_its_slope_never_exceeds_it():
    close(jloss.huber_loss(ERRORS, delta=100.0), jloss.l2_loss(ERRORS))
    slope = jax.grad(lambda e: jloss.huber_loss(e, delta=1.5).sum())(ERRORS)
    close(slope, jnp.clip(ERRORS, -1.5, 1.5))
    small = 1e-6
    close(jloss.huber_loss(ERRORS, delta=small) / small, jnp.abs(ERRORS), atol=1e-6)


def test_huber_curves_by_1_at_no_error_at_all():
    assert jax.hessian(jloss.huber_loss)(0.0) == 1
    assert jax.hessian(jloss.huber_loss)(3.0) == 0


def test_huber_delta_may_differ_by_feature():
    predictions = jnp.array([[3.0, 3.0], [0.5, 0.5]])
    by_feature = jloss.huber_loss(predictions, delta=jnp.array([[1.0, 2.0]]))
    for i, delta in enumerate([1.0, 2.0]):
        close(by_feature[:, i], jloss.huber_loss(predictions[:, i], delta=delta))


def test_an_infinite_delta_is_l2():
    value, slope = jax.value_and_grad(jloss.huber_loss)(3.0, delta=jnp.inf)
    assert (value, slope) == (4.5, 3.0)


def test_log_cosh_near_and_far():
    near = jnp.array([1e-6, 1e-4, 1e-3, 1e-2])
    close(jloss.log_cosh(near), near**2 / 2 - near**4 / 12)
    far = jnp.array([20.0, 1e4, -1e4])
    close(jloss.log_cosh(far), jnp.abs(far) - np.log(2))
    close(jax.grad(lambda e: jloss.log_cosh(e).sum())(ERRORS), np.tanh(np.asarray(ERRORS)))


def test_log_cosh_joins_without_a_step():
    around = jnp.nextafter(jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0]))
    for f in (jloss.log_cosh, jax.grad(lambda e: jloss.log_cosh(e).sum())):
        close(*f(around), rtol=1e-6)


# Barron's general loss ------------------------------------------------------------------------

ERROR = jnp.asarray(np.random.default_rng(2).normal(size=50) * 3, jnp.float32)


@pytest.mark.parametrize(
    ("alpha", "known"),
    [
        (2.0, lambda e: e**2 / 2),
        (1.0, lambda e: np.sqrt(e**2 + 1) - 1),
        (0.0, lambda e: np.log(e**2 / 2 + 1)),
        (-2.0, lambda e: 2 * e**2 / (e**2 + 4)),
        (-np.inf, lambda e: 1 - np.exp(-(e**2) / 2)),
    ],
)
def test_the_general_robust_loss_has_known_members(alpha, known):
    close(jloss.general_robust_loss(ERROR, alpha=alpha), known(np.asarray(ERROR, float)), rtol=2e-6)
    scaled = jloss.general_robust_loss(ERROR, alpha=alpha, scale=2.0)
    close(scaled, known(np.asarray(ERROR, float) / 2), rtol=2e-6)


@pytest.mark.parametrize("alpha", [-1e-6, 0.0, 1e-8, 1e-4, 1.9999, 2 - 1e-6, 2.0])
def test_the_general_robust_loss_is_exact_through_0_and_2(alpha):
    """Seven digits of float32 and finite slopes, where the formula divides 0 by 0."""
    error = np.float32([1e-3, 0.1, 1.0, 10.0, 1e3])
    alpha = float(np.float32(alpha))
    with mp.workdps(60):
        exact = [float(robust(alpha)([mp.mpf(float(e))], [mp.mpf(0)])) for e in error]
    got = jax.jit(jloss.general_robust_loss)(error, alpha=alpha)
    np.testing.assert_allclose(got, exact, rtol=1e-6)
    slopes = jax.vmap(
        jax.grad(lambda e, a, c: jloss.general_robust_loss(e, alpha=a, scale=c), (0, 1, 2)),
        (0, None, None),
    )(jnp.append(error, 0), alpha, 1.0)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("alpha", [-3.0, -2.0, -0.5])
def test_the_general_robust_loss_forgets_outliers_exactly(alpha):
    """Its slope in them falls by a power, without cancelling."""
    error = jnp.array([5.0, 40.0, 6619.0, 13813.0, 1e6])
    got = jax.jit(jax.vmap(jax.grad(functools.partial(jloss.general_robust_loss, alpha=alpha))))
    formula = lambda e: robust(alpha)([e], [mp.mpf(0)])
    with mp.workdps(100):
        exact = [float(mp.diff(formula, mp.mpf(float(e)))) for e in error]
    close(got(error), exact, rtol=1e-5)


def test_the_general_robust_loss_grows_with_alpha():
    """Barron (2019), section 2: it is increasing in alpha for every error."""
    alphas = jnp.linspace(-8, 2, 41)
    values = jax.vmap(lambda a: jloss.general_robust_loss(ERROR, alpha=a))(alphas)
    assert (jnp.diff(values, axis=0) > -1e-6).all()
    slope = jax.grad(lambda a: jloss.general_robust_loss(ERROR, alpha=a).sum())(1.0)
    step = 1e-2
    f = lambda a: jloss.general_robust_loss(ERROR, alpha=a).sum()
    close(slope, (f(1 + step) - f(1 - step)) / (2 * step), rtol=1e-3)


# proportions and forgiveness --------------------------------------------------------------------


def test_smooth_l1_is_huber_over_beta():
    for beta in (0.5, 1.0, 2.0):
        huber = jloss.huber_loss(ERRORS, delta=beta)
        close(jloss.smooth_l1_loss(ERRORS, beta=beta), huber / beta)
    close(jloss.smooth_l1_loss(ERRORS, beta=0.0), jloss.absolute_error(ERRORS))
    assert jax.grad(lambda e: jloss.smooth_l1_loss(e, beta=0.0))(0.0) == 0
    close(jloss.smooth_l1_loss(3.0, beta=2.0), 2.0)  # where huber_loss gives 4


def test_epsilon_insensitive_forgives_within_epsilon():
    values = jloss.epsilon_insensitive_loss(ERRORS, epsilon=0.5)
    close(values, np.maximum(np.abs(ERRORS) - 0.5, 0))
    assert not jax.grad(lambda e: jloss.epsilon_insensitive_loss(e, epsilon=1.0).sum())(
        jnp.array([-0.9, 0.0, 1.0])
    ).any()
    close(jloss.epsilon_insensitive_loss(ERRORS, epsilon=0.0), jloss.absolute_error(ERRORS))


def test_proportions_and_orders_of_magnitude_are_scikit_learn_s():
    x, y = (np.random.default_rng(s).uniform(0.1, 9, size=30).astype("f4") for s in (0, 1))
    shared = sklearn.metrics.mean_absolute_percentage_error(y, x)
    close(jloss.absolute_percentage_error(x, y, reduction=jloss.mean), shared)
    squared = sklearn.metrics.mean_squared_log_error(y, x)
    close(jloss.squared_log_error(x, y, reduction=jloss.mean), squared, rtol=1e-5)


def test_a_share_of_nothing_is_large_and_finite():
    close(jloss.absolute_percentage_error(2.0, 0.0), 2e7)
    close(jloss.absolute_percentage_error(2.0, 0.0, epsilon=0.5), 4.0)
    assert jloss.absolute_percentage_error(0.0, 0.0) == 0


def test_a_logarithm_of_nothing_is_told():
    values = jloss.squared_log_error(jnp.array([-1.0, 0.0, -2.0]), jnp.zeros(3))
    np.testing.assert_array_equal(np.isnan(values), [True, False, True])
    slope = jax.grad(lambda x: jloss.squared_log_error(x, 0.0).sum())(jnp.array([-1.0, 0.5]))
    np.testing.assert_array_equal(np.isnan(slope), [True, False])
    with pytest.raises(ValueError, match="`predictions`"):
        jloss.checked(jloss.squared_log_error)(-1.0, 0.0)


@pytest.mark.parametrize(
    ("alpha", "value"), [(1.0, 1e20), (0.0, 91.4103), (-1.0, 3.0), (-2.0, 2.0)]
)
def test_an_outlier_whose_square_overflows(alpha, value):
    got, slope = jax.value_and_grad(lambda e: jloss.general_robust_loss(e, alpha=alpha))(1e20)
    close(got, value, rtol=1e-5)
    assert np.isfinite(slope)
    got, slope = jax.value_and_grad(lambda e: jloss.general_robust_loss(e, alpha=-jnp.inf))(1e20)
    assert (got, slope) == (1, 0)
    close(jloss.general_robust_loss(1.0, alpha=-1e38), 1 - np.exp(-0.5))
