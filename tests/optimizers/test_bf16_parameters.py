"""bfloat16 parameters move as float32 ones do: in the mean, or exactly."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from jloss.optimizers import adam, adamw, bf16, bf16_params, int8, rmsprop, sgd

MODES = ("stochastic", "split16")
every_mode = pytest.mark.parametrize("mode", MODES)


pytestmark = pytest.mark.usefixtures("standard_promotion")


def words(x):
    return np.asarray(jax.lax.bitcast_convert_type(x, jnp.uint16))


def moved(tx, params, grads, steps):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[0])
    return run(params)


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


@every_mode
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 1e2])
def test_apply_updates_lands_on_the_bit(mode, size):
    """On a neighbour of the float32 sum, for updates far smaller and far larger than p."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=100_000), jnp.bfloat16)
    change = wide(params) * jnp.asarray(size * rng.normal(size=params.shape), jnp.float32)
    tx = bf16_params(optax.identity(), mode)
    updates, _ = tx.update(change, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert (updates.dtype, after.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(wide(after), params + updates)
    exact = wide(params) + change
    ulp = 2.0 ** (np.floor(np.log2(np.abs(np.float64(exact)))) - 7)
    error = np.float64(wide(after)) - np.float64(exact)
    assert np.all(np.abs(error) <= ulp * (1 if mode == "stochastic" else 0.5))


def test_the_mean_of_stochastic_rounding_is_the_float32_step():
    params = jnp.ones(50_000, jnp.bfloat16)
    tx = bf16_params(optax.sgd(1.0))
    after, _ = moved(tx, params, jnp.full(params.shape, 1e-4, jnp.bfloat16), 100)
    grads = float(jnp.bfloat16(1e-4))
    ulp = 2.0**-8  # below 1
    five_sigma = 5 * ulp * np.sqrt(100 * grads / ulp / 50_000)
    assert abs(np.mean(np.float64(wide(after))) - (1 - 100 * grads)) < five_sigma
    stuck, _ = moved(optax.sgd(1.0), params, jnp.full(params.shape, 1e-4, jnp.bfloat16), 100)
    np.testing.assert_array_equal(stuck, params)


@pytest.mark.parametrize(
    "tx",
    [optax.adam(1e-3), adam(1e-3), adamw(1e-3, weight_decay=0.1), rmsprop(1e-3), sgd(1e-3, 0.9)],
)
def test_split16_is_a_float32_run_seen_through_its_upper_half(tx):
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.normal(size=(8, 16)), jnp.bfloat16)}
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.bfloat16), params)
    after, state = moved(bf16_params(tx, "split16"), params, grads, 200)
    exact, exact_state = moved(tx, wide(params), wide(grads), 200)
    upper = words(after["w"]).astype(np.int64) << 16
    joined = (upper + np.asarray(state.low["w"])).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(joined, exact["w"])
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state.inner_state), jax.tree.leaves(exact_state))
    )
    assert state.low["w"].dtype == jnp.int16


@pytest.mark.parametrize("x", [0.0, 1.0, -1.0, 3.38e38, -3.38e38, 2e-38])
def test_split16_holds_every_float32(x):
    """Ties, the largest, the smallest that no CPU flushes, what rounds up over a power of two."""
    around = np.float32(x) * np.linspace(0.99, 1.005, 4001, dtype=np.float32)
    tx = bf16_params(optax.identity(), "split16")
    start = jnp.zeros(around.shape, jnp.bfloat16)
    updates, state = tx.update(jnp.asarray(around), tx.init(start), start)
    start = optax.apply_updates(start, updates)
    seen = []
    spy = optax.stateless(lambda updates, params: seen.append(params) or updates)
    bf16_params(spy, "split16").update(jnp.zeros_like(around), state, start)
    np.testing.assert_array_equal(seen[0], around)


@every_mode
def test_what_is_not_finite_is_told_by_the_parameter(mode):
    params = jnp.ones(3, jnp.bfloat16)
    tx = bf16_params(optax.identity(), mode)
    updates, _ = tx.update(jnp.asarray([jnp.nan, jnp.inf, -jnp.inf]), tx.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(wide(after), [jnp.nan, jnp.inf, -jnp.inf])


@every_mode
def test_other_leaves_are_left_alone(mode):
    params = {
        "bf16": jnp.ones(4, jnp.bfloat16),
        "f32": jnp.ones(4, jnp.float32),
        "f16": jnp.ones(4, jnp.float16),
        "none": None,
    }
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3, p.dtype), params)
    tx = bf16_params(adam(1e-4), mode)
    state = tx.init(params)
    updates, after = tx.update(grads, state, params)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    np.testing.assert_allclose(updates["f32"], -1e-4, rtol=1e-4)
    assert updates["none"] is None
    assert {
        k: v.dtype for k, v in optax.apply_updates(params, updates).items() if v is not None
    } == {k: v.dtype for k, v in params.items() if v is not None}


@every_mode
def test_models_with_functions_inside_and_frozen_leaves(mode):
    model = eqx.nn.MLP(3, 1, 4, 1, key=jax.random.key(0), dtype=jnp.bfloat16)
    tx = bf16_params(adam(0.1), mode)
    arrays = eqx.filter(model, eqx.is_inexact_array)
    state = tx.init(arrays)
    grads = eqx.filter_grad(lambda m: m(jnp.ones(3, jnp.bfloat16)).sum().astype(jnp.float32))(model)
    grads = eqx.tree_at(lambda m: m.layers[0].bias, grads, None)
    updates, after = tx.update(grads, state, model)
    assert updates.layers[0].bias is None
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    eqx.apply_updates(model, updates)


def test_it_asks_for_what_it_needs():
    tx = bf16_params(optax.sgd(0.1))
    params = jnp.ones(2, jnp.bfloat16)
    with pytest.raises(ValueError, match="bf16_params needs the parameters"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="mode must be"):
        bf16_params(optax.sgd(0.1), "kahan")


@every_mode
@pytest.mark.parametrize("mesh_mode", [AxisType.Explicit, AxisType.Auto])
def test_one_device_and_eight_agree_to_the_bit(mode, mesh_mode):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(mesh_mode,) * 2)
    rng = np.random.default_rng(2)
    params, grads = (
        {
            "w": jnp.asarray(rng.normal(size=(64, 128)), jnp.bfloat16),
            "b": jnp.ones(16, jnp.bfloat16),
        }
        for _ in range(2)
    )
    tx = bf16_params(optax.sgd(1e-3, 0.9), mode)
    expected, _ = moved(tx, params, grads, 3)
    with jax.set_mesh(mesh):
        place = {
            "w": NamedSharding(mesh, PartitionSpec("a", "b")),
            "b": NamedSharding(mesh, PartitionSpec("b")),
        }
        params, grads = jax.device_put((params, grads), (place, place))
        after, _ = moved(tx, params, grads, 3)
        assert after["w"].sharding.is_equivalent_to(place["w"], 2)
    for name in params:
        np.testing.assert_array_equal(words(jax.device_get(after[name])), words(expected[name]))


def test_what_is_projected_to_zero_is_zero():
    tx = bf16_params(optax.sgd(1.0), "split16")
    params = jnp.asarray(np.random.default_rng(3).normal(size=1000), jnp.bfloat16)
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(0.1 + params, state, params)
        params = jnp.maximum(optax.apply_updates(params, updates), 0)
        assert np.all(np.isfinite(wide(params)))


def test_dtypes_of_the_inner_update_do_not_matter():
    params = {"h": jnp.ones((4, 4), jnp.bfloat16), "c": jnp.ones(2, jnp.complex64)}
    inner = optax.stateless(lambda u, p: jax.tree.map(lambda x: (x * 1e-3).astype(p["c"].dtype), u))
    for mode in MODES:
        tx = bf16_params(inner, mode)
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates["h"].dtype == jnp.float32


@every_mode
def test_derivatives_pass_through_the_rounding(mode):
    params, grads = jnp.ones(64, jnp.bfloat16), jnp.linspace(-1, 1, 64).astype(jnp.bfloat16)

    def after(rate, tx):
        return jnp.sum(wide(params) + tx.update(grads, tx.init(params), params)[0])

    rounded = jax.grad(lambda rate: after(rate, bf16_params(sgd(rate), mode)))(0.1)
    np.testing.assert_allclose(rounded, -jnp.sum(wide(grads)), atol=1e-5)


def test_seeds_differ_and_may_be_mapped_over():
    params, grads = jnp.ones(64, jnp.bfloat16), jnp.full(64, 1e-3, jnp.bfloat16)
    run = lambda seed: moved(bf16_params(optax.sgd(1.0), seed=seed), params, grads, 1)[0]
    together = jax.vmap(run)(jnp.arange(3))
    for seed, row in enumerate(together):
        np.testing.assert_array_equal(row, run(seed))
    assert np.any(together[0] != together[1])


LAYERS = [64, 128, 10]


def network(params, x):
    for i, layer in enumerate(params):
        x = x.astype(layer["w"].dtype) @ layer["w"] + layer["b"][None]
        x = jax.nn.relu(x) if i + 1 < len(params) else x.astype(jnp.float32)
    return x


def training_loss(tx, dtype, key):
    """The end of 1500 steps of 32 on scikit-learn's digits, at a small learning rate."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    *keys, order = jax.random.split(key, len(LAYERS))
    params = [
        {"w": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "b": jnp.zeros(b)}
        for k, a, b in zip(keys, LAYERS, LAYERS[1:])
    ]
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = lambda p, x, y: cross_entropy(network(p, x), y).mean()

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(loss)(params, images[batch], labels[batch])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    batches = jax.random.randint(order, (1500, 32), 0, len(labels))
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
    return loss(params, images, labels)


@functools.cache
def end_of_eight(name):
    tx, dtype = {
        "float32": (optax.adam(1e-4), jnp.float32),
        "optax": (optax.adam(1e-4), jnp.bfloat16),
        "stochastic": (bf16_params(optax.adam(1e-4)), jnp.bfloat16),
        "split16": (bf16_params(optax.adam(1e-4), "split16"), jnp.bfloat16),
        "bf16 moments": (bf16_params(adam(1e-4, mu=bf16(), nu=bf16())), jnp.bfloat16),
        "int8 moments": (bf16_params(adam(1e-4, mu=int8(), nu=int8())), jnp.bfloat16),
    }[name]
    keys = jax.random.split(jax.random.key(0), 8)
    return float(jnp.mean(jax.jit(jax.vmap(functools.partial(training_loss, tx, dtype)))(keys)))


@pytest.mark.parametrize("name", ["stochastic", "split16", "bf16 moments", "int8 moments"])
def test_digits_are_learnt_as_in_float32(name):
    assert abs(end_of_eight(name) / end_of_eight("float32") - 1) < 0.03


def test_plain_bfloat16_does_not_learn_digits():
    assert end_of_eight("optax") > 3 * end_of_eight("float32")
