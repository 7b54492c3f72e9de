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


def test_python_s_sum_adds_tallies():
    parts = [jloss.tally(row) for row in VALUES]
    assert sum(parts).mean() == VALUES.mean()


@pytest.mark.parametrize("other", [1.0, 2, (1.0, 2.0), None])
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


every_reduction = pytest.mark.parametrize("reduce", [jloss.mean, jloss.sum, jloss.each])


@every_reduction
def test_called_directly_the_two_laws_hold_too(reduce):
    values, there = jnp.array([1.0, jnp.nan, 3.0]), np.array([True, False, True])
    expected = reduce(jnp.array([1.0, 3.0])).sum()
    for doors in ({"where": there}, {"weights": there.astype(np.float32)}):
        total = lambda v, doors=doors: reduce(v, **doors).sum()
        assert total(values) == expected
        assert np.isfinite(jax.grad(total)(values)).all()
    with pytest.raises(TypeError, match="`where`"):
        reduce(values, where=np.array([0.5, 0.0, 1.0]))


def test_values_of_any_kind_are_weighed_in_float32():
    weights = np.array([3.0, 0.5])
    assert jloss.mean(jnp.array([True, False]), weights=weights) == pytest.approx(3 / 3.5)
    assert jloss.mean(jnp.array([200, 100], jnp.uint8), weights=weights) == pytest.approx(650 / 3.5)
    assert jloss.tally(jnp.ones(257, jnp.bfloat16)).total == 257
    assert jloss.mean(jnp.ones(70000, jnp.float16)) == 1


def test_gradients_are_divided_like_their_total():
    tally = jloss.Tally(jnp.array(6.0), jnp.array(3.0))
    gradient = tally.divide({"w": jnp.array([3.0, 6.0]), "b": jnp.array(3.0, jnp.bfloat16)})
    np.testing.assert_array_equal(gradient["w"], [1, 2])
    assert gradient["b"].dtype == jnp.bfloat16
    nothing = jloss.tally(VALUES, where=np.zeros(2, bool))
    np.testing.assert_array_equal(nothing.divide(jnp.zeros(3)), 0)


def test_weights_that_cancel_have_no_mean():
    assert not np.isfinite(jloss.mean(jnp.array([1.0, 2.0]), weights=np.array([1, -1])))


@pytest.mark.parametrize("reduction", [jnp.mean, lambda values: values.mean(), max])
def test_a_reduction_of_another_shape_is_told_by_name(reduction):
    with pytest.raises(TypeError, match="`reduction` should be"):
        jloss.squared_error(VALUES, reduction=reduction)


def test_complex_gradients_are_divided_too():
    counted = jloss.tally(VALUES)
    gradient = counted.divide({"w": jnp.array([6.0 + 12.0j]), "b": jnp.array(3.0)})
    np.testing.assert_allclose(gradient["w"], [1 + 2j])
    np.testing.assert_allclose(gradient["b"], 0.5)


def test_a_reduction_of_ones_own_gets_weights_in_the_dtype_of_the_values():
    def total(values, *, where, weights):
        return jnp.vdot(values, weights)  # which mixes no dtypes under strict promotion

    weights = np.array([3, 0])
    assert jloss.absolute_error(VALUES, weights=weights, reduction=total) == 18
