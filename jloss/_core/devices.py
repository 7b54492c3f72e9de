"""What the devices of a mesh share, and what each has of its own."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
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
