"""The door out: reductions, tallies, and what a reduction of one's own is given."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jloss

VALUES = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


def test_a_reduction_of_ones_own_gets_mask_and_weights_aligned():
    seen = {}

    def largest(values, *, where, weights):
        seen.update(where=where, weights=weights)
        return jnp.max(values, where=where, initial=-jnp.inf)

    rows, weights = np.array([True, False]), np.array([3, 0])
    value = jloss.absolute_error(VALUES, where=rows, weights=weights, reduction=largest)
    assert value == 3
    np.testing.assert_array_equal(seen["where"], [[True] * 3, [False] * 3])
    np.testing.assert_array_equal(seen["weights"], [[3] * 3, [0] * 3])
    jloss.absolute_error(VALUES, reduction=largest)
    assert seen == {"where": None, "weights": None}


def test_mean_along_an_axis():
    where = np.array([[1, 1, 0], [0, 0, 0]], bool)
    along = functools.partial(jloss.mean, axis=-1)
    np.testing.assert_allclose(
        jloss.absolute_error(VALUES, where=where, reduction=along), [1.5, 0.0]
    )


def test_the_mean_of_each_counts_what_is_deleted():
    where = np.array([[1, 1, 0], [0, 0, 0]], bool)
    each = jloss.absolute_error(VALUES, where=where)
    assert each.mean() == pytest.approx(3 / 6)
    assert jloss.mean(VALUES, where=where) == pytest.approx(3 / 2)


def test_mean_of_means_is_not_the_mean():
    """Microbatches of 4 and 1 tokens: the mean of their means is 3.0, the token mean 1.8."""
    parts = [jnp.ones(4), jnp.array([5.0])]
    means = [jloss.mean(p) for p in parts]
    assert sum(means) / 2 == 3.0
    tallies = [jloss.tally(p) for p in parts]
    assert functools.reduce(operator.add, tallies).mean() == pytest.approx(1.8)


def test_a_tally_adds_in_every_way_jax_adds():
    parts = jnp.arange(12.0).reshape(4, 3)
    whole = jloss.tally(parts)

    def count(total, part):
        return total + jloss.tally(part), None

    zero = jloss.Tally(jnp.zeros(()), jnp.zeros(()))
    scanned, _ = jax.jit(lambda parts: jax.lax.scan(count, zero, parts))(parts)
    mapped = jax.tree.map(jnp.sum, jax.vmap(jloss.tally)(parts))
    for tally in (scanned, mapped):
        assert tally == whole
    assert jax.grad(lambda v: jloss.tally(v).mean())(parts).sum() == pytest.approx(1)


@pytest.mark.parametrize("other", [1.0, 0, (1.0, 2.0), None])
def test_a_tally_adds_to_nothing_else(other):
    tally = jloss.tally(VALUES)
    with pytest.raises(TypeError):
        tally + other
    with pytest.raises(TypeError):
        2 * tally  # of a tuple, this would be four numbers


@pytest.mark.parametrize("weights", [[1, 1, 2, 0, 4, 3], [0.5, 0.25, 1, 2, 0, 8]])
def test_weighted_mean_is_numpy_s(weights):
    expected = np.average(np.ravel(VALUES), weights=weights)
    got = jloss.mean(VALUES.ravel(), weights=np.array(weights))
    assert got == pytest.approx(expected)


def test_weights_lie_along_leading_axes_even_where_trailing_ones_would_fit():
    square = jnp.arange(9.0).reshape(3, 3)
    weights = np.array([1, 0, 0])
    assert jloss.absolute_error(square, weights=weights, reduction=jloss.mean) == 1  # row 0


def test_half_precision_weights_are_counted_in_full():
    ones = jnp.ones(5000)
    tally = jloss.tally(ones, weights=ones.astype(jnp.bfloat16))
    assert tally.weight == 5000
