"""Schedules: optax's values, in every argument traced."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jloss.optimizers import schedules

COUNTS = np.arange(0, 30)
TWINS = {
    "linear": (optax.linear_schedule, [(1.0, 0.25, 10), (0.0, 2.0, 5, 3), (1.0, 0.5, 1)]),
    "cosine": (
        optax.cosine_decay_schedule,
        [(1.0, 10), (0.5, 20, 0.1), (2.0, 7, 0.25, 2.0)],
    ),
    "warmup_cosine": (
        optax.warmup_cosine_decay_schedule,
        [(0.0, 1.0, 5, 20), (0.1, 2.0, 3, 25, 0.01), (0.0, 1.0, 10, 11, 0.5, 2.0)],
    ),
    "exponential": (
        optax.exponential_decay,
        [
            *[(1.0, 10, 0.5), (2.0, 3, 0.9, 4), (1.0, 5, 0.5, 2, True)],
            *[(1.0, 2, 0.5, 0, False, 0.1), (1.0, 4, 2.0, 0, True, 5.0)],
        ],
    ),
}


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, a) for name, (_, cases) in TWINS.items() for a in cases]
)
def test_the_values_are_optax_s(name, arguments):
    ours, theirs = getattr(schedules, name)(*arguments), TWINS[name][0](*arguments)
    with jax.numpy_dtype_promotion("standard"):
        expected = [theirs(count) for count in COUNTS]
    np.testing.assert_allclose([ours(c) for c in COUNTS], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(ours)(COUNTS), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TWINS)
def test_the_arguments_are_optax_s(name):
    named = lambda f: [(p.name, p.default) for p in inspect.signature(f).parameters.values()]
    assert named(getattr(schedules, name)) == named(TWINS[name][0])


EVERY = {name: cases[-2] for name, (_, cases) in TWINS.items()} | {"inverse_sqrt": (0.5, 4)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("name", "place"),
    [(n, i) for n, a in EVERY.items() for i, x in enumerate(a) if not isinstance(x, bool)],
)
def test_every_argument_may_be_traced(name, place, dtype):
    arguments = list(EVERY[name])
    values = jnp.asarray([arguments[place], arguments[place] + 0.5], dtype)

    @jax.jit
    @jax.vmap
    def mapped(value):
        return getattr(schedules, name)(*arguments[:place], value, *arguments[place + 1 :])(3)

    for value, one in zip(values, mapped(values)):
        arguments[place] = float(value)
        np.testing.assert_allclose(one, getattr(schedules, name)(*arguments)(3), rtol=1e-5)
        assert one.dtype == jnp.float32


@pytest.mark.parametrize("name", EVERY)
def test_slopes_are_finite_at_the_ends(name):
    numbers = [float(x) for x in EVERY[name] if not isinstance(x, bool)]
    extra = [x for x in EVERY[name] if isinstance(x, bool)]
    assert not extra or name == "exponential"

    def value(numbers, count):
        if name == "exponential":
            return schedules.exponential(*numbers[:4], True, *numbers[4:])(count)
        return getattr(schedules, name)(*numbers)(count)

    for count in (0, 4, 100):
        assert all(map(np.isfinite, jax.grad(value)(numbers, count)))


def test_no_steps_at_all_are_over_at_once():
    assert schedules.linear(1.0, 0.5, 0)(0) == 0.5
    assert schedules.linear(1.0, 0.5, 0, 2)(1) == 1.0
    assert schedules.warmup_cosine(0.0, 1.0, 0, 4)(0) == 1.0
    assert schedules.cosine(1.0, 0, 0.25)(0) == 0.25


def test_ends_are_exact_and_steps_are_on_time():
    assert schedules.linear(0.1, 1e-6, 100)(100) == np.float32(1e-6)
    assert schedules.linear(1.0, 1e-9, 10)(10) == np.float32(1e-9)
    assert schedules.warmup_cosine(0.0, 0.1, 10, 100, 1e-9)(100) == np.float32(1e-9)
    staircase = jax.jit(
        lambda count, steps: schedules.exponential(1.0, steps, 0.5, staircase=True)(count)
    )
    for steps in range(1, 100):
        assert staircase(steps - 1, steps) == 1.0
        assert staircase(steps, steps) == 0.5
    assert schedules.exponential(1.0, 0, 0.5)(3) == 1.0


@pytest.mark.parametrize("count", [0, 5, 10, 11])
def test_slopes_of_an_exponent_below_one_are_finite(count):
    slope = jax.grad(lambda steps: schedules.cosine(1.0, steps, 0.0, 0.5)(count))(10.0)
    assert np.isfinite(slope)


def test_inverse_sqrt_rises_to_its_peak_and_falls_with_the_root():
    schedule = schedules.inverse_sqrt(0.5, 10)
    rising = np.float64([schedule(t) for t in range(10)])
    np.testing.assert_allclose(rising, 0.05 * np.arange(1, 11), rtol=1e-6)
    falling = np.float64([schedule(t) for t in range(9, 100)])
    np.testing.assert_allclose(falling * np.sqrt(np.arange(10, 101)), 0.5 * 10**0.5, rtol=1e-6)


def test_double_precision_is_double():
    with jax.enable_x64(True):
        third = schedules.linear(0.0, 1.0, 3)(1)
        assert third.dtype == jnp.float64
        np.testing.assert_allclose(third, 1 / 3, rtol=1e-15)
