"""Sums and maxima over all paths through a lattice, and how often each weight is on the way.

A lattice is walked step by step: a step weighs cells, merges those that meet, and tells of each
merge which share of it either part is. One walk forward gives the total of all paths.
One walk back sends a mass of 1 from the end through these shares, and what flows over a weight is
how often it is used: its posterior where merging adds (the gradient of the logarithm of the total,
with no second recursion), and the best path itself where merging takes the larger.

What a step does is the lattice's (`CHAIN` for CTC, `GRID` for transducers and edit distances); what
adding and multiplying mean is the algebra's (`EXTENDED`, `MAX_PLUS`). Both are textbook recursions:
Rabiner, "A Tutorial on Hidden Markov Models", Proceedings of the IEEE, 1989; Mohri, "Semiring
Frameworks and Algorithms for Shortest-Distance Problems", Journal of Automata, Languages and
Combinatorics, 2002.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jloss._core.devices import alike

Cell = tuple[Array, ...]  # a number of an algebra, in parts of one shape
Shares = tuple[Array, Array]  # of a merge: which share of it each of the two is
CHUNK = 32  # steps between two tidyings


class Algebra(NamedTuple):
    """What weights and cells are, and how they are multiplied and merged."""

    nothing: tuple[float, ...]  # the cell that no path reaches
    of_log: Callable[[Array], Cell]
    times: Callable[[Cell, Cell], Cell]
    plus: Callable[[Cell, Cell], tuple[Cell, Shares]]
    tidy: Callable[[Cell], Cell]  # due after every chunk
    log: Callable[[Cell], Array]


class Lattice(NamedTuple):
    """Which cells meet in a step. Cells and masses are of arrays [batch, positions]."""

    step: Callable[..., tuple[tuple[Cell, ...], tuple[Shares, ...]]]
    back: Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]]  # sources; flow over weights


class Steps(NamedTuple):
    """What a lattice is walked with: the weights that its step takes, and masks of a chain."""

    weights: tuple[Array, ...]  # logarithms, [steps, batch, positions]
    there: Array | None = None  # bool [steps, batch, 1]: a step that is not moves nothing
    repeats: Array | None = None  # bool [batch, positions]: see `chain_step`


# The sum of all paths: a cell is m * 2^e, with an exponent of its own that no length can overflow.
# Adding aligns exponents. There is no logarithm to round, and no exponential in the recursion.

LEAST = -(1 << 30)  # exponent of a cell that no path reaches
NEVER = -(1 << 24)  # of a weight of 0; CHUNK of these on LEAST differ from 0 within 32 bits
LN2_HIGH = 0.693359375  # of so few digits that its products with exponents are exact
LN2_LOW = math.log(2) - LN2_HIGH


def power_of_2(exponent: Array, dtype: jnp.dtype) -> Array:
    """Exact, and 0 below the smallest normal number."""
    kind = jnp.finfo(dtype)
    biased = jnp.maximum(exponent + (kind.maxexp - 1), 0).astype(f"int{kind.bits}")
    return lax.bitcast_convert_type(biased << kind.nmant, dtype)


def scaled(log: Array) -> Cell:
    ever = log > NEVER * math.log(2)
    log = jnp.where(ever, log, 0)
    exponent = jnp.round(lax.stop_gradient(log) * (1 / math.log(2)))
    m = jnp.exp((log - exponent * LN2_HIGH) - exponent * LN2_LOW)
    return jnp.where(ever, m, 0), jnp.where(ever, exponent.astype(jnp.int32), NEVER)


def multiplied(a: Cell, b: Cell) -> Cell:
    return a[0] * b[0], a[1] + b[1]


def added(a: Cell, b: Cell) -> tuple[Cell, Shares]:
    behind = a[1] - b[1]
    shrunk = power_of_2(-jnp.abs(behind), a[0].dtype)
    first = jnp.where(behind >= 0, a[0], a[0] * shrunk)
    second = jnp.where(behind >= 0, b[0] * shrunk, b[0])
    m = first + second
    # Either by itself: one less the other would lose the digits of what is rare.
    shares = first / jnp.where(m > 0, m, 1), second / jnp.where(m > 0, m, 1)
    return (m, jnp.maximum(a[1], b[1])), shares


def normalized(a: Cell) -> Cell:
    """The same number with m in [1, 2)."""
    m, e = a
    kind = jnp.finfo(m.dtype)
    bits = lax.bitcast_convert_type(lax.stop_gradient(m), f"int{kind.bits}") >> kind.nmant
    more = bits.astype(jnp.int32) - (kind.maxexp - 1)
    reached = (m > 0) & (e + more > LEAST)
    m = jnp.where(reached, m * power_of_2(-more, m.dtype), 0)
    return m, jnp.where(reached, e + more, LEAST)


def logarithm(a: Cell) -> Array:
    m, e = a
    exponent = e.astype(m.dtype)
    log = exponent * LN2_HIGH + (exponent * LN2_LOW + jnp.log(jnp.where(m > 0, m, 1)))
    return jnp.where(m > 0, log, -jnp.inf)


EXTENDED = Algebra((0.0, LEAST), scaled, multiplied, added, normalized, logarithm)


# The best of all paths.


def better(a: Cell, b: Cell) -> tuple[Cell, Shares]:
    first = a[0] >= b[0]
    shares = first.astype(a[0].dtype), (~first).astype(a[0].dtype)
    return (jnp.maximum(a[0], b[0]),), shares


MAX_PLUS = Algebra(
    (-jnp.inf,),
    of_log=lambda log: (log,),
    times=lambda a, b: (a[0] + b[0],),
    plus=better,
    tidy=lambda a: a,
    log=lambda a: a[0],
)


# Lattices.


def select(mask: Array, a: Cell, b: tuple) -> Cell:
    return tuple(jnp.where(mask, x, y) for x, y in zip(a, b))


def onward(a: Cell, nothing: tuple) -> Cell:
    """Each cell to the next position."""
    by = ((0, 0), (1, 0))
    return tuple(jnp.pad(x[:, :-1], by, constant_values=fill) for x, fill in zip(a, nothing))


def backward(mass: Array) -> Array:
    return jnp.pad(mass[:, 1:], ((0, 0), (0, 1)))


def chain_step(algebra: Algebra, cells, weights, there, repeats):
    """Of CTC. `blanks[n]` has read n labels and then a blank, `labels[n]` the n-th label just now.

    The one weight is that of the blank at position 0, and of the n-th label at n. Between two
    labels that are the same (n and n + 1 where `repeats[n]`) there must be a blank.
    """
    (blanks, labels), (weight,) = cells, weights
    moving = select(there, labels, algebra.nothing)
    either, at_blank = algebra.plus(blanks, moving)
    before = select(there, select(repeats, blanks, either), algebra.nothing)
    here, at_label = algebra.plus(labels, onward(before, algebra.nothing))
    of_blank = tuple(part[:, :1] for part in weight)
    return (algebra.times(either, of_blank), algebra.times(here, weight)), (at_blank, at_label)


def chain_back(mass, shares, repeats):
    (blanks, labels), ((kept, moved), (stayed, came)) = mass, shares
    before = backward(labels * came)
    either = blanks + jnp.where(repeats, 0, before)
    sources = either * kept + jnp.where(repeats, before, 0), labels * stayed + either * moved
    first = is_end(labels, jnp.zeros_like(labels[:, 0], jnp.int32))
    return sources, (jnp.where(first, jnp.sum(blanks, 1, keepdims=True), labels),)


CHAIN = Lattice(chain_step, chain_back)


def grid_step(algebra: Algebra, cells, weights, there, repeats):
    """Of a grid [down, right], an anti-diagonal at a time; positions count to the right.

    A node's weights are those of leaving it: down, to the right, and perhaps across.
    """
    (here, *crossing), (down, right, *across) = cells, weights
    right = onward(algebra.times(here, right), algebra.nothing)
    met, edges = algebra.plus(algebra.times(here, down), right)
    if not across:
        return (met,), (edges,)
    met, last = algebra.plus(met, onward(crossing[0], algebra.nothing))
    return (met, algebra.times(here, across[0])), (edges, last)


def grid_back(mass, shares, repeats):
    (here, *crossing), ((of_down, of_right), *last) = mass, shares
    edges = here * last[0][0] if last else here
    down, right = edges * of_down, backward(edges * of_right)
    if not last:
        return (down + right,), (down, right)
    return (down + right + crossing[0], backward(here * last[0][1])), (down, right, crossing[0])


GRID = Lattice(grid_step, grid_back)


# Walks.


def in_chunks(steps: Steps) -> tuple[tuple[Array, ...], Array | None]:
    """[chunks, steps, ...] of weights and `there`, with some steps more at the end, to wait in.

    In a chain only the first of these is there, and of weight 1: there labels become blanks.
    """
    first, *others = steps.weights
    size = min(CHUNK, first.shape[0] + 1)
    more = -(first.shape[0] + 1) % size + 1

    def split(array):
        return array.reshape(array.shape[0] // size, size, *array.shape[1:])

    def padded(array, fill, more=more):
        return jnp.pad(array, ((0, more), (0, 0), (0, 0)), constant_values=fill)

    weights = (split(padded(first, 0)), *(split(padded(array, -jnp.inf)) for array in others))
    if steps.there is None:
        return weights, None
    return weights, split(padded(padded(steps.there, True, 1), False, more - 1))


def whole(kept: Array, steps: Steps) -> Array:
    """[steps, ...] again of [chunks, steps, ...]."""
    whole = kept.reshape(kept.shape[0] * kept.shape[1], *kept.shape[2:])
    return whole[: steps.weights[0].shape[0]]


def start(algebra: Algebra, steps: Steps) -> tuple[Cell, ...]:
    """One path, at the first position of the first kind of cell."""
    like = jnp.zeros(steps.weights[0].shape[1:], steps.weights[0].dtype)
    nothing = tuple(jnp.full_like(x, y) for x, y in zip(algebra.of_log(like), algebra.nothing))
    first = lax.broadcasted_iota(jnp.int32, like.shape, 1) == 0
    kinds = 1 if len(steps.weights) == 2 else 2  # a chain's labels, or what crosses a grid
    cells = (select(first, algebra.of_log(like), nothing), *(nothing,) * (kinds - 1))
    return alike(cells, steps)[0]


def over_chunk(algebra, lattice, steps, keep, cells, chunk):
    """The cells after a chunk, untidied, and what `keep(cells, shares)` says after each step."""
    weights, there = chunk

    def step(cells, inputs):
        cells, shares = lattice.step(algebra, cells, *inputs, steps.repeats)
        return cells, keep(cells, shares)

    return lax.scan(step, cells, (tuple(map(algebra.of_log, weights)), there))


def walked(algebra, lattice, steps, keep=lambda cells, shares: None):
    """The cells at the end, those at the start of each chunk, and what is kept of each step."""

    def over(cells, chunk):
        after, kept = over_chunk(algebra, lattice, steps, keep, cells, chunk)
        return tuple(map(algebra.tidy, after)), (cells, kept)

    last, (starts, kept) = lax.scan(over, start(algebra, steps), in_chunks(steps))
    return last, starts, kept


def at_end(array: Array, end: Array) -> Array:
    return jnp.sum(jnp.where(is_end(array, end), array, 0), 1)


def is_end(array: Array, end: Array) -> Array:
    return lax.broadcasted_iota(jnp.int32, array.shape, 1) == end[:, None]


def flows(algebra: Algebra, lattice: Lattice, steps: Steps, end: Array):
    """The logarithm of the total [batch], and how often each weight is used, as the weights are.

    Only what is at a chunk's start is kept on the way forward; the way back walks each again.
    """
    last, starts, _ = walked(algebra, lattice, steps)
    logs = algebra.log(last[0])
    mass = jnp.where(is_end(logs, end) & (logs > -jnp.inf), jnp.ones_like(logs), 0)

    def back(mass, chunk):
        keep = lambda _, shares: shares
        _, shares = over_chunk(algebra, lattice, steps, keep, *chunk)
        back = lambda mass, shares: lattice.back(mass, shares, steps.repeats)
        mass, flow = lax.scan(back, one_again(mass), shares, reverse=True)
        return mass, flow

    none = tuple(jnp.zeros_like(mass) for _ in last[1:])
    _, flow = lax.scan(back, (mass, *none), (starts, in_chunks(steps)), reverse=True)
    return at_end(logs, end), tuple(whole(flow, steps) for flow in flow)


def one_again(mass: tuple[Array, ...]) -> tuple[Array, ...]:
    """What rounding has added or taken, given back: mass is neither made nor lost."""
    total = sum(jnp.sum(part, 1, keepdims=True) for part in mass)
    return tuple(part / jnp.where(total > 0, total, 1) for part in mass)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_total(lattice: Lattice, steps: Steps, end: Array) -> Array:
    """The logarithm of the sum over all paths that stand at position `end` at the end, [batch].

    Its rule is what plain differentiation gives (its twin is `log_total.fun`), from the flows: for
    that the twin would keep every cell. The second derivatives are JAX's, of the flows.
    """
    return at_end(EXTENDED.log(walked(EXTENDED, lattice, steps)[0][0]), end)


@log_total.defjvp
def _(lattice: Lattice, primals: Any, tangents: Any):
    (steps, end), (along, _) = primals, tangents
    total, flow = flows(EXTENDED, lattice, steps, end)
    moved = (jnp.sum(used * by, (0, 2)) for used, by in zip(flow, along.weights))
    return total, sum(moved, jnp.zeros_like(total))


def surprise(lattice: Lattice, steps: Steps, end: Array) -> Array:
    """-log of the probability of all paths to `end`, [batch]: inf, with slopes of 0, if none."""
    value = -log_total(lattice, steps, end)
    return value + lax.stop_gradient(jnp.maximum(-value, 0))  # what rounding leaves below 0


def has_nan(weight: Array) -> Array:
    """Whether one of [steps, batch, positions] is, which no path would show, [batch]."""
    return jnp.any(jnp.isnan(weight), (0, 2))
