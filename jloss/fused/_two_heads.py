"""Two distributions over a vocabulary, of a chunk of tokens, and what lies between them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jloss._core.checks import nan_unless
from jloss._core.numerics import expm1_less, product
from jloss.fused._chunks import alike
from jloss.fused._tiles import Head, squashed, times, wide

if TYPE_CHECKING:
    from jloss.fused.linear import Implementation


class How(NamedTuple):
    """What is decided before anything is traced."""

    terms: Callable[..., Array]  # (both, *numbers), what each class adds
    transposed: bool
    axis_name: str | None
    implementation: Implementation


class Both(NamedTuple):
    """Two distributions, class by class."""

    log_p: Array
    log_q: Array
    gap: Array  # log_q - log_p, from what has not been rounded to either

    def near(self) -> Array:
        """Where to go by the gap, since a difference of the two would lose digits."""
        return (self.gap < 1) & (self.log_p > -jnp.inf)


@jax.custom_jvp
def kl_terms(both: Both) -> Array:
    """p log(p / q) - p + q of each class: never negative, and summed what p log(p / q) is.

    The rules of both kinds of terms are their derivatives, simplified by hand: plain ones cancel.
    """
    return excess(both.log_p, jnp.exp(both.log_q), both.gap)


@kl_terms.defjvp
def _(primals, tangents):
    (both,), (by,) = primals, tangents
    p, q, near = jnp.exp(both.log_p), jnp.exp(both.log_q), both.near()
    more = jnp.where(near, p * jnp.expm1(jnp.where(near, both.gap, 0)), q - p)
    return kl_terms(both), more * by.log_q - product(p, both.gap) * by.log_p


@jax.custom_jvp
def jensen_shannon_terms(both: Both, beta: Array) -> Array:
    """What each class adds to the divergence of p and q from their mixture; never negative."""
    of_p, of_q = from_mixture(both, beta)
    mixture = beta * jnp.exp(both.log_p) + (1 - beta) * jnp.exp(both.log_q)
    of_p, of_q = excess(both.log_p, mixture, of_p), excess(both.log_q, mixture, of_q)
    return beta * of_p + (1 - beta) * of_q


@jensen_shannon_terms.defjvp
def _(primals, tangents):
    (both, beta), (by, by_beta) = primals, tangents
    of_p, of_q = from_mixture(both, beta)
    p, q = jnp.exp(both.log_p), jnp.exp(both.log_q)
    slope = -(product(beta * p, of_p) * by.log_p + product((1 - beta) * q, of_q) * by.log_q)
    mixture = beta * p + (1 - beta) * q
    of_beta = excess(both.log_p, mixture, of_p) - excess(both.log_q, mixture, of_q)
    return jensen_shannon_terms(both, beta), slope + of_beta * by_beta


def from_mixture(both: Both, beta: Array) -> tuple[Array, Array]:
    """The logarithms of the mixture over p, and over q."""
    finite, more = jnp.isfinite(both.gap), both.gap > 0
    gap = jnp.where(finite, both.gap, 0)
    least = jnp.log1p(jnp.where(more, beta, 1 - beta) * jnp.expm1(-jnp.abs(gap)))
    of_p, of_q = least + jnp.maximum(gap, 0), least - jnp.minimum(gap, 0)
    return jnp.where(finite, of_p, jnp.log(beta)), jnp.where(finite, of_q, jnp.log1p(-beta))


def excess(log_p: Array, q: Array, log_ratio: Array) -> Array:
    """p log(p / q) - p + q, from log(q / p)."""
    p, near = jnp.exp(log_p), (log_ratio < 1) & (log_p > -jnp.inf)
    close = product(p, expm1_less(jnp.where(near, log_ratio, 0)))
    return jnp.where(near, close, (q - p) - product(p, jnp.where(near, 0, log_ratio)))


def gap_of(log_p: Array, log_q: Array) -> Array:
    """By how much the second is larger; infinite where only one is not -inf."""
    one, other = log_p > -jnp.inf, log_q > -jnp.inf
    both = one & other
    gap = jnp.where(both, log_q, 0) - jnp.where(both, log_p, 0)
    return jnp.where(both, gap, jnp.where(other, jnp.full_like(gap, jnp.inf), -jnp.inf))


def wider(head: Head) -> Head:
    """In float32 at least, for its gradient to be added up in."""
    return jax.tree.map(lambda a: a.astype(wide(a.dtype)), head)


def of_all_classes(how: How, params: Any, x: Array, x_of_teacher: Array) -> Array:
    """Of the tokens of a chunk, from all logits of both."""
    head, head_of_teacher, numbers = params
    x, y = logits_of(how, x, head), logits_of(how, x_of_teacher, head_of_teacher)
    of_x, of_y = (log_sum_exp(logits, how.axis_name)[:, None] for logits in (x, y))
    both = Both(y - of_y, x - of_x, gap_of(y, x) - (of_x - of_y))
    return total(jnp.sum(how.terms(both, *numbers), -1), how.axis_name)


def of_the_likeliest(how: How, params: Any, x: Array, log_p: Array, classes: Array) -> Array:
    """Of the tokens of a chunk, from the teacher's likeliest classes and all others as one."""
    head, numbers = params
    log_q = logits_of(how, x, head)
    log_q -= log_sum_exp(log_q, how.axis_name)[:, None]
    log_q, other_q = picked(log_q, classes, how.axis_name)
    p = -jnp.expm1(jax.nn.logsumexp(log_p, -1))  # of all others
    rounding = classes.shape[1] * float(jnp.finfo(p.dtype).eps)
    some = (p > 0) & ((p > rounding) | (other_q > -jnp.inf))
    other_p = jnp.where(some, jnp.log(jnp.where(some, p, 1)), -jnp.inf)
    all_of = lambda likeliest, others: jnp.concatenate([likeliest, others[:, None]], 1)
    log_p, log_q = all_of(log_p, other_p), all_of(log_q, other_q)
    terms = how.terms(Both(log_p, log_q, gap_of(log_p, log_q)), *numbers)
    return nan_unless(~jnp.isnan(p), jnp.sum(terms, -1))


def logits_of(how: How, x: Array, head: Head) -> Array:
    """In float32 at least."""
    plain = how.implementation == "plain"
    project = linear.fun if plain else linear  # pyright: ignore[reportAttributeAccessIssue]
    x, matrix = alike(x, head.matrix)
    return squashed(project(x, matrix, how.transposed), head)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: Array, matrix: Array, transposed: bool) -> Array:
    """Products in the dtype of `x`, added up in float32 at least; so are those of the gradients."""
    return times(x, matrix.astype(x.dtype), 1, 1 if transposed else 0)


def _linear_fwd(x, matrix, transposed):
    return linear.fun(x, matrix, transposed), (x, matrix)  # pyright: ignore[reportAttributeAccessIssue]


def _linear_bwd(transposed, given, by):
    x, matrix = given
    by = lax.optimization_barrier(by.astype(x.dtype))
    of_x = times(by, matrix.astype(x.dtype), 1, 0 if transposed else 1).astype(x.dtype)
    of_matrix = times(by, x, 0, 0) if transposed else times(x, by, 0, 0)
    return of_x, of_matrix.astype(matrix.dtype)


linear.defvjp(_linear_fwd, _linear_bwd)


def total(of_device: Array, axis_name: str | None) -> Array:
    """Over the devices that split the vocabulary."""
    return of_device if axis_name is None else lax.psum(of_device, axis_name)


def log_sum_exp(x: Array, axis_name: str | None) -> Array:
    """Over the vocabulary [n, classes]; -inf where there is none."""
    top = lax.stop_gradient(jnp.max(x, -1))
    top = top if axis_name is None else lax.pmax(top, axis_name)
    top = jnp.where(jnp.isfinite(top), top, 0)
    e = total(jnp.sum(jnp.exp(x - top[:, None]), -1), axis_name)
    return jnp.where(e == 0, -jnp.inf, jnp.log(jnp.where(e == 0, 1, e)) + top)


def picked(log_q: Array, classes: Array, axis_name: str | None) -> tuple[Array, Array]:
    """The log-probabilities of some classes [n, k], and of all others together [n]."""
    size = log_q.shape[1]
    first = 0 if axis_name is None else lax.axis_index(axis_name) * size
    here = (classes >= first) & (classes < first + size)
    own, taken = looked_up(log_q, jnp.where(here, classes - first, size))
    others = log_sum_exp(jnp.where(taken, -jnp.inf, log_q), axis_name)
    return total(jnp.where(here, own, 0), axis_name), others


def looked_up(rows: Array, places: Array) -> tuple[Array, Array]:
    """What rows [n, size] hold at places [n, k], and where these are, but for those beyond."""

    def look(rows, places):
        own = jax.vmap(lambda row, at: row.at[at].get(mode="clip"))(rows, places)
        none = jnp.zeros(rows.shape, bool)
        return own, jax.vmap(lambda row, at: row.at[at].set(True, mode="drop"))(none, places)

    there = jax.typeof(rows).sharding
    if AxisType.Explicit not in there.mesh.axis_types:
        return look(rows, places)
    out = NamedSharding(there.mesh, P(there.spec[0], None)), there
    return jax.sharding.auto_axes(look, out_sharding=out)(rows, places)  # pyright: ignore[reportCallIssue]
