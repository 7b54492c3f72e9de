"""Arithmetic in float32 or wider, whatever the dtype of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Run `inner` in float32 or wider; its updates are rounded once, when it is done.

    Gradients, parameters and state are widened leaf by leaf (float16 and bfloat16 to float32, all
    else stays as it is). What comes back has the dtype of the parameters, or of the gradients if
    there are no parameters, and a state with the dtypes that it had before.

    `inner` may mix real moments with complex gradients, and hyperparameters of one dtype with
    parameters of another.
    """
    run = promoting(inner)

    def init(params: optax.Params) -> optax.OptState:
        return map_leaves(_strong, run.init(map_leaves(wide_template, params)))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        like = updates if params is None else map_leaves(lambda _, p: p, updates, params)
        _check_floating("gradient", updates)
        _check_floating("parameter", like)
        wide_params = None if params is None else map_leaves(wide, like)
        moves, after = run.update(
            map_leaves(wide, updates), map_leaves(wide, state), wide_params, **extra_args
        )
        return map_leaves(_narrow, moves, like), map_leaves(_keep, state, after)

    return optax.GradientTransformationExtraArgs(init, update)


def promoting(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Let `tx` mix dtypes, whatever jax is told elsewhere, and take further arguments."""
    run = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return run.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(run.init, update)


def map_leaves(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` over the leaves that `tree` has; where it has None the result has None."""
    return jax.tree.map(
        lambda x, *others: None if x is None else f(x, *others),
        tree,
        *rest,
        is_leaf=lambda x: x is None,
    )


def owner_of(path: tuple[Any, ...], params: Collection[Any]) -> tuple[Any, ...] | None:
    """The longest end of the path of a leaf of a state that is the path of a parameter."""
    ends = (path[start:] for start in range(len(path) + 1))
    return next((end for end in ends if end in params), None)


def _wide_dtype(x: Any) -> Any:
    dtype = jnp.result_type(x)
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if half else dtype


def wide(x: Any) -> jax.Array:
    return jnp.asarray(x, _wide_dtype(x))


def _strong(x: Any) -> jax.Array:
    """Drop a weak type, which the first update would drop otherwise."""
    return jnp.asarray(x, jnp.result_type(x))


def wide_template(x: Any) -> Any:
    """As `wide`, of an array or of its shape alone."""
    return x.update(dtype=_wide_dtype(x)) if isinstance(x, jax.ShapeDtypeStruct) else wide(x)


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
