"""The optimizers are optax transformations: they wrap, chain, mask, resume and donate."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx, serialization

import jloss.optimizers
from jloss.optimizers import (
    adam,
    adamw,
    bf16,
    bf16_params,
    encode_state,
    guard,
    int8,
    momentum,
    rmsprop,
    sgd,
)

OPTIMIZERS = {
    "sgd": sgd(0.1),
    "momentum": momentum(0.1),
    "rmsprop": rmsprop(0.1, centered=True, momentum=0.5, bias_correction=True, initial_scale=1.0),
    "adam": adam(optax.constant_schedule(0.1), nesterov=True),
    "adamw": adamw(0.1, mask=lambda tree: jax.tree.map(lambda _: True, tree)),
    "encoded": adam(0.1, mu=bf16(stochastic=False), nu=int8()),
    "guarded": momentum(0.1, max_norm=1e3, skip_nonfinite=True),
    "scheduled": rmsprop(0.1, decay=optax.constant_schedule(0.5)),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def tree():
    return {"a": jnp.asarray([1.0, -2.0]), "b": {"c": jnp.asarray([[3.0]])}}


def types(x):
    return jax.tree.map(jax.typeof, x)


def assert_close(x, y, rtol=1e-6):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), x, y)


def test_the_public_names():
    public = {name for name, x in vars(jloss.optimizers).items() if callable(x)}
    assert public == {
        *("adam", "adamw", "momentum", "rmsprop", "sgd"),
        *("bf16", "bf16_params", "encode_state", "f32", "int8"),
        *("DynamicLossScale", "guard", "state_shardings"),
    }


@each_optimizer
def test_the_type_is_optax_s_own_and_extra_arguments_are_ignored(optimizer):
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    params = tree()
    state = optimizer.init(params)
    plain = optimizer.update(params, state, params)
    assert_close(optimizer.update(params, state, params=params, value=1.0, loss=None), plain)
    assert_close(optax.chain(optimizer).update(params, (state,), params, value=1.0)[0], plain[0])


@each_optimizer
def test_shapes_alone_are_enough_to_begin(optimizer):
    params = tree()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    state = optimizer.init(half)
    assert types(optimizer.init(shapes)) == types(state)
    abstract = jax.eval_shape(optimizer.init, half)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    assert all(
        (a.shape, a.dtype, a.weak_type) == (s.shape, s.dtype, False)
        for a, s in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True)
    )


@each_optimizer
@pytest.mark.parametrize("params", [{}, (), {"a": jnp.zeros((0, 3))}, jnp.asarray(1.0)], ids=str)
def test_empty_trees_empty_leaves_and_bare_numbers(optimizer, params):
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert types(after) == types(state)


@each_optimizer
def test_leaves_that_are_none_stay_none(optimizer):
    params = {"a": jnp.asarray([1.0, 2.0]), "none": None}
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params)
    assert updates["none"] is None
    assert types(after) == types(state)
    alone = {"a": params["a"]}
    assert_close(updates["a"], optimizer.update(alone, optimizer.init(alone), alone)[0]["a"])


@each_optimizer
def test_parameters_without_a_gradient_keep_their_state(optimizer):
    """As equinox makes them: the parameters hold integers, keys and functions, the gradient not."""
    arrays = {"a": jnp.asarray([1.0]), "table": jnp.arange(3), "key": jax.random.key(0)}
    model = arrays | {"activation": jax.nn.relu}
    grads = {"a": jnp.asarray([1.0]), "table": None, "key": None, "activation": None}
    state = optimizer.init(arrays | {"activation": None})
    updates, after = optimizer.update(grads, state, model)
    assert jax.tree.structure(updates) == jax.tree.structure(grads)
    assert types(after) == types(state)


@pytest.mark.parametrize(
    "bad", [jnp.arange(2), jnp.asarray([True]), np.zeros(1, jax.dtypes.float0)]
)
@each_optimizer
def test_an_integer_gradient_is_told_by_name(optimizer, bad):
    params = tree()
    with pytest.raises(TypeError, match=r"gradient\['b'\]\['c'\] must be floating point"):
        optimizer.update(params | {"b": {"c": bad}}, optimizer.init(params), params)


def test_an_integer_parameter_is_told_by_name():
    """Its update would be rounded to 0."""
    params, optimizer = tree(), sgd(0.1)
    whole = params | {"a": jnp.asarray([1, 2])}
    with pytest.raises(TypeError, match=r"parameter\['a'\] must be floating point .* got int32"):
        optimizer.update(params, optimizer.init(whole), whole)


@pytest.mark.parametrize("mask", [None, {"a": True, "b": False}])
def test_weight_decay_asks_for_the_parameters(mask):
    optimizer = adamw(0.1, mask=mask)
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        optimizer.update(tree(), optimizer.init(tree()))


@each_optimizer
def test_masked_is_the_optimizer_on_what_is_left(optimizer):
    params = tree()
    tx = optax.masked(optimizer, {"a": True, "b": False})
    updates, after = tx.update(params, tx.init(params), params)
    alone = {"a": params["a"]}
    assert_close(updates["a"], optimizer.update(alone, optimizer.init(alone), alone)[0]["a"])
    assert_close(updates["b"], params["b"])
    assert types(after) == types(tx.init(params))


def test_partition_gives_each_part_its_own():
    params = tree()
    parts = {"fast": sgd(0.5), "slow": adamw(0.1, weight_decay=0.5), "frozen": optax.set_to_zero()}
    tx = optax.partition(parts, {"a": "slow", "b": "fast"})
    updates, after = tx.update(params, tx.init(params), params)
    alone = adamw(0.1, weight_decay=0.5)
    assert_close(updates["a"], alone.update(params["a"], alone.init(params["a"]), params["a"])[0])
    assert_close(updates["b"]["c"], -0.5 * params["b"]["c"])
    assert types(after) == types(tx.init(params))


def test_chain_keeps_the_order():
    params = tree()
    tx = optax.chain(optax.clip_by_global_norm(1.0), momentum(0.5), optax.scale(2.0))
    state = tx.init(params)
    updates, after = tx.update(params, state, params)
    norm = np.sqrt(1.0 + 4.0 + 9.0)
    assert_close(updates, jax.tree.map(lambda p: -p / norm, params))
    assert isinstance(after[1][0], optax.TraceState)


@each_optimizer
def test_accumulated_microbatches_are_one_step_on_their_mean(optimizer):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), tree())
    tx = optax.MultiSteps(optimizer, 2)
    first, second = params, jax.tree.map(lambda p: 3 * p, params)
    with jax.numpy_dtype_promotion("standard"):
        nothing, state = tx.update(first, tx.init(params), params)
        updates, state = tx.update(second, state, params)
    mean = jax.tree.map(lambda p: 2 * p, params)
    assert_close(nothing, jax.tree.map(jnp.zeros_like, params))
    expected, inner = optimizer.update(mean, optimizer.init(params), params)
    assert types(updates) == types(expected)
    assert_close(updates, expected)
    assert_close(state.inner_opt_state, inner)


def test_a_step_that_is_not_finite_is_left_out():
    params = tree()
    tx = optax.apply_if_finite(adam(0.1), 3)
    state = tx.init(params)
    updates, after = tx.update(jax.tree.map(lambda p: p * jnp.nan, params), state, params)
    assert_close(updates, jax.tree.map(jnp.zeros_like, params))
    assert_close(after.inner_state, state.inner_state)


@each_optimizer
def test_the_parameters_in_a_state_are_found(optimizer):
    params = tree()
    state = optimizer.init(params)
    names = {"a": "A", "b": {"c": "C"}}
    mapped = optax.tree_map_params(
        optimizer, lambda _, name: name, state, names, transform_non_params=lambda _: "other"
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    moments = sum(x.ndim > 0 for x in jax.tree.leaves(state))
    leaves = jax.tree.leaves(mapped)
    assert leaves.count("A") == leaves.count("C") == moments // 2
    assert leaves.count("other") == len(leaves) - moments


def test_the_fields_of_a_state_are_found_by_name():
    params = tree()
    optimizer = adamw(0.1)
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert optax.tree.get(state, "count") == 1
    assert_close(optax.tree.get(state, "mu"), jax.tree.map(lambda p: 0.1 * p, params))
    assert optax.tree.get(state, "ScaleByAdamState") is state[0]
    moved = optax.tree.set(state, count=7)
    _, after = optimizer.update(params, moved, params)
    assert optax.tree.get(after, "count") == 8
    assert types(after) == types(state)


@each_optimizer
def test_a_state_survives_serialization(optimizer):
    params = tree()
    _, state = optimizer.update(params, optimizer.init(params), params)
    restored = serialization.from_bytes(optimizer.init(params), serialization.to_bytes(state))
    assert_close(restored, state)
    assert_close(
        optimizer.update(params, restored, params), optimizer.update(params, state, params)
    )


STATES = {
    "encoded": adam(0.1, mu=bf16(), nu=int8()),
    "lion": encode_state(optax.lion(0.1), {"mu": int8()}),
    "guarded": adamw(0.1, mu=int8(), max_norm=1.0, skip_nonfinite=True),
    "around optax": guard(optax.adamw(0.1), 1.0, loss_scale=8.0),
    "scheduled": momentum(0.1, momentum=optax.constant_schedule(0.5), trace=int8()),
    "stochastic": bf16_params(optax.adam(0.1)),
    "split16": bf16_params(adam(0.1, mu=int8(), nu=int8()), "split16"),
}


@pytest.mark.parametrize("through", ["msgpack", "orbax"])
@pytest.mark.parametrize("optimizer", STATES.values(), ids=STATES)
def test_every_kind_of_state_comes_back_bit_by_bit(optimizer, through, tmp_path):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(64, 64)), jnp.bfloat16), "b": jnp.ones(3)}
    grads = jax.tree.map(lambda p: 1e-3 * p, params)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(grads, optimizer.init(params), params)
    if through == "msgpack":
        restored = serialization.from_bytes(optimizer.init(params), serialization.to_bytes(state))
    else:
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(restored)):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


@each_optimizer
def test_a_step_may_overwrite_what_it_was_given(optimizer):
    @jax.jit(donate_argnums=(0, 1), keep_unused=True)
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    grads = tree()
    given = (tree(), optimizer.init(grads))
    after = step(*given, grads)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert types(after) == types((grads, optimizer.init(grads)))


@each_optimizer
def test_equinox_models_in_bfloat16_train_in_bfloat16(optimizer):
    model = eqx.nn.MLP(2, "scalar", 4, 1, key=jax.random.key(0), dtype=jnp.bfloat16)
    x = jnp.ones(2, jnp.bfloat16)

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: m(x))(model)
        updates, state = optimizer.update(grads, state, model)
        return eqx.apply_updates(model, updates), state

    state = optimizer.init(eqx.filter(model, eqx.is_array))
    after, after_state = step(model, state)
    arrays = [eqx.filter(m, eqx.is_array) for m in (model, after)]
    assert types(arrays[1]) == types(arrays[0])
    assert types(after_state) == types(state)
    assert after(x) < model(x)


def test_flax_models_train():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adam(0.125), wrt=nnx.Param)
    before = model.kernel[...]
    grads = nnx.grad(lambda m: m(jnp.asarray([1.0, -2.0])).sum())(model)
    optimizer.update(model, grads)
    np.testing.assert_allclose(
        model.kernel[...], before - 0.125 * np.float32([[1], [-1]]), rtol=1e-6
    )
