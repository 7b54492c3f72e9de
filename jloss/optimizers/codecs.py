"""How moments are stored: float32, bfloat16, or 8 bits with a scale for each row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jloss.optimizers._moments import gated
from jloss.optimizers._precision import in_float32, owner_of
from jloss.optimizers._rounding import random_bits, to_bfloat16

Bits = Callable[[], jax.Array]
SMALLEST, SHORTEST = 4096, 16  # leaf, and row, that 8 bits pay for


class Codec(NamedTuple):
    """How one array of an optimizer's state is stored between steps.

    Attributes:
        encode: `(x, squares, bits, before)` to what is stored, in arrays of x's shape where that
            can be (they are then sharded like the parameter). `squares` says that no entry of x is
            negative; `bits()` gives 32 random bits for each entry; `before` is what was stored
            until now, whose structure stays, or None at first.
        decode: what is stored to float32.
    """

    encode: Callable[[jax.Array, bool, Bits, Any], Any]
    decode: Callable[[Any], jax.Array]


class Int8(NamedTuple):
    """An array in 8 bits: `codes` in its shape (uint8 for squares), one root of a scale a row."""

    codes: Any
    scale: Any


class EncodedState(NamedTuple):
    """The state of `encode_state`: the steps so far, and the state inside, encoded."""

    step: ArrayLike
    inner_state: Any


def f32() -> Codec:
    """Store float32: four bytes for each entry.

    >>> import jax.numpy as jnp
    >>> encode_state(optax.trace(0.9), {"trace": f32()}).init(jnp.ones(2, jnp.bfloat16)).inner_state
    TraceState(trace=Array([0., 0.], dtype=float32))
    """
    return Codec(lambda x, squares, bits, before: x.astype(jnp.float32), _widened)


def bf16(stochastic: bool = True) -> Codec:
    """Store bfloat16: two bytes for each entry.

    Args:
        stochastic: round up or down by chance, so that the mean is exact. To nearest (False) a
            second moment of decay 0.999 can never decay: what a step takes from it is less than
            half of its last digit.

    >>> import jax.numpy as jnp
    >>> from jloss.optimizers import adam
    >>> state = adam(1e-3, mu=bf16(), nu=bf16()).init(jnp.ones(2))
    >>> optax.tree.get(state, "nu")
    Array([0, 0], dtype=bfloat16)
    """

    def encode(x: jax.Array, squares: bool, bits: Bits, before: Any) -> jax.Array:
        del squares, before
        wide = x.astype(jnp.float32)
        return to_bfloat16(wide, bits() if stochastic else None).astype(jnp.bfloat16)

    return Codec(encode, _widened)


def int8(scale: Literal["row"] = "row", *, stochastic: bool = True) -> Codec:
    r"""Store 8 bits for each entry, and one float32 for each row (the last axis), its scale s.

    $$ x \approx \operatorname{sign}(c)\, \Bigl(s\, \frac{|c|}{n}\Bigr)^4, \qquad
       c \in \{-127 \dots 127\},\ n = 127, \quad
       \text{of squares } c \in \{0 \dots 255\},\ n = 255 $$

    A row may hold entries of very different size: fourth roots reach down to 4e-9 of its largest,
    of squares to 2e-10, and no positive square is stored as 0 (its root is divided by). A code c is
    4/c of its value wide: what is far smaller than its row's largest is noisy, but right in the
    mean. Leaves with less than 4096 entries, or rows shorter than 16, stay float32.

    Args:
        scale: "row", the only choice: one scale for each row.
        stochastic: round up or down by chance, so that the mean is exact (but of squares below
            the least, which become the least). To nearest (False) moments hardly decay.

    Raises:
        ValueError: if `scale` is something else.

    A NaN or an infinity takes its whole row with it (see `guard`). No derivative passes through the
    codes.

    References:
        Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022.

    >>> import jax.numpy as jnp
    >>> from jloss.optimizers import adam
    >>> nu = optax.tree.get(adam(1e-3, mu=int8(), nu=int8()).init(jnp.ones((64, 64))), "nu")
    >>> nu.codes.shape, nu.codes.dtype, nu.scale.shape
    ((64, 64), dtype('uint8'), (64, 1))
    """
    if scale != "row":
        raise ValueError(f'scale must be "row", got {scale!r}')

    def encode(x: jax.Array, squares: bool, bits: Bits, before: Any) -> jax.Array | Int8:
        small = x.size < SMALLEST or x.shape[-1] < SHORTEST
        if small if before is None else not isinstance(before, Int8):
            return x.astype(jnp.float32)
        dtype = jnp.dtype(jnp.uint8 if squares else jnp.int8)
        return _encoded(x.astype(jnp.float32), dtype, bits if stochastic else None)

    return Codec(encode, _decoded)


def encode_state(
    tx: optax.GradientTransformation,
    rules: Mapping[str, Codec],
    *,
    squares: Collection[str] = ("nu", "sum_of_squares"),
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Store fields of the state of any optax transformation by codecs; compute in float32.

    Args:
        tx: the transformation.
        rules: for names of fields of its state ("mu", "nu", "trace", ...), the codec to store them
            by. Real floating point arrays are encoded, all else is kept as it is.
        squares: the fields that hold no negative number.
        seed: of the stochastic rounding, an integer or a key. Members of a `vmap` round alike, if
            each has not a seed of its own.

    Returns:
        An optax transformation with the state `EncodedState(step, inner_state)`; `optax.tree.get`
        finds the fields by their names, and `state_shardings` says where they lie on a mesh.

    Raises:
        KeyError: if the state has no field of such a name.
        TypeError: if a rule is no codec, or if a gradient, or its parameter, is neither floating
            point nor complex.

    All is computed in float32: half-precision gradients and parameters are widened, the updates
    have the parameters' dtype, other fields are float32, and the dtypes of a state never change.

    >>> import jax.numpy as jnp
    >>> lion = encode_state(optax.lion(1e-3), {"mu": bf16()})
    >>> optax.tree.get(lion.init(jnp.ones(2)), "mu").dtype
    dtype(bfloat16)
    """
    for name, codec in rules.items():
        if not isinstance(codec, Codec):
            raise TypeError(f"`{name}` should have a codec such as int8(), but has {codec!r}")
    run = in_float32(tx)

    def encoded(tree: Any, params: Any, step: ArrayLike, before: Any = None) -> Any:
        def encode(leaf: int, name: str, x: jax.Array, before: Any) -> Any:
            if isinstance(x, Int8):
                raise ValueError(f"`{name}` is encoded already")
            if before is None:  # or XLA takes seconds to encode large constants while it compiles
                x = jax.lax.optimization_barrier(x)
            bits = functools.partial(random_bits, x, seed, step, leaf)
            return rules[name].encode(x, name in squares, bits, before)

        return _map_fields(encode, rules, params, tree, before)

    def init(params: optax.Params) -> EncodedState:
        inner = run.init(params)
        for name in rules:
            if not optax.tree.get_all_with_path(inner, name):
                raise KeyError(f"the state has no field `{name}`")
        return EncodedState(jnp.zeros((), jnp.int32), encoded(inner, params, 0))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, EncodedState]:
        decode = lambda leaf, name, x, before: rules[name].decode(x)
        whole = _map_fields(decode, rules, updates, state.inner_state)
        moves, after = run.update(updates, whole, params, **extra)
        step = optax.safe_increment(state.step)
        inner = encoded(after, updates, step, state.inner_state)
        return moves, EncodedState(step, gated(extra.get("_take"), inner, state.inner_state))

    return optax.GradientTransformationExtraArgs(init, update)


def _map_fields(
    f: Callable[[int, str, Any, Any], Any],
    rules: Mapping[str, Codec],
    params: Any,
    state: Any,
    before: Any = None,
) -> Any:
    """Map the real leaves of the fields that have rules.

    f gets a leaf's place, its field, its value, and what stands there in the state before.
    """
    flatten = functools.partial(jax.tree.flatten_with_path, is_leaf=lambda x: isinstance(x, Int8))
    leaves, tree = flatten(state)
    old = [None] * len(leaves) if before is None else [x for _, x in flatten(before)[0]]
    owners = {path for path, _ in jax.tree.leaves_with_path(params, is_leaf=lambda x: x is None)}
    return tree.unflatten(
        f(place, name, x, was) if (name := _field(path, owners, rules)) and _encodable(x) else x
        for place, ((path, x), was) in enumerate(zip(leaves, old))
    )


def _field(
    path: tuple[Any, ...], owners: Collection[Any], rules: Mapping[str, Codec]
) -> str | None:
    """Of the state: names inside the parameters, whose path ends that of the leaf, do not count."""
    of_state = path[: len(path) - len(owner_of(path, owners) or ())]
    names = (getattr(key, "name", None) for key in of_state)
    return next((name for name in names if name in rules), None)


def _encodable(x: Any) -> bool:
    return isinstance(x, Int8) or jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _widened(stored: Any) -> jax.Array:
    return stored.astype(jnp.float32)


def _encoded(x: jax.Array, dtype: jnp.dtype, bits: Bits | None) -> Int8:
    """The scale is the root of the largest, not the largest root: or all roots would be stored."""
    most = jnp.iinfo(dtype).max
    scale = _fourth_root(_largest(x))
    share = _fourth_root(jnp.abs(x)) / jnp.where(scale > 0, scale, 1)
    codes = jnp.clip(_rounded(share, most, bits), 0, most)
    codes = jnp.maximum(codes, jnp.sign(x)) if dtype == jnp.uint8 else codes * jnp.sign(x)
    return Int8(codes.astype(dtype), scale)


def _decoded(stored: Any) -> jax.Array:
    if not isinstance(stored, Int8):
        return _widened(stored)
    codes = _widened(stored.codes)
    return jnp.sign(codes) * (stored.scale * _share(codes, jnp.iinfo(stored.codes.dtype).max)) ** 4


def _share(code: jax.Array, most: int) -> jax.Array:
    return jnp.abs(code) / most


def _fourth_root(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sqrt(x))


def _largest(x: jax.Array) -> jax.Array:
    """Of each row; inf for NaN, which on CPU the largest of a row skips."""
    size = jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x))
    return jnp.max(size, axis=-1, keepdims=True)


def _rounded(share: jax.Array, most: int, bits: Bits | None) -> jax.Array:
    """To the nearest code, or by chance to the one below or above, so that the mean is exact."""
    if bits is None:
        return jnp.round(most * share)
    chance = (bits() >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)
    low = jnp.floor(most * share)
    below, above = _share(low, most) ** 4, _share(low + 1, most) ** 4
    return jnp.where(chance * (above - below) < share**4 - below, low + 1, low)
