"""What each class adds to a divergence between two distributions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jloss._core.numerics import expm1_less, product


class Both(NamedTuple):
    """Two distributions, class by class."""

    log_p: Array
    log_q: Array
    gap: Array  # log_q - log_p, from what has not been rounded to either


@jax.custom_jvp
def kl_terms(both: Both) -> Array:
    """p log(p / q) - p + q of each class: never negative, and summed what p log(p / q) is.

    The rules of both kinds of terms are their derivatives, simplified by hand: plain ones cancel.
    """
    return excess(both.log_p, jnp.exp(both.log_q), both.gap)


@kl_terms.defjvp
def _(primals, tangents):
    (both,), (by,) = primals, tangents
    p, q, near = jnp.exp(both.log_p), jnp.exp(both.log_q), nearby(both.log_p, both.gap)
    more = jnp.where(near, p * jnp.expm1(jnp.where(near, both.gap, 0)), q - p)
    return kl_terms(both), more * by.log_q - product(p, both.gap) * by.log_p


@jax.custom_jvp
def jensen_shannon_terms(both: Both, beta: Array) -> Array:
    """What each class adds to the divergence of p and q from their mixture; never negative."""
    of_p, of_q = from_mixture(both, beta)
    mixture = beta * jnp.exp(both.log_p) + (1 - beta) * jnp.exp(both.log_q)
    of_p, of_q = excess(both.log_p, mixture, of_p), excess(both.log_q, mixture, of_q)
    return product(beta, of_p) + product(1 - beta, of_q)


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
    near = jnp.abs(both.gap) < 1
    gap, far = jnp.where(near, both.gap, 0), jnp.where(near, 1, both.gap)
    of_teacher = jnp.where(beta > 0, jnp.log(beta) - far, -jnp.inf)  # if it has none, for any gap
    of_student = jnp.where(beta < 1, jnp.log1p(-beta) + far, -jnp.inf)
    of_p = jnp.logaddexp(jnp.log(beta), of_student)
    of_q = jnp.logaddexp(of_teacher, jnp.log1p(-beta))
    of_p = jnp.where(near, jnp.log1p((1 - beta) * jnp.expm1(gap)), of_p)
    return of_p, jnp.where(near, jnp.log1p(beta * jnp.expm1(-gap)), of_q)


def excess(log_p: Array, q: Array, log_ratio: Array) -> Array:
    """p log(p / q) - p + q, from log(q / p)."""
    p, near = jnp.exp(log_p), nearby(log_p, log_ratio)
    close = product(p, expm1_less(jnp.where(near, log_ratio, 0)))
    return jnp.where(near, close, (q - p) - product(p, jnp.where(near, 0, log_ratio)))


def nearby(log_p: Array, log_ratio: Array) -> Array:
    """Where to go by the ratio, since a difference would lose digits."""
    return (log_ratio < 1) & (log_p > -jnp.inf)


def gap_of(log_p: Array, log_q: Array) -> Array:
    """By how much the second is larger; infinite where only one is not -inf."""
    one, other = log_p > -jnp.inf, log_q > -jnp.inf
    both = one & other
    gap = jnp.where(both, log_q, 0) - jnp.where(both, log_p, 0)
    return jnp.where(both, gap, jnp.where(other, jnp.full_like(gap, jnp.inf), -jnp.inf))
