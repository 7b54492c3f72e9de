"""What is true of each divergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
P, Q = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (2, 20, 6)), -1)


def test_it_is_scipy_s_relative_entropy():
    close(jloss.kl_divergence(jnp.log(Q), P), scipy.stats.entropy(P, Q, axis=-1))


def test_it_is_torch_s_batchmean():
    torch = pytest.importorskip("torch")
    log_q, p = (torch.tensor(np.asarray(a)) for a in (jnp.log(Q), P))
    expected = torch.nn.functional.kl_div(log_q, p, reduction="batchmean")
    close(jloss.kl_divergence(jnp.log(Q), P, reduction=jloss.mean), expected.item())


def test_it_is_0_for_the_same_and_else_positive():
    close(jloss.kl_divergence(jnp.log(P), P), 0)
    assert (jloss.kl_divergence(jnp.log(Q), P) > 0).all()


def test_cross_entropy_is_entropy_and_divergence():
    entropy = -jnp.sum(P * jnp.log(P), -1)
    close(jloss.softmax_cross_entropy(jnp.log(Q), P), entropy + jloss.kl_divergence(jnp.log(Q), P))


def test_independent_distributions_add():
    """KL(P1 x P2 | Q1 x Q2) = KL(P1 | Q1) + KL(P2 | Q2)."""
    both = lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
    together = jloss.kl_divergence(jnp.log(both(Q, P)), both(P, Q))
    close(together, jloss.kl_divergence(jnp.log(Q), P) + jloss.kl_divergence(jnp.log(P), Q))


def test_what_never_happens_costs_nothing():
    target, log_q = jnp.array([1.0, 0.0]), jnp.array([jnp.log(0.5), -jnp.inf])
    value, slopes = jax.value_and_grad(jloss.kl_divergence, argnums=(0, 1))(log_q, target)
    close(value, np.log(2))
    close(slopes[0], [-1, 0])
    assert np.isfinite(slopes[1]).all()


def test_what_happens_and_is_forbidden_is_infinite():
    value, slope = jax.value_and_grad(jloss.kl_divergence)(
        jnp.array([0.0, -jnp.inf]), jnp.array([0.5, 0.5])
    )
    assert value == np.inf
    close(slope, [-0.5, -0.5])


LOG_Q = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(5).normal(size=(9, 4)), jnp.float32))
LOG_P = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(6).normal(size=(9, 4)), jnp.float32))
PAIRED = (
    jloss.kl_divergence,
    jloss.generalized_kl_divergence,
    jloss.jensen_shannon_divergence,
    jloss.total_variation_distance,
)


@pytest.mark.parametrize("divergence", PAIRED)
def test_a_divergence_is_0_between_equals_and_positive_between_others(divergence):
    same = jnp.array([[0.5, 0.25, 0.25]])
    np.testing.assert_allclose(divergence(jnp.log(same), same), 0, atol=1e-12)
    assert (divergence(LOG_Q, jnp.exp(LOG_P)) > 0).all()


def test_log_targets_are_the_logarithms_of_targets():
    expected = jloss.kl_divergence(LOG_Q, jnp.exp(LOG_P))
    np.testing.assert_allclose(
        jloss.kl_divergence_with_log_targets(LOG_Q, LOG_P), expected, rtol=1e-5, atol=1e-6
    )
    both = jnp.array([[0.0, -jnp.inf]])
    assert jloss.kl_divergence_with_log_targets(both, both) == 0
    slope = jax.grad(lambda q: jloss.kl_divergence_with_log_targets(q, both).sum())(both)
    np.testing.assert_array_equal(slope, [[-1, 0]])


def test_generalized_kl_is_kl_between_distributions_and_scipy_s_beyond():
    p = jnp.exp(LOG_P)
    plain = jloss.kl_divergence(LOG_Q, p)
    np.testing.assert_allclose(
        jloss.generalized_kl_divergence(LOG_Q, p), plain, rtol=1e-4, atol=1e-6
    )
    amounts = np.random.default_rng(7).gamma(1, size=(9, 4))
    expected = scipy.special.kl_div(amounts, np.exp(np.asarray(LOG_Q, float))).sum(-1)
    got = jloss.generalized_kl_divergence(LOG_Q, amounts)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_generalized_kl_keeps_its_digits_between_close_amounts():
    """optax adds terms that cancel: in float32 it gives 0 or less here."""
    got = jloss.generalized_kl_divergence(jnp.array([[1e-4, -1e-4]]), jnp.ones((1, 2)))
    np.testing.assert_allclose(got, np.expm1(1e-4) + np.expm1(-1e-4), rtol=1e-5)


def test_jensen_shannon_is_the_square_of_scipy_s():
    expected = scipy.spatial.distance.jensenshannon(np.exp(LOG_P), np.exp(LOG_Q), axis=-1) ** 2
    got = jloss.jensen_shannon_divergence(LOG_Q, jnp.exp(LOG_P))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    swapped = jloss.jensen_shannon_divergence(LOG_P, jnp.exp(LOG_Q))
    np.testing.assert_allclose(got, swapped, rtol=1e-5)


def test_distances_reach_their_bounds_between_strangers():
    log_q, p = jnp.array([[0.0, -jnp.inf]]), jnp.array([[0.0, 1.0]])
    np.testing.assert_allclose(jloss.jensen_shannon_divergence(log_q, p), np.log(2), rtol=1e-6)
    assert jloss.total_variation_distance(log_q, p) == 1
    for divergence in (jloss.jensen_shannon_divergence, jloss.total_variation_distance):
        assert np.isfinite(jax.grad(lambda q, f=divergence: f(q, p).sum())(log_q)).all()


def test_the_distances_are_ordered():
    """Pinsker: 2 TV^2 <= KL; Lin: JS <= log(2) TV."""
    p = jnp.exp(LOG_P)
    tv = jloss.total_variation_distance(LOG_Q, p)
    assert (2 * tv**2 <= jloss.kl_divergence(LOG_Q, p) + 1e-6).all()
    assert (jloss.jensen_shannon_divergence(LOG_Q, p) <= np.log(2) * tv + 1e-6).all()


def test_gaussian_kl_is_the_mean_log_ratio_of_densities():
    """By quadrature over the first Gaussian, in float64."""
    mu, s, nu, t = 0.7, -0.4, -0.2, 0.5
    x, weight = np.polynomial.hermite_e.hermegauss(40)
    x, weight = mu + np.exp(s / 2) * x, weight / np.sqrt(2 * np.pi)
    log_density = lambda m, v: scipy.stats.norm.logpdf(x, m, np.exp(v / 2))
    expected = np.sum(weight * (log_density(mu, s) - log_density(nu, t)))
    got = jloss.gaussian_kl_divergence(jnp.array([mu]), [s], [nu], [t])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_gaussian_kl_to_the_standard_one_is_the_price_of_a_code():
    mu, s = LOG_Q, LOG_P
    by_hand = -0.5 * jnp.sum(1 + s - mu**2 - jnp.exp(s), -1)
    np.testing.assert_allclose(jloss.gaussian_kl_divergence(mu, s), by_hand, rtol=1e-5)
    each = jloss.gaussian_kl_divergence(mu, s, axis=())
    np.testing.assert_allclose(each.sum(-1), by_hand, rtol=1e-5)
    np.testing.assert_allclose(jloss.gaussian_kl_divergence(mu, s, mu, s), 0, atol=1e-7)
    tiny = jloss.gaussian_kl_divergence(jnp.zeros(1), jnp.array([1e-4]))
    np.testing.assert_allclose(tiny, 0.25e-8, rtol=1e-4)


def test_a_target_of_almost_nothing_against_a_large_amount():
    value, slope = jax.value_and_grad(
        lambda q: jloss.generalized_kl_divergence(q, jnp.array([1e-30]))
    )(jnp.array([20.0]))
    close(value, np.exp(20.0))
    close(slope, np.exp(20.0))


def test_a_bad_row_is_nan_throughout():
    log_q = jnp.array([0.5, 0.25, 0.25])  # probabilities, given for their logarithms
    slope = jax.grad(lambda q: jloss.kl_divergence(q, jnp.array([1.0, 0.0, 0.0])))(log_q)
    assert np.isnan(slope).all()
