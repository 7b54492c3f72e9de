"""What is true of each regression loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
