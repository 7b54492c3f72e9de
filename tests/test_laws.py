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
LAWFUL = {name: row for name, row in CATALOG.items() if row.laws}
every_loss = pytest.mark.parametrize("row", LAWFUL.values(), ids=LAWFUL)
both = pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
same = np.testing.assert_array_equal


def batch(row, n=B, seed=0, dtype=jnp.float32):
    x, y = row.draw(seed, n)
    return x.astype(dtype), y.astype(dtype if y.dtype.kind == "f" else np.int32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate(loss, reduction, x, y, doors):
    return loss(x, y, reduction=reduction, **doors)


@functools.partial(jax.jit, static_argnums=(0, 1))
def differentiate(loss, reduction, x, y, doors):
    value, pullback = jax.vjp(lambda x: loss(x, y, reduction=reduction, **doors), x)
    return value, pullback(jnp.ones_like(value))[0]


def value_of(row, x, y, *, reduction=jloss.each, **doors):
    """The reduced loss. (Under `jit`, as all here: op by op, a law takes ten times as long.)"""
    return evaluate(row.loss, reduction, x, y, doors)


def value_and_gradient(row, x, y, *, reduction=jloss.each, **doors):
    """The reduced loss, and the gradient of its sum in the output."""
    return differentiate(row.loss, reduction, x, y, doors)


def junk(array, deleted):
    """Whatever users store in deleted entries."""
    return put(array, np.nonzero(deleted), -100 if array.dtype.kind == "i" else np.nan)


def put(array, at, value):
    """A copy with `value` there. (Arrays stay numpy's: JAX would compile each such step.)"""
    array = array.copy()
    array[at] = value
    return array


def of_chance(row, chance):
    """What the truth says of a class with that probability."""
    return -np.inf if row.log_truth and chance == 0 else np.log(chance) if row.log_truth else chance


def apart(a, row):
    """Whether `a` has the axis that the loss consumes."""
    return bool(row.event) and a.ndim == 1 + len(row.event)


# 1. `where` deletes ---------------------------------------------------------------------------


@every_loss
def test_where_deletes(row):
    x, y = batch(row)
    masked = value_and_gradient(row, x, y, where=WHERE, reduction=jloss.mean)
    left = value_and_gradient(row, x[WHERE], y[WHERE], reduction=jloss.mean)
    close(masked[0], left[0])
    close(masked[1][WHERE], left[1])


@every_loss
@pytest.mark.parametrize("reduction", [jloss.each, jloss.mean])
def test_deleted_entries_reach_nothing(row, reduction):
    x, y = batch(row)
    clean = value_and_gradient(row, x, y, where=WHERE, reduction=reduction)
    for stored in (junk(x, ~WHERE), put(x, ~WHERE, np.inf), put(x, ~WHERE, -3e38)):
        value, gradient = value_and_gradient(
            row, stored, junk(y, ~WHERE), where=WHERE, reduction=reduction
        )
        same(value, clean[0])
        same(gradient, clean[1])
        same(gradient[~WHERE], 0)


@every_loss
def test_where_reaches_the_consumed_axis(row):
    if not row.event or not row.class_masks:
        pytest.skip("consumes no axis, or all of it")
    x, y = batch(row)
    y = y if apart(y, row) else np.minimum(y, CLASSES - 2)
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
    column = WHERE.reshape(-1, *(1 for _ in row.event))
    for where in (entries, column) if row.class_masks else (column,):
        masked = value_and_gradient(
            row, junk(x, ~rows), junk(y, ~rows), where=where, reduction=jloss.mean
        )
        left = value_and_gradient(row, x, y, where=rows, reduction=jloss.mean)
        close(masked[0], left[0])
        close(masked[1], left[1])


# 2. `weights` repeat --------------------------------------------------------------------------


@every_loss
def test_weights_repeat(row):
    x, y = batch(row)
    counts = np.array([2, 1, 5, 3, 0, 1])
    repeated = value_of(row, *(np.repeat(a, counts, 0) for a in (x, y)), reduction=jloss.tally)
    for weights in (counts, counts.astype(jnp.bfloat16)):
        weighted = value_of(row, x, y, weights=weights, reduction=jloss.tally)
        jax.tree.map(close, weighted, repeated)


@every_loss
def test_weight_0_deletes_even_nan(row):
    x, y = batch(row)
    stored = junk(x, ~WHERE), junk(y, ~WHERE)
    deleted = value_and_gradient(row, x, y, where=WHERE, reduction=jloss.mean)
    for weights in (WHERE, WHERE.astype(np.float32)):
        weighted = value_and_gradient(row, *stored, weights=weights, reduction=jloss.mean)
        jax.tree.map(same, weighted, deleted)


@every_loss
def test_gradient_of_weights(row):
    x, y = batch(row)
    weights = np.linspace(0.5, 2, B, dtype=np.float32)
    f = jax.jit(jax.value_and_grad(lambda w: row.loss(x, y, weights=w, reduction=jloss.mean)))
    (mean, slope), values = f(weights), value_of(row, x, y)
    close(slope, (values - mean) / weights.sum(), atol=1e-5)
    _, at_0 = f(put(weights, 2, 0))
    assert at_0[2] == 0
    assert np.isfinite(at_0).all()


# 3. nothing left is 0 -------------------------------------------------------------------------


@every_loss
def test_nothing_left_is_0(row):
    x, y = (np.full(a.shape, np.nan, a.dtype) if a.dtype.kind == "f" else a for a in batch(row))
    for doors, reduction in (
        ({"where": np.zeros(B, bool)}, jloss.mean),
        ({"weights": np.zeros(B)}, jloss.each),
    ):
        for result in value_and_gradient(row, x, y, **doors, reduction=reduction):
            same(result, 0)


@every_loss
def test_empty_batch(row):
    x, y = (a[:0] for a in batch(row))
    assert value_of(row, x, y).shape == (0,)
    value, gradient = value_and_gradient(row, x, y, reduction=jloss.mean)
    assert value == 0
    assert gradient.shape == x.shape


# 4. tallies add up ----------------------------------------------------------------------------


@every_loss
def test_tallies_add_up(row):
    x, y = batch(row)
    weights = np.linspace(0.5, 2, B, dtype=np.float32)
    doors = lambda part: {"where": WHERE[part], "weights": weights[part]}
    whole = value_of(row, x, y, **doors(slice(None)), reduction=jloss.mean)
    parts = (slice(0, 1), slice(1, 4), slice(4, B))  # of unequal size
    tallies = [value_of(row, x[p], y[p], **doors(p), reduction=jloss.tally) for p in parts]
    close((tallies[0] + tallies[1] + tallies[2]).mean(), whole)


@every_loss
def test_named_axis_of_vmap_adds_up(row):
    x, y = batch(row)
    f = functools.partial(row.loss, reduction=functools.partial(jloss.mean, axis_name="data"))
    halves = lambda a: a.reshape(2, B // 2, *a.shape[1:])
    each_half = jax.jit(jax.vmap(lambda x, y, m: f(x, y, where=m), axis_name="data"))
    whole = value_of(row, x, y, where=WHERE, reduction=jloss.mean)
    close(each_half(halves(x), halves(y), halves(WHERE)), [whole, whole])


# 5. transformations change nothing ------------------------------------------------------------


@every_loss
def test_jit_vmap_and_remat_change_nothing(row):
    batches = [batch(row, seed=seed) for seed in range(3)]
    stacked = [np.stack(arrays) for arrays in zip(*batches)]
    f = functools.partial(row.loss, where=WHERE, reduction=jloss.mean)
    one_by_one = np.stack([jax.jit(jax.grad(f))(*b) for b in batches])
    mapped = lambda *stacked: jax.lax.map(lambda b: jax.grad(jax.checkpoint(f))(*b), stacked)
    for several in (jax.vmap(jax.grad(f)), mapped):
        close(jax.jit(several)(*stacked), one_by_one)


@every_loss
def test_each_argument_is_batched_alone(row):
    x, y = batch(row)
    truths = np.stack([y, np.roll(y, 1, 0)])
    masks, weights = np.stack([WHERE, ~WHERE]), np.arange(2.0 * B, dtype="f4").reshape(2, B)
    f = lambda y, m, w: row.loss(x, y, where=m, weights=w, reduction=jloss.mean)
    base = truths[0], masks[0], weights[0]
    for i, several in enumerate((truths, masks, weights)):
        one = lambda a, i=i: f(*base[:i], a, *base[i + 1 :])
        close(
            jax.jit(jax.vmap(one))(several),
            [jax.jit(f)(*base[:i], a, *base[i + 1 :]) for a in several],
        )


@every_loss
def test_leading_axes_are_free(row):
    x, y = batch(row)
    values = value_of(row, x, y)
    assert values.shape == (B,)
    assert values.dtype == jnp.float32
    cut = lambda a: a.reshape(2, 3, *a.shape[1:])
    close(value_of(row, cut(x), cut(y)), cut(values))
    close(value_of(row, x[0], y[0]), values[0])
    close(jax.jit(jax.vmap(row.loss))(x, y), values)


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
    y_ = y[:, order] if apart(y, row) else np.argsort(order)[y] if y.dtype.kind == "i" else y
    close(value_of(row, x[:, order], y_), value_of(row, x, y))


@every_loss
def test_any_axis_may_be_consumed(row):
    if not row.event or not row.any_axis:
        pytest.skip("consumes no axis, or the last alone")
    x, y = batch(row)
    there = np.arange(CLASSES)[None] != CLASSES - 1
    y = y if apart(y, row) else np.minimum(y, CLASSES - 2)
    move = lambda a: np.moveaxis(a, -1, 0) if a.ndim == x.ndim else a
    first = row._replace(loss=functools.partial(row.loss, axis=0))
    close(value_of(first, move(x), move(y)), value_of(row, x, y))
    for moved, where in ((WHERE, WHERE), (there.T, there)):
        close(value_of(first, move(x), move(y), where=moved), value_of(row, x, y, where=where))
    pad = lambda a: np.concatenate([a[..., None], a[..., None]], -1) if a.ndim == x.ndim else a
    if apart(y, row):
        both_axes = row._replace(loss=functools.partial(row.loss, axis=(1, 2)))
        flat = value_of(row, pad(x).reshape(B, -1), pad(y).reshape(B, -1))
        close(value_of(both_axes, pad(x), pad(y)), flat)


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
        jax.eval_shape(lambda x: row.loss(x, y, where=WHERE, reduction=jloss.mean), x)


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
    close(jax.jit(lambda: row.loss(np.asarray(x), np.asarray(y)))(), value_of(row, x, y))
    if not row.event:
        assert jax.eval_shape(lambda: row.loss(0.5, 1.0)).shape == ()


@every_loss
def test_hyperparameters_are_traced(row):
    x, y = batch(row)
    for name, (value, _) in row.hyperparameters.items():
        f = lambda h, name=name: row.loss(x, y, **{name: h}, reduction=jloss.mean)
        values = np.float32([value, 0.5 * value])
        g = jax.jit(f)
        close(jax.jit(jax.vmap(f))(values), [g(float(v)) for v in values])
        slope = jax.jit(jax.grad(f))(values[0])
        step = 1e-2 * value
        nudged = (g(value + step) - g(value - step)) / (2 * step)
        np.testing.assert_allclose(slope, nudged, rtol=1e-2, atol=1e-3)


# 6. half precision ----------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fn])
def test_half_precision_is_float32_inside_and_out(row, dtype):
    x, y = batch(row, dtype=dtype)
    wide = (a.astype(jnp.float32) if a.dtype == dtype else a for a in (x, y))
    value, gradient = value_and_gradient(row, x, y, reduction=jloss.mean)
    assert value.dtype == jnp.float32
    close(value, value_of(row, *wide, reduction=jloss.mean), rtol=1e-6)
    assert gradient.dtype == dtype


@every_loss
def test_a_mean_of_many_keeps_its_digits(row):
    x, y = batch(row, dtype=jnp.bfloat16)
    many = [np.tile(a, (5000, *(1,) * (a.ndim - 1))) for a in (x, y)]
    few = value_of(row, x, y, reduction=jloss.mean)
    close(value_of(row, *many, reduction=jloss.mean), few)


@every_loss
def test_x64_mode_computes_float32_in_float32(row):
    x, y = batch(row)
    with jax.enable_x64(True):
        f = jax.value_and_grad(lambda x: row.loss(x, y, where=WHERE, reduction=jloss.mean))
        text = str(jax.make_jaxpr(f)(x))
    assert "f64[" not in text.replace("f64[]", "")


@every_loss
def test_wide_losses_keep_no_float32_copy_for_the_backward_pass(row):
    if not row.event or row.names[0] in ("predictions", "means") or row.names[1] == "tags":
        pytest.skip("not over classes, or walked in float32")
    x, y = batch(row, 64, dtype=jnp.bfloat16)
    f = lambda x: row.loss(x, y, where=np.ones(64, bool))
    pullback = jax.eval_shape(lambda x: jax.vjp(f, x)[1], x)
    kept = [a for a in jax.tree.leaves(pullback) if a.size >= x.size]
    assert kept
    assert all(a.dtype.itemsize <= 2 for a in kept)


# 7. derivatives -------------------------------------------------------------------------------


@every_loss
def test_forward_mode_is_reverse_mode(row):
    if row.reverse_only:
        pytest.skip("another implementation goes forward")
    x, y = batch(row)
    f = functools.partial(row.loss, where=WHERE, reduction=jloss.mean)
    tangent = np.linspace(-1, 1, x.size, dtype=np.float32).reshape(x.shape)
    _, forward = jax.jit(lambda x: jax.jvp(lambda x: f(x, y), (x,), (tangent,)))(x)
    gradient = jax.jit(jax.grad(f))(x, y)
    close(forward, np.vdot(gradient, tangent), atol=1e-5)
    product = lambda g: jax.jvp(g, (x,), (tangent,))[1]
    over_reverse = jax.jit(lambda: product(lambda x: jax.grad(f)(x, y)))()
    twice_reverse = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(f)(x, y), tangent)))(x)
    close(over_reverse, twice_reverse)


# 8. edges -------------------------------------------------------------------------------------


@every_loss
def test_edges_are_finite(row):
    x, y = batch(row)
    derivatives = {"hessian": jax.jacfwd(jax.grad(row.loss))}
    if row.names[1] and y.dtype.kind == "f":
        derivatives["slope in the truth"] = jax.grad(row.loss, argnums=1)
    derivatives = {name: jax.jit(jax.vmap(f)) for name, f in derivatives.items()}
    for edge in (1e4, -1e4, 50.0, -50.0, 1e-40, -1e-40, 0.0, -0.0):
        if not row.reach[0] <= edge <= row.reach[1]:
            continue
        for at_edge in (put(x, (..., 0), edge) if row.event else x, np.full_like(x, edge)):
            for result in value_and_gradient(row, at_edge, y):
                assert np.isfinite(result).all(), edge
            for name, f in derivatives.items():
                assert np.isfinite(f(at_edge, y)).all(), (edge, name)


@every_loss
def test_one_class(row):
    if not row.event or row.lattice:
        pytest.skip("consumes no axis, or takes more than one class")
    x, y = batch(row)
    x, y = x[:, :1], (of_chance(row, 1) + 0 * y[:, :1] if apart(y, row) else y * 0)
    for result in value_and_gradient(row, x, y):
        assert np.isfinite(result).all()


@every_loss
def test_a_forbidden_class(row):
    if row.names[0] not in ("logits", "log_predictions") or not row.event:
        pytest.skip("forbids nothing")
    x, y = batch(row)
    forbid = put(x, np.s_[..., -1], -np.inf)
    never, maybe = (of_chance(row, p) for p in (0, 0.5))
    allowed = put(y, np.s_[:, -1], never) if apart(y, row) else np.minimum(y, CLASSES - 2)
    smoothed = isinstance(row.loss, functools.partial) and "label_smoothing" in row.loss.keywords
    value, gradient = value_and_gradient(row, forbid, allowed)
    assert np.isinf(value).all() if smoothed else np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    if not row.names[1]:
        return
    required = put(y, np.s_[:, -1], maybe) if apart(y, row) else y * 0 + CLASSES - 1
    value, gradient = value_and_gradient(row, forbid, required)
    assert np.isfinite(value).all() if row.bounded else np.isposinf(value).all()
    assert np.isfinite(gradient).all()
    assert row.bounded or row.lattice or (gradient[:, -1] < 0).all()


@every_loss
def test_bad_values_are_nan_for_themselves_alone(row):
    if not row.bad:
        pytest.skip("any value will do")
    x, y = batch(row)
    y = y.astype(jnp.float32) if isinstance(row.bad[0], float) else y
    for bad in row.bad:
        at = (2, ..., 0) if apart(y, row) else 2
        value, gradient = value_and_gradient(row, x, put(y, at, bad))
        clean = value_and_gradient(row, x, y)
        assert np.isnan(value[2])
        assert np.isnan(gradient[2]).all()
        close(np.delete(value, 2, 0), np.delete(clean[0], 2, 0))
        close(np.delete(gradient, 2, 0), np.delete(clean[1], 2, 0))
        if not row.event and y.dtype.kind == "f":
            slope = jax.jit(jax.grad(lambda y: row.loss(x, y).sum()))
            assert np.isnan(slope(put(y, at, bad))[2])


@every_loss
def test_checked_names_the_argument(row):
    if not row.bad:
        pytest.skip("any value will do")
    x, y = batch(row)
    at = (2, ..., 0) if apart(y, row) else 2
    y = y.astype(jnp.float32) if isinstance(row.bad[0], float) else y
    wrong = put(y, at, row.bad[0])
    f = functools.partial(row.loss, where=WHERE)
    scanned = lambda x, y: jax.lax.scan(lambda c, b: (c + row.loss(*b), None), 0.0, (x, y))[0]
    for form in (jax.jit(jax.vmap(jax.grad(row.loss))), jax.jit(jax.grad(scanned))):
        jloss.checked(form)(x, y)
        with pytest.raises(ValueError, match=f"`{row.names[1]}`"):
            jloss.checked(form)(x, wrong)
    assert "callback" not in str(jax.make_jaxpr(form)(x, wrong))
    jloss.checked(jax.jit(f))(x, wrong)  # entry 2 is deleted


# 9. wrong shapes and dtypes are told by name --------------------------------------------------


@every_loss
def test_wrong_arguments_are_told_by_name(row):
    x, y = batch(row)
    out, truth = row.names
    told = lambda kind, name: pytest.raises(kind, match=f"`{name}`")
    trace = lambda *args, **doors: jax.eval_shape(lambda: row.loss(*args, **doors))
    with told(TypeError, out):
        trace(jnp.ones(x.shape, jnp.int32), y)
    with told(TypeError, out):
        trace(x.astype(jnp.complex64), y)
    for reduction in ("mean", "none", None):
        with told(TypeError, "reduction"):
            trace(x, y, reduction=reduction)
    with told(TypeError, "where"):
        trace(x, y, where=WHERE.astype(np.float32))
    for n in (B - 1, 1 + B):
        with told(ValueError, "where"):
            trace(x, y, where=np.ones(n, bool))
        with told(ValueError, "weights"):
            trace(x, y, weights=np.ones(n))
    with told(ValueError, "where"):
        trace(x, y, where=np.ones((*x.shape, 1), bool))
    with told(ValueError, "weights"):
        trace(x, y, weights=np.ones((B, CLASSES)))
    if truth:
        for wrong in (y[:-1], y[:1], y[..., None], y[None]):
            with told(ValueError, truth):
                trace(x, wrong)
    if truth == "labels" and y.dtype.kind == "i" and row.event:
        with told(TypeError, truth):
            trace(x, y.astype(jnp.float32))
    with told(TypeError, out):
        trace(None, y)
    with told(TypeError, out):
        trace(10**400, y)
    if truth and not row.none_is_0:
        with told(TypeError, truth):
            trace(x, None)
    if row.event:
        with told(ValueError, out if row.lattice else "axis"):
            trace(1.0, 1)
        with told(ValueError, out):
            trace(x[..., :0], y[..., :0] if apart(y, row) else y)


@every_loss
def test_slopes_in_hyperparameters_do_not_see_what_is_deleted(row):
    x, y = batch(row)
    rows = np.repeat(WHERE[:, None], CLASSES, 1) if row.event and row.class_masks else WHERE
    for name, (value, _) in row.hyperparameters.items():
        f = lambda h, x, y, m, name=name: row.loss(x, y, **{name: h}, where=m, reduction=jloss.mean)
        left = jax.jit(jax.grad(f))(value, x[WHERE], y[WHERE], None)
        for where in (WHERE, rows):
            stored = junk(x, ~WHERE), junk(y, ~WHERE)
            close(jax.jit(jax.grad(f))(value, *stored, where), left)


@every_loss
def test_hyperparameters_out_of_bounds_are_nan(row):
    x, y = batch(row)
    for name, (value, bad) in row.hyperparameters.items():
        f = jax.jit(lambda h, name=name: row.loss(x, y, **{name: h}))
        for result in value_and_gradient(row, x, y, **{name: bad}):
            assert np.isnan(result).all()
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
    twice = lambda a: np.concatenate([a, a[:, : 8 - CLASSES]], 1) if apart(a, row) else a
    x, y = twice(x), twice(y)
    if row.bad and apart(y, row) and not row.log_truth:
        y = np.clip(y / y.sum(-1, keepdims=True), 0, 1)
    return x, y


@every_loss
@both
def test_sharded_by_jit(row, kind):
    """Rows and classes both, masks and weights with them."""
    classes = bool(row.event) and row.class_masks
    along = ("data", "model") if classes else ("data",)
    x, y = wide(row) if classes else batch(row, 8)
    y = y if apart(y, row) else np.minimum(y, 6) if classes else y
    where = np.ones((8, 8) if classes else 8, bool)
    where[3] = False
    where[..., 7] = not classes
    mesh, placed = on_mesh(kind, row, x, y, along)
    doors = {"where": where, "weights": np.linspace(1, 2, 8, dtype=np.float32)}
    rows = NamedSharding(mesh, P("data"))
    spec = {"where": placed[0].sharding if where.ndim == x.ndim else rows, "weights": rows}
    doors_placed = jax.device_put(doors, spec)
    f = jax.value_and_grad(lambda x, y, doors: row.loss(x, y, **doors, reduction=jloss.mean))
    compiled = jax.jit(f).lower(*placed, doors_placed).compile()
    value, gradient = compiled(*placed, doors_placed)
    expected = value_and_gradient(row, x, y, **doors, reduction=jloss.mean)
    close(value, expected[0])
    close(gradient, expected[1])
    assert gradient.sharding.is_equivalent_to(placed[0].sharding, x.ndim)
    assert "all-gather" not in compiled.as_text()
    assert "all-to-all" not in compiled.as_text()
    if kind is AxisType.Auto:
        return
    with jax.set_mesh(mesh):
        value = jax.jit(lambda x, y: row.loss(x, y, reduction=jloss.mean))(*placed)
    close(value, value_of(row, x, y, reduction=jloss.mean))


@every_loss
def test_sharded_by_hand(row):
    x, y = batch(row, 8)
    where = np.array([1, 0, 1, 1, 0, 0, 1, 1], bool)  # unequal over the devices, one has none
    mesh = jax.make_mesh((4,), ("data",))
    mean = functools.partial(jloss.mean, axis_name="data")
    f = lambda x, y, m: row.loss(x, y, where=m, reduction=mean)
    shard = functools.partial(jax.shard_map, f, mesh=mesh, in_specs=P("data"), out_specs=P())
    placed = jax.device_put((x, y, where), NamedSharding(mesh, P("data")))
    value, gradient = jax.jit(jax.value_and_grad(shard()))(*placed)
    unchecked = jax.jit(shard(check_vma=False))(*placed)
    expected = value_and_gradient(row, x, y, where=where, reduction=jloss.mean)
    close([value, unchecked], expected[0])
    close(gradient, expected[1])


# shapes ---------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def reduced_in_three_ways(loss, x, y, where):
    last = functools.partial(jloss.sum, axis=-1)
    return [loss(x, y, where=where, reduction=r) for r in (jloss.tally, jloss.each, last)]


@every_loss
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_where_covers_any_leading_axes(row, data):
    shape = data.draw(st.sampled_from([(4,), (2, 3), (2, 1, 3)]), label="shape")
    covered = data.draw(st.integers(1, len(shape)), label="axes that where covers")
    n = int(np.prod(shape))
    x, y = batch(row, n, seed=data.draw(st.integers(0, 99), label="seed"))
    values = value_of(row, x, y)
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
