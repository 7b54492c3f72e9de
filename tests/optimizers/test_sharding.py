"""The state lies where the parameters lie, or is split further, before and after a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jloss.optimizers import (
    adam,
    adamw,
    bf16,
    bf16_params,
    guard,
    int8,
    momentum,
    rmsprop,
    sgd,
    state_shardings,
)

OPTIMIZERS = {
    "sgd": sgd(0.1),
    "momentum": momentum(0.1, nesterov=True),
    "rmsprop": rmsprop(0.1, centered=True, momentum=0.5, bias_correction=True, initial_scale=1.0),
    "adam": adam(0.1, mu_dtype="bfloat16", nesterov=True),
    "adamw": adamw(0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mode", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_state_and_updates_follow_the_parameters(optimizer, mode, dtype):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(mode,))
    rng = np.random.default_rng(4)
    params, grads = (jnp.asarray(rng.normal(size=(16, 2)), dtype) for _ in range(2))

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    expected = step(params, optimizer.init(params), grads)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec("data"))
        params, grads = jax.device_put((params, grads), place)
        state = optimizer.init(params)
        assert lie_like(state, place)
        if mode is AxisType.Explicit:
            assert lie_like(jax.jit(optimizer.init)(params), place)
        after = step(params, state, grads)
        assert lie_like(after, place)
    jax.tree.map(lambda a, b: assert_equal_floats(a, b), after, expected)


def lie_like(tree, place):
    arrays = [x for x in jax.tree.leaves(tree) if x.ndim]
    return all(x.sharding.is_equivalent_to(place, x.ndim) for x in arrays)


def assert_equal_floats(a, b):
    np.testing.assert_allclose(np.float64(jax.device_get(a)), np.float64(b), rtol=1e-6, atol=1e-7)


STATES = {
    "adam": adam(0.1),
    "optax": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    "encoded": adam(optax.constant_schedule(0.1), mu=int8(), nu=bf16(), max_norm=1.0),
    "split16": bf16_params(guard(optax.adam(0.1)), "split16"),
    "masked": optax.masked(adam(0.1), {"w": True, "e": False, "b": True}),
    "partitioned": optax.partition(
        {"a": adam(0.1), "b": sgd(0.1, 0.9)}, {"w": "a", "e": "b", "b": "a"}
    ),
    "factored": optax.adafactor(0.1, min_dim_size_to_factor=8),
}
SPECS = {"w": PartitionSpec("a", "b"), "e": PartitionSpec(None, "b"), "b": PartitionSpec()}
SHAPES = {"w": (64, 128), "e": (16, 64), "b": (6,)}


def placed(mesh, specs):
    rng = np.random.default_rng(5)
    return {
        name: jax.device_put(
            jnp.asarray(rng.normal(size=shape), jnp.bfloat16), NamedSharding(mesh, specs[name])
        )
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("mode", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("optimizer", STATES.values(), ids=STATES)
def test_every_state_is_made_beside_its_parameters(optimizer, mode):
    """As eager `init` does; a jitted one left to itself puts moments on one device (Auto)."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(mode,) * 2)
    with jax.set_mesh(mesh):
        params = placed(mesh, SPECS)
        shardings = state_shardings(optimizer, params)
        state = jax.jit(optimizer.init, out_shardings=shardings)(params)
        eager = optimizer.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(eager)
    for made, wanted, beside in zip(*map(jax.tree.leaves, (state, shardings, eager))):
        assert made.sharding.is_equivalent_to(wanted, made.ndim)
        if made.shape in SHAPES.values():
            assert made.sharding.is_equivalent_to(beside.sharding, made.ndim)


def test_shapes_with_shardings_are_enough():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    params = placed(mesh, SPECS)
    shapes = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
    )
    for optimizer in STATES.values():
        assert state_shardings(optimizer, shapes) == state_shardings(optimizer, params)


def test_the_scale_of_a_row_lies_with_its_row():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    shardings = state_shardings(adam(0.1, mu=int8()), placed(mesh, SPECS))
    mu = optax.tree.get(shardings, "mu")["w"]
    assert (mu.codes.spec, mu.scale.spec) == (PartitionSpec("a", "b"), PartitionSpec("a", None))


def test_one_bare_array_and_names_that_end_alike():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    alone = state_shardings(adam(0.1), put(jnp.ones((8, 2)), "a"))
    assert alone[0].mu.spec == PartitionSpec("a", None)
    assert alone[0].count.spec == PartitionSpec()
    nested = {"w": put(jnp.ones((8, 8)), "a"), "deep": {"w": put(jnp.ones((8, 8)), None, "a")}}
    mu = state_shardings(adam(0.1), nested)[0].mu
    assert (mu["w"].spec, mu["deep"]["w"].spec) == (
        PartitionSpec("a", None),
        PartitionSpec(None, "a"),
    )


@pytest.mark.parametrize("mode", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("optimizer", [adam(0.1), adam(0.1, mu=int8(), nu=int8()), optax.adam(0.1)])
def test_zero1_keeps_an_eighth_of_the_moments_and_takes_the_same_steps(optimizer, mode):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(mode,))
    specs = dict.fromkeys(SHAPES, PartitionSpec())

    def step(params, state, grads):
        with jax.numpy_dtype_promotion("standard"):  # of optax
            updates, state = optimizer.update(grads, state, params)
        moved = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
        return moved, state

    with jax.set_mesh(mesh):
        params = placed(mesh, specs)
        places = jax.tree.map(lambda p: p.sharding, params)
        zero1 = state_shardings(optimizer, params, zero1_axis="data")
        split = jax.jit(optimizer.init, out_shardings=zero1)(params)
        whole = jax.jit(optimizer.init, out_shardings=state_shardings(optimizer, params))(params)
        zero1_step = jax.jit(step, out_shardings=(places, zero1))
        one, other = params, params
        for _ in range(2):
            one, split = zero1_step(one, split, params)
            other, whole = jax.jit(step)(other, whole, params)
    for name in SHAPES:
        assert one[name].sharding.is_fully_replicated
        assert_equal_floats(one[name], other[name])
    big = [x for x in jax.tree.leaves(split) if x.shape in ((64, 128), (16, 64))]
    assert len(big) == 4
    for x in big:
        assert x.addressable_shards[0].data.size == x.size // 8
    parts = {x.sharding.spec for x in big}
    assert parts == {PartitionSpec("data", None)}


def test_zero1_splits_the_first_axis_that_it_can():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"w": PartitionSpec("model"), "e": PartitionSpec("data"), "b": PartitionSpec()}
    mu = state_shardings(adam(0.1), placed(mesh, specs), zero1_axis="data")[0].mu
    assert mu["w"].spec == PartitionSpec("model", "data")
    assert mu["e"].spec == PartitionSpec("data", None)
    assert mu["b"].spec == PartitionSpec(None)


def test_what_lies_nowhere_is_told_by_name():
    with pytest.raises(ValueError, match=r"parameter\['w'\] should have a NamedSharding"):
        state_shardings(adam(0.1), {"w": jnp.ones(8)})
    mesh = jax.make_mesh((8,), ("data",))
    params = {"w": jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec()))}
    with pytest.raises(ValueError, match="no axis 'model'"):
        state_shardings(adam(0.1), params, zero1_axis="model")
    with pytest.raises(ValueError, match="no parameters"):
        state_shardings(adam(0.1), {})
