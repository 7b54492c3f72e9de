"""RMSProp: gradients divided by their running size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jloss.optimizers._assembly import assembled
from jloss.optimizers._moments import decay_of_squares, gated, root, unbias
from jloss.optimizers._moments import trace as memory_of
from jloss.optimizers.codecs import Codec


def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: optax.ScalarOrSchedule = 0.9,
    eps: optax.ScalarOrSchedule = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: optax.ScalarOrSchedule | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    nu: Codec | None = None,
    trace: Codec | None = None,
    max_norm: optax.ScalarOrSchedule | None = None,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide each gradient by the root of a moving average of its square, then step.

    $$ v_t = \rho\, v_{t-1} + (1 - \rho)\, |g_t|^2, \qquad
       u_t = -\eta_t \frac{g_t}{\sqrt{v_t + \epsilon}} $$

    With `momentum` the steps are summed, m = u + mu m, learning rate included: a parameter still
    moves after the learning rate has become 0.

    Args:
        learning_rate: eta, in units of the parameter; a scalar or a schedule of the count from 0.
        decay: rho, in [0, 1).
        eps: epsilon, squared gradient (a gradient if `eps_in_sqrt` is False).
        initial_scale: v_0, squared gradient.
        eps_in_sqrt: False divides by sqrt(v) + eps, as PyTorch does.
        centered: divide by the root of the variance, v - |m|^2 with m the moving average of g.
        momentum: mu, in [0, 1). None keeps no trace; 0.0 keeps one.
        nesterov: look one step ahead.
        bias_correction: divide the moving averages by 1 - rho^t.
        nu, trace: how v and the sum of steps are stored: `f32()`, `bf16()`, `int8()`; None is
            float32 (float64 for such parameters).
        max_norm: clip longer gradients to this global norm; a scalar, or a schedule of the steps
            taken. None is any.
        skip_nonfinite: a gradient with NaN or inf changes nothing, counts included.

    Returns:
        An optax transformation. Its state is `(ScaleByRmsState(nu), EmptyState, EmptyState)`;
        `ScaleByRStdDevState(mu, nu)` is first if centered, each with a `count` if bias-corrected,
        `ScaleByScheduleState(count)` second with a schedule, `TraceState(trace)` third with
        momentum.

    Raises:
        ValueError: if centered with a codec of `nu`, or if `trace` has one without momentum.
        TypeError: if `decay` has half precision, or a gradient or its parameter is neither floating
            point nor complex.

    With `max_norm` or `skip_nonfinite` the state is inside a `GuardState` (see `guard`), with a
    codec inside an `EncodedState`, with a schedule of another number inside a `ScheduledState`.

    Differs from optax: float16 and bfloat16 parameters are updated in float32 with a float32 state,
    rounded once at the end (a zero gradient gives a zero update, never NaN); a variance that
    rounding made negative is 0, not NaN; the bias correction does not cancel; updates have the
    parameter's dtype; the state's dtypes never change.

    References:
        Hinton, "Neural Networks for Machine Learning, lecture 6", 2012. Graves, "Generating
        Sequences With Recurrent Neural Networks", arXiv, 2013 (centered).

    >>> import jax.numpy as jnp
    >>> params, grads = jnp.array([1.0, 2.0]), jnp.array([2.0, -4.0])
    >>> optimizer = rmsprop(0.5, decay=0.75, eps=0.0)
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
    >>> updates
    Array([-1.,  1.], dtype=float32)
    """
    if centered and nu is not None:
        raise ValueError("a variance is a difference of moments: centered needs `nu` as it is")
    if momentum is None and trace is not None:
        raise ValueError("`trace` is what momentum sums: there is none")
    rate = optax.scale_by_learning_rate(learning_rate)

    def make(
        decay: ArrayLike, eps: ArrayLike, momentum: ArrayLike | None = None
    ) -> optax.GradientTransformation:
        scale = _scale_by_rms(decay, eps, initial_scale, eps_in_sqrt, centered, bias_correction)
        memory = optax.identity() if momentum is None else memory_of(momentum, nesterov)
        return optax.chain(scale, rate, memory)

    numbers = {"decay": decay, "eps": eps, "momentum": momentum}
    return assembled(make, numbers, {"nu": nu, "trace": trace}, max_norm, skip_nonfinite)


def _scale_by_rms(
    decay: ArrayLike,
    eps: ArrayLike,
    initial_scale: ArrayLike,
    eps_in_sqrt: bool,
    centered: bool,
    bias_correction: bool,
) -> optax.GradientTransformation:
    """`optax.scale_by_rms` and `optax.scale_by_stddev`, with their states, free of cancellation."""
    decay = decay_of_squares("decay", decay)
    same_state = optax.scale_by_stddev if centered else optax.scale_by_rms
    init = same_state(initial_scale=initial_scale, bias_correction=bias_correction).init

    def divide(g: jax.Array, v: jax.Array, *m: jax.Array) -> jax.Array:
        size = jnp.maximum(v.real - (m[0] * m[0].conj()).real, 0) if m else v.real
        return g * jax.lax.rsqrt(size + eps) if eps_in_sqrt else g / (root(size) + eps)

    def update(updates: Any, state: Any, params: Any = None, *, _take: Any = None, **_: Any) -> Any:
        new = {"nu": optax.tree.update_moment_per_elem_norm(updates, state.nu, decay, 2)}
        if centered:
            new["mu"] = optax.tree.update_moment(updates, state.mu, decay, 1)
        new = {name: gated(_take, moment, getattr(state, name)) for name, moment in new.items()}
        moments = list(new.values())
        if bias_correction:
            new["count"] = optax.safe_increment(state.count)
            moments = unbias(moments, decay, new["count"])
        return jax.tree.map(divide, updates, *moments), state._replace(**new)

    return optax.GradientTransformationExtraArgs(init, update)
