"""Parts of a training loop, as pure functions that trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from jax.typing import DTypeLike
    from jaxtyping import ArrayLike, Int, Real


class EarlyStoppingState(NamedTuple):
    """What early stopping has seen so far: scalars whose dtypes never change.

    Attributes:
        best: the best metric, float32; the worst infinity before any.
        best_step: the number of the update that brought it, from 0, int32; -1 before any.
        step: how many updates there were, int32.
        wait: how many of them came since the best one, int32.
        improved: whether the last update brought it, bool.
        should_stop: whether training should stop, bool.
    """

    best: Array
    best_step: Array
    step: Array
    wait: Array
    improved: Array
    should_stop: Array


class EarlyStopping(NamedTuple):
    """A pair of pure functions, in the manner of optax's `GradientTransformation`.

    Attributes:
        init: `() -> state`, before the first update.
        update: `(metric, state) -> state`, once for each value of the metric, a real scalar.
    """

    init: Callable[[], EarlyStoppingState]
    update: Callable[[ArrayLike, EarlyStoppingState], EarlyStoppingState]


def early_stopping(
    patience: Int[ArrayLike, ""],
    min_delta: Real[ArrayLike, ""] = 0.0,
    mode: Literal["min", "max"] = "min",
) -> EarlyStopping:
    r"""Says stop once a metric has not become better for `patience` updates in a row.

    $$\text{improved}_t = \begin{cases} b_{t-1} - m_t > \delta & \text{min} \\
    m_t - b_{t-1} > \delta & \text{max} \end{cases}, \qquad
    b_t = \begin{cases} m_t & \text{improved}_t \\ b_{t-1} & \text{otherwise} \end{cases}$$

    The first finite metric is an improvement; NaN never is, and counts as a wait. Once
    `should_stop` is True the state changes no more: a `lax.scan` over all epochs ends with the
    state, and with the best parameters, of a loop that broke off.

    Args:
        patience: how many updates without improvement to wait for; 0 and 1 stop at the first.
            May be traced.
        min_delta: $\delta$, in units of the metric: improvements of this size or less count as
            none. Its sign does not matter. May be traced.
        mode: "min" for a loss, "max" for a score.

    Returns:
        `EarlyStopping(init, update)`, whose state is an `EarlyStoppingState`: a carry of `lax.scan`
        and `lax.while_loop`.

    Raises:
        ValueError: for another `mode`, and for anything that is not a scalar.
        TypeError: for patience that is not an integer.

    The rule is that of Keras and, with `check_finite=False`, of Lightning. (Keras never stops at
    the very first update, though it may be NaN and patience 1.)

    References:
        Prechelt, "Early Stopping - But When?", in Neural Networks: Tricks of the Trade, 1998.

    Keep the best parameters beside the state:

    >>> stopping = early_stopping(patience=2)
    >>> state, params, best_params = stopping.init(), {"w": 0.0}, {"w": 0.0}
    >>> for loss in [3.0, 1.0, 2.0, 1.5, 0.0]:
    ...     params = {"w": params["w"] + 1}
    ...     state = stopping.update(loss, state)
    ...     best_params = jax.tree.map(
    ...         lambda new, old: jnp.where(state.improved, new, old), params, best_params)
    ...     if state.should_stop:
    ...         break
    >>> print(state.step, state.best, state.best_step, best_params["w"])
    4 1.0 1 2.0
    """
    if mode not in ("min", "max"):
        raise ValueError(f"`mode` should be 'min' or 'max', but is {mode!r}")
    if not jnp.issubdtype(jnp.result_type(patience), jnp.integer):
        raise TypeError(f"`patience` should be an integer, but is {jnp.result_type(patience)}")
    patience = _scalar("patience", patience, jnp.int32)
    least = jnp.abs(_scalar("min_delta", min_delta, jnp.float32))

    def init() -> EarlyStoppingState:
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        worst = jnp.full((), jnp.inf if mode == "min" else -jnp.inf, jnp.float32)
        return EarlyStoppingState(worst, zero - 1, zero, zero, no, no)

    def update(metric: ArrayLike, state: EarlyStoppingState) -> EarlyStoppingState:
        new = _scalar("metric", metric, jnp.float32)
        gain = state.best - new if mode == "min" else new - state.best
        improved, wait = gain > least, jnp.where(gain > least, 0, state.wait + 1)
        after = EarlyStoppingState(
            best=jnp.where(improved, new, state.best),
            best_step=jnp.where(improved, state.step, state.best_step),
            step=state.step + 1,
            wait=wait,
            improved=improved,
            should_stop=~improved & (wait >= patience),
        )
        return jax.tree.map(lambda a, b: jnp.where(state.should_stop, a, b), state, after)

    return EarlyStopping(init, update)


def _scalar(name: str, value: ArrayLike, dtype: DTypeLike) -> Array:
    array = jnp.asarray(value)
    if array.ndim:
        raise ValueError(f"`{name}` should be a scalar, but has shape {array.shape}")
    return array.astype(dtype)
