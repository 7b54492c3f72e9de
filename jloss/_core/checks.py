"""Checks of values: asked for by `checked`, and otherwise not in the program at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import checkify

P = ParamSpec("P")
T = TypeVar("T")

# A user context is part of jit's key: a checked step is a compilation of its own, and an
# unchecked one holds no trace of a check (one left in costs every call jit's fast dispatch).
_checking = jax.make_user_context(False)


def insist(ok: Array, message: str) -> None:
    """An error under `checked` where not `ok`; nothing at all otherwise."""
    if _checking.value:
        checkify.check(jnp.all(ok), message)


def nan_unless(ok: Array, values: Array, message: str) -> Array:
    """The values, NaN in value and gradient where not `ok`; an error under `checked`."""
    insist(ok, message)
    nan = jnp.asarray(jnp.nan, values.dtype)
    # The product makes the gradient NaN, the select the value (XLA may fold the product away).
    return jnp.where(ok, values * jnp.where(ok, 1, nan), nan)


def checked(step: Callable[P, T]) -> Callable[P, T]:
    """`step` with checks of values on: bad data raises, and the error names the argument.

    A label out of range, a probability outside [0, 1] or a class mask that hides the label gives
    NaN in value and gradient of its own entry; under `checked` it gives an error that says which
    argument was wrong.

    Args:
        step: a function, outermost: jitted or not, with `grad`, `vmap` and `scan` inside. It is
            traced, as under `jit`, at every call. Arrays that it donates are copied first. Of a
            step that changes objects in place (flax nnx), check a function of the loss alone. A
            check inside a scan that is differentiated from outside is lost.

    Returns:
        A function of the same arguments and results, compiled apart and slower.

    Raises:
        ValueError: (when called) for the first check that fails.

    >>> import jax, jax.numpy as jnp, jloss
    >>> step = jax.jit(jax.grad(lambda logits, labels: jloss.mean(
    ...     jloss.softmax_cross_entropy_with_integer_labels(logits, labels))))
    >>> step(jnp.zeros((1, 2)), jnp.array([-100]))
    Array([[nan, nan]], dtype=float32)
    >>> jloss.checked(step)(jnp.zeros((1, 2)), jnp.array([-100]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    jax...JaxRuntimeError: `labels` should lie in [0, 2)...
    """

    @functools.wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        def arrays_of_result() -> list[Array]:  # a result may hold other things, which stay here
            out = step(*copies[0], **copies[1])  # pyright: ignore[reportCallIssue]
            leaves, result["tree"] = jax.tree.flatten(out)
            result["leaves"] = [None if isinstance(a, jax.Array) else a for a in leaves]
            return [a for a in leaves if isinstance(a, jax.Array)]

        result = {}
        copies = jax.tree.map(lambda a: a.copy() if isinstance(a, jax.Array) else a, (args, kwargs))
        with _checking(True):
            error, arrays = checkify.checkify(arrays_of_result, errors=checkify.user_checks)()
        checkify.check_error(jax.device_get(error))
        arrays = iter(arrays)
        leaves = [next(arrays) if leaf is None else leaf for leaf in result["leaves"]]
        return jax.tree.unflatten(result["tree"], leaves)

    return run
