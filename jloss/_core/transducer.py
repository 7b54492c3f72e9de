"""The grid of a transducer: frames down, labels to the right, and what each move costs."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jloss._core.checks import nan_unless
from jloss._core.classes import is_label, of_device, pick
from jloss._core.devices import total
from jloss._core.inputs import hyperparameter
from jloss._core.lattice import GRID, Steps, has_nan, surprise
from jloss._core.numerics import lean
from jloss._core.sequences import cleaned, normalizer, present, shares, transcripts


class Spoken(NamedTuple):
    """Labels and lengths through the door in, their leading axes made one."""

    classes: Array  # [batch, labels + 1]: which label each position waits for; the blank after all
    nodes: Array  # bool [batch, time, labels + 1], those of the grid that are there
    length: Array  # how many labels there are, [batch]
    good: Array  # whether all is as it should be or deleted, [batch]
    blank: Array  # its number


class Moves(NamedTuple):
    """Log-probabilities of leaving each node [batch, time, labels + 1]."""

    blank: Array  # to the next frame
    label: Array  # to the next position


def through_the_door(
    shape: tuple[int, ...],  # [..., time, labels + 1]
    size: int,  # of the vocabulary
    labels: ArrayLike,
    logit_lengths: ArrayLike | None,
    label_lengths: ArrayLike | None,
    blank_id: ArrayLike,
    rows: Array | None = None,
) -> Spoken:
    """The door in."""
    *lead, time, positions = shape
    if positions == 0:
        raise ValueError(f"`logits` should have a position before any label, but are {shape}")
    frames, good = present("logit_lengths", logit_lengths, (*lead, time), rows)
    y = transcripts(labels, None, label_lengths, blank_id, size, (*lead, positions - 1), rows)
    ends = *((0, 0, 0) for _ in lead), (0, 1, 0)
    classes = lax.pad(y.labels, y.blank, ends)
    position = lax.broadcasted_iota(jnp.int32, (*lead, 1, positions), len(lead) + 1)
    nodes = frames[..., None] & (position <= y.length[..., None, None])
    flat = lambda a: a.reshape(math.prod(lead), *a.shape[len(lead) :])
    return Spoken(flat(classes), flat(nodes), flat(y.length), flat(good & y.good), y.blank)


def skewed(x: Array, fill: float) -> Array:
    """[batch, time, positions] by anti-diagonals: [d, :, u] is x[:, d - u, u]."""
    batch, time, positions = x.shape
    by = (0, 0), (0, 0), (0, positions)
    x = jnp.pad(x.swapaxes(1, 2), by, constant_values=fill)
    x = x.reshape(batch, positions * (time + positions))[:, : positions * (time + positions - 1)]
    return x.reshape(batch, positions, time + positions - 1).transpose(2, 0, 1)


def unskewed(x: Array, time: int) -> Array:
    """[diagonals, batch, positions] by time: [:, t, u] is x[t + u, :, u]."""
    diagonals, batch, positions = x.shape
    x = x.transpose(1, 2, 0).reshape(batch, positions * diagonals)
    x = jnp.pad(x, ((0, 0), (0, positions))).reshape(batch, positions, diagonals + 1)
    return x[..., :time].swapaxes(1, 2)


def steps_of(moves: Moves, spoken: Spoken) -> Steps:
    """Through a grid whose anti-diagonals are steps; after the last frame a path waits."""
    right = jnp.pad(spoken.nodes[..., 1:], ((0, 0), (0, 0), (0, 1)))
    blanks = jnp.where(spoken.nodes, moves.blank, 0)
    return Steps((skewed(blanks, 0), skewed(jnp.where(right, moves.label, -jnp.inf), -jnp.inf)))


def loss_of(moves: Moves, spoken: Spoken, fastemit: ArrayLike | None) -> Array:
    """-log p(labels), [batch]; NaN where something is not as it should be."""
    if fastemit is not None:
        label = moves.label
        still = lax.stop_gradient(label)
        more = hyperparameter("fastemit", fastemit, label)
        moves = moves._replace(label=label + more * jnp.where(still > -jnp.inf, label - still, 0))
    steps = steps_of(moves, spoken)
    return nan_unless(as_it_should_be(spoken, steps), surprise(GRID, steps, spoken.length))


def as_it_should_be(spoken: Spoken, steps: Steps) -> Array:
    """Lengths, labels and logits, [batch]; what is wrong with one logit its node's blank shows."""
    return spoken.good & ~has_nan(steps.weights[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def moves_of(
    x: Array, classes: Array, blank_id: Array, nodes: Array, axis_name: str | None
) -> tuple[Array, Array]:
    """log softmax(x) of the blank and of each node's class, both [batch, time, labels + 1].

    Its rule is what plain differentiation gives (its twin is `moves_of.fun`), in one pass.
    """
    top, rest = normalizer(x, nodes, axis_name)

    def log_p(classes):
        own = of_device(x, jnp.broadcast_to(classes, nodes.shape), axis_name)
        here = own < x.shape[-1]
        own = pick(x, jnp.where(here, own, 0), (3,)).astype(top.dtype)
        own = total(jnp.where(here, own, 0), axis_name)
        return jnp.where(nodes, own - top - rest, 0)

    return log_p(blank_id), log_p(classes)


@moves_of.defjvp
def _(axis_name, primals, tangents):
    (x, classes, blank_id, nodes), (along, *_) = primals, tangents
    along = cleaned(along, nodes)
    spread = jnp.sum(shares(x, nodes, axis_name) * along, -1)

    def slope(classes):
        own = of_device(x, jnp.broadcast_to(classes, nodes.shape), axis_name)
        own = jnp.sum(jnp.where(is_label(x, own, (3,)), along, 0), -1)
        return total(own - spread, axis_name)

    return moves_of(*primals, axis_name), (slope(blank_id), slope(classes))


def moves_from(x: Array, spoken: Spoken, axis_name: str | None = None) -> Moves:
    """From logits [..., time, labels + 1, classes]."""
    x = x.reshape(*spoken.nodes.shape, x.shape[-1])
    given = x, spoken.classes[:, None], spoken.blank[None, None, None], spoken.nodes
    return Moves(*lean(moves_of, static_argnums=4)(*given, axis_name))
