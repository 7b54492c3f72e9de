"""Safe maths: functions whose value and gradient are finite where the textbook's are not."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

# Wraps the formula of a loss over a wide axis, cast included: where the backward pass is far from
# the forward one, it keeps the inputs as they came and no float32 copy of them.
lean = functools.partial(jax.checkpoint, prevent_cse=False)


def product(weight: Array, value: Array) -> Array:
    """`weight * value`, where a weight of 0 silences even an infinite value and its gradient."""
    return weight * jnp.where((weight == 0) & jnp.isinf(value), 0, value)


def absolute(x: Array) -> Array:
    """|x|, whose slope at 0 is 0 (that of `jnp.abs` is 1 there)."""
    return jnp.abs(x) if jnp.iscomplexobj(x) else x * jnp.sign(x)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), whose slope keeps its digits where it saturates to 1 too."""
    small = jax.nn.sigmoid(jnp.where(x > 0, -x, x))
    return jnp.where(x > 0, 1 - small, small)


def log_or_steep(p: Array) -> Array:
    """log(p): -inf at 0, where its slope is finite, and the steepest that the dtype holds."""
    never = p == 0
    steep = jnp.log(p + never.astype(p.dtype) * float(jnp.finfo(p.dtype).tiny))
    return steep + jnp.where(never, -jnp.inf, jnp.zeros_like(p))


def weighted_log(weight: Array, p: Array, log: Callable[[Array], Array]) -> Array:
    """`weight * log(p)`; a weight of 0 silences every derivative in p, but not the slope in it."""
    never = weight == 0
    of_weight = jax.lax.stop_gradient(jnp.where(never, log(p) - log(jnp.full_like(p, 0.5)), 0))
    return product(weight, log(jnp.where(never, 0.5, p))) + product(weight, of_weight)


def smooth_absolute(error: Array, beta: Array) -> Array:
    """|error| - beta / 2, whose corner is a parabola out to `beta`; |error| if that is 0."""
    near = jnp.abs(error) < beta
    parabola = 0.5 * jnp.where(near, error, 0) ** 2 / jnp.where(near, beta, 1)
    less = 0.5 * jnp.where(near | (error == 0), 0, beta)
    return jnp.where(near, parabola, absolute(error) - less)


TAYLOR = [1 / math.factorial(n) for n in range(20, 0, -1)]  # of exp, the last for x to the power 1


def horner(coefficients: list[float], x: Array) -> Array:
    """The polynomial, highest power first."""
    return functools.reduce(lambda value, c: value * x + c, coefficients, jnp.zeros_like(x))


def expm1_over(x: Array) -> Array:
    """(exp(x) - 1) / x, which is 1 at 0, and right to every derivative there."""
    near = jnp.abs(x) < 1
    far = jnp.where(near, 1, x)
    return jnp.where(near, horner(TAYLOR, jnp.where(near, x, 0)), jnp.expm1(far) / far)


def growth(rate: Array, time: Array) -> Array:
    """(exp(rate time) - 1) / rate, which is `time` at rate 0; its slope exp(rate time) is right."""
    near = jnp.abs(rate * time) < 1
    small = jnp.where(near, rate * time, 0)
    rate, late = jnp.where(near, 1, rate), jnp.where(near, 0, time)
    return jnp.where(near, time * horner(TAYLOR, small), (jnp.exp(rate * late) - 1) / rate)


def expm1_less(x: Array) -> Array:
    """exp(x) - 1 - x, about half the square of x near 0."""
    near = jnp.abs(x) < 1
    small, far = jnp.where(near, x, 0), jnp.where(near | (x == jnp.inf), 1, x)
    series = small * small * horner(TAYLOR[:-1], small)
    return jnp.where(near, series, jnp.where(x == jnp.inf, x, jnp.expm1(far) - far))


def decay(x: Array) -> Array:
    """1 - exp(-x), whose slope keeps its digits too (that of expm1 is 1 + itself)."""
    near = x < 1
    return jnp.where(near, -jnp.expm1(-jnp.where(near, x, 0)), 1 - jnp.exp(-jnp.where(near, 1, x)))


def square_over_variance(error: Array, log_variance: Array) -> Array:
    """error^2 exp(-log_variance); no error is 0, with its slopes, at the least variance too."""
    neither = (error == 0) & jnp.isinf(jnp.exp(-log_variance / 2))
    return (error * jnp.exp(-jnp.where(neither, 0, log_variance) / 2)) ** 2


def barron(error: Array, alpha: Array) -> Array:
    """Barron's general robust loss of the error over the scale.

    |a - 2| / a ((e^2 / |a - 2| + 1)^(a / 2) - 1). Near a = 2 the power is split, or its base, of
    the size of 1 / |a - 2|, would cost digits; elsewhere growth is right through a = 0. An outlier
    is raised to powers by its logarithm, where its square might overflow.
    """
    limit = alpha < -1e30
    alpha = jnp.where(limit, 0, alpha)
    b = jnp.maximum(2 - alpha, float(jnp.finfo(error.dtype).eps))
    outlier = jnp.abs(error) > 1e9
    z = jnp.where(outlier, 1e9, error) ** 2
    far = jnp.where(outlier, jnp.abs(error), 1)
    split = (b < 0.5) & (z > b)
    log = jnp.where(outlier, 2 * jnp.log(far) - jnp.log(b), jnp.log1p(jnp.where(split, 0, z) / b))
    log = jnp.where(split, 0, log)
    whole = jnp.where(limit, decay(z / 2), 0.5 * b * growth(0.5 * alpha, log))
    a, b, z = jnp.where(split, alpha, 2), jnp.where(split, b, 1), jnp.where(split, z, 0)
    power = jnp.where(outlier, far**a, (b + z) ** (a / 2))
    return jnp.where(split, (b ** (1 - a / 2) * power - b) / a, whole)


def simplex_threshold(x: Array, axis: tuple[int, ...]) -> Array:
    """What to take off `x` for its positive part to sum to 1 along `axis`; its largest must be 0.

    By Newton's method on a convex, piecewise linear function, from the left: each step drops what
    is below, and it is done when nothing is. No sort, so that `axis` may be sharded.
    """

    def threshold(kept):
        some = jnp.sum(kept, axis, x.dtype, keepdims=True)
        return (jnp.sum(jnp.where(kept, x, 0), axis, keepdims=True) - 1) / some

    def drop(state):
        kept, _ = state
        fewer = kept & (jax.lax.stop_gradient(x) > jax.lax.stop_gradient(threshold(kept)))
        return fewer, jnp.any(fewer != kept)

    kept, _ = jax.lax.while_loop(lambda state: state[1], drop, drop((x > -1, True)))
    return threshold(kept)


def unit(x: Array, axis: tuple[int, ...], epsilon: Array) -> tuple[Array, Array]:
    """`x` over its norm, and by how much the square of that falls short of 1.

    The squared norm counts as at least `epsilon`; a zero vector stays 0, and falls short by 1.
    """
    largest = jnp.max(jnp.abs(x), axis, keepdims=True, initial=0)
    size = jax.lax.stop_gradient(jnp.maximum(largest, jnp.sqrt(epsilon)))
    size = jnp.where(size >= jnp.finfo(x.dtype).tiny, size, 1)  # keeps squares within range
    x = x / size
    square = jnp.sum(x * x, axis, keepdims=True)
    least = jnp.maximum(square, epsilon / size / size)
    least = jnp.where(least == 0, 1, least)
    return x * jax.lax.rsqrt(least), jnp.squeeze(1 - square / least, axis)
