"""Where an optimizer's state lies on a mesh."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jloss.optimizers._precision import owner_of
from jloss.optimizers.codecs import Int8


def state_shardings(
    tx: optax.GradientTransformation, params: optax.Params, zero1_axis: str | None = None
) -> Any:
    """Say where the state of `tx` belongs: beside its parameters.

    Give it to `jax.jit(tx.init, out_shardings=...)`, which otherwise may put all moments on one
    device, to the step's `out_shardings`, and to what restores a checkpoint.

    Args:
        tx: any optax transformation.
        params: arrays, or `jax.ShapeDtypeStruct`s, with `NamedSharding`s.
        zero1_axis: a mesh axis over which parameters are replicated. The state is split over it,
            each array along its first axis that is whole and can be divided: the parameters keep
            their place, each device keeps and computes a part of the moments, and XLA gathers the
            updates (stage 1 of ZeRO). What cannot be divided stays as it is.

    Returns:
        A tree like the state, of `NamedSharding`s. An array of the state belongs to the parameter
        whose path ends its own, if it has its shape, or that of a scale for each row; others
        (counts, factored moments) are on all devices.

    Raises:
        ValueError: if a parameter has no `NamedSharding`, or the mesh has no such axis.

    References:
        Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
        SC 2020.

    >>> import jax.numpy as jnp
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> weights = jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, PartitionSpec("data")))
    >>> state_shardings(optax.adam(1e-3), {"w": weights})[0].mu["w"].spec
    P('data', None)
    """
    owners = {
        path: (param.shape, _place(path, param, zero1_axis))
        for path, param in jax.tree.leaves_with_path(params)
    }
    if not owners:
        raise ValueError("there are no parameters, so there is no mesh")
    everywhere = NamedSharding(next(iter(owners.values()))[1].mesh, PartitionSpec())

    def beside(path: tuple[Any, ...], x: Any) -> NamedSharding:
        owner = owner_of(path, owners)
        shape, place = (None, everywhere) if owner is None else owners[owner]
        if x.shape == shape:
            return place
        if shape and x.shape == (*shape[:-1], 1):
            return place.update(spec=PartitionSpec(*place.spec[:-1], None))
        return everywhere

    def place(path: tuple[Any, ...], x: Any) -> Any:
        return Int8(*(beside(path, part) for part in x)) if isinstance(x, Int8) else beside(path, x)

    shapes = jax.eval_shape(tx.init, params)
    return jax.tree.map_with_path(place, shapes, is_leaf=lambda x: isinstance(x, Int8))


def _place(path: tuple[Any, ...], param: Any, zero1_axis: str | None) -> NamedSharding:
    """The sharding of what is shaped like a parameter, its spec as long as the shape."""
    sharding = getattr(param, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        name = "parameter" + jax.tree_util.keystr(path)
        raise ValueError(f"{name} should have a NamedSharding, but has {sharding}")
    mesh, spec = sharding.mesh, [*sharding.spec, *[None] * (param.ndim - len(sharding.spec))]
    if zero1_axis is not None and not _names(spec) & {zero1_axis}:
        if zero1_axis not in mesh.shape:
            raise ValueError(f"the mesh has no axis {zero1_axis!r}, only {tuple(mesh.shape)}")
        parts = mesh.shape[zero1_axis]
        whole = [d for d, n in enumerate(param.shape) if spec[d] is None and n and n % parts == 0]
        for d in whole[:1]:
            spec[d] = zero1_axis
    return sharding.update(spec=PartitionSpec(*spec))


def _names(spec: list[Any]) -> set[str]:
    return {
        name for entry in spec if entry for name in ((entry,) if isinstance(entry, str) else entry)
    }
