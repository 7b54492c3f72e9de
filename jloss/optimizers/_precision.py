"""Arithmetic in float32 or wider, whatever the dtype of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Run `inner` in float32 or wider; its updates are rounded once, when it is done.

    Gradients, parameters and state are widened leaf by leaf (float16 and bfloat16 to float32, all
    else stays as it is). What comes back has the dtype of the parameters, or of the gradients if
    there are no parameters, and a state with the dtypes that it had before.

    Promotion is the standard one in here: `inner` may mix real moments with complex gradients, and
    hyperparameters of one dtype with parameters of another.
    """
    run = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        return _map(_strong, run.init(_map(_wide_like, params)))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        like = updates if params is None else _map(lambda _, p: p, updates, params)
        _check_floating("gradient", updates)
        _check_floating("parameter", like)
        wide_params = None if params is None else _map(_wide, like)
        with jax.numpy_dtype_promotion("standard"):
            wide, after = run.update(
                _map(_wide, updates), _map(_wide, state), wide_params, **extra_args
            )
        return _map(_narrow, wide, like), _map(_keep, state, after)

    return optax.GradientTransformationExtraArgs(init, update)


def unbias(moments: Any, decay: ArrayLike, count: ArrayLike) -> Any:
    """Divide moving averages that began at 0 by 1 - decay^count, formed without cancellation."""

    @functools.cache
    def weight(real: jnp.dtype) -> jax.Array:
        less, t = jnp.asarray(decay - 1, real), jnp.asarray(count, real)
        far = less < -0.5  # from 1: there the power is exact, and has a derivative at decay 0
        near = -jnp.expm1(t * jnp.log1p(jnp.where(far, -0.5, less)))
        return jnp.where(far, 1 - jnp.asarray(decay, real) ** t, near)

    return _map(lambda moment: moment / weight(jnp.finfo(moment.dtype).dtype), moments)


def at_least_float32(decay: ArrayLike) -> ArrayLike:
    """Widen a half-precision array, so that 1 - decay is exact; leave a Python float in double."""
    return _wide(decay) if isinstance(decay, jax.Array) else decay


def _map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` over the leaves that `tree` has; where it has None the result has None."""
    return jax.tree.map(
        lambda x, *others: None if x is None else f(x, *others),
        tree,
        *rest,
        is_leaf=lambda x: x is None,
    )


def _wide_dtype(x: Any) -> Any:
    dtype = jnp.result_type(x)
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if half else dtype


def _wide(x: Any) -> jax.Array:
    return jnp.asarray(x, _wide_dtype(x))


def _strong(x: Any) -> jax.Array:
    """Drop a weak type, which the first update would drop otherwise."""
    return jnp.asarray(x, jnp.result_type(x))


def _wide_like(x: Any) -> Any:
    """Zeros in the place of a half-precision leaf, which may be a shape only, sharded like it."""
    dtype = _wide_dtype(x)
    return x if dtype == jnp.result_type(x) else jnp.zeros_like(x, dtype=dtype)


def _check_floating(kind: str, tree: Any) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(dtype := jnp.result_type(x), jnp.inexact):
            name = kind + jax.tree_util.keystr(path)
            raise TypeError(f"{name} must be floating point or complex, got {dtype}")


def _narrow(update: jax.Array, like: Any) -> jax.Array:
    return update.astype(jnp.result_type(like))


def _keep(before: Any, after: jax.Array | None) -> Any:
    """The new value in the old dtype; the old value where a leaf had no gradient."""
    return before if after is None else after.astype(jnp.result_type(before))
