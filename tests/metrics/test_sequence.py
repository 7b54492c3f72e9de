"""What is true of metrics of transcripts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss
from jloss.metrics import edit_distance

distance = jax.jit(edit_distance)


@functools.cache
def levenshtein(a, b):
    """By its definition."""
    if not a or not b:
        return len(a) + len(b)
    swapped = levenshtein(a[1:], b[1:]) + (a[0] != b[0])
    return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, swapped)


def batch(rng, size, n, m):
    """Pairs of all lengths, with whatever after them."""
    lengths = rng.integers(0, n + 1, size), rng.integers(0, m + 1, size)
    return rng.integers(0, 3, (size, n)), rng.integers(0, 3, (size, m)), *lengths


@pytest.mark.parametrize(("n", "m"), [(7, 5), (40, 33), (0, 4), (4, 0), (0, 0)])
def test_it_is_what_the_definition_says(n, m):
    x, y, in_x, in_y = batch(np.random.default_rng(0), 60, n, m)
    got = distance(x, y, prediction_lengths=in_x, label_lengths=in_y)
    pairs = zip(x, y, in_x, in_y)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(
        got, [levenshtein(tuple(a[:i]), tuple(b[:j])) for a, b, i, j in pairs]
    )


def test_it_is_a_metric():
    rng = np.random.default_rng(1)
    x, y, z = rng.integers(0, 3, (3, 50, 9))
    np.testing.assert_array_equal(distance(x, x), 0)
    np.testing.assert_array_equal(distance(x, y), distance(y, x))
    assert (distance(x, z) <= distance(x, y) + distance(y, z)).all()


def test_all_lengths_is_none():
    x, y = np.random.default_rng(2).integers(0, 5, (2, 4, 6))
    six = np.full(4, 6)
    np.testing.assert_array_equal(
        distance(x, y), distance(x, y, prediction_lengths=six, label_lengths=six)
    )


def test_leading_axes_are_free():
    x, y = np.random.default_rng(3).integers(0, 3, (2, 2, 3, 6))
    np.testing.assert_array_equal(distance(x, y), jax.vmap(distance)(x, y))
    assert distance(x[0, 0], y[0, 0]) == distance(x, y)[0, 0]
    assert distance(x[:0], y[:0]).shape == (0, 3)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_it_is_the_same_on_many_devices(kind):
    x, y, in_x, in_y = batch(np.random.default_rng(4), 16, 7, 5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    placed = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y, in_x, in_y)]
    lengths = lambda i, j: {"prediction_lengths": i, "label_lengths": j}
    with jax.set_mesh(mesh):
        got = distance(*placed[:2], **lengths(*placed[2:]))
    np.testing.assert_array_equal(got, distance(x, y, **lengths(in_x, in_y)))
    split = jax.shard_map(
        lambda x, y, i, j: edit_distance(x, y, **lengths(i, j)),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
    )
    np.testing.assert_array_equal(jax.jit(split)(*placed), got)


def test_what_is_wrong_is_told_by_name():
    x, y = np.zeros((2, 3), int), np.zeros((2, 4), int)
    with pytest.raises(TypeError, match="`predictions`"):
        edit_distance(x.astype(np.float32), y)
    with pytest.raises(ValueError, match="`labels`"):
        edit_distance(x, y[:1])
    with pytest.raises(ValueError, match="`label_lengths`"):
        edit_distance(x, y, label_lengths=np.zeros(3, int))
    with pytest.raises(ValueError, match="`prediction_lengths`"):
        jloss.checked(distance)(x, y, prediction_lengths=np.array([4, 0]))
