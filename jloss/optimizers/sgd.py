"""Stochastic gradient descent, plain and with momentum."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike, DTypeLike

from jloss.optimizers._assembly import assembled
from jloss.optimizers._moments import trace as memory_of
from jloss.optimizers.codecs import Codec


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: optax.ScalarOrSchedule | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    *,
    trace: Codec | None = None,
    max_norm: optax.ScalarOrSchedule | None = None,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step against the gradient, or against a decaying sum of all gradients so far.

    $$ m_t = g_t + \mu\, m_{t-1}, \qquad
       u_t = -\eta_t \begin{cases} g_t & \text{without momentum} \\
                                   m_t & \text{with momentum} \\
                                   g_t + \mu\, m_t & \text{with Nesterov's momentum} \end{cases} $$

    The gradient enters the sum undamped (not times 1 - mu), as in PyTorch.

    Args:
        learning_rate: eta, parameter per gradient; a scalar or a schedule of the count from 0.
        momentum: mu, in [0, 1). None keeps no trace; 0.0 keeps one.
        nesterov: look one step ahead.
        accumulator_dtype: the dtype that the trace is stored in, for example "bfloat16"; None is
            the parameter's dtype, float32 at least.
        trace: how m is stored: `f32()`, `bf16()`, `int8()`; None is as `accumulator_dtype` says.
        max_norm: clip longer gradients to this global norm; a scalar, or a schedule of the steps
            taken. None is any.
        skip_nonfinite: a gradient with NaN or inf changes nothing, counts included.

    Returns:
        An optax transformation. Its state is `(EmptyState, EmptyState)`; with momentum the first is
        `TraceState(trace)`, with a schedule the second is `ScaleByScheduleState(count)`.

    Raises:
        ValueError: if `trace` has a codec without momentum.
        TypeError: if a gradient, or its parameter, is neither floating point nor complex.

    With `max_norm` or `skip_nonfinite` the state is inside a `GuardState` (see `guard`), with a
    codec inside an `EncodedState`, with a schedule of another number inside a `ScheduledState`.

    Differs from optax: float16 and bfloat16 parameters are updated in float32 with a float32 trace,
    rounded once at the end; updates have the parameter's dtype; the state's dtypes never change.

    References:
        Polyak, "Some methods of speeding up the convergence of iteration methods", USSR
        Computational Mathematics and Mathematical Physics, 1964. Sutskever et al., "On the
        importance of initialization and momentum in deep learning", ICML 2013.

    >>> import jax.numpy as jnp
    >>> params, grads = jnp.array([1.0, 2.0]), jnp.array([2.0, -4.0])
    >>> optimizer = sgd(0.5, momentum=0.5)
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
    >>> updates, state = optimizer.update(grads, state, params)
    >>> updates
    Array([-1.5,  3. ], dtype=float32)
    """
    if momentum is None and trace is not None:
        raise ValueError("`trace` is what momentum sums: there is none")
    rate = optax.scale_by_learning_rate(learning_rate)

    def make(momentum: ArrayLike | None = None) -> optax.GradientTransformation:
        if momentum is None:
            return optax.chain(optax.identity(), rate)
        return optax.chain(memory_of(momentum, nesterov, accumulator_dtype), rate)

    return assembled(make, {"momentum": momentum}, {"trace": trace}, max_norm, skip_nonfinite)


def momentum(
    learning_rate: optax.ScalarOrSchedule,
    momentum: optax.ScalarOrSchedule | None = 0.9,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    *,
    trace: Codec | None = None,
    max_norm: optax.ScalarOrSchedule | None = None,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step against a decaying sum of all gradients so far: `sgd` with momentum by default.

    $$ m_t = g_t + \mu\, m_{t-1}, \qquad u_t = -\eta_t\, m_t $$

    Args:
        learning_rate: eta, parameter per gradient; a scalar or a schedule of the count from 0.
        momentum: mu, in [0, 1).
        nesterov: look one step ahead, u = -eta (g + mu m).
        accumulator_dtype: the dtype that the trace is stored in, for example "bfloat16"; None is
            the parameter's dtype, float32 at least.
        trace: how m is stored: `f32()`, `bf16()`, `int8()`; None is as `accumulator_dtype` says.
        max_norm: clip longer gradients to this global norm; a scalar, or a schedule of the steps
            taken. None is any.
        skip_nonfinite: a gradient with NaN or inf changes nothing, counts included.

    Returns:
        An optax transformation with the state `(TraceState(trace), EmptyState)`; with a schedule
        the second is `ScaleByScheduleState(count)`.

    Raises:
        ValueError: if `trace` has a codec without momentum.
        TypeError: if a gradient, or its parameter, is neither floating point nor complex.

    With `max_norm` or `skip_nonfinite` the state is inside a `GuardState` (see `guard`), with a
    codec inside an `EncodedState`, with a schedule of another number inside a `ScheduledState`.

    Differs from optax: as `sgd`, of which it is a case (optax has no function of this name).

    References:
        Polyak, "Some methods of speeding up the convergence of iteration methods", USSR
        Computational Mathematics and Mathematical Physics, 1964.

    >>> import jax.numpy as jnp
    >>> params, grads = jnp.array([1.0, 2.0]), jnp.array([2.0, -4.0])
    >>> optimizer = momentum(0.5)
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
    >>> updates
    Array([-1.,  2.], dtype=float32)
    """
    return sgd(
        learning_rate,
        momentum,
        nesterov,
        accumulator_dtype,
        trace=trace,
        max_norm=max_norm,
        skip_nonfinite=skip_nonfinite,
    )
