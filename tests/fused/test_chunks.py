"""A loss of the user's own, in chunks, against the same loss all at once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss
from jloss.fused import _chunks

D, CLASSES = 8, 11


def close(got, expected, tolerance=1e-5):
    """Within a share of the largest entry."""
    largest = float(jnp.max(jnp.abs(expected), initial=1e-3))
    np.testing.assert_allclose(got, expected, atol=tolerance * largest, rtol=0)


def data(tokens, dtype=jnp.float32):
    rng = np.random.default_rng(tokens)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    params = {"matrix": normal(D, CLASSES), "scale": jnp.asarray(0.7, dtype)}
    return params, {"hidden": normal(tokens, D)}, jnp.asarray(rng.integers(0, CLASSES, tokens))


def surprise(params, tokens, labels):
    """Of a head that is not linear."""
    logits = params["scale"] * jnp.tanh(tokens["hidden"] @ params["matrix"])
    return jloss.softmax_cross_entropy_with_integer_labels(logits, labels)


def both(labels, implementation=None, chunk=8, f=surprise, **doors):
    """The same, in chunks and at once, of what is differentiable."""
    chunks = lambda params, tokens: jloss.chunked(
        f, params, tokens, labels, chunk=chunk, implementation=implementation, **doors
    )
    at_once = lambda params, tokens: doors.get("reduction", jloss.each)(
        f(params, tokens, labels), where=doors.get("where"), weights=doors.get("weights")
    )
    scalar = lambda f: lambda *a: sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(f(*a)))
    return scalar(chunks), scalar(at_once)


@pytest.mark.parametrize(
    ("implementation", "reduction"),
    [
        (None, jloss.mean),
        (None, jloss.sum),
        (None, jloss.tally),
        (None, jloss.each),
        ("recompute", jloss.mean),
        ("plain", jloss.mean),
    ],
)
@pytest.mark.parametrize(("tokens", "chunk"), [(37, 8), (32, 16), (3, 8), (0, 4)])
@pytest.mark.parametrize("devices_share", [True, False])
def test_chunks_change_nothing(
    monkeypatch, implementation, reduction, tokens, chunk, devices_share
):
    """By stride, and one after the other."""
    monkeypatch.setattr(_chunks, "shared", lambda: devices_share)
    *given, labels = data(tokens)
    doors = {"weights": jnp.linspace(0.5, 2, tokens), "reduction": reduction}
    chunks, at_once = both(labels, implementation, chunk, **doors)
    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(*given) for f in (chunks, at_once))
    jax.tree.map(close, got, expected)


@pytest.mark.parametrize("reduction", [jloss.mean, jloss.each])
def test_what_is_deleted_never_reaches_the_function(reduction):
    params, tokens, labels = data(20)
    where = jnp.arange(20) % 3 != 0
    bad = {"hidden": jnp.where(where[:, None], tokens["hidden"], jnp.nan)}
    doors = {"where": where, "reduction": reduction}
    chunks, _ = both(jnp.where(where, labels, -100), **doors)
    _, at_once = both(labels, **doors)
    got, expected = jax.grad(chunks, (0, 1))(params, bad), jax.grad(at_once, (0, 1))(params, tokens)
    jax.tree.map(close, got, expected)


def test_the_gradient_in_weights_is_the_values():
    params, tokens, labels = data(20)
    f = lambda weights: jloss.chunked(
        surprise, params, tokens, labels, chunk=8, weights=weights, reduction=jloss.sum
    )
    close(jax.grad(f)(jnp.linspace(1, 2, 20)), surprise(params, tokens, labels))


def test_what_fills_the_last_chunk_is_no_trap():
    """A norm has no slope at zeros: were they fed to it, all would be NaN."""
    params, tokens, labels = data(5)
    f = lambda params, tokens, labels: jnp.linalg.norm(tokens["hidden"] @ params["matrix"], axis=-1)
    chunks, at_once = both(labels, chunk=4, f=f)
    jax.tree.map(close, *(jax.grad(f, (0, 1))(params, tokens) for f in (chunks, at_once)))


@pytest.mark.parametrize("implementation", [None, "recompute"])
@pytest.mark.parametrize("reduction", [jloss.mean, jloss.each])
def test_derivatives_compose(implementation, reduction):
    *given, labels = data(20)
    chunks, at_once = both(labels, implementation, reduction=reduction)

    def products(f):
        slope = jax.grad(f)
        forward = jax.jvp(slope, given, given)[1]
        norm = lambda p: sum(jnp.vdot(g, g) for g in jax.tree.leaves(slope(p, given[1])))
        return forward, jax.grad(norm)(given[0]), jax.grad(jax.checkpoint(f))(*given)

    different = functools.partial(close, tolerance=1e-4)
    jax.tree.map(different, *(jax.jit(products, static_argnums=0)(f) for f in (chunks, at_once)))


def test_vmap_is_a_loop():
    params, tokens, labels = data(24)
    f = lambda hidden, labels: jloss.chunked(
        surprise, params, {"hidden": hidden}, labels, chunk=4, reduction=jloss.mean
    )
    hidden, labels = tokens["hidden"].reshape(3, 8, D), labels.reshape(3, 8)
    one_by_one = [jax.grad(f)(*one) for one in zip(hidden, labels)]
    close(jax.vmap(jax.grad(f))(hidden, labels), jnp.stack(one_by_one))


def test_forward_mode_is_plain():
    *given, labels = data(8)
    chunks, at_once = both(labels, "plain")
    close(jax.jvp(chunks, given, given)[1], jax.jvp(at_once, given, given)[1])
    for reduction in (jloss.mean, jloss.each):
        with pytest.raises(TypeError, match='`implementation="plain"`'):
            jax.jvp(both(labels, reduction=reduction)[0], given, given)


@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_slopes_in_half_precision_parameters_are_added_up_in_float32(implementation):
    """1 and then 255 times 2^-9: added in bfloat16 one after the other, they stay 1."""
    tokens = jnp.full(256, 2.0**-9, jnp.bfloat16).at[0].set(1)
    total = lambda p: jloss.chunked(
        lambda p, x: p * x, p, tokens, chunk=1, implementation=implementation, reduction=jloss.sum
    )
    slope = jax.grad(total)(jnp.ones((), jnp.bfloat16))
    assert slope.dtype == jnp.bfloat16
    assert slope == jnp.asarray(1 + 255 * 2.0**-9, jnp.bfloat16)


@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_memory_is_of_a_chunk(implementation):
    tokens, width = 4096, 512
    shapes = jax.ShapeDtypeStruct((1, width), jnp.float32), jax.ShapeDtypeStruct((tokens, 1), "f4")
    f = lambda p, x: jloss.chunked(
        lambda p, x: jax.nn.logsumexp(jnp.sin(x @ p), axis=-1),
        p, x, chunk=128, implementation=implementation, reduction=jloss.mean,
    )  # fmt: skip
    compiled = jax.jit(jax.value_and_grad(f, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * width * 4 / 8


def test_a_random_key_may_be_a_parameter():
    """Dropout, say: each chunk has the same noise."""
    tokens = jnp.ones((6, D))
    f = lambda params, x: jnp.sum(x * params["w"] * jax.random.normal(params["key"], x.shape), -1)
    loss = lambda w, implementation: jloss.chunked(
        f, {"w": w, "key": jax.random.key(0)}, tokens, chunk=3, reduction=jloss.mean,
        implementation=implementation,
    )  # fmt: skip
    noise = jax.random.normal(jax.random.key(0), (3, D))
    for implementation in (None, "recompute"):
        slope = jax.jit(jax.grad(loss), static_argnums=1)(jnp.ones(()), implementation)
        close(slope, jnp.mean(jnp.sum(noise, -1)))


def test_what_scales_the_loss_keeps_slopes_in_range():
    """A share of 2^-26 of the sum is nothing in float16, but for its scale."""
    tokens, weights = jnp.ones((4, 2), jnp.float16), jnp.full(4, 2.0**-26)
    f = lambda tokens: (
        2.0**20
        * jloss.chunked(
            lambda _, x: jnp.sum(x * x, -1),
            None,
            tokens,
            chunk=2,
            weights=weights,
            reduction=jloss.sum,
        )
    )
    close(jax.grad(f)(tokens), jnp.full((4, 2), 2.0**-5))


# devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_devices_share_the_tokens_and_gather_nothing(kind, implementation):
    params, tokens, labels = data(128)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
    placed = params, *jax.tree.map(lambda a: place(a, P("data")), (tokens, labels))
    f = jax.value_and_grad(
        lambda params, tokens, labels: jloss.chunked(
            surprise, params, tokens, labels, chunk=16, implementation=implementation,
            reduction=jloss.mean,
        ),
        (0, 1),
    )  # fmt: skip
    given = params, tokens, labels
    alone, together = (jax.jit(f).lower(*a).compile() for a in (given, placed))
    jax.tree.map(close, together(*placed), alone(*given))
    assert not re.search("all-gather|all-to-all|collective-permute", together.as_text())
    assert together.cost_analysis()["flops"] < 1.5 * alone.cost_analysis()["flops"] / 8


@pytest.mark.parametrize(("tokens", "chunk"), [(24, 5), (88, 11), (136, 16)])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_devices_may_have_any_number_of_tokens(kind, tokens, chunk):
    params, hidden, labels = data(tokens)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    place = lambda a: jax.device_put(a, NamedSharding(mesh, P("data")))
    f = jax.grad(
        lambda *given: jloss.chunked(surprise, *given, chunk=chunk, reduction=jloss.mean), (0, 1)
    )
    placed = jax.tree.map(place, (hidden, labels))
    jax.tree.map(close, jax.jit(f)(params, *placed), f(params, hidden, labels))


@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_by_hand_each_device_has_its_tokens(implementation):
    params, tokens, labels = data(24)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    where = jnp.arange(24) % 5 != 0
    mean = functools.partial(jloss.mean, axis_name="data")
    f = lambda params, tokens, labels, where: jloss.chunked(
        surprise, params, tokens, labels, chunk=2, implementation=implementation, where=where,
        reduction=mean,
    )  # fmt: skip
    split = jax.shard_map(f, mesh=mesh, in_specs=(P(), *(P("data"),) * 3), out_specs=P())
    got = jax.jit(jax.value_and_grad(split, (0, 1)))(params, tokens, labels, where)
    at_once = lambda *given: jloss.mean(surprise(*given, labels), where=where)
    jax.tree.map(close, got, jax.value_and_grad(at_once, (0, 1))(params, tokens))


# bad arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"chunk": 0}, ValueError, "`chunk`"),
        ({"chunk": 2.0}, ValueError, "`chunk`"),
        ({"implementation": "chunked"}, ValueError, "`implementation`"),
        ({"params": {"a": jnp.tanh}}, TypeError, "`params['a']`"),
        ({"tokens": (jnp.zeros((3, D)), "words")}, TypeError, "`tokens[1]`"),
        ({"tokens": (jnp.zeros((3, D)), jnp.zeros(4))}, ValueError, "`tokens`"),
        ({"tokens": (jnp.zeros(()),)}, ValueError, "`tokens`"),
        ({"tokens": ()}, ValueError, "`tokens`"),
        ({"f": lambda p, x: x}, ValueError, "one value for each token"),
        ({"f": lambda p, x: jnp.argmax(x, -1)}, TypeError, "`f(params, *tokens)`"),
        ({"where": jnp.ones(4, bool)}, ValueError, "`where`"),
        ({"reduction": "mean"}, TypeError, "`reduction`"),
    ],
)
def test_wrong_arguments_are_told_by_name(change, error, told):
    usual = {"f": lambda p, x: jnp.sum(x, -1), "params": 0.0, "tokens": (jnp.zeros((3, D)),)}
    given = usual | change
    f, params, tokens = (given.pop(name) for name in usual)
    with pytest.raises(error, match=re.escape(told)):
        jloss.chunked(f, params, *tokens, **given)
