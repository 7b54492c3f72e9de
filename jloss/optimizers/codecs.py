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
from jloss.optimizers._precision import promoting
from jloss.optimizers._rounding import random_bits, to_bfloat16

SMALLEST, SHORTEST = 4096, 16  # leaf, and row, that 8 bits pay for


class Codec(NamedTuple):
    """How one array of an optimizer's state is stored between steps.

    Attributes:
        encode: `(x, squares, bits)` to what is stored, in arrays of x's shape where possible (they
            are then sharded like the parameter). `squares` says that no entry of x is negative;
            `bits()` gives 32 random bits for each entry.
        decode: what is stored to float32.
    """

    encode: Callable[[jax.Array, bool, Callable[[], jax.Array]], Any]
    decode: Callable[[Any], jax.Array]


class Int8(NamedTuple):
    """An array in 8 bits: `codes` have its shape (uint8 for squares), `scale` is 1 for each row."""

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
    return Codec(lambda x, squares, bits: x.astype(jnp.float32), _widened)


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

    def encode(x: jax.Array, squares: bool, bits: Callable[[], jax.Array]) -> jax.Array:
        del squares
        wide = x.astype(jnp.float32)
        return to_bfloat16(wide, bits() if stochastic else None).astype(jnp.bfloat16)

    return Codec(encode, _widened)


def int8(scale: Literal["row"] = "row", *, stochastic: bool = True) -> Codec:
    r"""Store 8 bits for each entry, and one float32 for each row (the last axis), its scale s.

    $$ x \approx s\, \frac{c}{254 - |c|}, \quad c \in \{-127 \dots 127\}, \qquad
       v \approx s^4 \Bigl(\frac{c}{255}\Bigr)^4, \quad c \in \{0 \dots 255\} $$

    First moments are coded by the softsign, which is finest near 0; second moments by the fourth
    root, which reaches down to 2e-10 of the row's largest, and no positive one is stored as 0 (its
    root is divided by). Leaves with less than 4096 entries, or rows shorter than 16, stay float32.

    Args:
        scale: "row", the only choice: one scale for each row.
        stochastic: round up or down by chance, so that the mean is exact (but of squares below
            the least, which become the least).

    Raises:
        ValueError: if `scale` is something else.

    A NaN or an infinity takes its whole row with it (see `guard`).

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

    def encode(x: jax.Array, squares: bool, bits: Callable[[], jax.Array]) -> jax.Array | Int8:
        wide = x.astype(jnp.float32)
        if x.size < SMALLEST or x.shape[-1] < SHORTEST:
            return wide
        chance = _uniform(bits()) if stochastic else None
        return _encoded_squares(wide, chance) if squares else _encoded_means(wide, chance)

    return Codec(encode, _decoded)


def encode_state(
    tx: optax.GradientTransformation,
    rules: Mapping[str, Codec],
    *,
    squares: Collection[str] = ("nu", "sum_of_squares"),
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Store fields of the state of any optax transformation by codecs; it computes in float32.

    Args:
        tx: the transformation.
        rules: for names of fields of its state ("mu", "nu", "trace", ...), the codec to store them
            by. Real floating point arrays are encoded, all else is kept as it is.
        squares: the fields that hold no negative number.
        seed: of the stochastic rounding, an integer.

    Returns:
        An optax transformation with the state `EncodedState(step, inner_state)`; `optax.tree.get`
        finds the fields by their names, and `state_shardings` says where they lie on a mesh.

    Raises:
        KeyError: if the state has no field of such a name.

    >>> import jax.numpy as jnp
    >>> lion = encode_state(optax.lion(1e-3), {"mu": bf16()})
    >>> optax.tree.get(lion.init(jnp.ones(2)), "mu").dtype
    dtype(bfloat16)
    """
    run = promoting(tx)

    def encoded(tree: Any, step: ArrayLike) -> Any:
        def encode(leaf: int, name: str, x: jax.Array) -> Any:
            bits = functools.partial(random_bits, x, seed, step, leaf)
            return rules[name].encode(x, name in squares, bits)

        return _map_fields(encode, tree, rules)

    def init(params: optax.Params) -> EncodedState:
        inner = run.init(params)
        for name in rules:
            if not optax.tree.get_all_with_path(inner, name):
                raise KeyError(f"the state has no field `{name}`")
        return EncodedState(jnp.zeros((), jnp.int32), encoded(inner, 0))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, EncodedState]:
        whole = _map_fields(lambda _, name, x: rules[name].decode(x), state.inner_state, rules)
        updates, after = run.update(updates, whole, params, **extra)
        step = optax.safe_increment(state.step)
        inner = gated(extra.get("take"), encoded(after, step), state.inner_state)
        return updates, EncodedState(step, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _map_fields(f: Callable[[int, str, Any], Any], state: Any, rules: Mapping[str, Codec]) -> Any:
    """Map the real leaves of the fields that have rules; f gets a leaf's place, field and value."""
    leaves, tree = jax.tree.flatten_with_path(state, is_leaf=lambda x: isinstance(x, Int8))
    return tree.unflatten(
        f(place, name, x) if (name := _field(path, rules)) and _real(x) else x
        for place, (path, x) in enumerate(leaves)
    )


def _field(path: tuple[Any, ...], rules: Mapping[str, Codec]) -> str | None:
    names = (getattr(key, "name", None) for key in path)
    return next((name for name in names if name in rules), None)


def _real(x: Any) -> bool:
    return isinstance(x, Int8) or jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _widened(stored: Any) -> jax.Array:
    return stored.astype(jnp.float32)


def _encoded_means(x: jax.Array, chance: jax.Array | None) -> Int8:
    scale, share = _scaled(x)
    codes = _rounded(254 * share / (1 + jnp.abs(share)), share, _mean, chance)
    return Int8(jnp.clip(codes, -127, 127).astype(jnp.int8), scale)


def _encoded_squares(x: jax.Array, chance: jax.Array | None) -> Int8:
    scale, share = _scaled(jnp.sqrt(jnp.sqrt(x)))
    codes = _rounded(255 * share, share**4, _square, chance)
    return Int8(jnp.clip(codes, jnp.sign(x), 255).astype(jnp.uint8), scale)


def _decoded(stored: Any) -> jax.Array:
    if not isinstance(stored, Int8):
        return _widened(stored)
    codes = _widened(stored.codes)
    if stored.codes.dtype == jnp.int8:
        return stored.scale * _mean(codes)
    return (stored.scale * (codes / 255)) ** 4


def _mean(code: jax.Array) -> jax.Array:
    return code / (254 - jnp.abs(code))


def _square(code: jax.Array) -> jax.Array:
    return (code / 255) ** 4


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x))  # the largest of a row on CPU skips NaN
    scale = jnp.max(size, axis=-1, keepdims=True)
    return scale, x / jnp.where(scale > 0, scale, 1)


def _rounded(
    code: jax.Array,
    share: jax.Array,
    value: Callable[[jax.Array], jax.Array],
    chance: jax.Array | None,
) -> jax.Array:
    """To the nearest code, or by chance to the one below or above, so that the mean is `share`."""
    if chance is None:
        return jnp.round(code)
    low = jnp.floor(code)
    below, above = value(low), value(low + 1)
    return jnp.where(chance * (above - below) < share - below, low + 1, low)


def _uniform(bits: jax.Array) -> jax.Array:
    return (bits >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)
