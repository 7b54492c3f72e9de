"""`jloss.checked`: what it raises, what it leaves alone, and that nothing of it stays behind."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss

LOGITS, GOOD, BAD = jnp.zeros((4, 3)), jnp.array([0, 1, 2, 0]), jnp.array([0, 1, 3, 0])
each = jloss.softmax_cross_entropy_with_integer_labels
loss = functools.partial(each, reduction=jloss.mean)  # it has no name, nor a signature of its own


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
    assert "callback" not in str(jax.make_jaxpr(step)(LOGITS, BAD))


def scanned(x, y):
    """A sum over a scan: differentiated, the scan is split into a forward and a backward one."""
    return jax.lax.scan(lambda total, b: (total + each(*b), None), 0.0, (x, y))[0]


def repeated(x, y):
    return jax.lax.fori_loop(0, len(y), lambda i, total: total + each(x[i], y[i]), 0.0)


@pytest.mark.parametrize(
    "step",
    [
        jax.checkpoint(loss),
        lambda x, y: jax.lax.cond(True, loss, lambda x, y: 0.0, x, y),
        lambda x, y: jax.lax.map(lambda b: each(*b), (x, y)),
        lambda x, y: jax.lax.map(lambda b: jax.grad(each)(*b), (x, y), batch_size=2),
        lambda x, y: jax.lax.associative_scan(jnp.add, jax.vmap(each)(x, y)),
        repeated,
        scanned,
        jax.grad(scanned),
        jax.grad(jax.checkpoint(scanned)),
        jax.value_and_grad(scanned),
        lambda x, y: jax.vjp(scanned, x, y)[0],
        lambda x, y: jax.vjp(lambda x: scanned(x, y), x)[1](1.0),
        lambda x, y: jax.jvp(lambda x: scanned(x, y), (x,), (x,)),
        jax.hessian(scanned),
        lambda x, y: jax.vmap(jax.grad(scanned))(x[None], y[None]),
        lambda x, y: jax.vmap(jax.grad(loss))(x[:, None], y[:, None]),
    ],
)
def test_checks_reach_through(step):
    jloss.checked(jax.jit(step))(LOGITS, GOOD)
    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(jax.jit(step))(LOGITS, BAD)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_checks_reach_through_shard_map(kind, check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    mean = functools.partial(jloss.mean, axis_name="data")
    step = jax.shard_map(
        functools.partial(each, reduction=mean),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(),
        check_vma=check_vma,
    )
    place = lambda y: jax.device_put((LOGITS, y), NamedSharding(mesh, P("data")))
    for f in (jax.jit(step), jax.jit(jax.grad(step))):
        jloss.checked(f)(*place(GOOD))
        with pytest.raises(ValueError, match="`labels`"):
            jloss.checked(f)(*place(BAD))


def test_checks_reach_a_sharded_scan():
    mesh = jax.make_mesh((2, 2), ("time", "data"), axis_types=(AxisType.Explicit,) * 2)
    x, bad = jnp.zeros((3, 4, 5)), jnp.zeros((3, 4), int).at[1, 2].set(5)
    placed = jax.device_put((x, bad), NamedSharding(mesh, P(None, "data")))

    def total(x, y):
        return jax.lax.scan(lambda total, b: (total + loss(*b), None), 0.0, (x, y))[0]

    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(jax.jit(jax.grad(total)))(*placed)


def test_checked_goes_outermost():
    with pytest.raises(TypeError, match="outermost"):
        jax.jit(jloss.checked(loss))(LOGITS, GOOD)
    with pytest.raises(TypeError, match="outermost"):
        jax.vmap(jloss.checked(each))(LOGITS, GOOD)


def test_a_failed_check_is_forgotten():
    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(loss)(LOGITS, BAD)
    jloss.checked(loss)(LOGITS, GOOD)


def test_a_checked_step_is_compiled_once():
    traces = []
    step = jloss.checked(jax.jit(lambda x, y: traces.append(1) or loss(x, y)))
    step(LOGITS, GOOD), step(LOGITS + 1, GOOD)
    assert len(traces) == 1


def test_a_model_that_a_step_changes_in_place():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, labels):
        value, gradient = nnx.value_and_grad(lambda m: loss(m(jnp.ones((4, 2))), labels))(model)
        optimizer.update(model, gradient)
        return value

    assert np.isfinite(jloss.checked(step)(model, optimizer, GOOD))
    with pytest.raises(ValueError, match="`labels`"):
        jloss.checked(step)(model, optimizer, BAD)
