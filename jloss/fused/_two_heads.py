"""Two distributions over a vocabulary, of a chunk of tokens, and what lies between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jloss._core.checks import nan_unless
from jloss._core.classes import log_sum_exp
from jloss._core.devices import alike, total
from jloss._core.numerics import product
from jloss.fused._terms import Both, gap_of
from jloss.fused._tiles import NO_CLASS, Head, products, squashed, times, wide

if TYPE_CHECKING:
    from jloss.fused._ends import Implementation


class How(NamedTuple):
    """What is decided before anything is traced."""

    terms: Callable[..., Array]  # (both, *numbers), what each class adds
    transposed: bool
    axis_name: str | None
    implementation: Implementation


def wider(head: Head) -> Head:
    """In float32 at least, for its gradient to be added up in."""
    return jax.tree.map(lambda a: a.astype(wide(a.dtype)), head)


def of_all_classes(how: How, params: Any, x: Array, x_of_teacher: Array) -> Array:
    """Of the tokens of a chunk, from all logits of both."""
    head, head_of_teacher, numbers = params
    x, y = logits_of(how, x, head), logits_of(how, x_of_teacher, head_of_teacher)
    y = y.astype(x.dtype)
    of_x, of_y = (log_sum_exp(logits, how.axis_name)[:, None] for logits in (x, y))
    both = Both(y - of_y, x - of_x, gap_of(y, x) - (of_x - of_y))
    return total(jnp.sum(how.terms(both, *numbers), -1), how.axis_name)


def of_the_likeliest(
    how: How, rounding: float, params: Any, x: Array, log_p: Array, classes: Array
) -> Array:
    """Of the tokens of a chunk, from the teacher's likeliest classes and all others as one.

    What is left of the teacher's probability may be no more than the rounding of what was stored:
    then it does not matter that the student has left nothing.
    """
    head, numbers = params
    log_q = logits_of(how, x, head)
    log_q -= log_sum_exp(log_q, how.axis_name)[:, None]
    there = log_p > -jnp.inf
    log_q, other_q = picked(log_q, jnp.where(there, classes, NO_CLASS), how.axis_name)
    log_q = jnp.where(there, log_q, -jnp.inf)
    p = -jnp.expm1(jax.nn.logsumexp(log_p, -1))  # of all others
    stray = rounding * (1 + jnp.sum(product(jnp.exp(log_p), -log_p), -1))
    some = (p > 0) & ((p > stray) | (other_q > -jnp.inf))
    other_p = jnp.where(some, jnp.log(jnp.where(some, p, 1)), -jnp.inf)
    all_of = lambda likeliest, others: jnp.concatenate([likeliest, others[:, None]], 1)
    log_p, log_q = all_of(log_p, other_p), all_of(log_q, other_q)
    terms = how.terms(Both(log_p, log_q, gap_of(log_p, log_q)), *numbers)
    return nan_unless(~jnp.isnan(p), jnp.sum(terms, -1))


def logits_of(how: How, x: Array, head: Head) -> Array:
    """In float32 at least."""
    project = products if how.implementation == "plain" else linear
    x, matrix = alike(x, head.matrix)
    return squashed(project(x, matrix, how.transposed), head)


# As `products`, and the gradients' own likewise: plain ones would widen all that enters them.
linear = jax.custom_vjp(products, nondiff_argnums=(2,))


def _linear_fwd(x, matrix, transposed):
    return products(x, matrix, transposed), (x, matrix)


def _linear_bwd(transposed, given, by):
    x, matrix = given
    by = lax.optimization_barrier(by.astype(x.dtype))
    of_x = times(by, matrix.astype(x.dtype), 1, 0 if transposed else 1).astype(x.dtype)
    of_matrix = times(by, x, 0, 0) if transposed else times(x, by, 0, 0)
    return of_x, of_matrix.astype(matrix.dtype)


linear.defvjp(_linear_fwd, _linear_bwd)


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
