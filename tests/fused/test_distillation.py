"""Divergences between two heads, or from stored log-probabilities, against all logits at once."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss
from jloss.fused import distillation
from jloss.fused._chunks import Plans

D, WIDER, CLASSES = 8, 12, 40
LOSSES = [jloss.linear_kl_divergence, jloss.linear_jensen_shannon_divergence]
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_implementation = pytest.mark.parametrize("implementation", [None, "recompute", "plain"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(distillation, "PLANS", Plans(16, 16))


def close(got, expected, tolerance=1e-5):
    """Within a share of the largest entry."""
    largest = float(jnp.max(jnp.abs(expected), initial=1e-3))
    got, expected = (np.asarray(a, float) for a in (got, expected))
    np.testing.assert_allclose(got, expected, atol=tolerance * largest, rtol=0)


def data(tokens=37, dtype=jnp.float32, scale=1.0, classes=CLASSES):
    rng = np.random.default_rng(tokens)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) * scale, dtype)
    teacher = jloss.LinearTeacher(normal(tokens, WIDER), normal(WIDER, classes))
    return normal(tokens, D), normal(D, classes), teacher


def log_probs(hidden, matrix):
    """In float64, by scipy."""
    return scipy.special.log_softmax(np.asarray(hidden, float) @ np.asarray(matrix, float), -1)


def kl(log_p, log_q):
    return scipy.special.kl_div(np.exp(log_p), np.exp(log_q)).sum(-1)


def exact(loss, log_p, log_q, beta=0.5):
    """The definitions, in float64."""
    if loss is jloss.linear_kl_divergence:
        return kl(log_p, log_q)
    mixture = np.logaddexp(log_p + np.log(beta), log_q + np.log1p(-beta))
    return beta * kl(log_p, mixture) + (1 - beta) * kl(log_q, mixture)


def top_k(log_p, k):
    """What would be stored of a teacher."""
    classes = np.argsort(-log_p, -1)[..., :k]
    stored = np.take_along_axis(log_p, classes, -1)
    return jloss.TopKTeacher(jnp.asarray(stored, jnp.float32), jnp.asarray(classes, jnp.int32))


def value_and_grads(loss, given, **options):
    f = lambda x, w, teacher: loss(x, w, teacher, **options)
    return jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*given)


# values ---------------------------------------------------------------------------------------


@every_loss
@every_implementation
@pytest.mark.parametrize("tokens", [37, 1, 0])
def test_it_is_its_definition(loss, implementation, tokens):
    x, w, teacher = data(tokens)
    got = jax.jit(functools.partial(loss, implementation=implementation))(x, w, teacher)
    assert got.dtype == jnp.float32
    close(got, exact(loss, log_probs(*teacher[:2]), log_probs(x, w)))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_beta_is_the_teacher_s_share_of_the_mixture(beta):
    x, w, teacher = data()
    got = jloss.linear_jensen_shannon_divergence(x, w, teacher, beta=beta)
    expected = exact(None, log_probs(*teacher[:2]), log_probs(x, w), beta)
    close(got, expected)


@pytest.mark.parametrize("beta", [0.0, 1e-8, 1e-6, 0.5, 1.0])
@pytest.mark.parametrize("gap", [0.5, 18.0, 40.0])
@pytest.mark.parametrize("forbidden", [None, 0, 1])
def test_it_is_bounded_wherever_beta_is(beta, gap, forbidden):
    """Student and teacher each sure of another class, which the teacher may even forbid."""
    q, p = jnp.array([[0.0, gap, 1.0]]), jnp.array([[gap, 0.0, 1.0]])
    bias = None if forbidden is None else jnp.where(jnp.arange(3) == forbidden, -jnp.inf, 0)
    f = lambda q, p, beta: jloss.linear_jensen_shannon_divergence(
        q, jnp.eye(3), jloss.LinearTeacher(p, jnp.eye(3), bias), beta=beta
    )[0]
    value, slopes = jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, p, beta)
    of = lambda x, b: scipy.special.log_softmax(np.asarray(x[0], float) + b)
    log_q, log_p = of(q, 0), of(p, np.zeros(3) if bias is None else np.asarray(bias))
    with np.errstate(divide="ignore"):  # a beta of 0
        mixture = np.logaddexp(log_p + np.log(beta), log_q + np.log1p(-beta))
    parts = (share * kl(log, mixture) for share, log in ((beta, log_p), (1 - beta, log_q)) if share)
    np.testing.assert_allclose(value, sum(parts), rtol=2e-5, atol=1e-12)
    assert all(jnp.isfinite(slope).all() for slope in slopes[:2])


@pytest.mark.parametrize("reverse", [False, True])
def test_the_divergence_from_the_mixture_tends_to_either_kl(reverse):
    x, w, teacher = data(scale=0.3)
    small = 1e-4
    beta = 1 - small if reverse else small
    got = jloss.linear_jensen_shannon_divergence(x, w, teacher, beta=beta) / small
    student = jloss.LinearTeacher(x, w)
    both = (*teacher[:2], student) if reverse else (x, w, teacher)
    close(got, jloss.linear_kl_divergence(*both), 5e-3)


@every_loss
def test_the_options_are_those_of_the_logits(loss):
    x, w, teacher = data()
    bias, other = jnp.linspace(-1, 1, CLASSES), jnp.linspace(1, -2, CLASSES)
    teacher = teacher._replace(matrix=teacher.matrix.T, bias=other, soft_cap=4.0)
    options = {"bias": bias, "soft_cap": 3.0, "temperature": 0.7, "transposed": True}
    got = loss(x, w.T, teacher, **options)
    capped = lambda logits, cap: cap * np.tanh(logits / cap) / 0.7
    log_q = scipy.special.log_softmax(capped(np.asarray(x @ w + bias[None]), 3.0), -1)
    logits = np.asarray(teacher.hidden @ teacher.matrix.T + other[None])
    log_p = scipy.special.log_softmax(capped(logits, 4.0), -1)
    close(got, exact(loss, log_p, log_q))


@every_loss
def test_twins_have_no_loss_and_no_slope(loss):
    """Never negative, and small as the square of what is between them."""
    x, w, _ = data()
    (value, slopes) = value_and_grads(loss, (x, w, jloss.LinearTeacher(x, w)), reduction=jloss.sum)
    assert 0 <= value < 1e-9
    for slope in jax.tree.leaves(slopes):
        close(slope, jnp.zeros_like(slope), 1e-3)
    near = jloss.LinearTeacher(x, w * 1.001)
    close(loss(x, w, near), exact(loss, log_probs(x, w * 1.001), log_probs(x, w)), 2e-3)


@every_loss
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_class_that_one_forbids(loss, whose):
    """The divergence from the mixture is bounded, the other one-sided; slopes are finite."""
    x, w, teacher = data()
    forbidden = jnp.where(jnp.arange(CLASSES) == 3, -jnp.inf, 0)
    options = {"bias": forbidden} if whose == "student" else {}
    teacher = teacher._replace(bias=forbidden if whose == "teacher" else None)
    got = loss(x, w, teacher, **options)
    if loss is jloss.linear_kl_divergence:
        assert jnp.isinf(got).all() if whose == "student" else jnp.isfinite(got).all()
    else:
        assert ((got >= 0) & (got <= np.log(2))).all()
    slopes = jax.grad(lambda x, w: jnp.sum(loss(x, w, teacher, **options)), (0, 1))(x, w)
    assert all(jnp.isfinite(slope).all() for slope in slopes)


# what was stored ------------------------------------------------------------------------------


@every_loss
@every_implementation
def test_all_classes_stored_are_the_whole_teacher(loss, implementation):
    x, w, teacher = data()
    log_p = log_probs(*teacher[:2])
    got = loss(x, w, top_k(log_p, CLASSES), implementation=implementation)
    close(got, exact(loss, log_p, log_probs(x, w)))


@every_loss
def test_fewer_stored_are_a_lower_bound_that_rises(loss):
    x, w, teacher = data()
    log_p = log_probs(*teacher[:2])
    values = [loss(x, w, top_k(log_p, k)) for k in (1, 2, 8, 30, CLASSES - 1, CLASSES)]
    for fewer, more in itertools.pairwise(values):
        assert (fewer <= more + 1e-5).all()
    assert (values[0] > 0).all()
    close(values[-2], values[-1])  # one class that is not stored is known all the same


@every_loss
def test_k_classes_and_the_rest_are_k_and_one_classes(loss):
    x, w, teacher = data()
    log_p, log_q, k = log_probs(*teacher[:2]), log_probs(x, w), 5
    classes = np.argsort(-log_p, -1)

    def buckets(log):
        log = np.take_along_axis(log, classes, -1)
        rest = scipy.special.logsumexp(log[..., k:], -1, keepdims=True)
        return np.concatenate([log[..., :k], rest], -1)

    close(loss(x, w, top_k(log_p, k)), exact(loss, buckets(log_p), buckets(log_q)))


def test_normalising_the_likeliest_would_hide_what_the_tail_tells():
    """Both rank and scale two classes alike, but the student gives them next to nothing."""
    x, w = jnp.ones((1, 1)), jnp.array([[0.0, 0.0, 9.0, 9.0]])
    teacher = jloss.TopKTeacher(jnp.log(jnp.array([[0.45, 0.45]])), jnp.array([[0, 1]]))
    assert jloss.linear_kl_divergence(x, w, teacher)[0] > 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_tail_that_neither_has_costs_nothing(dtype):
    """All but a rounding error was stored, and the student forbids the rest."""
    x, w, _ = data(classes=200)
    forbidden = jnp.where(jnp.arange(200) < 100, 0, -jnp.inf)
    stored = top_k(log_probs(x, w[:, :100]), 100)
    stored = stored._replace(log_probs=stored.log_probs.astype(dtype))
    got = jloss.linear_kl_divergence(x, w, stored, bias=forbidden)
    close(got, jnp.zeros(37), 30 * float(jnp.finfo(dtype).eps) / 1e-3)


@every_loss
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_all_classes_stored_in_half_precision_are_the_teacher_rounded(loss, dtype):
    x, w, teacher = data()
    log_p = log_probs(*teacher[:2])
    stored = top_k(log_p, CLASSES)
    got = loss(x, w, stored._replace(log_probs=stored.log_probs.astype(dtype)))
    close(got, exact(loss, log_p, log_probs(x, w)), 8 * float(jnp.finfo(dtype).eps))


@every_loss
def test_places_may_be_left_empty(loss):
    """Where fewer were stored of one token than of another."""
    x, w, teacher = data()
    stored = top_k(log_probs(*teacher[:2]), 5)
    for filling in (0, -1, CLASSES):
        fill = lambda a, by: jnp.pad(a, ((0, 0), (0, 2)), constant_values=by)
        padded = jloss.TopKTeacher(fill(stored.log_probs, -jnp.inf), fill(stored.classes, filling))
        f = lambda x, w, t: jnp.sum(loss(x, w, t))
        got, expected = (jax.value_and_grad(f, (0, 1))(x, w, t) for t in (padded, stored))
        jax.tree.map(close, got, expected)


def test_a_class_stored_twice_is_told_under_checked():
    x, w, teacher = data()
    stored = top_k(log_probs(*teacher[:2]), 5)
    step = jax.jit(
        lambda classes: jloss.linear_kl_divergence(x, w, stored._replace(classes=classes))
    )
    jloss.checked(step)(stored.classes)
    with pytest.raises(ValueError, match=re.escape("`teacher.classes` should all be different")):
        jloss.checked(step)(stored.classes.at[3, 1].set(stored.classes[3, 0]))


# gradients ------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", [jloss.mean, jloss.sum, jloss.each])
@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_slopes_are_those_of_the_plain_twin(loss, reduction, implementation):
    """In all that is floating: both heads, and the numbers."""
    x, w, teacher = data()
    teacher = teacher._replace(bias=jnp.linspace(1, -1, CLASSES), soft_cap=jnp.float32(3))
    where, weights = jnp.arange(37) % 4 != 0, jnp.linspace(0, 2, 37)
    numbers = {"bias": jnp.linspace(-1, 1, CLASSES), "temperature": jnp.float32(0.7)}
    if loss is jloss.linear_jensen_shannon_divergence:
        numbers["beta"] = jnp.float32(0.3)

    def f(implementation):
        def scalar(x, w, teacher, numbers, weights):
            doors = {"where": where, "weights": weights, "reduction": reduction}
            values = loss(x, w, teacher, implementation=implementation, **doors, **numbers)
            return jnp.vdot(values, values)

        return jax.jit(jax.grad(scalar, (0, 1, 2, 3, 4)))

    given = x, w, teacher, numbers, weights
    jax.tree.map(close, f(implementation)(*given), f("plain")(*given))


@every_loss
def test_what_was_stored_is_data(loss):
    x, w, teacher = data()
    stored = top_k(log_probs(*teacher[:2]), 5)
    for implementation in (None, "recompute"):
        f = lambda x, w, log_p, i=implementation: loss(
            x, w, stored._replace(log_probs=log_p), implementation=i, reduction=jloss.mean
        )
        plain = functools.partial(f, i="plain")
        got, expected = (jax.jit(jax.grad(g, (0, 1, 2)))(x, w, stored[0]) for g in (f, plain))
        jax.tree.map(close, got, expected)
        assert (got[2] == 0).all()


@every_loss
@pytest.mark.parametrize("implementation", [None, "recompute"])
@pytest.mark.parametrize("kind", ["linear", "stored"])
def test_second_derivatives_are_those_of_the_plain_twin(loss, implementation, kind):
    x, w, teacher = data(20)
    teacher = teacher if kind == "linear" else top_k(log_probs(*teacher[:2]), 5)

    def products(implementation):
        slope = jax.grad(
            lambda w: loss(x, w, teacher, implementation=implementation, reduction=jloss.mean)
        )
        return jax.jvp(slope, (w,), (w,))[1], jax.grad(lambda w: jnp.vdot(slope(w), w))(w)

    got, expected = (jax.jit(products, static_argnums=0)(i) for i in (implementation, "plain"))
    jax.tree.map(close, got, expected)


@every_loss
@pytest.mark.parametrize("implementation", [None, "recompute"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2.5e-3), ("float16", 1e-3)])
def test_half_precision_costs_one_rounding(loss, dtype, tolerance, implementation):
    x, w, teacher = data(256, jnp.dtype(dtype), scale=1.2, classes=1000)
    (value, (of_x, of_w, _)) = value_and_grads(
        loss, (x, w, teacher), implementation=implementation, reduction=jloss.sum
    )
    with jax.enable_x64(True):
        given = jax.tree.map(lambda a: a.astype("float64"), (x, w, teacher))
        truth, slopes = value_and_grads(loss, given, implementation="plain", reduction=jloss.sum)
    np.testing.assert_allclose(value, truth, rtol=1e-5)
    for slope, expected in zip((of_x, of_w), slopes):
        assert slope.dtype == dtype
        apart = np.linalg.norm(np.asarray(slope, float) - np.asarray(expected))
        assert apart <= tolerance * np.linalg.norm(expected)


@every_loss
def test_what_scales_the_loss_keeps_the_slopes_in_range(loss):
    """A share of 2^-22 of the loss of each token is too small for float16, but for its scale."""
    x, w, teacher = data(64, jnp.float16, classes=200)
    weights = jnp.full(64, 2.0**-22)

    def slopes(implementation):
        f = lambda x, w: (
            2.0**16
            * loss(
                x, w, teacher, weights=weights, implementation=implementation, reduction=jloss.sum
            )
        )
        return jax.grad(f, (0, 1))(x, w)

    close_in_half = functools.partial(close, tolerance=5e-3)
    jax.tree.map(close_in_half, slopes(None), slopes("plain"))


@every_loss
@pytest.mark.parametrize("implementation", [None, "recompute"])
def test_memory_is_of_a_chunk(loss, implementation):
    tokens, classes = 512, 2048
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    teacher = jloss.LinearTeacher(shape(tokens, WIDER), shape(WIDER, classes))
    f = lambda x, w, t: loss(x, w, t, implementation=implementation, reduction=jloss.mean)
    given = shape(tokens, D), shape(D, classes), teacher
    compiled = jax.jit(jax.value_and_grad(f, (0, 1))).lower(*given).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * classes * 4 / 2


# masks, devices, bad arguments ----------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", [jloss.mean, jloss.each])
@pytest.mark.parametrize("kind", ["linear", "stored"])
def test_deleted_tokens_might_as_well_not_be_there(loss, reduction, kind):
    x, w, teacher = data(20)
    where = jnp.arange(20) % 3 != 0
    teacher = teacher if kind == "linear" else top_k(log_probs(*teacher[:2]), 5)
    gone = lambda a: jnp.where(where[:, None], a, jnp.nan if a.dtype == jnp.float32 else -100)
    junk = teacher._replace(**{teacher._fields[0]: gone(teacher[0])})
    junk = junk if kind == "linear" else junk._replace(classes=gone(teacher.classes))
    cube = lambda tree: jax.tree.map(
        lambda a: a.reshape(4, 5, *a.shape[1:]) if len(a) == 20 else a, tree
    )
    f = lambda x, w, t, **doors: jnp.sum(loss(x, w, t, reduction=reduction, **doors))
    got = jax.value_and_grad(f, (0, 1))(cube(gone(x)), w, cube(junk), where=cube(where))
    there = jax.tree.map(lambda a: a[where] if len(a) == 20 else a, teacher)
    value, (of_x, of_w) = jax.value_and_grad(f, (0, 1))(x[where], w, there)
    close(got[0], value)
    close(got[1][0].reshape(20, D)[where], of_x)
    assert (got[1][0].reshape(20, D)[~where] == 0).all()
    close(got[1][1], of_w)


PLACES = {
    "tokens": (P("data"), P()),
    "vocabulary": (P(), P("model")),
    "both": (P("data"), P("model")),
}


@every_loss
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("teacher", ["linear", "stored"])
def test_devices_share_the_work_and_gather_nothing(loss, kind, what, teacher):
    x, w, linear = data(128, classes=320)
    theirs = linear if teacher == "linear" else top_k(log_probs(*linear[:2]), 5)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
    (rows,), (columns,) = (spec or (None,) for spec in PLACES[what])
    second = (None, columns) if teacher == "linear" else (rows,)
    placed = (
        place(x, rows),
        place(w, None, columns),
        type(theirs)(place(theirs[0], rows), place(theirs[1], *second), *theirs[2:]),
    )
    f = jax.value_and_grad(lambda *a: loss(*a, reduction=jloss.mean), (0, 1))
    alone, together = (jax.jit(f).lower(*a).compile() for a in ((x, w, theirs), placed))
    jax.tree.map(close, together(*placed), alone(x, w, theirs))
    assert not re.search("all-gather|all-to-all|collective-permute", together.as_text())
    devices = {"tokens": 2, "vocabulary": 4, "both": 8}[what]
    work = [c.cost_analysis()["flops"] for c in (together, alone)]
    assert work[0] < 1.5 * work[1] / devices


@every_loss
@pytest.mark.parametrize("reduction", [jloss.mean, jloss.each])
@pytest.mark.parametrize("teacher", ["linear", "stored"])
def test_by_hand_tokens_and_vocabulary_are_split(loss, reduction, teacher):
    x, w, linear = data(24)
    theirs = linear if teacher == "linear" else top_k(log_probs(*linear[:2]), 5)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    end = reduction if reduction is jloss.each else functools.partial(reduction, axis_name="data")
    second = P(None, "model") if teacher == "linear" else P("data")
    split = jax.shard_map(
        lambda *given: loss(*given, axis_name="model", reduction=end),
        mesh=mesh,
        in_specs=(P("data"), P(None, "model"), type(theirs)(P("data"), second, *theirs[2:])),
        out_specs=P("data") if reduction is jloss.each else P(),
    )
    whole = functools.partial(loss, reduction=reduction)
    scalar = lambda f: lambda *a: jnp.vdot(f(*a), f(*a))
    got, expected = (
        jax.jit(jax.value_and_grad(scalar(f), (0, 1)))(x, w, theirs) for f in (split, whole)
    )
    jax.tree.map(close, got, expected)


@every_loss
def test_bad_stored_classes_are_nan_for_their_own_token_alone(loss):
    x, w, teacher = data(6)
    stored = top_k(log_probs(*teacher[:2]), 5)
    stored = stored._replace(
        classes=stored.classes.at[1, 2].set(CLASSES).at[2, 0].set(-1),
        log_probs=stored.log_probs.at[4, 1].set(0.5),
    )
    f = lambda x: loss(x, w, stored)
    np.testing.assert_array_equal(jnp.isnan(f(x)), [0, 1, 1, 0, 1, 0])
    slopes = jax.grad(lambda x: jnp.sum(f(x)))(x)
    np.testing.assert_array_equal(jnp.isnan(slopes).any(-1), [0, 1, 1, 0, 1, 0])


@every_loss
@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"hidden": jnp.zeros((5, WIDER))}, ValueError, "`teacher.hidden`"),
        ({"matrix": jnp.zeros((WIDER, 7))}, ValueError, "`teacher.matrix` has 7 classes"),
        ({"matrix": jnp.zeros((7, CLASSES))}, ValueError, "`teacher.matrix`"),
        ({"matrix": jnp.zeros((WIDER, CLASSES), int)}, TypeError, "`teacher.matrix`"),
        ({"bias": jnp.zeros(3)}, ValueError, "`teacher.bias`"),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_by_name(loss, change, error, told):
    x, w, teacher = data(6)
    with pytest.raises(error, match=re.escape(told)):
        loss(x, w, teacher._replace(**change))


def test_what_is_no_teacher_is_told():
    x, w, teacher = data(6)
    for wrong in (tuple(teacher), teacher.hidden, None):
        with pytest.raises(TypeError, match="`teacher` is a LinearTeacher or a TopKTeacher"):
            jloss.linear_kl_divergence(x, w, wrong)


@every_loss
@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"log_probs": jnp.zeros((6, 4))}, ValueError, "`teacher.classes`"),
        ({"log_probs": jnp.zeros(6)}, ValueError, "`teacher.log_probs`"),
        ({"log_probs": jnp.zeros((6, 5), int)}, TypeError, "`teacher.log_probs`"),
        ({"classes": jnp.zeros((6, 5))}, TypeError, "`teacher.classes`"),
    ],
)
def test_what_was_stored_wrongly_is_told_by_name(loss, change, error, told):
    x, w, teacher = data(6)
    stored = top_k(log_probs(*teacher[:2]), 5)
    with pytest.raises(error, match=re.escape(told)):
        loss(x, w, stored._replace(**change))
