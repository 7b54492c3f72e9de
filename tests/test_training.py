"""Early stopping: Keras's rule, as a carry."""

import math
import types

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

from jloss.training import EarlyStoppingState, early_stopping

LENGTH = 12
# Eighths: sums and differences of them are exact, here and in the rule below.
eighths = st.integers(-16, 16).map(lambda n: n / 8)
anything = eighths | st.sampled_from([math.nan, math.inf, -math.inf])
few = settings(max_examples=100, deadline=None)


def sequences(metric):
    return st.lists(metric, min_size=LENGTH, max_size=LENGTH)


def restated(metrics, patience, min_delta, mode):
    """Keras's callback, line by line: a state after each update until it stops."""
    sign = -1 if mode == "min" else 1
    best, best_step, wait, states = -sign * math.inf, -1, 0, []
    for step, current in enumerate(metrics):
        wait += 1
        better = current - sign * abs(min_delta)
        improved = better < best if mode == "min" else better > best
        if improved:
            best, best_step, wait = current, step, 0
        stop = not improved and wait >= patience
        states.append((best, best_step, step + 1, wait, improved, stop))
        if stop:
            break
    return states


def scan(metrics, patience, min_delta, mode):
    init, update = early_stopping(patience, min_delta, mode)

    def step(state, metric):
        state = update(metric, state)
        return state, state

    return jax.lax.scan(step, init(), metrics)


quick_scan = jax.jit(scan, static_argnames="mode")


@pytest.mark.parametrize("mode", ["min", "max"])
@few
@given(sequences(anything), st.integers(0, 5), eighths)
def test_the_rule_is_that_of_keras_and_a_scan_ends_where_a_loop_breaks(
    mode, metrics, patience, min_delta
):
    want = restated(metrics, patience, min_delta, mode)
    last, states = quick_scan(jnp.array(metrics, jnp.float32), patience, min_delta, mode)
    for i, row in enumerate(want):
        assert_array_equal(jnp.stack([jnp.float32(leaf[i]) for leaf in states]), row)
    assert_array_equal(jnp.stack([jnp.float32(leaf) for leaf in last]), want[-1])


@few
@given(sequences(anything), st.integers(1, 5))
def test_wait_is_the_time_since_the_best(metrics, patience):
    _, states = quick_scan(jnp.array(metrics, jnp.float32), patience, 0.125, "min")
    assert_array_equal(states.wait, states.step - 1 - states.best_step)


@few
@given(sequences(anything), st.integers(0, 5), eighths)
def test_the_largest_score_is_the_smallest_loss(metrics, patience, min_delta):
    metrics = jnp.array(metrics, jnp.float32)
    low, _ = quick_scan(metrics, patience, min_delta, "min")
    high, _ = quick_scan(-metrics, patience, min_delta, "max")
    jax.tree.map(assert_array_equal, high._replace(best=-high.best), low)


def play(callback, metrics):
    """How many epochs a callback of Keras lets pass."""
    model = types.SimpleNamespace(stop_training=False)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, metric in enumerate(metrics):
        callback.on_epoch_end(epoch, {"val_loss": metric})
        if model.stop_training:
            return epoch + 1
    return len(metrics)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_against_keras(mode, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    for _ in range(50):
        metrics = rng.integers(-16, 17, LENGTH) / 8
        metrics[1:] = (
            rng.choice([0, math.nan, math.inf], LENGTH - 1, p=[0.8, 0.1, 0.1]) + metrics[1:]
        )
        patience, min_delta = int(rng.integers(0, 5)), rng.integers(0, 4) / 8
        theirs = keras.callbacks.EarlyStopping(
            "val_loss", min_delta=min_delta, patience=patience, mode=mode
        )
        steps = play(theirs, metrics)
        ours, _ = quick_scan(jnp.array(metrics, jnp.float32), patience, min_delta, mode)
        assert (theirs.best, theirs.best_epoch, theirs.wait, steps) == (
            ours.best,
            ours.best_step,
            ours.wait,
            ours.step,
        )


@few
@given(sequences(eighths), st.integers(1, 5), st.integers(0, 3))
def test_against_flax(metrics, patience, eighth):
    flax = pytest.importorskip("flax.training.early_stopping")
    theirs = flax.EarlyStopping(min_delta=eighth / 8, patience=patience - 1)  # it stops one later
    _, states = quick_scan(jnp.array(metrics, jnp.float32), patience, eighth / 8, "min")
    for ours in zip(*map(np.asarray, states)):
        ours = EarlyStoppingState(*ours)
        theirs = theirs.update(metrics[ours.step - 1])
        assert (theirs.best_metric, theirs.patience_count) == (ours.best, ours.wait)
        assert (theirs.has_improved, theirs.should_stop) == (ours.improved, ours.should_stop)
        if theirs.should_stop:
            break


METRICS = jnp.array([3.0, jnp.nan, 1.0, 1.5, 0.5, 0.75, jnp.inf, 0.75, 0.75, 0.25, 0.0, 0.0])


def test_many_patiences_at_once():
    patiences = jnp.arange(6)
    together, _ = jax.vmap(lambda p: scan(METRICS, p, 0.0, "min"))(patiences)
    apart = [quick_scan(METRICS, p, 0.0, "min")[0] for p in range(6)]
    jax.tree.map(lambda a, *b: assert_array_equal(a, jnp.stack(b)), together, *apart)
    assert len(set(np.asarray(together.step).tolist())) > 2  # they do stop at different times


def test_a_while_loop_stops():
    init, update = early_stopping(patience=3)
    last = jax.lax.while_loop(
        lambda state: ~state.should_stop & (state.step < METRICS.size),
        lambda state: update(METRICS[state.step], state),
        init(),
    )
    jax.tree.map(assert_array_equal, last, quick_scan(METRICS, 3, 0.0, "min")[0])


def test_best_parameters_are_those_of_the_best_step():
    stopping = early_stopping(patience=4)

    def step(carry, metric):
        state, best = carry
        params = {"w": jnp.full(2, state.step)}
        state = stopping.update(metric, state)
        best = jax.tree.map(lambda new, old: jnp.where(state.improved, new, old), params, best)
        return (state, best), None

    init = stopping.init(), {"w": jnp.full(2, -1, jnp.int32)}
    (state, best), _ = jax.lax.scan(step, init, METRICS)
    seen = np.asarray(METRICS)[: int(state.step)]
    assert state.should_stop
    assert_array_equal(best["w"], [np.nanargmin(seen)] * 2)
    assert state.best == np.nanmin(seen)


def test_one_compilation():
    stopping = early_stopping(patience=100)
    traces = []

    @jax.jit
    def update(metric, state):
        traces.append(metric)
        return stopping.update(metric, state)

    state = stopping.init()
    for metric in METRICS:
        state = update(metric, state)
    assert len(traces) == 1


def test_dtypes_never_change():
    init, update = early_stopping(patience=100, min_delta=1, mode="max")
    wanted = EarlyStoppingState(*map(jnp.dtype, ("f4", "i4", "i4", "i4", "?", "?")))
    states = [init()]
    for metric in 1, 2.5, np.float64(4), jnp.bfloat16(6), jnp.int8(7), True, jnp.nan:
        states.append(update(metric, states[-1]))
    for state in states:
        assert jax.tree.map(lambda leaf: leaf.dtype, state) == wanted
        assert not any(leaf.weak_type for leaf in state)
    assert_array_equal([state.best for state in states], [-jnp.inf, 1, 2.5, 4, 6, 6, 6, 6])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: early_stopping(1, mode="auto"), ValueError, "'min' or 'max'"),
        (lambda: early_stopping(jnp.arange(2)), ValueError, "`patience`"),
        (lambda: early_stopping(1.5), TypeError, "`patience`"),
        (lambda: early_stopping(1, jnp.ones(1)), ValueError, "`min_delta`"),
        (
            lambda: early_stopping(1).update(jnp.ones(1), early_stopping(1).init()),
            ValueError,
            "`metric`",
        ),
    ],
)
def test_what_is_wrong_is_told_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()
