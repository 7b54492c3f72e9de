"""Arithmetic in float32 or wider, one rounding, states that keep their dtypes, no cancellation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jloss.optimizers import adam, adamw, momentum, rmsprop, sgd

OPTIMIZERS = {
    "sgd": sgd(1e-2),
    "momentum": momentum(1e-2, nesterov=True),
    "momentum-half": momentum(1e-2, accumulator_dtype="bfloat16"),
    "rmsprop": rmsprop(1e-2),
    "rmsprop-all": rmsprop(
        1e-2, centered=True, momentum=0.9, bias_correction=True, initial_scale=1.0
    ),
    "rmsprop-eps-outside": rmsprop(1e-2, eps_in_sqrt=False),
    "adam": adam(1e-2),
    "adam-half": adam(optax.constant_schedule(1e-2), mu_dtype="bfloat16", nesterov=True),
    "adamw": adamw(1e-2, weight_decay=0.1, mask={"w": True}),
}


def every_optimizer(*but):
    chosen = {name: tx for name, tx in OPTIMIZERS.items() if name not in but}
    return pytest.mark.parametrize("optimizer", chosen.values(), ids=chosen)


each_optimizer = every_optimizer()


def gradients(dtype, steps=5):
    rng = np.random.default_rng(1)
    return [{"w": jnp.asarray(rng.normal(size=4), dtype)} for _ in range(steps)]


def widened(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@each_optimizer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_float32_rounded_once(optimizer, dtype):
    params = {"w": jnp.asarray([1.0, -2.0, 0.5, 3.0], dtype)}
    state, wide_state = optimizer.init(params), optimizer.init(widened(params))
    for grads in gradients(dtype):
        updates, state = optimizer.update(grads, state, params)
        wide, wide_state = optimizer.update(widened(grads), wide_state, widened(params))
        assert updates["w"].dtype == dtype
        assert_equal(updates, jax.tree.map(lambda u: u.astype(dtype), wide))
        assert_equal(state, wide_state)


@each_optimizer
@pytest.mark.parametrize(
    ("param_dtype", "grad_dtype"),
    [
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32),
        (jnp.float32, jnp.float16),
        (jnp.float32, jnp.float32),
    ],
)
def test_state_and_parameters_may_be_carried_by_a_scan(optimizer, param_dtype, grad_dtype):
    params = {"w": jax.ShapeDtypeStruct((4,), param_dtype)}
    grads = {"w": jax.ShapeDtypeStruct((4,), grad_dtype)}
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, grads, state, params)
    assert updates == params
    assert after == state


@every_optimizer("adamw")
def test_updates_without_parameters_have_the_dtype_of_the_gradients(optimizer):
    params = {"w": jnp.ones(4, jnp.float32)}
    grads = {"w": jnp.ones(4, jnp.bfloat16)}
    updates, _ = optimizer.update(grads, optimizer.init(params))
    assert updates["w"].dtype == jnp.bfloat16


def test_moments_of_half_precision_are_float32_unless_asked_for():
    params = jnp.ones(4, jnp.float16)
    for optimizer in (momentum(1.0), rmsprop(1.0, centered=True, momentum=0.0), adam(1.0)):
        floats = [x for x in jax.tree.leaves(optimizer.init(params)) if x.ndim]
        assert floats
        assert all(x.dtype == jnp.float32 for x in floats)
    moments = adam(1.0, mu_dtype="bfloat16").init(params)[0]
    assert (moments.mu.dtype, moments.nu.dtype) == (jnp.bfloat16, jnp.float32)
    trace = sgd(1.0, 0.9, accumulator_dtype=jnp.bfloat16).init(params)[0].trace
    assert trace.dtype == jnp.bfloat16


def test_a_half_precision_state_is_rounded_only_where_it_is_stored():
    grads = [np.asarray(g["w"]) for g in gradients(jnp.float32, steps=20)]
    optimizer = sgd(1.0, momentum=0.9, accumulator_dtype="bfloat16")
    state = optimizer.init(jnp.zeros(4))
    stored = np.zeros(4, ml_dtypes.bfloat16)
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g), state)
        exact = g + np.float64(0.9) * stored.astype(np.float64)
        np.testing.assert_allclose(-updates, exact, rtol=1e-6, atol=1e-7)
        stored = np.asarray(-updates).astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(state[0].trace), stored)


def test_a_half_precision_state_from_a_checkpoint_keeps_its_dtype():
    params = jnp.ones(4, jnp.bfloat16)
    state = optax.adam(1e-3).init(params)
    updates, after = adam(1e-3).update(params, state, params)
    assert jax.typeof(updates) == jax.typeof(params)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


@each_optimizer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_zero_gradient_moves_nothing(optimizer, dtype):
    params = grads = {"w": jnp.zeros(4, dtype)}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
        assert_equal(updates, params)


def test_the_second_moment_of_bfloat16_parameters_decays():
    params = jnp.ones(2, jnp.bfloat16)
    optimizer = adam(1e-3, b2=0.999)
    _, state = optimizer.update(params, optimizer.init(params), params)
    zero = jnp.zeros_like(params)
    last = jax.lax.fori_loop(0, 1000, lambda _, s: optimizer.update(zero, s, params)[1], state)
    a_thousand_roundings = 1000 * 2.0**-23
    np.testing.assert_allclose(last[0].nu, 1e-3 * 0.999**1000, rtol=a_thousand_roundings)


def adam_in_double(grads, b1=0.9, b2=0.999, eps=1e-8, nesterov=False):
    """Kingma and Ba's Algorithm 1 in numpy: the updates for a learning rate of 1."""
    m = v = np.zeros_like(grads[0])
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mean = m / -np.expm1(t * np.log1p(b1 - 1))
        if nesterov:
            ahead = m / -np.expm1((t + 1) * np.log1p(b1 - 1))
            mean = b1 * ahead + (1 - b1) * g / -np.expm1(t * np.log1p(b1 - 1))
        yield -mean / (np.sqrt(v / -np.expm1(t * np.log1p(b2 - 1))) + eps)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("b2", [0.999, 1 - 1e-7])
def test_the_bias_correction_does_not_cancel(b2, nesterov):
    grads = [
        np.float64([1.0, -2.0, 0.25]),
        np.float64([3.0, 1.0, 0.5]),
        np.float64([1.0, 1.0, 2.0]),
    ]
    optimizer = adam(1.0, b2=b2, nesterov=nesterov)
    state = optimizer.init(jnp.zeros(3))
    for g, exact in zip(grads, adam_in_double(grads, b2=b2, nesterov=nesterov)):
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state)
        np.testing.assert_allclose(updates, exact, rtol=1e-6)


def test_double_precision_is_double_throughout():
    rng = np.random.default_rng(2)
    grads = rng.normal(size=(30, 4))
    with jax.enable_x64(True):
        optimizer = adam(1.0, b2=1 - 1e-7, nesterov=True)
        state = optimizer.init({"wide": jnp.zeros(4, jnp.float64), "half": jnp.zeros(4, "float16")})
        assert [x.dtype for x in jax.tree.leaves(state[0].nu)] == [jnp.float32, jnp.float64]
        for g, exact in zip(grads, adam_in_double(grads, b2=1 - 1e-7, nesterov=True)):
            both = {"wide": jnp.asarray(g), "half": jnp.asarray(g, jnp.float16)}
            updates, state = optimizer.update(both, state)
            assert updates["half"].dtype == jnp.float16
            np.testing.assert_allclose(updates["wide"], exact, rtol=1e-12)


def test_hyperparameters_of_any_dtype_leave_the_dtypes_alone():
    with jax.enable_x64(True):
        params = jnp.ones(4, jnp.float32)
        for kind in (np.float64, np.float32, jnp.float64, jnp.bfloat16):
            rate, half = kind(0.25), kind(0.5)
            decay = np.float32(0.75) if kind is jnp.bfloat16 else kind(0.75)
            for optimizer in (
                adamw(rate, half, decay, weight_decay=half),
                rmsprop(rate, decay, centered=True, momentum=half, bias_correction=True),
                momentum(rate, half),
            ):
                state = optimizer.init(params)
                updates, after = optimizer.update(params, state, params)
                assert updates.dtype == params.dtype
                assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


def test_a_half_precision_decay_is_widened_before_it_is_subtracted_from_one():
    params, decay = jnp.ones(2), jnp.bfloat16(0.1)
    optimizer = adam(1.0, b1=decay)
    _, state = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(state[0].mu, 1 - float(decay), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_no_decay_for_squares(dtype):
    with pytest.raises(TypeError, match=r"`b2` is .*float16, which rounds 0.999 away"):
        adam(1.0, b2=dtype(0.999))
    with pytest.raises(TypeError, match=r"`decay` is .*float16"):
        rmsprop(1.0, decay=dtype(0.999))


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_a_variance_that_has_vanished_is_not_negative(size, bias_correction):
    optimizer = rmsprop(1.0, eps=1e-4, centered=True, bias_correction=bias_correction)
    grads = size * jnp.linspace(-1.5, 1.4, 32)

    def step(state, _):
        updates, state = optimizer.update(grads, state)
        return state, updates

    _, updates = jax.lax.scan(step, optimizer.init(grads), length=200)
    ratio = -np.float64(updates) / np.float64(grads)
    assert np.all(ratio > 0)
    assert np.all(ratio <= 1 / np.sqrt(1e-4) * (1 + 1e-6))


@every_optimizer("adam-half", "momentum-half")
def test_complex_parameters(optimizer):
    """The modulus of the gradient is its size: turning the gradient turns the update."""
    params = {"w": jnp.zeros(4, jnp.complex64)}
    turn = np.complex64(0.6 + 0.8j)
    state = turned_state = optimizer.init(params)
    for grads in gradients(jnp.complex64, steps=3):
        turned = {"w": turn * grads["w"]}
        updates, state = optimizer.update(grads, state, params)
        turned_updates, turned_state = optimizer.update(turned, turned_state, params)
        assert updates["w"].dtype == jnp.complex64
        expected = turn * np.asarray(updates["w"])
        rounding = 1e-6 * np.max(np.abs(expected))
        np.testing.assert_allclose(turned_updates["w"], expected, rtol=0, atol=rounding)
