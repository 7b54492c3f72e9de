"""Schedules that trace in every argument: a count of steps in, a scalar out.

optax's names of arguments, and its values; optax's own branch on some of them, so that a sweep
cannot map over the number of warm-up steps. Any mix of numbers, arrays and tracers may be given, in
float32 at least.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def linear(
    init_value: ArrayLike,
    end_value: ArrayLike,
    transition_steps: ArrayLike,
    transition_begin: ArrayLike = 0,
) -> optax.Schedule:
    r"""Go from one value to another in equal steps.

    $$ \eta_t = a + (b - a)\, \min\Bigl(1, \max\Bigl(0, \frac{t - t_0}{T}\Bigr)\Bigr) $$

    Args:
        init_value: a, until `transition_begin`.
        end_value: b, from `transition_begin + transition_steps` on.
        transition_steps: T; with 0 the value jumps.
        transition_begin: t_0, a count of steps.

    Returns:
        A function of the count of steps.

    >>> linear(1.0, 0.0, 4)(1)
    Array(0.75, dtype=float32)
    """

    def schedule(count: ArrayLike) -> jax.Array:
        share = _progress(count, transition_steps, transition_begin)
        return _between(init_value, end_value, share)

    return schedule


def cosine(
    init_value: ArrayLike, decay_steps: ArrayLike, alpha: ArrayLike = 0.0, exponent: ArrayLike = 1.0
) -> optax.Schedule:
    r"""Go from a value to a share of it along half a cosine.

    $$ \eta_t = a\, \Bigl(\alpha + (1 - \alpha) \Bigl(\frac{1 + \cos(\pi \min(1, t/T))}{2}
       \Bigr)^p\Bigr) $$

    Args:
        init_value: a.
        decay_steps: T, the steps until the end.
        alpha: the share of `init_value` at the end.
        exponent: p.

    Returns:
        A function of the count of steps.

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    >>> cosine(1.0, 4, alpha=0.5)(2)
    Array(0.75, dtype=float32)
    """

    def schedule(count: ArrayLike) -> jax.Array:
        share = _fallen(_progress(count, decay_steps), exponent)
        return _real(init_value) * _between(alpha, 1, share)

    return schedule


def warmup_cosine(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: ArrayLike,
    decay_steps: ArrayLike,
    end_value: ArrayLike = 0.0,
    exponent: ArrayLike = 1.0,
) -> optax.Schedule:
    r"""Rise in equal steps to a peak, then fall along half a cosine.

    $$ \eta_t = \begin{cases} a + (b - a)\, t/W & t < W \\
       c + (b - c) \bigl(\frac{1 + \cos(\pi \min(1, (t - W)/(T - W)))}{2}\bigr)^p & t \ge W
       \end{cases} $$

    Args:
        init_value: a, at count 0.
        peak_value: b, at count W.
        warmup_steps: W.
        decay_steps: T, all steps: those of the warm-up are among them, as in optax.
        end_value: c, from count T on.
        exponent: p.

    Returns:
        A function of the count of steps.

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    >>> schedule = warmup_cosine(0.0, 1.0, 2, 6)
    >>> [round(float(schedule(count)), 3) for count in (0, 1, 2, 4, 6)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    def schedule(count: ArrayLike) -> jax.Array:
        warmup = _real(warmup_steps)
        rise = _between(init_value, peak_value, _progress(count, warmup))
        share = _fallen(_progress(count, _real(decay_steps) - warmup, warmup), exponent)
        return jnp.where(_real(count) < warmup, rise, _between(end_value, peak_value, share))

    return schedule


def exponential(
    init_value: ArrayLike,
    transition_steps: ArrayLike,
    decay_rate: ArrayLike,
    transition_begin: ArrayLike = 0,
    staircase: bool = False,
    end_value: ArrayLike | None = None,
) -> optax.Schedule:
    r"""Multiply by a rate every so many steps, smoothly.

    $$ \eta_t = a\, r^{\max(0, t - t_0) / T} $$

    Args:
        init_value: a, until `transition_begin`.
        transition_steps: T, the steps in which the value is multiplied once; 0 is never.
        decay_rate: r, above 0.
        transition_begin: t_0, a count of steps.
        staircase: multiply at every T-th step instead.
        end_value: the least value (for a rate above 1, the largest); None is any.

    Returns:
        A function of the count of steps.

    >>> exponential(1.0, 10, 0.5)(20)
    Array(0.25, dtype=float32)
    """

    def schedule(count: ArrayLike) -> jax.Array:
        gone, steps = (
            jnp.maximum(_real(count) - _real(transition_begin), 0),
            _real(transition_steps),
        )
        some = jnp.where(steps > 0, steps, jnp.inf)
        rate = _real(decay_rate)
        value = _real(init_value) * rate ** (gone // some if staircase else gone / some)
        if end_value is None:
            return value
        end = _real(end_value)
        return jnp.where(rate > 1, jnp.minimum(value, end), jnp.maximum(value, end))

    return schedule


def inverse_sqrt(peak_value: ArrayLike, warmup_steps: ArrayLike) -> optax.Schedule:
    r"""Rise in equal steps to a peak, then fall with the root of the count.

    $$ \eta_t = b\, \min\Bigl(\frac{t + 1}{W}, \sqrt{\frac{W}{t + 1}}\Bigr) $$

    Args:
        peak_value: b, which the W-th step has.
        warmup_steps: W, 1 at least.

    Returns:
        A function of the count of steps before this one, so the first step is not 0.

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017.

    >>> schedule = inverse_sqrt(1.0, 4)
    >>> [float(schedule(count)) for count in (0, 3, 15)]
    [0.25, 1.0, 0.5]
    """

    def schedule(count: ArrayLike) -> jax.Array:
        share = (_real(count) + 1) / _real(warmup_steps)
        return _real(peak_value) * jnp.minimum(share, jax.lax.rsqrt(share))

    return schedule


def _real(x: ArrayLike) -> jax.Array:
    return jnp.asarray(x, float)


def _between(begin: ArrayLike, end: ArrayLike, share: jax.Array) -> jax.Array:
    """Exact at both ends."""
    return _real(begin) * (1 - share) + _real(end) * share


def _fallen(progress: jax.Array, exponent: ArrayLike) -> jax.Array:
    """Half a cosine from 1 to 0, to a power, whose derivative is 0 where the wave is."""
    wave = (1 + jnp.cos(jnp.pi * progress)) / 2
    flat = jnp.where(_real(exponent) == 0, 1.0, 0.0)
    return jnp.where(wave > 0, jnp.where(wave > 0, wave, 1) ** _real(exponent), flat)


def _progress(count: ArrayLike, steps: ArrayLike, begin: ArrayLike = 0) -> jax.Array:
    """How much of `steps` has gone by since `begin`, from 0 to 1; all at once if there are none."""
    gone, steps = _real(count) - _real(begin), _real(steps)
    some = steps > 0
    share = gone / jnp.where(some, steps, 1)
    return jnp.clip(jnp.where(some, share, jnp.sign(gone) + 1), 0, 1)
