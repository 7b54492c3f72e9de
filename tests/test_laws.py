"""What is true of every loss: the laws of `jloss.reduction` and of the house, on every row.

The seventh law, that values and gradients are right, is in `test_accuracy.py`.
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from catalog import CATALOG, CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss

B = 6
WHERE = np.array([1, 1, 0, 1, 0, 1], bool)
every_loss = pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
both = pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
same = np.testing.assert_array_equal


def batch(row, n=B, seed=0, dtype=jnp.float32):
    x, y = row.draw(seed, n)
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype if y.dtype.kind == "f" else None)


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate(loss, reduction, x, y, doors):
    value, pullback = jax.vjp(lambda x: loss(x, y, reduction=reduction, **doors), x)
    return value, pullback(jnp.ones_like(value))[0]


def value_and_gradient(row, x, y, *, reduction=jloss.each, **doors):
    """The reduced loss, and the gradient of its sum in the output."""
    return evaluate(row.loss, reduction, x, y, doors)


def junk(array, deleted):
    """Whatever users store in deleted entries."""
    stored = jnp.nan if jnp.issubdtype(array.dtype, jnp.floating) else -100
    return array.at[np.nonzero(deleted)].set(stored)


def apart(a, row):
    """Whether `a` has the axis that the loss consumes."""
    return bool(row.event) and a.ndim == 1 + len(row.event)


# 1. `where` deletes ---------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", [jloss.mean, jloss.sum])
def test_where_deletes(row, reduction):
    x, y = batch(row)
    masked = value_and_gradient(row, x, y, where=WHERE, reduction=reduction)
    left = value_and_gradient(row, x[WHERE], y[WHERE], reduction=reduction)
    close(masked[0], left[0])
    close(masked[1][WHERE], left[1])


@every_loss
@pytest.mark.parametrize("reduction", [jloss.each, jloss.mean])
def test_deleted_entries_reach_nothing(row, reduction):
    x, y = batch(row)
    clean = value_and_gradient(row, x, y, where=WHERE, reduction=reduction)
    for stored in (junk(x, ~WHERE), x.at[~WHERE].set(jnp.inf), x.at[~WHERE].set(-3e38)):
        value, gradient = value_and_gradient(
            row, stored, junk(y, ~WHERE), where=WHERE, reduction=reduction
        )
        same(value, clean[0])
        same(gradient, clean[1])
        same(gradient[~WHERE], 0)


@every_loss
def test_where_reaches_the_consumed_axis(row):
    if not row.event:
        pytest.skip("consumes no axis")
    x, y = batch(row)
    y = y if apart(y, row) else jnp.minimum(y, CLASSES - 2)
    there = np.arange(CLASSES) < CLASSES - 1
    less = lambda a: a[:, there] if apart(a, row) else a
    fewer = value_and_gradient(row, less(x), less(y), reduction=jloss.mean)
    hide = lambda a: junk(a, np.broadcast_to(~there, a.shape)) if apart(a, row) else a
    for x_, y_ in ((x, y), (hide(x), hide(y))):
        masked = value_and_gradient(row, x_, y_, where=there[None], reduction=jloss.mean)
        close(masked[0], fewer[0])
        close(masked[1][:, there], fewer[1])
        same(masked[1][:, ~there], 0)


@every_loss
def test_a_value_with_no_entry_left_is_deleted(row):
    if not row.event:
        pytest.skip("consumes no axis")
    x, y = batch(row)
    rows, entries = WHERE, np.repeat(WHERE[:, None], CLASSES, 1)
    for where in (entries, WHERE[:, None]):
        masked = value_and_gradient(
            row, junk(x, ~rows), junk(y, ~rows), where=where, reduction=jloss.mean
        )
        left = value_and_gradient(row, x, y, where=rows, reduction=jloss.mean)
        close(masked[0], left[0])
        close(masked[1], left[1])


# 2. `weights` repeat --------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", [jloss.mean, jloss.sum, jloss.tally])
def test_weights_repeat(row, reduction):
    x, y = batch(row)
    counts = np.array([2, 1, 5, 3, 0, 1])
    repeated = row.loss(*(jnp.repeat(a, counts, 0) for a in (x, y)), reduction=reduction)
    for weights in (counts, counts.astype(np.float32), jnp.asarray(counts, jnp.bfloat16)):
        weighted = row.loss(x, y, weights=weights, reduction=reduction)
        jax.tree.map(close, weighted, repeated)


@every_loss
def test_weight_0_deletes_even_nan(row):
    x, y = batch(row)
    stored = junk(x, ~WHERE), junk(y, ~WHERE)
    deleted = value_and_gradient(row, x, y, where=WHERE, reduction=jloss.mean)
    for weights in (WHERE, WHERE.astype(np.float32), WHERE.astype(np.int8)):
        weighted = value_and_gradient(row, *stored, weights=weights, reduction=jloss.mean)
        jax.tree.map(same, weighted, deleted)


@every_loss
def test_gradient_of_weights(row):
    x, y = batch(row)
    weights = jnp.linspace(0.5, 2, B)
    f = lambda w: row.loss(x, y, weights=w, reduction=jloss.mean)
    values = row.loss(x, y)
    close(jax.grad(f)(weights), (values - f(weights)) / weights.sum(), atol=1e-5)
    at_0 = jax.grad(f)(weights.at[2].set(0))
    assert at_0[2] == 0
    assert np.isfinite(at_0).all()


# 3. nothing left is 0 -------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", [jloss.each, jloss.mean, jloss.sum])
@pytest.mark.parametrize("doors", [{"where": np.zeros(B, bool)}, {"weights": np.zeros(B)}])
def test_nothing_left_is_0(row, reduction, doors):
    x, y = (jnp.full(a.shape, jnp.nan) if a.dtype.kind == "f" else a for a in batch(row))
    value, gradient = value_and_gradient(row, x, y, **doors, reduction=reduction)
    same(value, 0)
    same(gradient, 0)


@every_loss
def test_empty_batch(row):
    x, y = (a[:0] for a in batch(row))
    assert row.loss(x, y).shape == (0,)
    value, gradient = value_and_gradient(row, x, y, reduction=jloss.mean)
    assert value == 0
    assert gradient.shape == x.shape


# 4. tallies add up ----------------------------------------------------------------------------


@every_loss
def test_tallies_add_up(row):
    x, y = batch(row)
    weights = np.linspace(0.5, 2, B, dtype=np.float32)
    doors = lambda part: {"where": WHERE[part], "weights": weights[part]}
    whole = row.loss(x, y, **doors(slice(None)), reduction=jloss.mean)
    parts = (slice(0, 1), slice(1, 4), slice(4, B))  # of unequal size
    tallies = [row.loss(x[p], y[p], **doors(p), reduction=jloss.tally) for p in parts]
    close((tallies[0] + tallies[1] + tallies[2]).mean(), whole)


@every_loss
def test_named_axis_of_vmap_adds_up(row):
    x, y = batch(row)
    f = functools.partial(row.loss, reduction=functools.partial(jloss.mean, axis_name="data"))
    halves = lambda a: a.reshape(2, B // 2, *a.shape[1:])
    each_half = jax.vmap(lambda x, y, m: f(x, y, where=m), axis_name="data")
    whole = row.loss(x, y, where=WHERE, reduction=jloss.mean)
    close(each_half(halves(x), halves(y), halves(WHERE)), [whole, whole])


# 5. transformations change nothing ------------------------------------------------------------


@every_loss
def test_jit_vmap_and_remat_change_nothing(row):
    batches = [batch(row, seed=seed) for seed in range(3)]
    f = functools.partial(row.loss, where=WHERE, reduction=jloss.mean)
    for g in (f, jax.grad(f), jax.grad(jax.checkpoint(f))):
        one_by_one = jnp.stack([g(*b) for b in batches])
        stacked = [jnp.stack(arrays) for arrays in zip(*batches)]
        close(jnp.stack([jax.jit(g)(*b) for b in batches]), one_by_one)
        close(jax.jit(jax.vmap(g))(*stacked), one_by_one)
        close(jax.lax.map(lambda b, g=g: g(*b), tuple(stacked)), one_by_one)


@every_loss
def test_each_argument_is_batched_alone(row):
    x, y = batch(row)
    truths = jnp.stack([y, jnp.roll(y, 1, 0)])
    masks, weights = np.stack([WHERE, ~WHERE]), np.arange(2.0 * B, dtype="f4").reshape(2, B)
    f = lambda y, m, w: row.loss(x, y, where=m, weights=w, reduction=jloss.mean)
    base = truths[0], masks[0], weights[0]
    for i, several in enumerate((truths, masks, weights)):
        one = lambda a, i=i: f(*base[:i], a, *base[i + 1 :])
        close(jax.jit(jax.vmap(one))(several), [one(a) for a in several])


@every_loss
def test_leading_axes_are_free(row):
    x, y = batch(row)
    values = row.loss(x, y)
    assert values.shape == (B,)
    assert values.dtype == jnp.float32
    cut = lambda a: a.reshape(2, 3, *a.shape[1:])
    close(row.loss(cut(x), cut(y)), cut(values))
    close(row.loss(x[0], y[0]), values[0])
    close(jax.vmap(row.loss)(x, y), values)


@every_loss
def test_the_order_of_the_batch_is_nothing(row):
    x, y = batch(row)
    for a, b in zip(value_and_gradient(row, x[::-1], y[::-1]), value_and_gradient(row, x, y)):
        close(a, b[::-1])


@every_loss
def test_the_order_of_classes_is_nothing(row):
    if not row.classes_exchange:
        pytest.skip("has no classes")
    x, y = batch(row)
    order = np.random.default_rng(0).permutation(CLASSES)
    y_ = y[:, order] if apart(y, row) else jnp.argsort(order)[y] if y.dtype.kind == "i" else y
    close(row.loss(x[:, order], y_), row.loss(x, y))


@every_loss
def test_any_axis_may_be_consumed(row):
    if not row.event:
        pytest.skip("consumes no axis")
    x, y = batch(row)
    there = np.arange(CLASSES)[None] != CLASSES - 1
    y = y if apart(y, row) else jnp.minimum(y, CLASSES - 2)
    move = lambda a: jnp.moveaxis(a, -1, 0) if a.ndim == x.ndim else a
    close(row.loss(move(x), move(y), axis=0), row.loss(x, y))
    close(row.loss(move(x), move(y), axis=0, where=WHERE), row.loss(x, y, where=WHERE))
    close(row.loss(move(x), move(y), axis=0, where=there.T), row.loss(x, y, where=there))
    pad = lambda a: jnp.concatenate([a[..., None], a[..., None]], -1) if a.ndim == x.ndim else a
    if apart(y, row):
        both_axes = row.loss(pad(x), pad(y), axis=(1, 2))
        flat = row.loss(pad(x).reshape(B, -1), pad(y).reshape(B, -1))
        close(both_axes, flat)


@every_loss
def test_values_that_change_compile_nothing_anew(row):
    f = jax.jit(functools.partial(row.loss, reduction=jloss.mean))
    for seed in range(3):
        f(*batch(row, seed=seed))
    assert f._cache_size() == 1


@every_loss
def test_no_tracer_leaks(row):
    x, y = batch(row)
    with jax.checking_leaks():
        jax.jit(jax.grad(lambda x: row.loss(x, y, where=WHERE, reduction=jloss.mean)))(x)


@every_loss
def test_exports_with_a_symbolic_batch(row):
    x, y = batch(row)
    (b,) = jax.export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((b, *a.shape[1:]), a.dtype) for a in (x, y)]
    f = jax.jit(functools.partial(row.loss, reduction=jloss.mean))
    close(jax.export.export(f)(*shapes).call(x, y), f(x, y))


@every_loss
def test_numpy_and_python_numbers_are_arrays(row):
    x, y = batch(row)
    close(row.loss(np.asarray(x), np.asarray(y)), row.loss(x, y))
    if not row.event:
        assert row.loss(0.5, 1.0).shape == ()


@every_loss
def test_hyperparameters_are_traced(row):
    x, y = batch(row)
    for name, (value, _) in row.hyperparameters.items():
        f = lambda h, name=name: row.loss(x, y, **{name: h}, reduction=jloss.mean)
        values = jnp.array([value, 0.5 * value])
        close(jax.jit(jax.vmap(f))(values), [f(float(v)) for v in values])
        slope = jax.jit(jax.grad(f))(values[0])
        step = 1e-2 * value
        nudged = (f(value + step) - f(value - step)) / (2 * step)
        np.testing.assert_allclose(slope, nudged, rtol=1e-2, atol=1e-3)


# 6. half precision ----------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
def test_half_precision_is_float32_inside_and_out(row, dtype):
    x, y = batch(row, dtype=dtype)
    wide = (a.astype(jnp.float32) if a.dtype == dtype else a for a in (x, y))
    value = row.loss(x, y, reduction=jloss.mean)
    assert value.dtype == jnp.float32
    same(value, row.loss(*wide, reduction=jloss.mean))
    assert jax.grad(row.loss)(x, y, reduction=jloss.mean).dtype == dtype


@every_loss
def test_a_mean_of_many_keeps_its_digits(row):
    x, y = batch(row, dtype=jnp.bfloat16)
    many = [jnp.tile(a, (5000, *(1,) * (a.ndim - 1))) for a in (x, y)]
    close(row.loss(*many, reduction=jloss.mean), row.loss(x, y, reduction=jloss.mean))


@every_loss
def test_x64_mode_computes_float32_in_float32(row):
    x, y = batch(row)
    with jax.enable_x64(True):
        f = jax.value_and_grad(lambda x: row.loss(x, y, where=WHERE, reduction=jloss.mean))
        text = str(jax.make_jaxpr(f)(x))
    assert "f64[" not in text.replace("f64[]", "")


@every_loss
def test_wide_losses_keep_no_float32_copy_for_the_backward_pass(row):
    if not row.classes_exchange or row.loss in (jloss.cosine_similarity, jloss.cosine_distance):
        pytest.skip("not over classes")
    x, y = batch(row, 64, dtype=jnp.bfloat16)
    _, pullback = jax.vjp(lambda x: row.loss(x, y, where=np.ones(64, bool)), x)
    kept = [a for a in jax.tree.leaves(pullback) if a.size >= x.size]
    assert all(a.dtype.itemsize <= 2 for a in kept)


# 7. derivatives -------------------------------------------------------------------------------


@every_loss
def test_forward_mode_is_reverse_mode(row):
    x, y = batch(row)
    f = functools.partial(row.loss, where=WHERE, reduction=jloss.mean)
    tangent = jnp.linspace(-1, 1, x.size).reshape(x.shape)
    _, forward = jax.jit(lambda x: jax.jvp(lambda x: f(x, y), (x,), (tangent,)))(x)
    gradient = jax.grad(f)(x, y)
    close(forward, jnp.vdot(gradient, tangent), atol=1e-5)
    product = lambda g: jax.jvp(g, (x,), (tangent,))[1]
    over_reverse = jax.jit(lambda: product(lambda x: jax.grad(f)(x, y)))()
    twice_reverse = jax.grad(lambda x: jnp.vdot(jax.grad(f)(x, y), tangent))(x)
    close(over_reverse, twice_reverse)
    per_example = jax.vmap(jax.grad(lambda x, y: row.loss(x, y)))(x, y)
    close(per_example, jax.grad(lambda x: row.loss(x, y).sum())(x))


@every_loss
def test_gradient_of_the_truth(row):
    with jax.enable_x64(True):
        x, y = batch(row, dtype=jnp.float64)
        if y.dtype != jnp.float64 or not row.names[1]:
            pytest.skip("the truth is no float")
        y = jnp.clip(y, 0.1, 0.9) if row.bad else y
        f = lambda y: row.loss(x, y, reduction=jloss.mean)
        jax.test_util.check_grads(jax.jit(f), (y,), order=2, rtol=1e-4, atol=1e-4)


# 8. edges -------------------------------------------------------------------------------------


@every_loss
def test_edges_are_finite(row):
    x, y = batch(row)
    derivatives = {"hessian": jax.jacfwd(jax.grad(row.loss))}
    if row.names[1] and y.dtype.kind == "f":
        derivatives["slope in the truth"] = jax.grad(row.loss, argnums=1)
    derivatives = {name: jax.jit(jax.vmap(f)) for name, f in derivatives.items()}
    for edge in (1e4, -1e4, 50.0, -50.0, 1e-40, -1e-40, 0.0, -0.0):
        if not row.unbounded and edge > 0:
            continue
        for at_edge in (x.at[..., 0].set(edge) if row.event else x, jnp.full_like(x, edge)):
            for result in value_and_gradient(row, at_edge, y):
                assert np.isfinite(result).all(), edge
            for name, f in derivatives.items():
                assert np.isfinite(f(at_edge, y)).all(), (edge, name)


@every_loss
def test_one_class(row):
    if not row.event:
        pytest.skip("consumes no axis")
    x, y = batch(row)
    x, y = x[:, :1], (y[:, :1] * 0 + 1 if apart(y, row) else y * 0)
    for result in value_and_gradient(row, x, y):
        assert np.isfinite(result).all()


@every_loss
def test_a_forbidden_class(row):
    if row.names[0] not in ("logits", "log_predictions") or not row.event:
        pytest.skip("forbids nothing")
    x, y = batch(row)
    forbid = x.at[:, -1].set(-jnp.inf)
    allowed = y.at[:, -1].set(0) if apart(y, row) else jnp.minimum(y, CLASSES - 2)
    smoothed = isinstance(row.loss, functools.partial) and "label_smoothing" in row.loss.keywords
    value, gradient = value_and_gradient(row, forbid, allowed)
    assert np.isinf(value).all() if smoothed else np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    if not row.names[1]:
        return
    required = y.at[:, -1].set(0.5) if apart(y, row) else y * 0 + CLASSES - 1
    value, gradient = value_and_gradient(row, forbid, required)
    same(value, np.inf)
    assert np.isfinite(gradient).all()
    assert (gradient[:, -1] < 0).all()


@every_loss
def test_bad_values_are_nan_for_themselves_alone(row):
    if not row.bad:
        pytest.skip("any value will do")
    x, y = batch(row)
    y = y.astype(jnp.float32) if isinstance(row.bad[0], float) else y
    for bad in row.bad:
        at = (2, ..., 0) if apart(y, row) else 2
        value, gradient = value_and_gradient(row, x, y.at[at].set(bad))
        clean = value_and_gradient(row, x, y)
        assert np.isnan(value[2])
        assert np.isnan(gradient[2]).all()
        close(np.delete(value, 2, 0), np.delete(clean[0], 2, 0))
        close(np.delete(gradient, 2, 0), np.delete(clean[1], 2, 0))
        if not row.event and y.dtype.kind == "f":
            assert np.isnan(jax.grad(lambda y: row.loss(x, y).sum())(y.at[at].set(bad))[2])


@every_loss
def test_checked_names_the_argument(row):
    if not row.bad:
        pytest.skip("any value will do")
    x, y = batch(row)
    at = (2, ..., 0) if apart(y, row) else 2
    wrong = y.at[at].set(row.bad[0])
    f = functools.partial(row.loss, where=WHERE)
    scanned = lambda x, y: jax.lax.scan(lambda c, b: (c + row.loss(*b), None), 0.0, (x, y))[0]
    forms = {
        "jit": jax.jit(row.loss),
        "grad": jax.jit(jax.grad(functools.partial(row.loss, reduction=jloss.mean))),
        "vmap": jax.jit(jax.vmap(row.loss)),
        "scan": jax.jit(scanned),
        "grad of scan": jax.jit(jax.grad(scanned)),
    }
    for form in forms.values():
        jloss.checked(form)(x, y)
        with pytest.raises(ValueError, match=f"`{row.names[1]}`"):
            jloss.checked(form)(x, wrong)
        assert "callback" not in str(jax.make_jaxpr(form)(x, wrong))
    jloss.checked(f)(x, wrong)  # entry 2 is deleted


# 9. wrong shapes and dtypes are told by name --------------------------------------------------


@every_loss
def test_wrong_arguments_are_told_by_name(row):
    x, y = batch(row)
    out, truth = row.names
    told = lambda kind, name: pytest.raises(kind, match=f"`{name}`")
    with told(TypeError, out):
        row.loss(jnp.ones(x.shape, jnp.int32), y)
    with told(TypeError, out):
        row.loss(x.astype(jnp.complex64), y)
    for reduction in ("mean", "none", None):
        with told(TypeError, "reduction"):
            row.loss(x, y, reduction=reduction)
    with told(TypeError, "where"):
        row.loss(x, y, where=WHERE.astype(np.float32))
    for n in (B - 1, 1 + B):
        with told(ValueError, "where"):
            row.loss(x, y, where=np.ones(n, bool))
        with told(ValueError, "weights"):
            row.loss(x, y, weights=np.ones(n))
    with told(ValueError, "where"):
        row.loss(x, y, where=np.ones((*x.shape, 1), bool))
    with told(ValueError, "weights"):
        row.loss(x, y, weights=np.ones((B, CLASSES)))
    if truth:
        for wrong in (y[:-1], y[:1], y[..., None], y[None]):
            with told(ValueError, truth):
                row.loss(x, wrong)
    if truth == "labels" and y.dtype.kind == "i" and row.event:
        with told(TypeError, truth):
            row.loss(x, y.astype(jnp.float32))
    with told(TypeError, out):
        row.loss(None, y)
    with told(TypeError, out):
        row.loss(10**400, y)
    if truth and not row.none_is_0:
        with told(TypeError, truth):
            row.loss(x, None)
    if row.event:
        with told(ValueError, "axis"):
            row.loss(1.0, 1)
        with told(ValueError, out):
            row.loss(x[:, :0], y[:, :0] if apart(y, row) else y)


@every_loss
def test_slopes_in_hyperparameters_do_not_see_what_is_deleted(row):
    x, y = batch(row)
    rows = np.repeat(WHERE[:, None], CLASSES, 1) if row.event else WHERE
    for name, (value, _) in row.hyperparameters.items():
        f = lambda h, x, y, m, name=name: row.loss(x, y, **{name: h}, where=m, reduction=jloss.mean)
        left = jax.grad(f)(value, x[WHERE], y[WHERE], None)
        for where in (WHERE, rows):
            stored = junk(x, ~WHERE), junk(y, ~WHERE)
            close(jax.jit(jax.grad(f))(value, *stored, where), left)


@every_loss
def test_hyperparameters_out_of_bounds_are_nan(row):
    x, y = batch(row)
    for name, (value, bad) in row.hyperparameters.items():
        f = jax.jit(lambda h, name=name: row.loss(x, y, **{name: h}))
        assert np.isnan(f(bad)).all()
        jloss.checked(f)(value)
        with pytest.raises(ValueError, match=f"`{name}`"):
            jloss.checked(f)(bad)


@every_loss
def test_hyperparameters_of_a_wrong_shape_are_told_by_name(row):
    x, y = batch(row)
    for name in row.hyperparameters:
        with pytest.raises(ValueError, match=f"`{name}`"):
            row.loss(x, y, **{name: np.ones((2, 3, 4, 5))})


# 10. three sharding modes ---------------------------------------------------------------------


def on_mesh(kind, row, x, y, along):
    """The batch put on a mesh: its rows over `data`, its classes over `model`, or both."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    first = "data" if "data" in along else None
    spec = lambda a: P(first, "model" if "model" in along else None) if apart(a, row) else P(first)
    return mesh, [jax.device_put(a, NamedSharding(mesh, spec(a))) for a in (x, y)]


def wide(row):
    """A batch whose classes four devices can share."""
    x, y = batch(row, 8)
    twice = lambda a: jnp.concatenate([a, a[:, : 8 - CLASSES]], 1) if apart(a, row) else a
    x, y = twice(x), twice(y)
    y = jnp.clip(y / y.sum(-1, keepdims=True), 0, 1) if row.bad and apart(y, row) else y
    return x, y


@every_loss
@both
@pytest.mark.parametrize("along", [("data",), ("model",), ("data", "model")], ids="+".join)
def test_sharded_by_jit(row, kind, along):
    if "model" in along and not row.event:
        pytest.skip("consumes no axis")
    x, y = wide(row)
    where = np.arange(8) != 3
    weights = np.linspace(1, 2, 8, dtype=np.float32)
    doors = {"where": where, "weights": weights}
    f = jax.value_and_grad(lambda x, y, doors: row.loss(x, y, **doors, reduction=jloss.mean))
    mesh, placed = on_mesh(kind, row, x, y, along)
    rows = NamedSharding(mesh, P("data" if "data" in along else None))
    doors_placed = jax.device_put(doors, rows)
    compiled = jax.jit(f).lower(*placed, doors_placed).compile()
    value, gradient = compiled(*placed, doors_placed)
    expected = f(x, y, doors)
    close(value, expected[0])
    close(gradient, expected[1])
    assert gradient.sharding.is_equivalent_to(placed[0].sharding, x.ndim)
    assert "all-gather" not in compiled.as_text()
    assert "all-to-all" not in compiled.as_text()
    with jax.set_mesh(mesh):
        close(jax.jit(f)(*placed, doors_placed)[0], expected[0])


@every_loss
@both
def test_sharded_class_masks(row, kind):
    if not row.event:
        pytest.skip("consumes no axis")
    x, y = wide(row)
    y = y if apart(y, row) else jnp.minimum(y, 6)
    where = np.ones((8, 8), bool)
    where[:, 7] = where[3] = False
    f = jax.value_and_grad(lambda x, y, m: row.loss(x, y, where=m, reduction=jloss.mean))
    _, placed = on_mesh(kind, row, x, y, ("data", "model"))
    compiled = jax.jit(f).lower(*placed, jax.device_put(where, placed[0].sharding)).compile()
    value, gradient = compiled(*placed, jax.device_put(where, placed[0].sharding))
    expected = f(x, y, where)
    close(value, expected[0])
    close(gradient, expected[1])
    assert "all-gather" not in compiled.as_text()


@every_loss
@pytest.mark.parametrize("check_vma", [True, False])
def test_sharded_by_hand(row, check_vma):
    x, y = batch(row, 8)
    where = np.array([1, 0, 1, 1, 0, 0, 1, 1], bool)  # unequal over the devices, one has none
    mesh = jax.make_mesh((4,), ("data",))
    mean = functools.partial(jloss.mean, axis_name="data")
    f = lambda x, y, m: row.loss(x, y, where=m, reduction=mean)
    shard = functools.partial(jax.shard_map, mesh=mesh, check_vma=check_vma)
    local = shard(f, in_specs=P("data"), out_specs=P())
    rows = NamedSharding(mesh, P("data"))
    value, gradient = jax.jit(jax.value_and_grad(local))(*jax.device_put((x, y, where), rows))
    expected = jax.value_and_grad(lambda x: row.loss(x, y, where=where, reduction=jloss.mean))(x)
    close(value, expected[0])
    close(gradient, expected[1])


# shapes ---------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def reduced_in_three_ways(loss, x, y, where):
    last = functools.partial(jloss.sum, axis=-1)
    return [loss(x, y, where=where, reduction=r) for r in (jloss.tally, jloss.each, last)]


@every_loss
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_where_covers_any_leading_axes(row, data):
    shape = data.draw(st.sampled_from([(4,), (2, 3), (2, 1, 3)]), label="shape")
    covered = data.draw(st.integers(1, len(shape)), label="axes that where covers")
    n = int(np.prod(shape))
    x, y = batch(row, n, seed=data.draw(st.integers(0, 99), label="seed"))
    values = jax.jit(row.loss)(x, y)
    x, y = (a.reshape(*shape, *a.shape[1:]) for a in (x, y))
    bits = st.lists(st.booleans(), min_size=n, max_size=n)
    where = np.array(data.draw(bits, label="where")).reshape(shape)
    where = where[(..., *(0,) * (len(shape) - covered))]
    there = np.broadcast_to(where.reshape(where.shape + (1,) * (len(shape) - covered)), shape)
    tally, each, last = reduced_in_three_ways(row.loss, x, y, where)
    expected = np.where(there, np.reshape(values, shape), 0)
    close(each, expected)
    close(tally.total, expected.sum(), rtol=1e-4)
    close(last, expected.sum(-1), rtol=1e-4)
    assert float(tally.weight) == there.sum()
