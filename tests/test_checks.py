"""`jloss.checked`: what it raises, what it leaves alone, and that nothing of it stays behind."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jloss

LOGITS, GOOD, BAD = jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0]), jnp.array([0, 1, 3, 0])
loss = functools.partial(
    jloss.softmax_cross_entropy_with_integer_labels, reduction=jloss.mean
)  # a partial has no name, and no signature of its own


def test_a_checked_step_gives_what_the_step_gives():
    step = jax.jit(jax.value_and_grad(loss))
    for ours, theirs in zip(jloss.checked(step)(LOGITS, GOOD), step(LOGITS, GOOD)):
        np.testing.assert_array_equal(ours, theirs)
    assert jloss.checked(loss)(logits=LOGITS, labels=GOOD) == loss(LOGITS, GOOD)


def test_an_error_takes_nothing_from_the_caller():
    """The arguments of a step that donates them are still there when the check has failed."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(logits, labels):
        return logits - jax.grad(loss)(logits, labels)

    logits = LOGITS + 1
    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(step)(logits, BAD)
    assert logits.sum() == 12


def test_a_result_may_hold_what_is_no_array():
    model = eqx.nn.MLP(2, 3, 4, depth=1, key=jax.random.key(0))

    @eqx.filter_jit
    def step(model, labels):
        objective = lambda model: loss(jax.vmap(model)(jnp.ones((4, 2))), labels)
        gradient = eqx.filter_grad(objective)(model)
        return eqx.apply_updates(model, gradient), "note"

    after, note = jloss.checked(step)(model, GOOD)
    assert note == "note"
    expected = step(model, GOOD)[0]
    np.testing.assert_allclose(after.layers[0].weight, expected.layers[0].weight, rtol=1e-6)
    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(step)(model, BAD)


def test_checks_come_and_go_with_checked():
    step = jax.jit(loss)
    for _ in range(2):
        assert np.isnan(step(LOGITS, BAD))
        with pytest.raises(ValueError, match="`labels`"):
            jloss.checked(step)(LOGITS, BAD)
    program = step.lower(LOGITS, BAD).as_text()
    assert program == jax.jit(loss).lower(LOGITS, BAD).as_text()
    assert "check" not in str(jax.make_jaxpr(step)(LOGITS, BAD))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: jax.checkpoint(f),
        lambda f: lambda x, y: jax.lax.cond(True, f, lambda x, y: 0.0, x, y),
        lambda f: lambda x, y: jax.lax.map(lambda b: f(*b), (x, y)),
    ],
    ids=["remat", "cond", "map"],
)
def test_checks_reach_through(wrap):
    step = jloss.checked(jax.jit(wrap(loss)))
    step(LOGITS, GOOD)
    with pytest.raises(ValueError, match="`labels`"):
        step(LOGITS, BAD)


def test_checks_reach_through_shard_map():
    mesh = jax.make_mesh((4,), ("data",))
    mean = functools.partial(jloss.mean, axis_name="data")
    local = lambda x, y: jloss.softmax_cross_entropy_with_integer_labels(x, y, reduction=mean)
    spec = jax.sharding.PartitionSpec("data")
    step = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec())
    placed = jax.device_put((LOGITS, BAD), jax.sharding.NamedSharding(mesh, spec))
    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(jax.jit(step))(*placed)
