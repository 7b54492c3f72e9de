"""The state lies where the parameters lie, in both modes of a mesh, before and after a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jloss.optimizers import adam, adamw, momentum, rmsprop, sgd

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
