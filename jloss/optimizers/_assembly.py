"""What every optimizer here is made with: schedules, float32, codecs, a guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jloss.optimizers._precision import in_float32
from jloss.optimizers.codecs import Codec, encode_state
from jloss.optimizers.safety import guarded


class ScheduledState(NamedTuple):
    """The steps so far, and the state of the transformation whose numbers follow them."""

    step: ArrayLike
    inner_state: Any


def assembled(
    make: Callable[..., optax.GradientTransformation],
    numbers: Mapping[str, optax.ScalarOrSchedule | None],
    codecs: Mapping[str, Codec | None],
    max_norm: optax.ScalarOrSchedule | None,
    skip_nonfinite: bool,
) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer of what is not None; who asks for no more gets the state of `make`."""
    tx = _scheduled(make, {name: x for name, x in numbers.items() if x is not None})
    rules = {name: codec for name, codec in codecs.items() if codec is not None}
    tx = encode_state(tx, rules) if rules else in_float32(tx)
    if max_norm is None and not skip_nonfinite:
        return tx
    return guarded(tx, max_norm, skip_nonfinite, inner_knows=True)


def _scheduled(
    make: Callable[..., optax.GradientTransformation],
    numbers: Mapping[str, optax.ScalarOrSchedule],
) -> optax.GradientTransformation:
    """Make the transformation anew at each step, if any of its numbers is a schedule."""
    if not any(map(callable, numbers.values())):
        return make(**numbers)

    def at(count: jax.Array) -> optax.GradientTransformationExtraArgs:
        now = {name: x(count) if callable(x) else x for name, x in numbers.items()}
        return optax.with_extra_args_support(make(**now))

    def init(params: optax.Params) -> ScheduledState:
        count = jnp.zeros((), jnp.int32)
        return ScheduledState(count, at(count).init(params))

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra: Any
    ) -> tuple[optax.Updates, ScheduledState]:
        updates, inner = at(state.step).update(updates, state.inner_state, params, **extra)
        return updates, ScheduledState(optax.safe_increment(state.step), inner)

    return optax.GradientTransformationExtraArgs(init, update)
