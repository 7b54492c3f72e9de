"""Tokens a chunk at a time: what a function gives of each, and its slopes.

`mapped` computes a chunk again for its slopes; `weighted_sum` knows what its values will be
multiplied by, and makes the slopes while it has the chunk. Both give the slopes in parameters added
up in float32 at least. The function gets parameters and tokens of which only what is floating is
differentiated; the rest is `fixed`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType

from jloss._core.devices import mesh_axes
from jloss._core.numerics import product
from jloss.fused._tiles import columns, tiling, wide, zeros_as


class Plans(NamedTuple):
    """What is best on each platform."""

    cpu: Any
    default: Any

    def run(self, f: Callable, *given: Any) -> Any:
        """`f(plan, *given)` by the plan of the platform that it is compiled for."""
        if self.cpu == self.default:
            return f(self.cpu, *given)
        by_platform = {name: functools.partial(f, plan) for name, plan in self._asdict().items()}
        return lax.platform_dependent(*given, **by_platform)


@contextlib.contextmanager
def reverse_only() -> Iterator[None]:
    """Says what to do instead where forward mode meets a rule for reverse mode.

    (Under `jit` JAX differentiates after this has run, and says what it says.)
    """
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        message = 'forward-mode differentiation (`jvp`) takes `implementation="plain"`'
        raise TypeError(message) from error


class Given(NamedTuple):
    """What a function of tokens gets."""

    params: Any
    tokens: tuple  # of arrays, or trees of them, [tokens, ...]


def apart(given: Given) -> tuple[Given, Given]:
    """What is floating, and the rest; None where the other has something."""
    some = lambda kind: lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) == kind else None
    floating, fixed = (jax.tree.map(some(kind), given) for kind in (True, False))
    return floating, fixed


def whole(floating: Any, fixed: Any) -> Any:
    """What `apart` has taken apart."""
    first = lambda a, b: b if a is None else a
    return jax.tree.map(first, floating, fixed, is_leaf=lambda a: a is None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def mapped(plans: Plans, f: Callable[..., Array], floating: Given, fixed: Given) -> Array:
    """`f(params, *tokens)` of all tokens [tokens]."""
    return plans.run(functools.partial(values_of, f), floating, fixed)


def _mapped_fwd(plans, f, *given):
    return plans.run(functools.partial(values_of, f), *given), given


def _mapped_bwd(plans, f, given, by):
    _, slopes = plans.run(functools.partial(values_and_slopes, f), *given, by)
    return Given(as_given(slopes.params, given[0].params), slopes.tokens), None


mapped.defvjp(_mapped_fwd, _mapped_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_sum(
    plans: Plans, f: Callable[..., Array], floating: Given, fixed: Given, weights: Array
) -> Array:
    """The sum of `f(params, *tokens)` times weights [tokens]."""
    return jnp.sum(product(weights, plans.run(functools.partial(values_of, f), floating, fixed)))


def _weighted_sum_fwd(plans, f, floating, fixed, weights):
    size = size_of(weights, floating)
    given = floating, fixed, weights / size
    values, slopes = plans.run(functools.partial(values_and_slopes, f), *given)
    return jnp.sum(product(weights, values)), (slopes, values, size, floating.params)


def _weighted_sum_bwd(plans, f, residuals, by):
    slopes, values, size, params = residuals
    of_params, of_tokens = scaled(slopes, by * size)
    return Given(as_given(of_params, params), of_tokens), None, values * by


weighted_sum.defvjp(_weighted_sum_fwd, _weighted_sum_bwd)


def values_of(f: Callable[..., Array], chunk: int, floating: Given, fixed: Given) -> Array:
    """Of all tokens."""
    given = whole(floating, fixed)
    ks, part = chunks_of(chunk_count(chunk, given.tokens), given.tokens, repeat=True)
    # By the forward half of a rule that `f` may hold: unlike the rule, it takes forward mode.
    of_chunk = lambda k: jax.vjp(lambda p: f(p, *part(k)[0]), given.params)[0]
    _, values = lax.scan(lambda _, k: (None, of_chunk(k)), None, ks)
    return joined(values, number_of(given.tokens))


def values_and_slopes(
    f: Callable[..., Array], chunk: int, floating: Given, fixed: Given, by: Array
) -> tuple[Array, Given]:
    """Of all tokens, the slopes multiplied by `by` [tokens]; in parameters in float32 at least."""
    count = chunk_count(chunk, (floating.tokens, fixed.tokens))
    ks, part = chunks_of(count, floating.tokens, fixed.tokens, repeat=True)
    _, part_of_by = chunks_of(count, by)

    def step(so_far, k):
        (mine, others), (factors,) = part(k), part_of_by(k)

        def of_chunk(params, tokens):
            params, tokens = whole((params, tokens), (fixed.params, others))
            return f(params, *tokens)

        values, pull = jax.vjp(of_chunk, floating.params, mine)
        of_params, of_tokens = pull(factors.astype(values.dtype))
        add = lambda total, more: total + more.astype(total.dtype)
        return jax.tree.map(add, so_far, of_params), (values, of_tokens)

    of_params, of_all = lax.scan(step, no_gradients(floating.params), ks)
    values, of_tokens = jax.tree.map(lambda a: joined(a, number_of(by)), of_all)
    return values, Given(of_params, of_tokens)


def number_of(tokens: Any) -> int:
    """How many tokens there are."""
    return jax.tree.leaves(tokens)[0].shape[0]


def chunks_of(
    count: int, *trees: Any, repeat: bool = False
) -> tuple[Array, Callable[[Array], Any]]:
    """The numbers of the chunks, and what gives the tokens of one.

    What fills the last is 0, or repeats a token.
    """
    parts = jax.tree.map(lambda a: split(a, count, repeat), trees)
    return jnp.arange(count, dtype=jnp.int32), lambda k: jax.tree.map(
        lambda a: columns(a, k, 1, 0)[0], parts
    )


def chunk_count(chunk: int, trees: Any) -> int:
    """Of tokens [tokens, ...]; on an Explicit mesh it divides what each device has of them."""
    tokens, there = number_of(trees), jax.typeof(jax.tree.leaves(trees)[0]).sharding
    if not isinstance(tokens, int):  # of symbolic shape
        return 1
    count, _ = tiling(tokens, chunk)
    if AxisType.Explicit not in there.mesh.axis_types or there.spec[0] is None:
        return count
    own = tokens // math.prod(there.mesh.shape[a] for a in mesh_axes(there.spec[0]))
    divisors = (n for n in range(1, own + 1) if own % n == 0)
    return min(divisors, key=lambda n: abs(math.log(n / count)), default=1)


def flat(array: Array, axes: int) -> Array:
    """The first axes as one, of tokens."""
    return array.reshape(-1, *array.shape[axes:])


def split(array: Array, chunks: int, repeat: bool) -> Array:
    """[tokens, ...] to [chunks, tokens in each, ...]; where devices may share the tokens by stride.

    Then each chunk has some of every device's; otherwise nothing needs to be copied.
    """
    tokens = array.shape[0]
    symbolic = not isinstance(tokens, int)
    more = 0 if symbolic else -tokens % chunks if tokens else chunks
    by = (0, more), *((0, 0) for _ in array.shape[1:])
    array = jnp.pad(array, by, mode="edge" if repeat and tokens else "constant") if more else array
    if shared():
        return array.reshape(-1, chunks, *array.shape[1:]).swapaxes(0, 1)
    return array.reshape(chunks, -1, *array.shape[1:])


def joined(array: Array, tokens: int) -> Array:
    """What `split` has split."""
    array = array.swapaxes(0, 1) if shared() else array
    return array.reshape(-1, *array.shape[2:])[:tokens]


def shared() -> bool:
    """Whether an array may lie on several devices, unknown to its shape."""
    return jax.device_count() > 1 and not jax.sharding.get_abstract_mesh().manual_axes


def no_gradients(arrays: Any) -> Any:
    """To add to, in float32 at least."""
    return jax.tree.map(lambda a: zeros_as(a, wide(a.dtype)), arrays)


def size_of(weights: Array, given: Any) -> Array | float:
    """A power of two near the largest weight, by which float16 slopes would fall out of range."""
    if not any(a.dtype == jnp.float16 for a in jax.tree.leaves(given)):
        return 1.0
    largest = jnp.max(jnp.abs(lax.stop_gradient(weights)), initial=0)
    usual = (largest > 0) & jnp.isfinite(largest)
    _, exponent = jnp.frexp(jnp.where(usual, largest, 1))
    return jnp.ldexp(jnp.ones_like(largest), exponent)


def scaled(slopes: Any, by: Array) -> Any:
    """In their own dtypes, but multiplied in that of the factor."""
    return jax.tree.map(lambda a: (a.astype(by.dtype) * by).astype(a.dtype), slopes)


def as_given(gradients: Any, given: Any) -> Any:
    """In the dtypes of what was given."""
    return jax.tree.map(lambda g, a: g.astype(a.dtype), gradients, given)
