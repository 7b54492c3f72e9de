"""What is stored in less than float32 has the right mean, never ends, and lies where it should."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jloss.optimizers import adam, adamw, bf16, encode_state, f32, int8, momentum, rmsprop, sgd
from jloss.optimizers._rounding import random_bits, to_bfloat16

BIG = (64, 128)
CODECS = {"f32": f32(), "bf16": bf16(), "bf16-nearest": bf16(False), "int8": int8()}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def bits(seed=0, step=0, leaf=0, shape=BIG):
    return random_bits(jnp.zeros(shape), seed, step, leaf)


def encoded(codec, x, squares, step=0):
    return codec.encode(x, squares, lambda: random_bits(x, 0, step, 0), None)


def mean_of(f, n=256):
    """The mean of f(bits) over all chances, evenly spaced: to 1/n of the distance between codes."""
    chances = jnp.arange(n, dtype=jnp.uint32) * np.uint32(2**32 // n)
    return np.float64(jax.lax.map(f, chances)).mean(0)


def nbytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_bits_are_fair_and_know_neither_neighbour_nor_step_nor_leaf_nor_seed():
    one = np.asarray(bits()).ravel()
    as_bits = lambda words: np.unpackbits(words.view(np.uint8)).reshape(len(words), 32)
    fair = as_bits(one).mean(0)
    five_sigma = 5 * 0.5 / np.sqrt(one.size)
    assert np.all(np.abs(fair - 0.5) < five_sigma)
    others = [bits(step=1), bits(leaf=1), bits(seed=1), bits(seed=-1), bits(seed=jax.random.key(0))]
    others += [jnp.roll(bits(), 1), jnp.roll(bits(), 128)]
    for other in others:
        differ = as_bits(one ^ np.asarray(other).ravel()).mean(0)
        assert np.all(np.abs(differ - 0.5) < five_sigma)
    counts = np.bincount(one >> np.uint32(24), minlength=256)
    expected = one.size / 256
    chi_squared = np.sum((counts - expected) ** 2 / expected)
    assert 255 - 5 * np.sqrt(510) < chi_squared < 255 + 5 * np.sqrt(510)
    assert len(np.unique(one)) > 0.999 * one.size


@pytest.mark.parametrize("mode", [AxisType.Explicit, AxisType.Auto])
def test_bits_are_the_same_on_one_device_and_on_eight(mode):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(mode,) * 2)
    x = jnp.zeros(BIG)
    expected = random_bits(x, 3, jnp.int32(5), 7)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("a", "b")))
        found = jax.jit(lambda x: random_bits(x, 3, jnp.int32(5), 7))(split)
    np.testing.assert_array_equal(jax.device_get(found), expected)


def test_stochastic_rounding_goes_to_a_neighbour_and_its_mean_is_exact():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=64) * 10.0 ** np.arange(-32, 32), jnp.float32)
    low_half = lambda bits: jnp.full(x.shape, bits >> np.uint32(16))
    ulp = 2.0 ** (np.floor(np.log2(np.abs(np.float64(x)))) - 7)
    error = mean_of(lambda bits: to_bfloat16(x, low_half(bits))) - np.float64(x)
    assert np.all(np.abs(error) <= ulp / 256)
    rounded = to_bfloat16(x, random_bits(x, 1, 1, 1))
    np.testing.assert_array_equal(rounded, rounded.astype(jnp.bfloat16).astype(jnp.float32))
    assert np.all(np.abs(np.float64(rounded) - np.float64(x)) < ulp)


@pytest.mark.parametrize("x", [jnp.inf, -jnp.inf, jnp.nan, 0.0, -0.0, 1.0, 3.0e38])
def test_what_bfloat16_holds_stays_and_what_is_not_finite_stays_so(x):
    given = jnp.full(BIG, x, jnp.bfloat16).astype(jnp.float32)
    rounded = to_bfloat16(given, bits())
    np.testing.assert_array_equal(rounded, given)
    np.testing.assert_array_equal(np.signbit(rounded), np.signbit(given))


@pytest.mark.parametrize("squares", [False, True])
def test_eight_bits_have_the_right_mean(squares):
    rows = np.random.default_rng(1).normal(size=(32, 128)) * 10.0 ** -np.arange(32)[:, None]
    x = jnp.asarray(rows**2 if squares else rows, jnp.float32)
    x = x[:17] if squares else x  # squares beyond float32
    codec = int8()
    stored = lambda bits: codec.encode(x, squares, lambda: jnp.full(x.shape, bits), None)
    error = np.abs(mean_of(lambda bits: codec.decode(stored(bits))) - np.float64(x))
    scale = np.max(np.abs(np.float64(x)), -1, keepdims=True)
    share = np.abs(np.float64(x)) / scale
    there = share > 3e-10 if squares else share >= 0
    between = (share**0.25 + 1 / (255 if squares else 127)) ** 4 - share
    assert np.all((error <= scale * (1.05 * between / 256 + 2e-6 * share))[there])


@pytest.mark.parametrize("stochastic", [False, True])
def test_one_rounding_of_eight_bits_is_near(stochastic):
    """The distance to the next fourth root."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=BIG), jnp.float32)
    codec, steps = int8(stochastic=stochastic), 1.0 if stochastic else 0.5
    for squares, given, most in ((False, x, 127), (True, x**2, 255)):
        largest = np.float64(jnp.max(jnp.abs(given), -1, keepdims=True))
        share = np.abs(np.float64(given)) / largest
        error = np.abs(np.float64(codec.decode(encoded(codec, given, squares))) - np.float64(given))
        next_code = (share**0.25 + steps / most) ** 4 - share
        assert np.all(error <= next_code * largest * (1 + 1e-5))


def test_the_largest_of_a_row_and_zero_are_exact():
    x = jnp.asarray(np.random.default_rng(3).normal(size=BIG), jnp.float32).at[:, 7].set(0)
    largest = jnp.max(jnp.abs(x), -1)
    for squares, given, most in ((False, x, largest), (True, x**2, largest**2)):
        stored = encoded(int8(), given, squares)
        found = int8().decode(stored)
        np.testing.assert_array_equal(found[:, 7], jnp.zeros(64))
        np.testing.assert_allclose(jnp.max(jnp.abs(found), -1), most, rtol=2e-6)
    zeros = encoded(int8(), jnp.zeros(BIG), True)
    np.testing.assert_array_equal(int8().decode(zeros), jnp.zeros(BIG))


@pytest.mark.parametrize("stochastic", [False, True])
def test_no_positive_square_is_stored_as_zero(stochastic):
    x = jnp.geomspace(1e-30, 1.0, 8192).reshape(BIG)
    codec = int8(stochastic=stochastic)
    found = codec.decode(encoded(codec, x, True))
    assert np.all(found > 0)
    spread = jnp.concatenate([jnp.full((64, 127), 1e-30), jnp.ones((64, 1))], -1)
    least = codec.decode(encoded(codec, spread, True))
    np.testing.assert_allclose(least[:, :-1], 255.0**-4, rtol=1e-5)


def test_a_bad_entry_takes_its_row_and_no_other():
    x = jnp.ones(BIG).at[3, 4].set(jnp.nan).at[5, 6].set(jnp.inf)
    for squares in (False, True):
        found = np.asarray(int8().decode(encoded(int8(), x, squares)))
        assert not np.isfinite(found[[3, 5]]).any()
        np.testing.assert_array_equal(np.delete(found, [3, 5], 0), np.ones((62, 128)))


@pytest.mark.parametrize("codec", [bf16(), int8()], ids=["bf16", "int8"])
def test_a_second_moment_decays(codec):
    """To nearest, 0.999 of a bfloat16 number is the number."""
    x = jnp.asarray(1 + np.random.default_rng(4).random(BIG), jnp.float32)

    def step(stored, t):
        return encoded(codec, 0.999 * codec.decode(stored), True, t), None

    last, _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(1, 2001)))(encoded(codec, x, True))
    found = codec.decode(last)
    np.testing.assert_allclose(jnp.sum(found), 0.999**2000 * jnp.sum(x), rtol=0.02)
    stuck, _ = jax.lax.scan(
        lambda s, _: (encoded(bf16(False), 0.999 * s.astype(jnp.float32), True), None),
        encoded(bf16(False), x, True),
        length=2000,
    )
    np.testing.assert_array_equal(stuck, encoded(bf16(False), x, True))


def test_bytes_of_each_parameter():
    params = {"w": jnp.zeros((1024, 512)), "v": jnp.zeros((512, 2048))}
    count = sum(x.size for x in params.values())
    moments = lambda **how: nbytes([adam(1e-3, **how).init(params)]) / count
    assert moments() == pytest.approx(8, abs=1e-4)
    assert moments(mu=f32(), nu=f32()) == pytest.approx(8, abs=1e-4)
    assert moments(mu=bf16(), nu=bf16()) == pytest.approx(4, abs=1e-4)
    assert moments(mu=int8(), nu=int8()) <= 2.07
    assert moments(mu=int8(), nu=bf16()) <= 3.04


@pytest.mark.parametrize(
    "shape", [(), (0, 3), (4095,), (512, 8), (16, 16, 15)], ids=lambda s: f"shape {s}"
)
def test_small_leaves_and_short_rows_stay_float32(shape):
    nu = optax.tree.get(adam(1e-3, nu=int8()).init(jnp.zeros(shape, jnp.bfloat16)), "nu")
    assert (nu.shape, nu.dtype) == (shape, jnp.float32)


@pytest.mark.parametrize("shape", [(4096,), (64, 64), (4, 64, 16)])
def test_codes_have_the_shape_of_the_parameter(shape):
    state = adam(1e-3, mu=int8(), nu=int8()).init(jnp.zeros(shape, jnp.bfloat16))
    mu, nu = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
    assert (mu.codes.shape, mu.codes.dtype) == (shape, jnp.int8)
    assert (nu.codes.shape, nu.codes.dtype) == (shape, jnp.uint8)
    assert mu.scale.shape == nu.scale.shape == (*shape[:-1], 1)


OPTIMIZERS = {
    "sgd": lambda c: sgd(0.1, 0.9, trace=c),
    "momentum": lambda c: momentum(0.1, nesterov=True, trace=c),
    "rmsprop": lambda c: rmsprop(0.1, momentum=0.9, initial_scale=1.0, nu=c, trace=c),
    "adam": lambda c: adam(optax.constant_schedule(0.1), mu=c, nu=c, nesterov=True),
    "adamw": lambda c: adamw(0.1, mu=c, nu=c, mask={"w": True, "b": False, "none": None}),
    "lion": lambda c: encode_state(optax.lion(0.1), {"mu": c}),
    "adagrad": lambda c: encode_state(optax.adagrad(0.1), {"sum_of_squares": c}),
    "injected": lambda c: optax.inject_hyperparams(adam)(0.1, mu=c, nu=c),
    "masked": lambda c: optax.masked(adam(0.1, mu=c, nu=c), {"w": True, "b": False, "none": None}),
}


@every_codec
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_takes_any_codec(make, codec):
    """Three steps along a gradient that stays: what is stored enters from the second on."""
    rng = np.random.default_rng(5)
    params = {"w": jnp.asarray(rng.normal(size=BIG), jnp.float32), "b": jnp.ones(3), "none": None}
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    tx, exact = make(codec), make(f32())
    state, exact_state = tx.init(params), exact.init(params)
    step = jax.jit(tx.update)
    for _ in range(3):
        updates, after = step(grads, state, params)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
        expected, exact_state = exact.update(grads, exact_state, params)
        state = after
        error = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), updates, expected)
        size = jax.tree.map(lambda b: jnp.sum(b**2), expected)
        coarse = 0.15 if codec is CODECS["int8"] else 0.03  # entries near 0 have few codes
        assert error["w"] <= coarse**2 * size["w"]
        if codec is not CODECS["bf16"]:
            np.testing.assert_allclose(updates["b"], expected["b"], rtol=0.01)


class Encoder(NamedTuple):
    mu: Any
    nu: Any


@pytest.mark.parametrize("kind", [Encoder, lambda mu, nu: {"mu": mu, "nu": nu}])
def test_the_rule_is_for_the_field_and_not_for_a_parameter_of_that_name(kind):
    params = kind(jnp.ones(BIG), jnp.ones(BIG))
    tx = adam(1e-3, nu=int8())
    state = tx.init(params)
    for grads in (params, kind(params[0], None) if kind is Encoder else params):
        _, state = tx.update(grads, state, params)
        adam_state = state.inner_state[0]
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(adam_state.mu))
        assert [x.dtype for x in jax.tree.leaves(adam_state.nu)] == ["uint8", "float32"] * 2


def test_entries_far_smaller_than_their_row_take_steps_of_their_own_size():
    """Adam's step is the rate, whatever the scale of a gradient: of 1e-4 as of 1."""
    scales = jnp.where(jnp.arange(64) < 4, 1.0, 1e-4)[None]
    start = jax.random.normal(jax.random.key(0), (64, 64))

    def longest_step(tx):
        def step(carry, key):
            params, state = carry
            noise = jax.random.normal(key, params.shape)
            updates, state = tx.update(scales * (params + noise), state, params)
            return (params + updates, state), jnp.max(jnp.abs(updates[:, 4:]))

        keys = jax.random.split(jax.random.key(1), 300)
        return jnp.max(jax.lax.scan(step, (start, tx.init(start)), keys)[1])

    assert longest_step(adam(1e-2)) < 0.012
    assert longest_step(adam(1e-2, mu=int8())) < 0.03


def test_what_is_stored_keeps_its_form_on_a_part_of_a_leaf():
    """A device of `shard_map`, or a member of `vmap`, sees fewer entries than 8 bits pay for."""
    tx, params = adam(1e-3, mu=int8()), jnp.ones((8, 32, 32))
    state = tx.init(params)
    axes = jax.tree.map(lambda x: 0 if x.ndim else None, state)
    _, after = jax.vmap(tx.update, in_axes=(0, axes), out_axes=(0, axes))(params, state)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


def test_all_is_computed_in_float32_and_no_dtype_drifts():
    tx = encode_state(optax.rmsprop(1e-3, momentum=0.9), {"nu": bf16()})
    params = jnp.ones(BIG, jnp.bfloat16)
    state = tx.init(params)
    for grads in (params, params.astype(jnp.float32)):
        updates, after = tx.update(grads, state, params)
        assert updates.dtype == jnp.bfloat16
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
    grads = jnp.asarray(np.random.default_rng(7).normal(size=BIG), jnp.bfloat16)
    exact = encode_state(optax.adam(1e-3), {"mu": f32(), "nu": f32()})
    _, state = exact.update(grads, exact.init(params), params)
    nu = np.float64(optax.tree.get(state, "nu"))
    np.testing.assert_allclose(nu, 1e-3 * np.float64(grads) ** 2, rtol=2e-5)


def test_squares_of_another_name():
    tx = encode_state(optax.trace(0.9), {"trace": int8()}, squares=("trace",))
    assert tx.init(jnp.zeros(BIG)).inner_state.trace.codes.dtype == jnp.uint8


def test_complex_and_whole_numbers_are_kept():
    params = {"c": jnp.zeros(BIG, jnp.complex64), "r": jnp.zeros(BIG)}
    mu = optax.tree.get(adam(1e-3, mu=int8(), nu=bf16()).init(params), "mu")
    assert mu["c"].dtype == jnp.complex64
    assert mu["r"].codes.dtype == jnp.int8


def test_what_makes_no_sense_is_told():
    with pytest.raises(KeyError, match="no field `mu`"):
        encode_state(optax.sgd(0.1), {"mu": bf16()}).init(jnp.ones(2))
    with pytest.raises(ValueError, match="scale must be"):
        int8("block")
    with pytest.raises(ValueError, match="a variance is a difference"):
        rmsprop(0.1, centered=True, nu=bf16())
    for plain in (sgd, rmsprop):
        with pytest.raises(ValueError, match="`trace` is what momentum sums"):
            plain(0.1, trace=bf16())
    for no_codec in (int8, "int8", jnp.bfloat16):
        with pytest.raises(TypeError, match="`mu` should have a codec"):
            adam(0.1, mu=no_codec)
    with pytest.raises(ValueError, match="`mu` is encoded already"):
        encode_state(adam(0.1, mu=int8()), {"mu": bf16()}).init(jnp.ones(BIG))
    for no_seed in (1.5, jnp.zeros(2, jnp.uint32)):
        with pytest.raises(TypeError, match="a seed should be"):
            random_bits(jnp.ones(2), no_seed, 0, 0)


@pytest.mark.parametrize("mode", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("spec", [PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b"))])
def test_one_device_and_eight_agree_to_the_bit(mode, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(mode,) * 2)
    rng = np.random.default_rng(6)
    params, grads = (jnp.asarray(rng.normal(size=BIG), jnp.float32) for _ in range(2))
    tx = encode_state(optax.scale_by_adam(), {"mu": int8(), "nu": int8()})
    step = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(2):
        _, state = step(grads, state, params)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, spec)
        params, grads = jax.device_put((params, grads), place)
        split = tx.init(params)
        for _ in range(2):
            _, split = step(grads, split, params)
        for moment in (split.inner_state.mu, split.inner_state.nu):
            assert moment.codes.sharding.is_equivalent_to(place, 2)
    differ = lambda a, b: np.max(np.abs(np.float64(jax.device_get(a)) - np.float64(b)))
    codes = jax.tree.map(differ, split.inner_state, state.inner_state)
    assert codes.mu.codes == codes.nu.codes == 0
