"""What is true of the numbers that lattices are walked in, whatever the lattice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jloss._core import lattice
from jloss._core.lattice import CHUNK, EXTENDED, GRID, LEAST, MAX_PLUS, NEVER, Steps, log_total

logs = st.floats(-1e6, 0, width=32)


def extended(log):
    return EXTENDED.tidy(EXTENDED.of_log(jnp.full((1, 1), log, jnp.float32)))


@settings(deadline=None)
@given(logs)
def test_a_number_is_its_logarithm(log):
    np.testing.assert_allclose(EXTENDED.log(extended(log)), log, rtol=3e-7, atol=1e-7)


@settings(deadline=None)
@given(logs, logs)
def test_products_and_sums_are_those_of_logarithms(a, b):
    (total, shares), product = (
        f(extended(a), extended(b)) for f in (EXTENDED.plus, EXTENDED.times)
    )
    np.testing.assert_allclose(EXTENDED.log(product), np.float64(a) + b, rtol=3e-7, atol=1e-6)
    np.testing.assert_allclose(EXTENDED.log(total), np.logaddexp(a, b), rtol=3e-7, atol=1e-6)
    for share, part in zip(shares, (a, b)):
        of_part = np.exp(np.float64(part) - np.logaddexp(np.float64(a), b))
        np.testing.assert_allclose(share, of_part, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("algebra", [EXTENDED, MAX_PLUS])
def test_nothing_adds_nothing(algebra):
    some = algebra.of_log(jnp.full((1, 1), -3.0))
    nothing = tuple(jnp.full_like(x, y) for x, y in zip(some, algebra.nothing))
    for pair, shares in (((some, nothing), (1, 0)), ((nothing, some), (0, 1))):
        total, got = algebra.plus(*pair)
        np.testing.assert_array_equal(got, np.reshape(shares, (2, 1, 1)))
        np.testing.assert_allclose(algebra.log(total), -3, rtol=1e-6)
    assert algebra.log(algebra.times(some, nothing)) == -jnp.inf


def test_exponents_differ_within_32_bits():
    lowest = LEAST + CHUNK * NEVER  # of a cell that is dead, and stays so for a chunk
    one = lambda m, e: (jnp.full((1, 1), m), jnp.full((1, 1), e, jnp.int32))
    for pair in ((one(1.0, 0), one(0.0, lowest)), (one(0.0, lowest), one(1.0, 0))):
        total, _ = EXTENDED.plus(*pair)
        assert EXTENDED.log(total) == 0


def test_a_dead_cell_hides_no_live_one():
    """A path of probability 1, to the right of cells that nothing reaches any more."""
    steps, positions, turn = 140, 40, 36
    down, right = np.full((2, steps, 1, positions), -np.inf, np.float32)
    right[range(turn), 0, range(turn)] = 0
    down[turn:, 0, turn] = 0
    total = log_total(GRID, Steps((jnp.asarray(down), jnp.asarray(right))), jnp.array([turn]))
    assert total == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_rule_is_plain_differentiation(dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        down, right, across = jnp.asarray(np.log(rng.uniform(size=(3, 40, 2, 7))), dtype)
        end = jnp.array([6, 3], jnp.int32)
        tight = {"rtol": 1e-4, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-11}
        of = lambda f: lambda weights: jnp.sum(f(GRID, Steps(weights), end))
        for weights in ((down, right), (down, right, across)):
            rule, plain = (
                jax.jit(jax.grad(of(f)))(weights) for f in (log_total, lattice.log_total.fun)
            )
            for got, expected in zip(rule, plain):
                np.testing.assert_allclose(got, expected, **tight)
