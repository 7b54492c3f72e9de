"""Closed forms: what the formulas say without running them."""

from __future__ import annotations

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jloss.optimizers import adam, adamw, momentum, rmsprop, sgd

gradients = arrays.arrays(
    np.float32,
    st.sampled_from([(), (0,), (1,), (3,), (2, 3)]),
    elements=st.integers(-(2**20), 2**20).map(lambda n: n / 1024),
)
a_few = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def first_update(optimizer, grads):
    params = jnp.zeros_like(jnp.asarray(grads))
    updates, _ = optimizer.update(jnp.asarray(grads), optimizer.init(params), params)
    return np.asarray(updates)


@a_few
@hypothesis.given(gradients, st.booleans())
def test_the_first_step_of_adam_is_a_sign(grads, weighted):
    factory = adamw if weighted else adam
    g = np.float64(grads)
    expected = -0.1 * g / (np.abs(g) + 1e-3)
    np.testing.assert_allclose(first_update(factory(0.1, eps=1e-3), grads), expected, rtol=1e-6)


@a_few
@hypothesis.given(gradients, st.booleans())
def test_the_first_step_of_rmsprop(grads, unbiased):
    g = np.float64(grads)
    share = 1 if unbiased else 0.25
    expected = -0.1 * g / np.sqrt(share * g * g + 1e-6)
    tx = rmsprop(0.1, decay=0.75, eps=1e-6, bias_correction=unbiased)
    np.testing.assert_allclose(first_update(tx, grads), expected, rtol=1e-6)


@a_few
@hypothesis.given(gradients)
def test_the_first_step_of_momentum_is_that_of_sgd(grads):
    for tx, factor in ((sgd(0.5), -0.5), (momentum(0.5), -0.5), (momentum(0.5, 0.5, True), -0.75)):
        np.testing.assert_allclose(first_update(tx, grads), factor * grads, rtol=1e-6)


def test_momentum_sums_a_geometric_series():
    tx, g = momentum(1.0, 0.5), jnp.asarray([1.0, -2.0])
    state = tx.init(g)
    for t in range(1, 6):
        updates, state = tx.update(g, state)
        np.testing.assert_array_equal(updates, -(2 - 0.5 ** (t - 1)) * g)


def steps(optimizer, params, count=4):
    """Updates along fixed gradients at fixed parameters."""
    rng = np.random.default_rng(3)
    state = optimizer.init(params)
    for _ in range(count):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        updates, state = optimizer.update(grads, state, params)
        yield updates


@pytest.mark.parametrize("nesterov", [False, True])
def test_weight_decay_is_decoupled(nesterov):
    """p + u(adamw) = p (1 - lr wd) + u(adam)."""
    params = jnp.asarray([1.0, -2.0, 4.0])
    plain = steps(adam(0.25, nesterov=nesterov), params)
    decayed = steps(adamw(0.25, weight_decay=0.5, nesterov=nesterov), params)
    for u, w in zip(plain, decayed):
        np.testing.assert_allclose(params + w, params * (1 - 0.25 * 0.5) + u, rtol=1e-6)


def test_weight_decay_touches_only_what_its_mask_lets_it():
    params = {"kernel": jnp.asarray([1.0, -2.0]), "bias": jnp.asarray([3.0])}
    masks = ({"kernel": True, "bias": False}, lambda p: {"kernel": True, "bias": False})
    for mask in masks:
        decayed = steps(adamw(0.5, weight_decay=0.5, mask=mask), params)
        for u, w in zip(steps(adam(0.5), params), decayed):
            np.testing.assert_array_equal(w["bias"], u["bias"])
            np.testing.assert_allclose(
                w["kernel"] - u["kernel"], -0.25 * params["kernel"], rtol=1e-6
            )


def test_adam_without_memory_of_the_mean_is_unbiased_rmsprop():
    params = jnp.zeros(3)
    unbiased = rmsprop(0.5, decay=0.99, eps_in_sqrt=False, bias_correction=True)
    for a, r in zip(steps(adam(0.5, b1=0.0, b2=0.99), params), steps(unbiased, params)):
        np.testing.assert_allclose(a, r, rtol=1e-6)


@pytest.mark.parametrize("factory", [adam, adamw, rmsprop])
def test_the_scale_of_the_gradient_does_not_matter(factory):
    g = jnp.asarray([1.0, -3.0, 0.5])
    tx = factory(0.1, eps=0.0)
    np.testing.assert_array_equal(first_update(tx, g), first_update(tx, 1024.0 * g))


def test_a_constant_gradient_moves_adam_by_the_learning_rate():
    params, g = jnp.zeros(2), jnp.asarray([4.0, -0.5])
    tx = adam(0.125, eps=0.0)
    state = tx.init(params)
    for _ in range(50):
        updates, state = tx.update(g, state, params)
        np.testing.assert_allclose(updates, -0.125 * jnp.sign(g), rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.5, 0.9, 0.999])
def test_the_decays_of_adam_do_not_matter_to_a_constant_gradient(decay):
    """Nor do their derivatives: every moment, once unbiased, is that of the one gradient."""
    g = jnp.asarray([4.0, -0.5])

    def last(b1, b2):
        tx = adam(1.0, b1=b1, b2=b2, eps=0.0)
        state = tx.init(g)
        for _ in range(3):
            updates, state = tx.update(g, state)
        return jnp.sum(updates * g)

    value, slopes = jax.value_and_grad(last, argnums=(0, 1))(decay, decay)
    np.testing.assert_allclose(value, -4.5, rtol=1e-6)
    np.testing.assert_allclose(slopes, 0.0, atol=1e-6 / (1 - decay))
