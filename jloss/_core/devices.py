"""What the devices of a mesh share, and what each has of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


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


def mesh_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Those over which a partition spec shards one axis."""
    return (entry,) if isinstance(entry, str) else entry or ()


def on_auto_axes(f: Callable[..., Any], consumed: int, data: Array, *given: Any) -> Any:
    """`f(data, *given)`, in which XLA shards; results keep the axes before the last `consumed`."""
    there = jax.typeof(data).sharding
    if AxisType.Explicit not in there.mesh.axis_types:
        return f(data, *given)
    out = NamedSharding(there.mesh, P(*there.spec[: data.ndim - consumed]))
    on_auto: Any = jax.sharding.auto_axes(f, out_sharding=out)
    return on_auto(data, *given)


def total(of_device: Array, axis_name: str | None) -> Array:
    """Over the devices that split an axis, the classes say."""
    return of_device if axis_name is None else lax.psum(of_device, axis_name)
