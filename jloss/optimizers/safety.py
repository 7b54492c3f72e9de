"""Steps that a NaN, an infinity or a huge gradient cannot spoil."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jloss.optimizers._moments import root
from jloss.optimizers._precision import map_leaves, promoting, wide


class DynamicLossScale(NamedTuple):
    """A scale of the loss that halves at a bad step, and doubles after `period` good ones.

    Attributes:
        initial: the scale at first.
        period: good steps in a row until the scale grows.
        factor: by which it grows and shrinks, between 1 and `largest`.
    """

    initial: ArrayLike = 2.0**15
    period: ArrayLike = 2000
    factor: ArrayLike = 2.0
    largest: ArrayLike = 2.0**24


class GuardState(NamedTuple):
    """The state of `guard`.

    Attributes:
        global_norm: float32, of the last gradient, without the loss's scale, before it was clipped.
        taken: int32, steps that were taken.
        skipped: int32, steps that were not.
        streak: int32, steps in a row until now: good ones, or minus the bad ones.
        loss_scale: float32, what the next loss is to be multiplied by.
        inner_state: the state inside.
    """

    global_norm: jax.Array
    taken: jax.Array
    skipped: jax.Array
    streak: jax.Array
    loss_scale: jax.Array
    inner_state: Any


def guard(
    tx: optax.GradientTransformation,
    max_norm: optax.ScalarOrSchedule | None = None,
    skip_nonfinite: bool = True,
    loss_scale: ArrayLike | DynamicLossScale | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Undo the scale of the loss, skip gradients that are not finite, clip the others, then step.

    $$ g \leftarrow \frac gs \min\Bigl(1, \frac{c}{\lVert g / s \rVert}\Bigr), \qquad
       \lVert g \rVert = \sqrt{\textstyle\sum_i |g_i|^2} $$

    A step whose norm is NaN or inf changes no bit of the parameters and of the state inside, its
    counts included. One pass over the gradient decides; the rest are selects in the kernels that
    are there anyway.

    Args:
        tx: any optax transformation that ends with the update.
        max_norm: c, in units of the gradient: longer gradients are made so long. A
            scalar, or a schedule of the steps taken; None is any.
        skip_nonfinite: False lets NaN and infinities through.
        loss_scale: s, what the loss was multiplied by before it was differentiated, so that float16
            gradients do not underflow: a number, or a `DynamicLossScale`. Multiply the loss by
            `state.loss_scale`.
        axis_name: mesh axes over which gradients are split by hand (in `shard_map`): the norm is
            theirs together, and all devices take the same steps. What is the same on all of them
            counts once, if `check_vma` lets JAX know it.

    Returns:
        An optax transformation with the state `GuardState`, whose fields are there for loggers.

    Raises:
        ValueError: if the loss's scale is dynamic and bad steps are not skipped.

    The norm is summed in float32, of the gradients as they are given: one above 1e19 counts as
    infinite. Half-precision gradients go on in float32 if they are scaled or clipped. State keeps
    its dtypes.

    Differs from optax: `clip_by_global_norm` makes each gradient NaN where one is, and
    `apply_if_finite` raises if a dtype drifts, makes -0.0 of a parameter 0.0, and at last lets the
    bad gradient through; `MultiSteps` keeps one bad microbatch for ever: guard its
    `gradient_transformation()`.

    References:
        Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013.
        Micikevicius et al., "Mixed Precision Training", ICLR 2018.

    >>> import jax.numpy as jnp
    >>> optimizer = guard(optax.sgd(1.0), max_norm=1.0)
    >>> state = optimizer.init(jnp.zeros(2))
    >>> optimizer.update(jnp.array([3.0, -4.0]), state)[0]
    Array([-0.6,  0.8], dtype=float32)
    >>> updates, state = optimizer.update(jnp.array([3.0, jnp.nan]), state)
    >>> updates, state.skipped
    (Array([-0., -0.], dtype=float32), Array(1, dtype=int32))
    """
    return guarded(tx, max_norm, skip_nonfinite, loss_scale, axis_name=axis_name, inner_knows=False)


def guarded(
    tx: optax.GradientTransformation,
    max_norm: optax.ScalarOrSchedule | None,
    skip_nonfinite: bool,
    loss_scale: ArrayLike | DynamicLossScale | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
    inner_knows: bool,
) -> optax.GradientTransformationExtraArgs:
    """`guard`; or of a `tx` that keeps its own arrays if it is told not to `_take` the step.

    What it does then it computes from arrays that it has kept, and needs no second pass over them.
    """
    dynamic = loss_scale if isinstance(loss_scale, DynamicLossScale) else None
    if dynamic and not skip_nonfinite:
        raise ValueError("a DynamicLossScale learns from the steps that skip_nonfinite skips")
    run = promoting(tx)
    given = loss_scale.initial if isinstance(loss_scale, DynamicLossScale) else loss_scale
    first_scale = 1.0 if given is None else given
    changed = max_norm is not None or loss_scale is not None

    def init(params: optax.Params) -> GuardState:
        taken, skipped, streak = (jnp.zeros((), jnp.int32) for _ in range(3))
        norm, scale = jnp.zeros((), jnp.float32), jnp.array(first_scale, jnp.float32)
        return GuardState(norm, taken, skipped, streak, scale, run.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, GuardState]:
        scale = state.loss_scale if dynamic else _float32(first_scale)
        norm = _global_norm(updates, axis_name) / scale
        good = jnp.isfinite(norm)
        take = good if skip_nonfinite else jnp.ones_like(good)
        if changed:
            updates = _scaled(updates, _clipping(norm, max_norm, state.taken) / scale)
        updates = _where_taken(take, updates, 0.0)
        told = {"_take": take} if inner_knows else {}
        updates, inner = run.update(updates, state.inner_state, params, **told, **extra)

        def kept(new: jax.Array, old: jax.Array) -> jax.Array:
            new = new if new.dtype == old.dtype else new.astype(old.dtype)
            return new if inner_knows and old.ndim else jnp.where(take, new, old)

        streak = jnp.where(good, jnp.maximum(state.streak, 0) + 1, jnp.minimum(state.streak, 0) - 1)
        return _where_taken(take, updates, -0.0), GuardState(
            norm.astype(jnp.float32),
            jnp.where(take, optax.safe_increment(state.taken), state.taken),
            jnp.where(take, state.skipped, optax.safe_increment(state.skipped)),
            streak,
            _next_scale(dynamic, scale, streak) if dynamic else scale,
            jax.tree.map(kept, inner, state.inner_state),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _float32(x: ArrayLike) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _global_norm(tree: Any, axis_name: str | tuple[str, ...] | None) -> jax.Array:
    squares = [
        jnp.sum((x * x.conj()).real) for x in map(wide, jax.tree.leaves(tree)) if _is_inexact(x)
    ]
    if axis_name is not None:
        squares = [_over_devices(x, axis_name) for x in squares]
    with jax.numpy_dtype_promotion("standard"):
        return root(sum(squares, jnp.zeros((), jnp.float32)))


def _over_devices(x: jax.Array, axis_name: str | tuple[str, ...]) -> jax.Array:
    """The sum over the axes along which it varies; over all if JAX does not know (check_vma)."""
    varying = lambda x: jax.typeof(x).mat.varying
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    split = [n for n in names if n in varying(x) or n not in varying(jax.lax.axis_index(n))]
    return jax.lax.psum(x, tuple(split)) if split else x


def _clipping(
    norm: jax.Array, max_norm: optax.ScalarOrSchedule | None, taken: jax.Array
) -> jax.Array:
    if max_norm is None:
        return jnp.ones_like(norm)
    longest = jnp.asarray(max_norm(taken) if callable(max_norm) else max_norm, norm.dtype)
    return jnp.where(norm > longest, longest / jnp.where(norm > longest, norm, 1), 1)


def _scaled(tree: Any, factor: jax.Array) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return map_leaves(lambda x: wide(x) * factor if _is_inexact(x) else x, tree)


def _where_taken(take: jax.Array, tree: Any, other_number: float) -> Any:
    other = lambda x: jnp.asarray(other_number, x.dtype)
    return map_leaves(lambda x: jnp.where(take, x, other(x)) if _is_inexact(x) else x, tree)


def _next_scale(by: DynamicLossScale, scale: jax.Array, streak: jax.Array) -> jax.Array:
    factor = _float32(by.factor)
    grown = jnp.where(streak % jnp.asarray(by.period, jnp.int32) == 0, scale * factor, scale)
    return jnp.clip(jnp.where(streak > 0, grown, scale / factor), 1, _float32(by.largest))
