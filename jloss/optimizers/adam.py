"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.typing import ArrayLike, DTypeLike

from jloss.optimizers._assembly import assembled
from jloss.optimizers._moments import at_least_float32, decay_of_squares, gated, root, unbias
from jloss.optimizers.codecs import Codec


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    eps_root: optax.ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    mu: Codec | None = None,
    nu: Codec | None = None,
    max_norm: optax.ScalarOrSchedule | None = None,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step along the mean of the gradients over the root of the mean of their squares.

    $$ m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
       v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, |g_t|^2 $$
    $$ u_t = -\eta_t \frac{\hat m_t}{\sqrt{\hat v_t + \bar\epsilon} + \epsilon}, \qquad
       \hat m_t = \frac{m_t}{1 - \beta_1^t}, \quad \hat v_t = \frac{v_t}{1 - \beta_2^t} $$

    With `nesterov`, m-hat is b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t).

    Args:
        learning_rate: eta, in units of the parameter; a scalar or a schedule of the count from 0.
        b1: decay of the mean of the gradients, in [0, 1).
        b2: decay of the mean of their squares, in [0, 1).
        eps: epsilon, in units of the gradient, beside the root.
        eps_root: epsilon-bar, squared gradient, under the root (for derivatives through Adam).
        mu_dtype: the dtype that m is stored in, for example "bfloat16"; None is the parameter's
            dtype, float32 at least.
        nesterov: NAdam.
        mu, nu: how m and v are stored: `f32()`, `bf16()`, `int8()`; None is as `mu_dtype` says.
        max_norm: clip longer gradients to this global norm; a scalar, or a schedule of the steps
            taken. None is any.
        skip_nonfinite: a gradient with NaN or inf changes nothing, counts included.

    Returns:
        An optax transformation with the state `(ScaleByAdamState(count, mu, nu), EmptyState)`; with
        a schedule the second is `ScaleByScheduleState(count)`.

    Raises:
        TypeError: if b2 has half precision, or a gradient or its parameter is neither floating
            point nor complex.

    With `max_norm` or `skip_nonfinite` the state is inside a `GuardState` (see `guard`), with a
    codec inside an `EncodedState`, with a schedule of another number inside a `ScheduledState`.

    Differs from optax: float16 and bfloat16 parameters are updated in float32 with float32 moments,
    rounded once at the end (a zero gradient gives a zero update, never NaN); 1 - b^t is formed
    without cancellation; updates have the parameter's dtype; the state's dtypes never change.

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015. Dozat,
        "Incorporating Nesterov Momentum into Adam", ICLR workshop, 2016.

    >>> import jax.numpy as jnp
    >>> params, grads = jnp.array([1.0, 2.0]), jnp.array([2.0, -4.0])
    >>> optimizer = adam(0.5)
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
    >>> jnp.round(updates, 3)
    Array([-0.5,  0.5], dtype=float32)
    """
    tail = [optax.scale_by_learning_rate(learning_rate)]
    make = functools.partial(_chain, tail, mu_dtype, nesterov)
    numbers = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    return assembled(make, numbers, {"mu": mu, "nu": nu}, max_norm, skip_nonfinite)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    eps_root: optax.ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    *,
    nesterov: bool = False,
    mu: Codec | None = None,
    nu: Codec | None = None,
    max_norm: optax.ScalarOrSchedule | None = None,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Step like `adam`, and shrink the parameters beside it by a share of the learning rate.

    $$ u_t = u^{\text{Adam}}_t - \eta_t \lambda_t\, \theta_t $$

    Args:
        learning_rate: eta, in units of the parameter; a scalar or a schedule of the count from 0.
        b1: decay of the mean of the gradients, in [0, 1).
        b2: decay of the mean of their squares, in [0, 1).
        eps: epsilon, in units of the gradient, beside the root.
        eps_root: epsilon-bar, squared gradient, under the root.
        mu_dtype: the dtype that the mean is stored in, for example "bfloat16"; None is the
            parameter's dtype, float32 at least.
        weight_decay: lambda, per unit of learning rate; a scalar or a schedule of the count from 0.
        mask: booleans in a tree like the parameters (or a prefix of it), or a function of the
            parameters that returns one: which of them decay. None is all.
        nesterov: NAdamW.
        mu, nu: how m and v are stored: `f32()`, `bf16()`, `int8()`; None is as `mu_dtype` says.
        max_norm: clip longer gradients to this global norm; a scalar, or a schedule of the steps
            taken. None is any.
        skip_nonfinite: a gradient with NaN or inf changes nothing, counts included.

    Returns:
        An optax transformation with the state
        `(ScaleByAdamState(count, mu, nu), EmptyState, EmptyState)`; the second is
        `WeightDecaySchedule(count)` if the decay is a schedule, inside a `MaskedState` if there is
        a mask, the third is `ScaleByScheduleState(count)` if the learning rate is one.

    Raises:
        ValueError: if `update` gets no parameters.
        TypeError: if b2 has half precision, or a gradient or its parameter is neither floating
            point nor complex.

    With `max_norm` or `skip_nonfinite` the state is inside a `GuardState` (see `guard`), with a
    codec inside an `EncodedState`, with a schedule of another number inside a `ScheduledState`.
    Under `optax.inject_hyperparams` a `mask` that is a function needs `static_args="mask"`.

    Differs from optax: as `adam`; the decay too is computed in float32 and added before rounding.

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.

    >>> import jax.numpy as jnp
    >>> params, grads = jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0])
    >>> optimizer = adamw(0.5, weight_decay=0.5)
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
    >>> updates
    Array([-0.25, -0.5 ], dtype=float32)
    """
    decay = optax.add_decayed_weights(weight_decay, mask)
    tail = [decay, optax.scale_by_learning_rate(learning_rate)]
    make = functools.partial(_chain, tail, mu_dtype, nesterov)
    numbers = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    return assembled(make, numbers, {"mu": mu, "nu": nu}, max_norm, skip_nonfinite)


def _chain(
    tail: list[optax.GradientTransformation],
    mu_dtype: DTypeLike | None,
    nesterov: bool,
    **numbers: ArrayLike,
) -> optax.GradientTransformation:
    return optax.chain(_scale_by_adam(mu_dtype, nesterov, **numbers), *tail)


def _scale_by_adam(
    mu_dtype: DTypeLike | None,
    nesterov: bool,
    *,
    b1: ArrayLike,
    b2: ArrayLike,
    eps: ArrayLike,
    eps_root: ArrayLike,
) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, with its state, but with a bias correction that does not cancel."""
    b1, b2 = at_least_float32(b1), decay_of_squares("b2", b2)

    def divide(m: jax.Array, v: jax.Array) -> jax.Array:
        return m / (root(v.real + eps_root) + eps)

    def update(updates: Any, state: Any, params: Any = None, *, _take: Any = None, **_: Any) -> Any:
        count = optax.safe_increment(state.count)
        mu = gated(_take, optax.tree.update_moment(updates, state.mu, b1, 1), state.mu)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        nu = gated(_take, nu, state.nu)
        if nesterov:
            ahead = unbias(mu, b1, optax.safe_increment(count))
            mean = optax.tree.update_moment(unbias(updates, b1, count), ahead, b1, 1)
        else:
            mean = unbias(mu, b1, count)
        ratio = jax.tree.map(divide, mean, unbias(nu, b2, count))
        return ratio, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    init = optax.scale_by_adam(mu_dtype=mu_dtype).init
    return optax.GradientTransformationExtraArgs(init, update)
