"""Two ways through all tokens, a chunk at a time, and their plain twin.

`log_probs` computes the logits again for the gradient, and saves a few numbers of each token;
`summed` knows the loss that is summed, and makes the gradients while it has the logits: a quarter
less work, for a gradient of the matrix in float32 that is held. Each has a rule of its own, since
the gradient through a scan would keep the logits; `plain` is their twin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jloss.fused._tiles import (
    Head,
    LogProbs,
    Plan,
    Softmax,
    backward,
    columns,
    forward,
    tiling,
    wide,
    zeros_as,
)


class Plans(NamedTuple):
    """What is best on each platform."""

    cpu: Plan
    default: Plan

    def run(self, f: Callable, *given: Any) -> Any:
        """`f(plan, *given)` by the plan of the platform that it is compiled for."""
        by_platform = {name: functools.partial(f, plan) for name, plan in self._asdict().items()}
        return lax.platform_dependent(*given, **by_platform)


def alike(*trees: Any, but: str | None = None) -> Any:
    """All varying over the mesh axes of `shard_map` over which any does, `but` one.

    Outside the rules: JAX then adds up what they give for what all devices share.
    """
    trees = on_one_mesh(trees)
    varying = lambda a: jax.typeof(a).mat.varying
    axes = frozenset().union(*map(varying, jax.tree.leaves(trees))) - {but}
    missing = lambda a: tuple(axes - varying(a))
    cast = lambda a: lax.pcast(a, missing(a), to="varying") if missing(a) else a
    return jax.tree.map(cast, trees)


def on_one_mesh(tree: Any) -> Any:
    """What lies on no mesh, a constant say, copied onto the Explicit one on which others lie."""
    mesh_of = lambda a: jax.typeof(a).sharding.mesh
    meshes = [mesh_of(a) for a in jax.tree.leaves(tree) if not mesh_of(a).empty]
    if not meshes or AxisType.Explicit not in meshes[0].axis_types:
        return tree
    everywhere = lambda a: NamedSharding(meshes[0], P(*(None,) * a.ndim))
    copied = lambda a: jax.sharding.reshard(a, everywhere(a)) if mesh_of(a).empty else a
    return jax.tree.map(copied, tree)


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
    each: Any,
    every: Any,
) -> Array:
    """The sum of `loss(known, each, every)`: of arrays by token, and of numbers for all."""
    return plans.run(functools.partial(sum_alone, loss), hidden, head, labels, each, every)


def _summed_fwd(plans, loss, *given):
    return plans.run(functools.partial(sum_and_slopes, loss), *given)


def _summed_bwd(plans, loss, slopes, by):
    times = lambda a: (a.astype(by.dtype) * by).astype(a.dtype)
    of_hidden, of_head, of_each, of_every = jax.tree.map(times, slopes)
    return of_hidden, of_head, None, of_each, of_every


summed.defvjp(_summed_fwd, _summed_bwd)


def softmaxes(plan: Plan, hidden: Array, head: Head, labels: Array) -> Softmax:
    """Of each token."""
    ks, tokens = chunks_of(plan, hidden, labels)

    def step(_, k):
        x, y = tokens(k)
        return None, forward(plan, x, head, y, keep=False)[0]

    _, softs = lax.scan(step, None, ks)
    return jax.tree.map(lambda a: joined(a, labels.shape[0]), softs)


def slopes_of_log_probs(
    plan: Plan, hidden: Array, head: Head, labels: Array, softs: Softmax, by: LogProbs
) -> tuple[Array, Head]:
    """The gradients in hidden states and head."""
    ks, tokens = chunks_of(plan, hidden, labels, softs, by)

    def step(of_head, k):
        x, y, soft, slopes = tokens(k)
        of_x, of_head = backward(plan, x, head, y, soft, slopes, None, of_head)
        return of_head, of_x

    of_head, of_xs = lax.scan(step, no_gradients(head), ks)
    return joined(of_xs, labels.shape[0]), as_given(of_head, head)


def sum_alone(
    loss: Callable, plan: Plan, hidden: Array, head: Head, labels: Array, each: Any, every: Any
) -> Array:
    """Without its gradients."""
    ks, tokens = chunks_of(plan, hidden, labels, each)

    def step(total, k):
        x, y, mine = tokens(k)
        soft, _ = forward(plan, x, head, y, keep=False)
        return total + jnp.sum(loss(soft.known, mine, every)), None

    return lax.scan(step, zero_like(labels, hidden), ks)[0]


def sum_and_slopes(
    loss: Callable, plan: Plan, hidden: Array, head: Head, labels: Array, each: Any, every: Any
) -> tuple[Array, tuple]:
    """With its gradients in all but the labels."""
    ks, tokens = chunks_of(plan, hidden, labels, each)
    scalar = lambda *given: jnp.sum(loss(*given))

    def step(carry, k):
        (total, of_head, of_every), (x, y, mine) = carry, tokens(k)
        soft, kept = forward(plan, x, head, y, keep=True)
        value, pull = jax.vjp(scalar, soft.known, mine, every)
        by, of_mine, more = pull(jnp.ones_like(value))
        by = by._replace(argmax=None)
        of_x, of_head = backward(plan, x, head, y, soft, by, kept, of_head)
        return (total + value, of_head, jax.tree.map(jnp.add, of_every, more)), (of_x, of_mine)

    start = (
        zero_like(labels, hidden),
        no_gradients(head),
        jax.tree.map(lambda a: zeros_as(a, a.dtype), every),
    )
    (total, of_head, of_every), of_tokens = lax.scan(step, start, ks)
    of_hidden, of_each = jax.tree.map(lambda a: joined(a, labels.shape[0]), of_tokens)
    return total, (of_hidden, as_given(of_head, head), of_each, of_every)


def chunks_of(plan: Plan, *trees: Any) -> tuple[Array, Callable[[Array], Any]]:
    """The numbers of the chunks, and what gives the tokens of one."""
    tokens = jax.tree.leaves(trees)[0].shape[0]
    count = tiling(tokens, plan.chunk)[0] if isinstance(tokens, int) else 1  # of symbolic shape
    parts = jax.tree.map(lambda a: split(a, count), trees)
    return jnp.arange(count, dtype=jnp.int32), lambda k: jax.tree.map(
        lambda a: columns(a, k, 1, 0)[0], parts
    )


def split(array: Array, chunks: int) -> Array:
    """[tokens, ...] to [chunks, tokens in each, ...], by stride: each chunk has some of a shard."""
    tokens = array.shape[0]
    symbolic = not isinstance(tokens, int)
    more = 0 if symbolic else -tokens % chunks if tokens else chunks
    array = jnp.pad(array, ((0, more), *((0, 0) for _ in array.shape[1:]))) if more else array
    return array.reshape(-1, chunks, *array.shape[1:]).swapaxes(0, 1)


def joined(array: Array, tokens: int) -> Array:
    """What `split` has split."""
    return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])[:tokens]


def no_gradients(arrays: Any) -> Any:
    """To add to, in float32 at least."""
    return jax.tree.map(lambda a: zeros_as(a, wide(a.dtype)), arrays)


def zero_like(labels: Array, hidden: Array) -> Array:
    """A number that varies over devices as the labels do."""
    return zeros_as(jnp.sum(labels), wide(hidden.dtype))


def as_given(gradients: Any, given: Any) -> Any:
    """In the dtypes of what was given."""
    return jax.tree.map(lambda g, a: g.astype(a.dtype), gradients, given)
