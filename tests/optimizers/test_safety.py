"""A bad gradient changes no bit; a long one is shortened; a scaled loss is scaled back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jloss.optimizers import (
    DynamicLossScale,
    adam,
    adamw,
    bf16,
    bf16_params,
    guard,
    int8,
    momentum,
    rmsprop,
    schedules,
    sgd,
)

SAFE = {"max_norm": 1.0, "skip_nonfinite": True}
HALVING = schedules.exponential(0.1, 1, 0.5)
OPTIMIZERS = {
    "sgd": sgd(HALVING, **SAFE),
    "momentum": momentum(0.1, nesterov=True, **SAFE),
    "rmsprop": rmsprop(
        0.1, centered=True, momentum=0.5, bias_correction=True, initial_scale=1.0, **SAFE
    ),
    "adam": adam(HALVING, nesterov=True, mu_dtype="bfloat16", **SAFE),
    "adamw": adamw(0.1, weight_decay=HALVING, mask={"w": True, "b": False}, **SAFE),
    "scheduled": adam(0.1, b1=HALVING, **SAFE),
    "encoded": adam(0.1, mu=int8(), nu=bf16(), **SAFE),
    "bf16_params": bf16_params(adam(0.1, mu=int8(), nu=int8(), **SAFE)),
    "around bf16_params": guard(bf16_params(optax.adam(0.1)), 1.0),
    "around split16": guard(bf16_params(optax.sgd(0.1, 0.9), "split16"), 1.0),
    "around optax": guard(optax.adamw(HALVING), 1.0),
    "around rmsprop": guard(optax.rmsprop(0.1, momentum=0.9), 1.0),
    "around MultiSteps": guard(optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()),
}
each_optimizer = pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def draw(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=(64, 64)), rng.normal(size=3)
    return {
        "w": jnp.asarray(w, dtype).at[0, :2].set(jnp.asarray([0.0, -0.0], dtype)),
        "b": jnp.asarray(b, dtype),
    }


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def assert_close(tree, other, rtol=1e-6, atol=1e-7):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), tree, other)


@each_optimizer
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_bad_step_changes_no_bit(tx, bad, dtype):
    """Neither the first nor a later one, of parameters (-0.0 too), moments and counts."""
    params = draw(dtype)
    spoilt = draw(dtype, 1) | {"b": jnp.asarray([1.0, bad, 1.0], dtype)}
    step = jax.jit(tx.update)
    state, skipped = tx.init(params), 0
    for good in (spoilt, draw(dtype, 2), spoilt, spoilt):
        updates, after = step(good, state, params)
        moved = optax.apply_updates(params, updates)
        if good is spoilt:
            skipped += 1
            assert bits(moved) == bits(params)
            assert bits(inner(after)) == bits(inner(state))
        else:
            assert bits(moved) != bits(params) or isinstance(inner(after), optax.MultiStepsState)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
        assert optax.tree.get(after, "skipped") == skipped
        params, state = moved, after


def inner(state):
    """The state inside the guard."""
    return state.inner_state if hasattr(state, "skipped") else inner(state.inner_state)


@pytest.mark.parametrize(
    "plain", [sgd, momentum, functools.partial(rmsprop, momentum=0.5), adam, adamw]
)
def test_clipping_is_optax_s_chain(plain):
    """Fused or around, every state and update is that of the clipped gradient."""
    params = draw()
    fused, around = plain(0.1, max_norm=2.0), guard(plain(0.1), 2.0)
    chain = optax.chain(optax.clip_by_global_norm(2.0), plain(0.1))
    states = [tx.init(params) for tx in (fused, around, chain)]
    for seed in range(4):
        size = 10.0 ** (seed - 3)
        grads = {name: size * g for name, g in draw(seed=seed).items()}
        (one, s), (two, t), (three, u) = (
            jax.jit(tx.update)(grads, state, params)
            for tx, state in zip((fused, around, chain), states)
        )
        states = [s, t, u]
        assert_close(one, three, rtol=2e-5)
        assert_close(two, three, rtol=2e-5)
        np.testing.assert_allclose(s.global_norm, optax.tree.norm(grads), rtol=1e-5)
        assert_close(s.inner_state, u[1], rtol=2e-5)


def test_who_asks_for_nothing_gets_the_plain_state():
    params = draw()
    assert isinstance(adam(0.1).init(params)[0], optax.ScaleByAdamState)
    guarded = adam(0.1, skip_nonfinite=True).init(params)
    assert isinstance(guarded.inner_state[0], optax.ScaleByAdamState)
    assert guarded._fields == (
        "global_norm",
        "taken",
        "skipped",
        "streak",
        "loss_scale",
        "inner_state",
    )


def test_loggers_see_the_norm_and_the_counts():
    tx = guard(optax.sgd(0.1), 1.0)
    params = jnp.zeros(2)
    state = tx.init(params)
    seen = []
    for scale in (1.0, 2.0, jnp.nan, jnp.inf, 3.0):
        _, state = tx.update(jnp.asarray([3.0, 4.0]) * scale, state, params)
        seen.append(
            (float(state.global_norm), *map(int, (state.taken, state.skipped, state.streak)))
        )
    assert seen[:2] == [(5.0, 1, 0, 1), (10.0, 2, 0, 2)]
    assert np.isnan(seen[2][0])
    assert seen[2][1:] == (2, 1, -1)
    assert seen[3:] == [(np.inf, 2, 2, -2), (15.0, 3, 2, 1)]


def test_what_is_let_through_is_let_through():
    tx = guard(optax.sgd(1.0), skip_nonfinite=False)
    updates, state = tx.update(jnp.asarray([1.0, jnp.nan]), tx.init(jnp.zeros(2)))
    np.testing.assert_array_equal(updates, [-1.0, jnp.nan])
    assert (state.taken, state.skipped, state.streak) == (1, 0, -1)


def test_the_norm_is_summed_in_float32():
    """In float16 a thousand squares of 100 overflow, and squares of 1e-4 are 0."""
    params = jnp.zeros(1000, jnp.float16)
    tx = guard(optax.sgd(1.0), 1.0)
    for size in (100.0, 1e-4):
        grads = jnp.full(1000, size, jnp.float16)
        _, state = tx.update(grads, tx.init(params), params)
        np.testing.assert_allclose(state.global_norm, np.float64(grads[0]) * 1000**0.5, rtol=1e-5)


@pytest.mark.parametrize("max_norm", [0.0, 1.0, jnp.inf])
def test_the_edges_of_clipping(max_norm):
    tx = guard(optax.sgd(1.0), max_norm)
    for grads in (jnp.zeros(3), jnp.ones(3), jnp.full(3, 1e-30)):
        updates, _ = tx.update(grads, tx.init(grads))
        norm = float(jnp.sqrt(jnp.sum(grads**2)))
        np.testing.assert_allclose(-updates, grads * min(1.0, max_norm / norm if norm else 1.0))


def test_max_norm_may_be_traced_mapped_over_and_scheduled():
    grads = jnp.asarray([3.0, 4.0])
    run = lambda c: guard(optax.sgd(1.0), c).update(grads, guard(optax.sgd(1.0), c).init(grads))[0]
    together = jax.jit(jax.vmap(run))(jnp.asarray([1.0, 2.5, 10.0]))
    np.testing.assert_allclose(-together, jnp.outer(jnp.asarray([0.2, 0.5, 1.0]), grads), rtol=1e-6)
    tx = sgd(1.0, max_norm=lambda taken: 1.0 + jnp.asarray(taken, jnp.float32))
    state = tx.init(grads)
    for norm, scale in ((1, 1.0), (2, jnp.nan), (2, 1.0), (3, 1.0)):
        updates, state = tx.update(grads * scale, state)
        if norm > 1 and np.isnan(scale):
            state = state._replace(taken=jnp.int32(1))  # NaN was let through, and counted
            continue
        np.testing.assert_allclose(jnp.sqrt(jnp.sum(updates**2)), norm, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_a_scaled_loss_is_scaled_back_in_float32(dtype):
    """1e-8 is 0 in float16, 2^15 times it is not."""
    params = jnp.ones(4, jnp.float32)
    scaled = jnp.asarray(2.0**15 * jnp.asarray([1e-8, 2e-8, 3e-8, 4e-8]), dtype)
    tx = guard(optax.sgd(1.0), loss_scale=2.0**15)
    updates, state = tx.update(scaled, tx.init(params), params)
    np.testing.assert_allclose(-updates, np.float64(scaled) / 2**15, rtol=1e-6)
    np.testing.assert_allclose(
        state.global_norm, np.linalg.norm(np.float64(scaled)) / 2**15, rtol=1e-5
    )
    assert state.loss_scale == 2.0**15


def test_a_dynamic_loss_scale_finds_what_float16_bears():
    """A gradient of 10 overflows from a scale of 2^13 on: 65504 / 10."""
    tx = guard(optax.sgd(1.0), loss_scale=DynamicLossScale(2.0**20, period=4))
    params = jnp.ones(())

    def step(state, _):
        scaled = jnp.asarray(10.0 * state.loss_scale, jnp.float16)
        updates, state = tx.update(scaled, state, params)
        return state, (updates, state.loss_scale, state.streak)

    _, (updates, scales, streaks) = jax.lax.scan(step, tx.init(params), length=30)
    np.testing.assert_array_equal(scales[:8], 2.0 ** np.asarray([19, 18, 17, 16, 15, 14, 13, 12]))
    np.testing.assert_array_equal(scales[8:13], 2.0 ** np.asarray([12, 12, 12, 13, 12]))
    np.testing.assert_array_equal(updates, np.where(np.asarray(streaks) > 0, -10.0, 0.0))


def test_a_dynamic_scale_ends_at_one_and_needs_what_it_learns_from():
    tx = guard(optax.sgd(1.0), loss_scale=DynamicLossScale(4.0))
    state = tx.init(jnp.ones(()))
    for expected in (2.0, 1.0, 1.0):
        _, state = tx.update(jnp.asarray(jnp.nan), state)
        assert state.loss_scale == expected
    with pytest.raises(ValueError, match="DynamicLossScale learns"):
        guard(optax.sgd(1.0), skip_nonfinite=False, loss_scale=DynamicLossScale())


def test_where_apply_if_finite_raises():
    """float32 gradients of bfloat16 parameters widen the state of optax's Adam."""
    params, grads = jnp.ones(4, jnp.bfloat16), jnp.ones(4, jnp.float32)
    optaxs = optax.apply_if_finite(optax.adam(0.1), 5)
    with pytest.raises(TypeError):
        optaxs.update(grads, optaxs.init(params), params)
    tx = guard(optax.adam(0.1))
    state = tx.init(params)
    _, after = tx.update(grads, state, params)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


def test_none_empty_and_complex_leaves():
    params = {"none": None, "empty": jnp.zeros((0, 3)), "c": jnp.asarray([3.0 + 4.0j])}
    tx = adam(0.1, **SAFE)
    updates, state = tx.update(params, tx.init(params), params)
    assert state.global_norm == 5.0
    assert updates["none"] is None
    assert updates["c"].dtype == jnp.complex64
    _, state = tx.update({}, tx.init({}), {})
    assert (state.global_norm, state.taken) == (0.0, 1)


def test_one_member_of_a_batch_may_be_bad():
    tx = adam(0.1, **SAFE)
    params = jnp.ones((2, 3))
    grads = jnp.asarray([[1.0, 2.0, 3.0], [1.0, jnp.nan, 3.0]])
    updates, state = jax.vmap(tx.update)(grads, jax.vmap(tx.init)(params), params)
    np.testing.assert_array_equal(state.skipped, [0, 1])
    np.testing.assert_array_equal(updates[1], -jnp.zeros(3))
    np.testing.assert_array_equal(updates[0], tx.update(grads[0], tx.init(params[0]), params[0])[0])


@pytest.mark.parametrize("make", [adam, functools.partial(rmsprop, eps_in_sqrt=False)])
def test_slopes_through_a_step_are_finite_where_a_gradient_is_zero(make):
    tx = make(0.1, **SAFE)
    params = jnp.asarray([1.0, 2.0, 0.0])

    def after(scale):
        grads = scale * jnp.asarray([0.0, 1.0, 0.0])
        updates, state = tx.update(grads, tx.init(params), params)
        updates, _ = tx.update(2 * grads, state, params + updates)
        return jnp.sum(updates)

    for scale in (1.0, 0.0):
        assert np.isfinite(jax.grad(after)(scale))
    assert np.isfinite(jax.grad(jax.grad(after))(1.0))


@pytest.mark.parametrize("mode", [AxisType.Explicit, AxisType.Auto])
def test_the_norm_is_that_of_all_devices(mode):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(mode,))
    params, grads = jnp.ones(16), jnp.arange(16.0)
    tx = adam(0.1, **SAFE)
    step = jax.jit(tx.update)
    _, expected = step(grads, tx.init(params), params)
    with jax.set_mesh(mesh):
        split = jax.device_put((params, grads), NamedSharding(mesh, PartitionSpec("data")))
        _, state = step(split[1], tx.init(split[0]), split[0])
    np.testing.assert_allclose(state.global_norm, expected.global_norm, rtol=1e-6)


def test_by_hand_the_norm_is_that_of_all_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params, grads = jnp.ones(16), jnp.arange(16.0).at[3].set(jnp.nan)
    split = PartitionSpec("data")

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(split, split), out_specs=(split, PartitionSpec())
    )
    def step(params, grads):
        tx = guard(optax.sgd(0.1), 1.0, axis_name="data")
        updates, state = tx.update(grads, tx.init(params), params)
        return updates, (state.global_norm, state.skipped)

    updates, (norm, skipped) = jax.jit(step)(params, grads.at[3].set(3.0))
    np.testing.assert_allclose(norm, np.linalg.norm(np.arange(16)), rtol=1e-6)
    np.testing.assert_allclose(updates, -0.1 * np.arange(16) / norm, rtol=1e-5)
    updates, (norm, skipped) = jax.jit(step)(params, grads)
    assert np.isnan(norm)
    assert skipped == 1
    np.testing.assert_array_equal(updates, np.zeros(16))


@pytest.mark.parametrize("axes", ["data", ("data",)])
def test_by_hand_what_all_devices_have_counts_once(axes):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"w": PartitionSpec("data"), "b": PartitionSpec()}

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec())
    def norm(grads):
        tx = guard(optax.sgd(0.1), axis_name=axes)
        return tx.update(grads, tx.init(grads))[1].global_norm

    grads = {"w": jnp.ones(64), "b": jnp.ones(4)}
    np.testing.assert_allclose(jax.jit(norm)(grads), 68**0.5, rtol=1e-6)


def test_a_dynamic_scale_has_a_ceiling():
    tx = guard(optax.sgd(1.0), loss_scale=DynamicLossScale(period=1))
    step = lambda state, _: (tx.update(jnp.zeros(2), state)[1], None)
    state, _ = jax.lax.scan(step, tx.init(jnp.zeros(2)), length=200)
    assert (state.loss_scale, state.skipped) == (2.0**24, 0)


def test_it_needs_no_memory_of_its_own():
    """Clipping, skipping and AdamW in one pass: donated, the compiled step has no temporary."""
    params = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    tx = adamw(1e-3, **SAFE)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * 4 * 512 * 512
