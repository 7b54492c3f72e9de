"""What is true of each divergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
