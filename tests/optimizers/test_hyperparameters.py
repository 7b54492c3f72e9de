"""Every number may be traced, mapped over, scheduled or injected."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jloss.optimizers import adam, adamw, bf16_params, momentum, rmsprop, schedules, sgd

VALUES = {
    "learning_rate": (0.125, 0.25, 0.5),
    "momentum": (0.0, 0.5, 0.9),
    "decay": (0.0, 0.5, 0.9),
    "eps": (1e-8, 1e-3, 0.1),
    "initial_scale": (0.0, 0.5, 2.0),
    "b1": (0.0, 0.5, 0.9),
    "b2": (0.5, 0.99, 0.999),
    "eps_root": (0.0, 1e-3, 0.1),
    "weight_decay": (0.0, 0.01, 0.5),
}
NUMERIC = [
    pytest.param(factory, name, id=f"{factory.__name__}-{name}")
    for factory in (sgd, momentum, rmsprop, adam, adamw)
    for name, parameter in inspect.signature(factory).parameters.items()
    if isinstance(parameter.default, float) or name in ("learning_rate", "momentum")
]
PARAMS = np.float32([1.0, -2.0, 0.5])
GRADS = np.float32([[0.5, -1.0, 2.0], [1.5, 0.25, -1.0], [-0.5, 1.0, 1.0]])


def optimizer(factory, **options):
    return factory(**({"learning_rate": 0.1} | options))


def all_updates(tx, params=PARAMS, grads=GRADS):
    params = jnp.asarray(params)
    state, history = tx.init(params), []
    for g in jnp.asarray(grads):
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        history.append(updates)
    return jnp.stack(history)


@pytest.mark.parametrize(("factory", "name"), NUMERIC)
def test_mapping_over_a_number_is_a_loop_and_one_compilation(factory, name):
    traced = []

    @jax.jit
    @jax.vmap
    def mapped(value):
        traced.append(value)
        return all_updates(optimizer(factory, **{name: value}))

    values = VALUES[name]
    together = mapped(jnp.asarray(values))
    one_by_one = [all_updates(optimizer(factory, **{name: value})) for value in values]
    assert furthest(one_by_one[0], one_by_one[1]) > 0
    np.testing.assert_allclose(together, jnp.stack(one_by_one), rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(mapped(jnp.asarray(values[::-1])), together[::-1])
    assert len(traced) == 1


def furthest(a, b):
    return float(jnp.max(jnp.abs(a - b)))


@pytest.mark.parametrize(("factory", "name"), NUMERIC)
def test_any_number_may_be_scheduled_by_injection(factory, name):
    values = jnp.asarray(VALUES[name])
    tx = optimizer(optax.inject_hyperparams(factory), **{name: lambda count: values[count]})
    params = jnp.asarray(PARAMS)
    state = tx.init(params)
    inner = optimizer(factory, **{name: values[0]}).init(params)
    for g, value in zip(jnp.asarray(GRADS), VALUES[name]):
        updates, state = tx.update(g, state, params)
        expected, inner = optimizer(factory, **{name: value}).update(g, inner, params)
        np.testing.assert_allclose(updates, expected, rtol=2e-6, atol=1e-6)
    assert jax.tree.structure(state.inner_state) == jax.tree.structure(inner)


@pytest.mark.parametrize(("factory", "name"), [p for p in NUMERIC if "initial" not in p.id])
def test_any_number_may_be_a_schedule(factory, name):
    values = jnp.asarray(VALUES[name])
    tx = optimizer(factory, **{name: lambda count: values[count]})
    inner = optimizer(factory, **{name: values[0]}).init(jnp.asarray(PARAMS))
    params, state = jnp.asarray(PARAMS), tx.init(jnp.asarray(PARAMS))
    for g, value in zip(jnp.asarray(GRADS), VALUES[name]):
        updates, after = tx.update(g, state, params)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
        expected, inner = optimizer(factory, **{name: value}).update(g, inner, params)
        np.testing.assert_allclose(updates, expected, rtol=2e-6, atol=1e-6)
        state = after


def test_schedules_mapped_over_their_arguments_are_one_compilation():
    traced = []

    @jax.jit
    @jax.vmap
    def mapped(warmup, end):
        traced.append(warmup)
        rate = schedules.warmup_cosine(0.0, 0.5, warmup, 10, end)
        return all_updates(adamw(rate, b1=schedules.linear(0.5, end, 2), max_norm=rate))

    together = mapped(jnp.asarray([1, 2]), jnp.asarray([0.25, 0.75]))
    for row, (warmup, end) in zip(together, [(1, 0.25), (2, 0.75)]):
        rate = schedules.warmup_cosine(0.0, 0.5, warmup, 10, end)
        alone = all_updates(adamw(rate, b1=schedules.linear(0.5, end, 2), max_norm=rate))
        np.testing.assert_allclose(row, alone, rtol=2e-6, atol=1e-6)
    mapped(jnp.asarray([3, 4]), jnp.asarray([0.5, 0.25]))
    assert len(traced) == 1


@pytest.mark.parametrize("factory", [sgd, momentum, rmsprop, adam, adamw])
def test_a_schedule_of_the_learning_rate_begins_at_count_zero(factory):
    """The parameters stay where they are, so the rate multiplies the step of a rate of one."""
    tx, unit = optimizer(factory, learning_rate=lambda count: 0.5 / (1 + count)), factory(1.0)
    params = jnp.asarray(PARAMS)
    state, unit_state = tx.init(params), unit.init(params)
    for count, g in enumerate(jnp.asarray(GRADS)):
        updates, state = tx.update(g, state, params)
        step, unit_state = unit.update(g, unit_state, params)
        np.testing.assert_allclose(updates, 0.5 / (1 + count) * step, rtol=1e-6)


def test_a_schedule_of_the_weight_decay_begins_at_count_zero():
    tx = adamw(0.5, weight_decay=lambda count: 0.25 * (1 + count))
    params, zero = jnp.asarray(PARAMS), jnp.zeros(3)
    state = tx.init(params)
    for count in range(3):
        updates, state = tx.update(zero, state, params)
        np.testing.assert_allclose(updates, -0.125 * (1 + count) * params, rtol=1e-6)


def test_momentum_of_rmsprop_goes_on_when_the_rate_has_become_zero():
    once = optax.piecewise_constant_schedule(1.0, {1: 0.0})
    tx = rmsprop(once, momentum=0.5)
    history = all_updates(tx)
    np.testing.assert_allclose(history[1:], [0.5 * history[0], 0.25 * history[0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_injection_in_half_precision_with_float32_hyperparameters(dtype):
    tx = optax.inject_hyperparams(adam, hyperparam_dtype=jnp.float32)(0.125)
    single = adam(*np.float32([0.125, 0.9, 0.999, 1e-8]))
    params, grads = jnp.asarray(PARAMS, dtype), jnp.asarray(GRADS, dtype)
    np.testing.assert_array_equal(
        all_updates(tx, params, grads), all_updates(single, params, grads)
    )


@pytest.mark.parametrize("factory", [sgd, momentum, rmsprop, adam, adamw])
def test_injection_around_bfloat16_parameters(factory):
    """What `optax.inject_hyperparams` would round to the parameters' dtype, it sees in float32."""
    inject = optax.inject_hyperparams(factory)
    params, grads = jnp.asarray(PARAMS, jnp.bfloat16), jnp.asarray(GRADS, jnp.bfloat16)
    tx, plain = bf16_params(inject(learning_rate=0.1)), bf16_params(factory(np.float32(0.1)))
    state, plain_state = tx.init(params), plain.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        expected, plain_state = plain.update(g, plain_state, params)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
    if factory in (adam, adamw):
        with pytest.raises(TypeError, match="hyperparam_dtype=jnp"):
            inject(learning_rate=0.1).init(params)


def test_injection_of_strings_and_masks():
    tx = optax.inject_hyperparams(adamw, static_args="mask")(
        0.5, mu_dtype="bfloat16", weight_decay=0.5, mask=lambda p: {"a": True, "b": False}
    )
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.init(params)
    assert state.inner_state[0].mu["a"].dtype == jnp.bfloat16
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_array_equal(updates["a"], np.float32([-0.25, -0.25]))
    np.testing.assert_array_equal(updates["b"], np.zeros(2))


@pytest.mark.parametrize("factory", [sgd, momentum, rmsprop, adam])
def test_the_slope_of_a_path_by_its_learning_rate(factory):
    """Along fixed gradients the updates are linear in the rate."""

    def end(rate):
        return jnp.sum(all_updates(factory(rate)))

    np.testing.assert_allclose(jax.grad(end)(0.25), end(1.0), rtol=1e-6)
