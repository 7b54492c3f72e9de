"""Two ways through all tokens, a chunk at a time, and their plain twin.

`log_probs` computes the logits again for the gradient, and saves a few numbers of each token;
`summed` knows the loss that is summed, and makes the gradients while it has the logits: a quarter
less work, for a gradient of the matrix in float32 that is held. Each has a rule of its own, since
the gradient through a scan would keep the logits; `plain` is their twin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jloss.fused._chunks import (
    Plans,
    as_given,
    chunk_count,
    chunks_of,
    joined,
    no_gradients,
    scaled,
    size_of,
)
from jloss.fused._tiles import (
    Head,
    LogProbs,
    Plan,
    Softmax,
    backward,
    forward,
    wide,
    zeros_as,
)


def plain(plan: Plan, hidden: Array, head: Head, labels: Array) -> LogProbs:
    """All at once, differentiated by JAX: the logits are held while they are needed."""
    whole = plan._replace(tile=plan.local)
    known = lambda *arrays: forward(whole, *arrays, keep=False)[0].known
    return jax.checkpoint(known)(hidden, head, labels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_probs(plans: Plans, hidden: Array, head: Head, labels: Array) -> LogProbs:
    """What is known of each token; the gradient computes the logits again."""
    return plans.run(softmaxes, hidden, head, labels).known


def _log_probs_fwd(plans, hidden, head, labels):
    softs = plans.run(softmaxes, hidden, head, labels)
    return softs.known, (hidden, head, labels, softs)


def _log_probs_bwd(plans, residuals, by):
    return *plans.run(slopes_of_log_probs, *residuals, by._replace(argmax=None)), None


log_probs.defvjp(_log_probs_fwd, _log_probs_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed(
    plans: Plans,
    loss: Callable[[LogProbs, Any, Any], Array],
    hidden: Array,
    head: Head,
    labels: Array,
    weights: Array,
    every: Any,
) -> Array:
    """The sum of `loss(known, weights, every)`: of a weight for each token, and numbers for all."""
    return plans.run(functools.partial(sum_alone, loss), hidden, head, labels, weights, every)


def _summed_fwd(plans, loss, hidden, head, labels, weights, every):
    size = size_of(weights, hidden)
    given = hidden, head, labels, weights, every, jnp.ones((), weights.dtype) / size
    total, slopes = plans.run(functools.partial(sum_and_slopes, loss), *given)
    return total, (slopes, size, head)


def _summed_bwd(plans, loss, residuals, by):
    slopes, size, head = residuals
    of_hidden, of_head, of_weights, of_every = scaled(slopes, by * size)
    return of_hidden, as_given(of_head, head), None, of_weights, of_every


summed.defvjp(_summed_fwd, _summed_bwd)


def softmaxes(plan: Plan, hidden: Array, head: Head, labels: Array) -> Softmax:
    """Of each token."""
    ks, tokens = chunks_of(chunk_count(plan.chunk, hidden), hidden, labels)

    def step(_, k):
        x, y = tokens(k)
        return None, forward(plan, x, head, y, keep=False)[0]

    _, softs = lax.scan(step, None, ks)
    return jax.tree.map(lambda a: joined(a, labels.shape[0]), softs)


def slopes_of_log_probs(
    plan: Plan, hidden: Array, head: Head, labels: Array, softs: Softmax, by: LogProbs
) -> tuple[Array, Head]:
    """The gradients in hidden states and head."""
    ks, tokens = chunks_of(chunk_count(plan.chunk, hidden), hidden, labels, softs, by)

    def step(of_head, k):
        x, y, soft, slopes = tokens(k)
        of_x, of_head = backward(plan, x, head, y, soft, slopes, None, of_head)
        return of_head, of_x

    of_head, of_xs = lax.scan(step, no_gradients(head), ks)
    return joined(of_xs, labels.shape[0]), as_given(of_head, head)


def sum_alone(
    loss: Callable, plan: Plan, hidden: Array, head: Head, labels: Array, weights: Array, every: Any
) -> Array:
    """Without its gradients."""
    ks, tokens = chunks_of(chunk_count(plan.chunk, hidden), hidden, labels, weights)

    def step(total, k):
        x, y, mine = tokens(k)
        soft, _ = forward(plan, x, head, y, keep=False)
        return total + jnp.sum(loss(soft.known, mine, every)), None

    return lax.scan(step, zero_like(labels, hidden), ks)[0]


def sum_and_slopes(
    loss: Callable, plan: Plan, hidden: Array, head: Head, labels: Array, weights: Array,
    every: Any, by: Array,
) -> tuple[Array, tuple]:  # fmt: skip
    """With its gradients in all but the labels, times `by`; in the head in float32 at least."""
    ks, tokens = chunks_of(chunk_count(plan.chunk, hidden), hidden, labels, weights)
    scalar = lambda *given: jnp.sum(loss(*given))

    def step(carry, k):
        (total, of_head, of_every), (x, y, mine) = carry, tokens(k)
        soft, kept = forward(plan, x, head, y, keep=True)
        value, pull = jax.vjp(scalar, soft.known, mine, every)
        of_known, of_mine, more = pull(by * jnp.ones_like(value))
        of_known = of_known._replace(argmax=None)
        of_x, of_head = backward(plan, x, head, y, soft, of_known, kept, of_head)
        return (total + value, of_head, jax.tree.map(jnp.add, of_every, more)), (of_x, of_mine)

    start = (
        zero_like(labels, hidden),
        no_gradients(head),
        jax.tree.map(lambda a: zeros_as(a, a.dtype), every),
    )
    (total, of_head, of_every), of_tokens = lax.scan(step, start, ks)
    of_hidden, of_weights = jax.tree.map(lambda a: joined(a, labels.shape[0]), of_tokens)
    return total, (of_hidden, of_head, of_weights, of_every)


def zero_like(labels: Array, hidden: Array) -> Array:
    """A number that varies over devices as the labels do."""
    return zeros_as(jnp.sum(labels), wide(hidden.dtype))
