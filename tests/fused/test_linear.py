"""The vocabulary engine against its plain twin, and what only it promises."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss
from jloss.fused import linear
from jloss.fused._chunks import Plans
from jloss.fused._strategies import log_probs, plain, summed
from jloss.fused._tiles import EXTRA, Head, LogProbs, Plan, tiling

D = 16
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
SHAPES = [(37, 101), (64, 256), (5, 7), (40, 1000), (1, 1), (16, 33)]  # tokens, vocabulary


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Chunks and tiles that even these sizes need several of."""
    monkeypatch.setitem(linear.ON_CPU, "chunk", 16)
    monkeypatch.setitem(linear.ON_CPU, "tile", 32)


def data(tokens, classes, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(tokens + classes)
    x = jnp.asarray(rng.normal(size=(tokens, D)) * scale, dtype)
    w = jnp.asarray(rng.normal(size=(D, classes)), dtype)
    return x, w, jnp.asarray(rng.integers(0, classes, tokens), jnp.int32)


def numbers(classes):
    bias = jnp.linspace(-1, 1, classes)
    return {"bias": bias, "soft_cap": jnp.float32(8), "temperature": jnp.float32(0.7)}


def plans_of(classes, transposed=False, wanted=EXTRA):
    plan = Plan(16, 32, classes, classes, transposed, wanted)
    return Plans(plan, plan)


def mixed(known):
    """A number that every differentiable field enters, of each token differently."""
    wave = lambda i, a: jnp.sum(jnp.sin(1.0 + i + jnp.arange(a.size, dtype=a.dtype)) * a)
    return sum(wave(i, a) for i, a in enumerate(known[:4]))


@pytest.mark.parametrize(("tokens", "classes"), SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_known_is_what_the_plain_twin_knows(tokens, classes, transposed):
    x, w, y = data(tokens, classes)
    plans = plans_of(classes, transposed)

    def known(engine, x, w, numbers):
        head = Head(w.T if transposed else w, **numbers)
        return engine(x, head, y)

    ours = functools.partial(known, functools.partial(log_probs, plans))
    twin = functools.partial(known, functools.partial(plain, plans.cpu))
    given = x, w, numbers(classes)
    for got, expected in zip(jax.jit(ours)(*given), jax.jit(twin)(*given)):
        close(got, expected)
    slopes = [
        jax.jit(jax.grad(lambda *a, f=f: mixed(f(*a)), (0, 1, 2)))(*given) for f in (ours, twin)
    ]
    jax.tree.map(functools.partial(close, rtol=1e-3, atol=1e-4), *slopes)


def test_the_plain_twin_is_the_definition():
    x, w, y = data(6, 11)
    logits = np.asarray(x, float) @ np.asarray(w, float)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    known = linear.linear_log_probs(x, w, y, implementation="plain")
    close(known.log_prob, np.log(p[np.arange(6), y]))
    close(known.logsumexp, np.log(np.exp(logits).sum(-1)))
    close(known.mean_logit, logits.mean(-1))
    close(known.entropy, -(p * np.log(p)).sum(-1))
    np.testing.assert_array_equal(known.argmax, logits.argmax(-1))


def sum_of(known, weights, factors):
    return weights * (factors["a"] * known.logsumexp**2 - known.log_prob + known.mean_logit)


@pytest.mark.parametrize(("tokens", "classes"), SHAPES)
def test_a_sum_and_its_slopes_are_those_of_the_plain_twin(tokens, classes):
    x, w, y = data(tokens, classes)
    plans = plans_of(classes, wanted=("mean_logit",))
    weights, factors = jnp.linspace(0, 2, tokens), {"a": jnp.float32(0.1)}

    def ours(x, w, numbers, weights, factors):
        return summed(plans, sum_of, x, Head(w, **numbers), y, weights, factors)

    def twin(x, w, numbers, weights, factors):
        return jnp.sum(sum_of(plain(plans.cpu, x, Head(w, **numbers), y), weights, factors))

    given = x, w, numbers(classes), weights, factors
    close(jax.jit(ours)(*given), jax.jit(twin)(*given), rtol=1e-5)
    slopes = [jax.jit(jax.grad(f, (0, 1, 2, 3, 4)))(*given) for f in (ours, twin)]
    jax.tree.map(functools.partial(close, rtol=1e-3, atol=1e-4), *slopes)


ENDS = [
    jloss.each,
    jloss.mean,
    jloss.sum,
    jloss.tally,
    functools.partial(jloss.mean, axis=-1),
]
OPTIONS = [
    {},
    {"label_smoothing": 0.1, "z_loss": 1e-3},
    {"class_weights": jnp.linspace(0, 2, 11)},
    {"weights": jnp.linspace(0, 2, 10).reshape(2, 5)},
]


@pytest.mark.parametrize("reduction", ENDS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("implementation", [None, "recompute", "plain"])
def test_it_is_the_cross_entropy_of_the_logits(reduction, options, implementation):
    """Every reduction, with tokens deleted whose hidden states are NaN and labels -100."""
    x, w, y = (a.reshape(2, 5, *a.shape[1:]) if a.shape[0] == 10 else a for a in data(10, 11))
    where = jnp.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]], bool)
    y = jnp.where(where, y, -100)
    doors = {"where": where, "reduction": reduction, **options}

    def ours(x, w):
        return jloss.linear_softmax_cross_entropy(x, w, y, implementation=implementation, **doors)

    twin = lambda x, w: jloss.softmax_cross_entropy_with_integer_labels(x @ w, y, **doors)
    junk = jnp.where(where[..., None], x, jnp.nan)
    jax.tree.map(close, jax.jit(ours)(junk, w), twin(x, w))
    scalar = lambda f: lambda *a: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(f(*a)))
    got = jax.jit(jax.grad(scalar(ours), (0, 1)))(junk, w)
    for slope, expected in zip(got, jax.grad(scalar(twin), (0, 1))(x, w)):
        close(slope, expected, atol=1e-5)


def exact(x, w, y):
    with jax.enable_x64(True):
        x, w = (a.astype("float64") for a in (x, w))
        mean = lambda x, w: jloss.softmax_cross_entropy_with_integer_labels(
            x @ w, y, reduction=jloss.mean
        )
        return jax.jit(jax.value_and_grad(mean, (0, 1)))(x, w)


@pytest.mark.parametrize("implementation", [None, "recompute"])
@pytest.mark.parametrize(
    ("dtype", "value", "gradient"),
    [("float32", 1e-6, 5e-6), ("bfloat16", 1e-5, 2.5e-3), ("float16", 1e-5, 1e-3)],
)
def test_half_precision_costs_one_rounding(dtype, value, gradient, implementation):
    """Against float64, at logits of standard deviation 6."""
    x, w, y = data(256, 1000, jnp.dtype(dtype), scale=6 / D**0.5)
    f = lambda x, w: jloss.linear_softmax_cross_entropy(
        x, w, y, implementation=implementation, reduction=jloss.mean
    )
    got, expected = jax.jit(jax.value_and_grad(f, (0, 1)))(x, w), exact(x, w, y)
    assert got[0].dtype == jnp.float32
    close(got[0], expected[0], rtol=value)
    for slope, truth in zip(got[1], expected[1]):
        assert slope.dtype == dtype
        apart = np.linalg.norm(np.asarray(slope, float) - np.asarray(truth)) / np.linalg.norm(truth)
        assert apart <= gradient


def test_a_matrix_keeps_its_precision_beside_half_hidden_states():
    x, w, y = data(32, 100)
    slope = jax.grad(lambda w: jloss.linear_softmax_cross_entropy(
        x.astype(jnp.bfloat16), w, y, reduction=jloss.mean))(w)  # fmt: skip
    assert slope.dtype == jnp.float32
    close(slope, exact(x, w, y)[1][1], atol=1e-2 * float(jnp.abs(slope).max()))


def test_a_shift_of_all_logits_changes_nothing():
    x, w, y = data(20, 50)
    loss = lambda shift: jloss.linear_softmax_cross_entropy(x, w, y, bias=jnp.full(50, shift))
    close(loss(100.0), loss(0.0), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", [jloss.each, jloss.mean])
def test_a_bias_of_minus_infinity_forbids_a_class(reduction):
    x, w, y = data(20, 50)
    y = jnp.minimum(y, 30)
    forbidden = jnp.where(jnp.arange(50) < 40, 0, -jnp.inf)
    f = lambda x, w, bias: jnp.mean(
        jloss.linear_softmax_cross_entropy(x, w, y, bias=bias, reduction=reduction)
    )
    got = jax.value_and_grad(f, (0, 1))(x, w, forbidden)
    fewer = jax.value_and_grad(f, (0, 1))(x, w[:, :40], None)
    close(got[0], fewer[0])
    close(got[1][0], fewer[1][0])
    close(got[1][1][:, :40], fewer[1][1])
    assert (got[1][1][:, 40:] == 0).all()


def test_a_confident_token_keeps_its_digits():
    """At 20 above the others the loss is 2e-9 for each of them, and so is its slope."""
    x, w = jnp.array([[20.0, 0.0]]), jnp.zeros((2, 40)).at[0, 3].set(1.0)
    value, slope = jax.value_and_grad(
        lambda x: jloss.linear_softmax_cross_entropy(x, w, jnp.array([3]), reduction=jloss.sum)
    )(x)
    close(value, np.log1p(39 * np.exp(-20.0)), rtol=1e-5, atol=0)
    close(slope[0, 0], -39 / (np.exp(20.0) + 39), rtol=1e-5, atol=0)


def test_no_tokens_are_none():
    x, w, y = data(0, 50)
    f = lambda w, end: jloss.linear_softmax_cross_entropy(x, w, y, reduction=end)
    value, slope = jax.value_and_grad(f)(w, jloss.mean)
    assert value == 0
    assert (slope == 0).all()
    assert f(w, jloss.each).shape == (0,)


@pytest.mark.parametrize("implementation", [None, "recompute"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_second_derivatives_are_those_of_the_plain_twin(implementation, dtype):
    x, w, y = data(20, 50, dtype, scale=0.3)
    v = jax.random.normal(jax.random.key(0), w.shape).astype(dtype)

    def loss(w, implementation):
        return jloss.linear_softmax_cross_entropy(
            x, w, y, implementation=implementation, reduction=jloss.mean
        )

    def products(implementation):
        slope = jax.grad(functools.partial(loss, implementation=implementation))
        forward = jax.jvp(slope, (w,), (v,))[1]
        reverse = jax.grad(lambda w: jnp.sum((slope(w) * v).astype(jnp.float32)))(w)
        return forward, reverse

    got, expected = (jax.jit(products, static_argnums=0)(i) for i in (implementation, "plain"))
    scale = float(jnp.abs(expected[0]).max())
    tolerance = 1e-4 if dtype == jnp.float32 else 3e-2
    for a, b in zip(got, expected):
        np.testing.assert_allclose(*(np.asarray(c, float) for c in (a, b)), atol=tolerance * scale)


def test_forward_mode_is_plain():
    x, w, y = data(8, 20)
    f = lambda implementation: (
        lambda w: jloss.linear_softmax_cross_entropy(
            x, w, y, implementation=implementation, reduction=jloss.mean
        )
    )
    slope = jax.grad(f(None))(w)
    close(jax.jvp(f("plain"), (w,), (w,))[1], jnp.vdot(slope, w))
    for implementation in (None, "recompute"):
        with pytest.raises(TypeError, match='`implementation="plain"`'):
            jax.jvp(f(implementation), (w,), (w,))


def test_vmap_and_remat_change_nothing():
    x, w, y = data(24, 50)
    loss = lambda x, y: jloss.linear_softmax_cross_entropy(x, w, y, reduction=jloss.mean)
    xs, ys = x.reshape(3, 8, D), y.reshape(3, 8)
    one_by_one = [jax.grad(loss)(*one) for one in zip(xs, ys)]
    close(jax.jit(jax.vmap(jax.grad(loss)))(xs, ys), jnp.stack(one_by_one))
    close(jax.jit(jax.grad(jax.checkpoint(loss)))(xs[0], ys[0]), one_by_one[0])


@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_memory_does_not_grow_with_tokens_times_vocabulary(implementation):
    tokens, classes = 512, 2048
    shapes = (
        jax.ShapeDtypeStruct((tokens, D), jnp.float32),
        jax.ShapeDtypeStruct((D, classes), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    f = lambda x, w, y: jloss.linear_softmax_cross_entropy(
        x, w, y, implementation=implementation, reduction=jloss.mean
    )
    compiled = jax.jit(jax.value_and_grad(f, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * classes * 4 / 4


@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_a_gradient_that_nobody_takes_is_not_computed(implementation):
    """One product of three, or of four."""
    f = lambda x, w, y: jloss.linear_softmax_cross_entropy(
        x, w, y, implementation=implementation, reduction=jloss.mean
    )
    work = lambda of: (
        jax.jit(jax.grad(f, of)).lower(*data(64, 256)).compile().cost_analysis()["flops"]
    )
    assert work(0) < 0.85 * work((0, 1))
    assert work(1) < 0.85 * work((0, 1))


@pytest.mark.parametrize("size", [1, 7, 16, 33, 50257, 50304, 128256])
@pytest.mark.parametrize("wanted", [1, 32, 2048])
def test_tiles_cover_the_vocabulary_and_overlap_only_at_its_end(size, wanted):
    count, tile = tiling(size, wanted)
    starts = np.minimum(np.arange(count) * tile, size - tile)
    assert starts[-1] + tile == size
    assert (np.diff(starts)[:-1] == tile).all()
    assert tile <= max(wanted, 1) or size % tile == 0


# devices --------------------------------------------------------------------------------------

PLACES = {  # what is sharded: hidden states, matrix, labels
    "tokens": (P("data"), P(), P("data")),
    "vocabulary": (P(), P(None, "model"), P()),
    "both": (P("data"), P(None, "model"), P("data")),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("what", "implementation"), [*itertools.product(PLACES, [None, "recompute"])]
)
def test_devices_share_the_work_and_gather_nothing(kind, what, implementation):
    given = data(128, 64)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    place = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
    placed = [place(a, spec) for a, spec in zip(given, PLACES[what])]
    f = jax.value_and_grad(
        lambda x, w, y: jloss.linear_softmax_cross_entropy(
            x, w, y, implementation=implementation, reduction=jloss.mean
        ),
        (0, 1),
    )
    alone, together = (jax.jit(f).lower(*a).compile() for a in (given, placed))
    jax.tree.map(close, together(*placed), alone(*given))
    assert not re.search("all-gather|all-to-all|collective-permute", together.as_text())
    devices = {"tokens": 2, "vocabulary": 4, "both": 8}[what]
    work = [c.cost_analysis()["flops"] for c in (together, alone)]
    assert work[0] < 1.5 * work[1] / devices


AT_REST = {  # parameters sharded where they lie: gathered when they are used
    "hidden": P("model"),
    "hidden, as the tokens": P("data"),
    "vocabulary, as the tokens": P(None, "data"),
    "both": P("data", "model"),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", AT_REST.values(), ids=AT_REST)
@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_a_matrix_may_be_sharded_at_rest(kind, spec, implementation):
    x, w, y = data(128, 64)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    place = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
    bias = jnp.linspace(-1, 1, 64)
    f = jax.value_and_grad(
        lambda x, w, y, bias: jloss.linear_softmax_cross_entropy(
            x, w, y, bias=bias, implementation=implementation, reduction=jloss.mean
        ),
        (0, 1, 3),
    )
    placed = place(x, P("data")), place(w, spec), place(y, P("data")), bias
    jax.tree.map(close, jax.jit(f)(*placed), jax.jit(f)(x, w, y, bias))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_what_scales_the_loss_keeps_slopes_in_range(dtype):
    """A share of 2^-22 of the loss of each token is too small for float16, but for its scale."""
    x, w, y = data(64, 200, dtype)
    weights = jnp.full(64, 2.0**-22)
    loss = lambda x, w, implementation: (
        2.0**16
        * jloss.linear_softmax_cross_entropy(
            x, w, y, weights=weights, implementation=implementation, reduction=jloss.sum
        )
    )
    tolerance = {"rtol": 1e-2, "atol": 1e-4} if dtype == jnp.float16 else {}
    got, expected = (jax.grad(loss, (0, 1))(x, w, i) for i in (None, "plain"))
    jax.tree.map(functools.partial(close, **tolerance), got, expected)


@pytest.mark.parametrize("reduction", [jloss.mean, jloss.tally, jloss.each])
@pytest.mark.parametrize("check_vma", [True, False])
def test_by_hand_tokens_and_vocabulary_are_split(reduction, check_vma):
    x, w, y = data(24, 64)
    where = jnp.arange(24) % 5 != 0
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    end = reduction
    if reduction is not jloss.each:
        end = functools.partial(reduction, axis_name="data")
    f = lambda x, w, y, m: jloss.linear_softmax_cross_entropy(
        x, w, y, axis_name="model", where=m, reduction=end, label_smoothing=0.1
    )
    split = jax.shard_map(
        f,
        mesh=mesh,
        in_specs=(P("data"), P(None, "model"), P("data"), P("data")),
        out_specs=P("data") if reduction is jloss.each else P(),
        check_vma=check_vma,
    )
    total = lambda f: lambda *a: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(f(*a)))
    whole = lambda x, w, y, m: jloss.linear_softmax_cross_entropy(
        x, w, y, where=m, reduction=reduction, label_smoothing=0.1
    )
    given = x, w, y, where
    jax.tree.map(close, jax.jit(split)(*given), whole(*given))
    if check_vma:
        got = jax.jit(jax.grad(total(split), (0, 1)))(*given)
        for slope, expected in zip(got, jax.grad(total(whole), (0, 1))(*given)):
            close(slope, expected)


def test_what_is_known_is_known_by_hand_too():
    x, w, y = data(24, 64)
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    f = functools.partial(jloss.linear_log_probs, axis_name="model")
    split = jax.shard_map(f, mesh=mesh, in_specs=(P(), P(None, "model"), P()), out_specs=P())
    for got, expected in zip(jax.jit(split)(x, w, y), jloss.linear_log_probs(x, w, y)):
        close(got, expected)


# bad arguments --------------------------------------------------------------------------------


def test_a_bad_label_is_nan_for_its_own_token_alone():
    x, w, y = data(6, 11)
    y = y.at[2].set(11).at[4].set(-1)
    f = lambda x: jloss.linear_softmax_cross_entropy(x, w, y)
    bad = jnp.isnan(f(x))
    np.testing.assert_array_equal(bad, [0, 0, 1, 0, 1, 0])
    slopes = jax.grad(lambda x: jnp.sum(f(x)))(x)
    np.testing.assert_array_equal(jnp.isnan(slopes).any(-1), bad)
    assert jnp.isnan(jloss.linear_softmax_cross_entropy(x, w, y, reduction=jloss.mean))


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"matrix": jnp.zeros((11, D))}, ValueError, "transposed=True"),
        ({"matrix": jnp.zeros((D, 11)), "transposed": True}, ValueError, "drop `transposed`"),
        ({"matrix": jnp.zeros((D, 11), jnp.int32)}, TypeError, "`matrix` should be floating"),
        ({"hidden": jnp.zeros((6, D), jnp.int32)}, TypeError, "`hidden` should be floating"),
        ({"labels": jnp.zeros((6, 1), jnp.int32)}, ValueError, "`labels`"),
        ({"bias": jnp.zeros(10)}, ValueError, "`bias`"),
        ({"where": jnp.ones((6, 11), bool)}, ValueError, "bias of -inf"),
        ({"reduction": "mean"}, TypeError, "`reduction`"),
        ({"implementation": "tiles"}, ValueError, "`implementation`"),
        ({"soft_cap": jnp.ones(11)}, ValueError, "`soft_cap`"),
    ],
)
def test_wrong_arguments_are_told_by_name(change, error, told):
    x, w, y = data(6, 11)
    given = {"hidden": x, "matrix": w, "labels": y} | change
    with pytest.raises(error, match=re.escape(told)):
        jloss.linear_softmax_cross_entropy(**given)


def test_what_was_said_is_known_of_its_tokens():
    x, w, y = data(6, 11)
    where = jnp.arange(6) < 4
    y = jnp.where(where, y, -100)
    said = functools.partial(jloss.linear_token_log_probs, matrix=w, labels=y, where=where)
    known = functools.partial(jloss.linear_log_probs, matrix=w, labels=y, where=where)
    close(said(x), known(x).log_prob)
    assert not jnp.signbit(said(x)[4:]).any()
    slope = lambda f: jax.grad(lambda x: jnp.vdot(f(x), f(x)))(x)
    close(slope(said), slope(lambda x: known(x).log_prob))


def test_deleted_tokens_are_known_as_nothing():
    x, w, y = data(6, 11)
    where = jnp.arange(6) < 4
    known = jloss.linear_log_probs(x, w, jnp.where(where, y, -100), where=where)
    assert isinstance(known, LogProbs)
    for field in known:
        assert (field[4:] == 0).all()
    assert jnp.isfinite(known.log_prob).all()
