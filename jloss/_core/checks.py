"""Checks of values: asked for by `checked`, and otherwise not in the program at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

P = ParamSpec("P")
T = TypeVar("T")

# A user context is part of jit's key: a checked step is a compilation of its own, and an
# unchecked one holds no trace of a check (one left in costs every call jit's fast dispatch).
_checking = jax.make_user_context(False)
_failures: list[str] = []  # of the call under way: a compiled step keeps its callbacks beyond one


def insist(ok: Array, message: str) -> None:
    """An error under `checked` where not `ok`; nothing at all otherwise."""

    def note(ok: Array) -> None:
        if not ok:
            _failures.append(message)

    if _checking.value:  # a callback and not checkify, which loses checks in differentiated scans
        jax.debug.callback(note, jnp.all(ok))


def nan_unless(ok: Array, values: Array) -> Array:
    """The values, NaN in value and gradient where not `ok`."""
    nan = jnp.asarray(jnp.nan, values.dtype)
    # The product makes the gradient NaN, the select the value (XLA may fold the product away).
    return jnp.where(ok, values * jnp.where(ok, 1, nan), nan)


def checked(step: Callable[P, T]) -> Callable[P, T]:
    """`step` with checks of values on: bad data raises, and the error names the argument.

    A label out of range, a probability outside [0, 1] or a class mask that hides the label gives
    NaN in value and gradient of its own entry; under `checked` it gives an error that says which
    argument was wrong.

    Args:
        step: a function, outermost: jitted or not, with `grad`, `vmap`, `scan` and `shard_map`
            inside. It gets copies of its arrays, so that a failed check takes nothing from a
            caller who donates them. (A flax nnx model, which a step changes in place, is changed
            in the copy alone.)

    Returns:
        A function of the same arguments and results, compiled apart and slower.

    Raises:
        ValueError: (when called) for the first check that fails.
        TypeError: (when called) inside another transformation, where nothing can be raised.

    >>> import jax, jax.numpy as jnp, jloss
    >>> step = jax.jit(jax.grad(lambda logits, labels: jloss.mean(
    ...     jloss.softmax_cross_entropy_with_integer_labels(logits, labels))))
    >>> step(jnp.zeros((1, 2)), jnp.array([-100]))
    Array([[nan, nan]], dtype=float32)
    >>> jloss.checked(step)(jnp.zeros((1, 2)), jnp.array([-100]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: `labels` should lie in [0, 2)...
    """

    @functools.wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        copies = jax.tree.map(lambda a: a.copy() if isinstance(a, jax.Array) else a, (args, kwargs))
        _failures.clear()
        with _checking(True):
            out = step(*copies[0], **copies[1])  # pyright: ignore[reportCallIssue]
        if any(isinstance(a, Tracer) for a in jax.tree.leaves(out)):
            raise TypeError("`checked` goes outermost: around `jit`, `grad` and `vmap`, not inside")
        jax.effects_barrier()
        if _failures:
            raise ValueError(_failures[0])
        return out

    return run
