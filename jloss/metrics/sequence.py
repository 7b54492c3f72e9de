"""Metrics of transcripts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp

from jloss._core.devices import on_auto_axes
from jloss._core.inputs import expect_shape, integers
from jloss._core.lattice import GRID, MAX_PLUS, Steps, at_end, walked
from jloss._core.sequences import present, sequences
from jloss._core.transducer import skewed

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Int


def edit_distance(
    predictions: Int[ArrayLike, "*batch predicted"],
    labels: Int[ArrayLike, "*batch labels"],
    *,
    prediction_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
) -> Int[Array, "*batch"]:
    """How many insertions, deletions and substitutions turn one sequence into the other.

    A word error rate is all edits over all labels, `edits.sum() / label_lengths.sum()`, of numbers
    of words, not a mean of rates; a phone or character error rate likewise.

    Args:
        predictions: numbers of words, phones or characters, as from `ctc_greedy_decode`.
        labels: those that are right.
        prediction_lengths, label_lengths: how many there are, the first ones; None for all.

    Returns:
        The Levenshtein distance of each pair, 0 where both are empty; -1 for a length outside its
        array.

    Raises:
        ValueError: for shapes that do not go together.
        TypeError: for what is not integers.

    References:
        Levenshtein, "Binary Codes Capable of Correcting Deletions, Insertions, and Reversals",
        Soviet Physics Doklady, 1966.

    >>> print(edit_distance(jnp.array([[1, 2, 3, 4]]), jnp.array([[1, 3, 3]])))
    [2]
    """
    x = integers("predictions", sequences("predictions", predictions, ("predicted",)))
    y = integers("labels", sequences("labels", labels, ("labels",)))
    expect_shape("labels", y, (*x.shape[:-1], y.shape[-1]))
    x, y = (a.astype(max(x.dtype, y.dtype, key=lambda d: d.itemsize)) for a in (x, y))
    return on_auto_axes(edits, 1, x, y, prediction_lengths, label_lengths)


def edits(x: Array, y: Array, prediction_lengths: Array | None, label_lengths: Array | None):
    """Of the best path through the grid of both, on which each edit costs 1."""
    lead = x.shape[:-1]
    in_x, good_x = present("prediction_lengths", prediction_lengths, x.shape, None)
    in_y, good_y = present("label_lengths", label_lengths, y.shape, None)
    flat = lambda a: a.reshape(math.prod(lead), a.shape[-1])
    x, y, in_x, in_y = map(flat, (x, y, in_x, in_y))
    # [batch, predicted + 1, labels + 1]: nodes, left when so much of each has been read
    rest = lambda there, axis: jnp.expand_dims(jnp.pad(there, ((0, 0), (0, 1))), axis)
    more_x, more_y = rest(in_x, 2), rest(in_y, 1)
    started = jnp.pad(more_x[:, :-1], ((0, 0), (1, 0), (0, 0)), constant_values=True)
    same = jnp.pad(x[:, :, None] == y[:, None], ((0, 0), (0, 1), (0, 1)))
    down = jnp.broadcast_to(jnp.where(more_x, -1.0, 0.0), same.shape)  # 0 to wait at the end
    right = jnp.where(more_y & started, -1.0, -jnp.inf)
    across = jnp.where(more_x & more_y, jnp.where(same, 0.0, -1.0), -jnp.inf)
    moves = (a.astype(jnp.float32) for a in (down, right, across))
    steps = Steps(tuple(skewed(a, fill) for a, fill in zip(moves, (0, -jnp.inf, -jnp.inf))))
    (best, *_), _, _ = walked(MAX_PLUS, GRID, steps)
    distance = -at_end(best[0], jnp.sum(in_y, 1, dtype=jnp.int32))
    return jnp.where(good_x & good_y, distance.astype(jnp.int32).reshape(lead), -1)
