"""What is true of each loss for wrong labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(12, 3)) * 2, jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 3, 12))
plain = jloss.softmax_cross_entropy_with_integer_labels


def own(logits, labels):
    return jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], 1)[:, 0]


def test_generalized_cross_entropy_reaches_from_cross_entropy_to_error():
    close(jloss.generalized_cross_entropy(LOGITS, LABELS, q=0.0), plain(LOGITS, LABELS))
    close(jloss.generalized_cross_entropy(LOGITS, LABELS, q=1.0), 1 - own(LOGITS, LABELS))
    close(jloss.generalized_cross_entropy(LOGITS, LABELS, q=1e-4), plain(LOGITS, LABELS), rtol=1e-3)


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0])
def test_a_doubtful_label_pulls_by_its_probability_to_the_power_q(q):
    slope = jax.grad(lambda x: jloss.generalized_cross_entropy(x, LABELS, q=q).sum())(LOGITS)
    of_plain = jax.grad(lambda x: plain(x, LABELS).sum())(LOGITS)
    close(slope, own(LOGITS, LABELS)[:, None] ** q * of_plain)


def test_generalized_cross_entropy_is_bounded():
    far = jnp.array([-200.0, 0.0])
    close(jloss.generalized_cross_entropy(far, 0, q=0.5), 2.0)
    forbidden = jnp.array([-jnp.inf, 0.0])
    close(jloss.generalized_cross_entropy(forbidden, 0, q=0.5), 2.0)
    assert jloss.generalized_cross_entropy(forbidden, 0, q=0.0) == jnp.inf


@pytest.mark.parametrize("q", [1.0])
def test_the_error_summed_over_all_labels_is_constant(q):
    """Symmetry, by which evenly wrong labels do not move the minimiser (Ghosh et al., 2017)."""
    total = sum(jloss.generalized_cross_entropy(LOGITS, jnp.full(12, k), q=q) for k in range(3))
    close(total, 2)


def test_symmetric_cross_entropy_is_its_two_terms():
    p = own(LOGITS, LABELS)
    got = jloss.symmetric_cross_entropy(LOGITS, LABELS, alpha=0.3, beta=0.7, log_of_zero=-5.0)
    close(got, 0.3 * plain(LOGITS, LABELS) + 0.7 * 5 * (1 - p))
    close(jloss.symmetric_cross_entropy(LOGITS, LABELS, alpha=1.0, beta=0.0), plain(LOGITS, LABELS))
    reverse = jloss.symmetric_cross_entropy(LOGITS, LABELS, alpha=0.0, log_of_zero=-1.0)
    close(reverse, jloss.generalized_cross_entropy(LOGITS, LABELS, q=1.0))


def test_the_slope_in_q_at_a_forbidden_label():
    f = lambda q: jloss.generalized_cross_entropy(jnp.array([-jnp.inf, 0.0]), 0, q=q)
    close(jax.grad(f)(0.5), -4)
