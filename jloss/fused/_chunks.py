"""Tokens a chunk at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jloss.fused._tiles import columns, tiling, wide, zeros_as


class Plans(NamedTuple):
    """What is best on each platform."""

    cpu: Any
    default: Any

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


def chunks_of(chunk: int, *trees: Any) -> tuple[Array, Callable[[Array], Any]]:
    """The numbers of the chunks, and what gives the tokens of one."""
    tokens = jax.tree.leaves(trees)[0].shape[0]
    count = tiling(tokens, chunk)[0] if isinstance(tokens, int) else 1  # of symbolic shape
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


def as_given(gradients: Any, given: Any) -> Any:
    """In the dtypes of what was given."""
    return jax.tree.map(lambda g, a: g.astype(a.dtype), gradients, given)
