"""What is true of each loss for classes that are not equally frequent."""

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
COUNTS = np.array([900, 90, 10])
BITS = jnp.asarray(RNG.integers(0, 2, (12, 3)))


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999])
def test_class_balanced_weights_are_the_paper_s(beta):
    raw = (1 - beta) / (1 - beta ** COUNTS.astype(float))
    close(jloss.class_balanced_weights(COUNTS, beta=beta), raw / raw.mean(), rtol=1e-4)


def test_class_balanced_weights_reach_from_even_to_inverse():
    close(jloss.class_balanced_weights(COUNTS, beta=0.0), 1)
    inverse = 1 / COUNTS
    close(jloss.class_balanced_weights(COUNTS, beta=1.0), inverse / inverse.mean())
    assert np.isfinite(jax.grad(lambda b: jloss.class_balanced_weights(COUNTS, beta=b)[0])(1.0))


def test_a_class_without_examples_has_no_weight():
    got = jloss.class_balanced_weights(np.array([3, 0, 1]), beta=1.0)
    close(got, [0.5, 0, 1.5])
    assert np.isnan(jloss.class_balanced_weights(np.array([3, -1]))).any()
    assert np.isnan(jloss.class_balanced_weights(COUNTS, beta=1.5)).all()


def test_even_counts_adjust_nothing():
    f = functools.partial(jloss.logit_adjusted_cross_entropy, LOGITS, LABELS)
    plain = jloss.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS)
    close(f(class_counts=np.full(3, 7)), plain)
    close(f(class_counts=COUNTS, temperature=0.0), plain)
    close(f(class_counts=COUNTS), f(class_counts=COUNTS / COUNTS.sum()))


def test_logit_adjustment_finds_the_balanced_posterior():
    """Its minimiser on data of unequal classes is, up to a constant, the likelihood alone."""
    likelihood = np.array([[0.7, 0.2, 0.4], [0.3, 0.8, 0.6]])  # of two inputs, given each class
    posterior = likelihood * COUNTS / (likelihood * COUNTS).sum(1, keepdims=True)
    x = jnp.log(jnp.asarray(likelihood, jnp.float32))
    labels = jnp.array([[0, 1, 2]] * 2)
    scores = jnp.repeat(x[:, None], 3, 1)
    f = lambda scores: jnp.sum(
        posterior.astype("f4")
        * jloss.logit_adjusted_cross_entropy(scores, labels, class_counts=COUNTS)
    )
    close(jax.grad(lambda x: f(jnp.repeat(x[:, None], 3, 1)))(x), 0, atol=1e-6)
    assert np.isfinite(f(scores))


def test_a_class_without_examples_is_forbidden():
    counts = np.array([5, 0, 5])
    value = jloss.logit_adjusted_cross_entropy(LOGITS, LABELS * 0, class_counts=counts)
    less = jloss.softmax_cross_entropy_with_integer_labels(LOGITS[:, ::2], LABELS * 0)
    close(value, less)


def test_ldam_widens_the_margin_of_the_rare():
    f = functools.partial(jloss.ldam_loss, class_counts=COUNTS, scale=1.0)
    plain = jloss.softmax_cross_entropy_with_integer_labels
    close(f(LOGITS, LABELS, max_margin=0.0), plain(LOGITS, LABELS))
    margin = 0.5 * (10 / COUNTS) ** 0.25
    less = LOGITS - margin.astype("f4")[LABELS][:, None] * jax.nn.one_hot(LABELS, 3)
    close(f(LOGITS, LABELS), plain(less, LABELS))
    close(jloss.ldam_loss(LOGITS, LABELS, class_counts=COUNTS), plain(30 * less, LABELS), rtol=1e-4)
    balanced = jloss.class_balanced_weights(COUNTS)
    weighted = f(LOGITS, LABELS, class_weights=balanced, reduction=jloss.mean)
    close(weighted, jloss.mean(f(LOGITS, LABELS), weights=balanced[LABELS]))


def test_asymmetric_loss_is_focal_loss_where_it_is_symmetric():
    f = functools.partial(jloss.asymmetric_loss, LOGITS, BITS, margin=0.0)
    focal = jloss.sigmoid_focal_loss(LOGITS, BITS, gamma=2.0)
    close(f(gamma_positive=2.0, gamma_negative=2.0), focal)
    plain = jloss.sigmoid_binary_cross_entropy(LOGITS, BITS)
    close(f(gamma_positive=0.0, gamma_negative=0.0), plain)


def test_easy_negatives_are_forgotten():
    x = jnp.array([-4.0, -3.0])  # probabilities of 0.018 and 0.047
    assert not jloss.asymmetric_loss(x, 0.0).any()
    assert not jax.grad(lambda x: jloss.asymmetric_loss(x, 0.0).sum())(x).any()
    saturated = jax.grad(lambda x: jloss.asymmetric_loss(x, 0.0, margin=0.0))(40.0)
    close(saturated, 1, rtol=1e-4)


def test_negative_counts_are_told():
    for loss in (jloss.ldam_loss, jloss.logit_adjusted_cross_entropy):
        f = functools.partial(loss, LOGITS, LABELS, class_counts=np.array([1, -2, 3]))
        assert np.isnan(f()[LABELS == 1]).all()
        with pytest.raises(ValueError, match="`class_counts`"):
            jloss.checked(jax.jit(f))()
        with pytest.raises(ValueError, match="`class_counts`"):
            loss(LOGITS, LABELS, class_counts=np.ones(4))


def test_slopes_in_hyperparameters_with_classes_that_are_not_there():
    logits, label = jnp.array([[0.5, 0.1, 0.2]]), jnp.array([0])
    ldam = lambda s, x, **doors: jloss.ldam_loss(
        x, label, class_counts=np.array([1, 2, 3]), scale=s, **doors
    ).sum()
    where = np.array([[True, True, False]])
    assert np.isfinite(jax.grad(ldam)(30.0, logits, where=where))
    assert np.isfinite(jax.grad(ldam)(30.0, logits.at[0, 2].set(-jnp.inf)))
    adjusted = functools.partial(jloss.logit_adjusted_cross_entropy, logits, label)
    slope = jax.grad(lambda t: adjusted(class_counts=np.array([3, 3, 0]), temperature=t).sum())
    close(slope(1.0), 0)
    hidden = adjusted(class_counts=np.array([1, 2, -1]), where=where)
    close(hidden, adjusted(class_counts=np.array([1, 2, 9]), where=where))
    junk = lambda x: jloss.logit_adjusted_cross_entropy(
        x, label, class_counts=np.ones(3), temperature=np.array([[1, 1, np.nan]]), where=where
    ).sum()
    assert np.isfinite(jax.grad(junk)(logits)).all()


def test_slopes_of_the_asymmetric_loss_in_its_margin():
    slope = jax.grad(lambda m: jloss.asymmetric_loss(jnp.float32(0.5), 0, margin=m))
    close(slope(0.0), slope(1e-4), rtol=2e-3)
    near = jloss.asymmetric_loss(-2.0, 0, margin=0.1)
    q = 1 / (1 + np.exp(2.0)) - 0.1
    close(near, -(q**4) * np.log1p(-q), rtol=1e-5, atol=0)
    assert np.isnan(jloss.asymmetric_loss(jnp.array([-9.0, 0.0]), 0, gamma_negative=-1.0)).all()


def test_class_balanced_weights_have_a_slope_in_beta_from_0_on():
    slope = jax.jacobian(lambda b: jloss.class_balanced_weights(np.array([1, 3]), beta=b))
    close(slope(0.0), [0.5, -0.5])
