"""The RNN-Transducer: labels and frames read in turn, by two networks and what joins them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jloss._core.checks import nan_unless
from jloss._core.classes import classes_over_devices, gather
from jloss._core.devices import on_auto_axes
from jloss._core.inputs import blank, expect_shape, floats, integers
from jloss._core.lattice import EXTENDED, GRID, MAX_PLUS, flows
from jloss._core.numerics import lean
from jloss._core.sequences import first_place, rows_there, scores, sequences
from jloss._core.transducer import (
    Moves,
    Spoken,
    as_it_should_be,
    loss_of,
    moves_from,
    moves_of,
    steps_of,
    through_the_door,
    unskewed,
)
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Int, Real


def rnnt_loss(
    logits: Float[ArrayLike, "*batch time positions classes"],
    labels: Int[ArrayLike, "*batch labels"],
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
    fastemit: Real[ArrayLike, ""] | None = None,
    axis_name: str | None = None,
    where: Bool[ArrayLike, "*batch"] | None = None,
    weights: Real[ArrayLike, "*batch"] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards probability on all ways to say the labels in their order while the frames go by.

    $$\ell = -\log \sum_{\pi: B(\pi) = y} \prod_{(t, u) \in \pi}
        \operatorname{softmax}(x_{t, u})_{\pi_{t, u}}$$

    At frame $t$ with $u$ labels said, the class is the next label ($u$ goes up) or the blank ($t$
    goes up); $B$ drops the blanks. The last frame ends with a blank.

    No array of the size of the logits is made but their gradient.

    Args:
        logits: $x$, with a position before each label and one after the last: labels + 1.
        labels: $y$, class numbers, none of them the blank.
        logit_lengths, label_lengths: how many frames and labels there are, the first ones; None for
            all.
        blank_id: the number of the blank.
        fastemit: $\lambda$ of FastEmit: gradients through labels are $1 + \lambda$ times as large
            (the value is not changed), which makes them come earlier.
        axis_name: inside `shard_map` (that checks what varies), the mesh axis over which the
            classes are split.
        where, weights, reduction: as in every loss, see `jloss.reduction`, along the sequences.

    Returns:
        The shape of the lengths, unless `reduction` says otherwise; inf, with a gradient of 0,
        where no path has the labels.

    Raises:
        ValueError: for shapes that do not go together.
        TypeError: for logits that are not floating or labels that are not integers.

    A label outside [0, classes) or equal to the blank, a length outside its array, or a logit of
    NaN or inf at a frame and position that are there gives NaN, in value and gradient of its own
    sequence.

    References:
        Graves, "Sequence Transduction with Recurrent Neural Networks", ICML workshop on
        representation learning, 2012. Yu et al., "FastEmit: Low-Latency Streaming ASR with
        Sequence-Level Emission Regularization", ICASSP, 2021.

    >>> logits = jnp.zeros((1, 2, 2, 3))  # of 3 classes alike: the label at one of two frames,
    >>> loss = rnnt_loss(logits, jnp.array([[1]]))  # and a blank at both
    >>> print(f"{27 * jnp.exp(-loss[0]):.4f}")
    2.0000
    """
    x = scores("logits", logits, ("time", "labels + 1", "classes"))
    rows = rows_there(where, weights, x.shape, 3)

    def values(x, fastemit, *doors):
        spoken = through_the_door(x.shape[:-1], classes_over_devices(x, axis_name), *doors)
        loss = loss_of(moves_from(x, spoken, axis_name), spoken, fastemit)
        return loss.reshape(x.shape[:-3])

    doors = fastemit, labels, logit_lengths, label_lengths, blank_id, rows
    return finish(on_auto_axes(values, 3, x, *doors), reduction, where=rows, weights=weights)


def rnnt_loss_from_joint(
    joint: Callable[[Array, Array], Array],
    encoder: Float[ArrayLike, "*batch time features"],
    predictor: Float[ArrayLike, "*batch positions features_too"],
    labels: Int[ArrayLike, "*batch labels"],
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
    chunk: int | None = None,
    fastemit: Real[ArrayLike, ""] | None = None,
    where: Bool[ArrayLike, "*batch"] | None = None,
    weights: Real[ArrayLike, "*batch"] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""`rnnt_loss` of logits that are joined a few frames at a time, and joined again to go back.

    $$\ell = \mathrm{rnnt}(\mathrm{joint}(e, p), y)$$

    So the logits of all frames are never there, nor is their gradient.

    Args:
        joint: from some frames of `encoder` [*batch, frames, features] and all of `predictor` to
            logits [*batch, frames, positions, classes]. Each frame for itself; it may close over
            parameters, with respect to which the loss is differentiated.
        encoder: $e$.
        predictor: $p$, with a position before each label and one after the last.
        chunk: how many frames at a time; None for about 4 million logits.
        labels, logit_lengths, label_lengths, blank_id, fastemit: as in `rnnt_loss`.
        where, weights, reduction: as in every loss, see `jloss.reduction`, along the sequences.

    Returns:
        As `rnnt_loss`.

    Raises:
        ValueError, TypeError: as `rnnt_loss`.

    A label outside [0, classes), a length outside its array or a NaN gives NaN, as in `rnnt_loss`.

    References:
        See `rnnt_loss`.

    >>> joint = lambda encoder, predictor: encoder[:, :, None] + predictor[:, None]
    >>> encoder, predictor = jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3))
    >>> loss = rnnt_loss_from_joint(joint, encoder, predictor, jnp.array([[1]]))
    >>> print(f"{27 * jnp.exp(-loss[0]):.4f}")
    2.0000
    """
    e, p = both_sides(encoder, predictor)
    *lead, time, _ = e.shape
    shape = (*lead, time, p.shape[-2])
    rows = rows_there(where, weights, e.shape, 2)
    frame = jax.ShapeDtypeStruct((*lead, 1, e.shape[-1]), e.dtype)
    size = jax.eval_shape(joint, frame, p).shape[-1]
    spoken = through_the_door(shape, size, labels, logit_lengths, label_lengths, blank_id, rows)
    e, p = spoken_sides(e, p, spoken)
    chunk = 2**22 // max(1, math.prod(shape) // max(1, time) * size) if chunk is None else chunk
    chunks = max(1, -(-time // max(1, chunk)))

    @jax.checkpoint
    def moves_in(part):
        e, nodes = part
        x = joint(e, p)
        expect_shape("joint(...)", x, (*e.shape[:-1], p.shape[-2], size))
        return moves_from(x, spoken._replace(nodes=nodes))

    parts = by_stride(e, len(lead), chunks), by_stride(spoken.nodes, 1, chunks)
    moves = Moves(*(whole_again(a, time) for a in lax.map(moves_in, parts)))
    given = moves.label, moves.blank, spoken, fastemit
    loss = on_auto_axes(lambda label, none, *rest: loss_of(Moves(none, label), *rest), 2, *given)
    return finish(loss.reshape(lead), reduction, where=rows, weights=weights)


def rnnt_simple_loss(
    encoder: Float[ArrayLike, "*batch time classes"],
    predictor: Float[ArrayLike, "*batch positions classes"],
    labels: Int[ArrayLike, "*batch labels"],
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
    fastemit: Real[ArrayLike, ""] | None = None,
    where: Bool[ArrayLike, "*batch"] | None = None,
    weights: Real[ArrayLike, "*batch"] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""`rnnt_loss` of logits that are a sum, which no one has to hold: one product normalizes all.

    $$\ell = \mathrm{rnnt}(e_t + p_u, y)$$

    By itself a weak model, it tells which parts of the grid matter: see `rnnt_pruning_ranges`.

    Args:
        encoder: $e$, logits from the frames.
        predictor: $p$, logits from the labels before each position, and after the last.
        labels, logit_lengths, label_lengths, blank_id, fastemit: as in `rnnt_loss`.
        where, weights, reduction: as in every loss, see `jloss.reduction`, along the sequences.

    Returns:
        As `rnnt_loss`. Exact where the likeliest class of a sum lies within 80 of the sum of both
        maxima; beyond that float32 cannot tell how unlikely it is.

    Raises:
        ValueError, TypeError: as `rnnt_loss`.

    A label outside [0, classes), a length outside its array or a NaN gives NaN, as in `rnnt_loss`.

    References:
        Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", Interspeech, 2022.

    >>> encoder, predictor = jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3))
    >>> loss = rnnt_simple_loss(encoder, predictor, jnp.array([[1]]))
    >>> print(f"{27 * jnp.exp(-loss[0]):.4f}")
    2.0000
    """
    e, p = both_sides(encoder, predictor)
    rows = rows_there(where, weights, e.shape, 2)

    def values(e, p, fastemit, *doors):
        spoken, moves = simply_joined(e, p, *doors)
        return loss_of(moves, spoken, fastemit).reshape(e.shape[:-2])

    doors = fastemit, labels, logit_lengths, label_lengths, blank_id, rows
    return finish(on_auto_axes(values, 2, e, p, *doors), reduction, where=rows, weights=weights)


def rnnt_pruning_ranges(
    encoder: Float[ArrayLike, "*batch time classes"],
    predictor: Float[ArrayLike, "*batch positions classes"],
    labels: Int[ArrayLike, "*batch labels"],
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
    *,
    size: int,
    blank_id: Int[ArrayLike, ""] = 0,
) -> Int[Array, "*batch time"]:
    """At which position to begin, of `size` at each frame that `rnnt_pruned_loss` looks at.

    The likeliest ones for `rnnt_simple_loss`, such that a path leads from the first position to the
    last: they never go back, and overlap from frame to frame.

    Args:
        encoder, predictor, labels, logit_lengths, label_lengths, blank_id: as in
            `rnnt_simple_loss`.
        size: how many positions to keep at each frame, at least 2.

    Raises:
        ValueError: for a size below 2, and as `rnnt_loss`.

    References:
        Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", Interspeech, 2022.

    >>> four = jnp.zeros((4, 3))  # frames; positions
    >>> print(rnnt_pruning_ranges(four, four, jnp.array([1, 2, 1]), size=2))
    [0 1 2 2]
    """
    if size < 2:
        raise ValueError(f"`size` should be 2 at least, or no path goes on, but is {size}")
    e, p = (lax.stop_gradient(a) for a in both_sides(encoder, predictor))

    def firsts(e, p, *doors):
        spoken, moves = simply_joined(e, p, *doors)
        return ranges_of(moves, spoken, size).reshape(e.shape[:-1])

    doors = labels, logit_lengths, label_lengths, blank_id
    return on_auto_axes(firsts, 1, e, p, *doors)


def rnnt_pruned_loss(
    logits: Float[ArrayLike, "*batch time size classes"],
    ranges: Int[ArrayLike, "*batch time"],
    labels: Int[ArrayLike, "*batch labels"],
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
    fastemit: Real[ArrayLike, ""] | None = None,
    where: Bool[ArrayLike, "*batch"] | None = None,
    weights: Real[ArrayLike, "*batch"] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""`rnnt_loss` of the paths that keep to a few positions at each frame.

    $$\ell = -\log \sum_{\pi: B(\pi) = y,\, r_t \le u < r_t + R} \prod_{(t, u) \in \pi}
        \operatorname{softmax}(x_{t, u - r_t})_{\pi_{t, u}}$$

    Never below `rnnt_loss`, and equal to it where the positions left out have no probability.

    Args:
        logits: $x$, at $R$ positions of each frame: of a joint whose predictor's rows were taken
            at `ranges[..., None] + jnp.arange(R)`.
        ranges: $r$, the first of them, as from `rnnt_pruning_ranges`.
        labels, logit_lengths, label_lengths, blank_id, fastemit: as in `rnnt_loss`.
        where, weights, reduction: as in every loss, see `jloss.reduction`, along the sequences.

    Returns:
        As `rnnt_loss`; inf, with a gradient of 0, where no path keeps to the ranges.

    Raises:
        ValueError, TypeError: as `rnnt_loss`.

    A label outside [0, classes), a length outside its array or a NaN gives NaN, as in `rnnt_loss`.

    References:
        Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", Interspeech, 2022.

    >>> logits, ranges = jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2), jnp.int32)  # all positions
    >>> loss = rnnt_pruned_loss(logits, ranges, jnp.array([[1]]))
    >>> print(f"{27 * jnp.exp(-loss[0]):.4f}")
    2.0000
    """
    x = scores("logits", logits, ("time", "size", "classes"))
    rows = rows_there(where, weights, x.shape, 3)
    first = integers("ranges", ranges)
    expect_shape("ranges", first, x.shape[:-2])
    y = sequences("labels", labels, ("labels",))

    def values(x, fastemit, first, y, *doors):
        shape = (*x.shape[:-2], y.shape[-1] + 1)
        spoken = through_the_door(shape, x.shape[-1], y, *doors)
        flat = x.reshape(*spoken.nodes.shape[:2], *x.shape[-2:])
        moves = pruned(flat, first.reshape(flat.shape[:2]), spoken)
        return loss_of(moves, spoken, fastemit).reshape(x.shape[:-3])

    doors = fastemit, first, y, logit_lengths, label_lengths, blank_id, rows
    return finish(on_auto_axes(values, 3, x, *doors), reduction, where=rows, weights=weights)


class Emissions(NamedTuple):
    """When each label is said, on the likeliest path.

    Attributes:
        frames: the frame at which each label is said, -1 for padding, [*batch, labels].
        log_likelihood: that of the path, [*batch].
    """

    frames: Array
    log_likelihood: Array


def rnnt_alignment(
    logits: Float[ArrayLike, "*batch time positions classes"],
    labels: Int[ArrayLike, "*batch labels"],
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
) -> Emissions:
    """The likeliest of the paths that `rnnt_loss` adds up: at which frame each label is said.

    Args:
        logits, labels, logit_lengths, label_lengths, blank_id: as in `rnnt_loss`.

    Returns:
        See `Emissions`. Where no path has the labels the log-likelihood is -inf, and all frames -1.

    Raises:
        ValueError, TypeError: as `rnnt_loss`.

    References:
        See `rnnt_loss`.

    >>> logits = jnp.zeros((3, 2, 2)).at[0, 0, 0].set(5.0).at[1, 0, 1].set(5.0)
    >>> print(rnnt_alignment(logits, jnp.array([1])).frames)
    [1]
    """
    x = scores("logits", logits, ("time", "labels + 1", "classes"))
    doors = labels, logit_lengths, label_lengths, blank_id
    return on_auto_axes(aligned, 3, lax.stop_gradient(x), *doors)


def aligned(x: Array, labels, logit_lengths, label_lengths, blank_id) -> Emissions:
    """By the one path that all mass takes where merging takes the larger."""
    doors = labels, logit_lengths, label_lengths, blank_id
    spoken = through_the_door(x.shape[:-1], x.shape[-1], *doors)
    steps = steps_of(moves_from(x, spoken), spoken)
    best, (_, said) = flows(MAX_PLUS, GRID, steps, spoken.length)
    good = as_it_should_be(spoken, steps)
    said = (unskewed(said, x.shape[-3]) > 0) & good[:, None, None]  # [batch, time, labels + 1]
    frames = first_place(said[..., :-1], 1)
    lead = x.shape[:-3]
    return Emissions(frames.reshape(*lead, frames.shape[1]), nan_unless(good, best).reshape(lead))


def both_sides(encoder: ArrayLike, predictor: ArrayLike) -> tuple[Array, Array]:
    """What is joined, of the same batch."""
    e = scores("encoder", encoder, ("time", "features"))
    p = scores("predictor", predictor, ("labels + 1", "features"))
    expect_shape("predictor", p, (*e.shape[:-2], *p.shape[-2:]))
    floats(encoder=e, predictor=p)  # raises for others
    return e, p


def spoken_sides(e: Array, p: Array, spoken: Spoken) -> tuple[Array, Array]:
    """0 where there is no frame, or no position."""
    frames, positions = (jnp.any(spoken.nodes, axis) for axis in (2, 1))
    as_given = lambda mask, a: mask.reshape(*a.shape[:-1], 1)
    return blank(e, as_given(frames, e)), blank(p, as_given(positions, p))


def simply_joined(e: Array, p: Array, *doors) -> tuple[Spoken, Moves]:
    """Log-probabilities of e + p, from one product of their exponentials."""
    shape = (*e.shape[:-1], p.shape[-2])
    spoken = through_the_door(shape, e.shape[-1], *doors)
    flat = lambda a: a.reshape(math.prod(shape[:-2]), *a.shape[-2:])
    e, p = map(flat, spoken_sides(e, p, spoken))
    return spoken, Moves(*lean(moves_of_sum)(e, p, spoken.classes, spoken.blank))


def moves_of_sum(e: Array, p: Array, classes: Array, none: Array) -> tuple[Array, Array]:
    """log softmax(e + p) of the blank and of each position's class."""
    e, p = floats(encoder=e, predictor=p)
    e_top, p_top = (lax.stop_gradient(jnp.max(a, -1, keepdims=True)) for a in (e, p))
    one = jnp.einsum("btv,buv->btu", jnp.exp(e - e_top), jnp.exp(p - p_top), precision="highest")
    one = jnp.maximum(one, float(jnp.finfo(one.dtype).tiny))
    log_sum = jnp.log(one) + e_top + p_top.swapaxes(1, 2)
    label = gather(e, classes)
    label += jnp.take_along_axis(p, classes[..., None], 2).swapaxes(1, 2)
    no_label = e[..., none, None] + p[..., none][:, None]
    return no_label - log_sum, label - log_sum


def ranges_of(moves: Moves, spoken: Spoken, size: int) -> Array:
    """The first of the positions to keep at each frame, [batch, time]."""
    steps = steps_of(moves, spoken)
    flow = flows(EXTENDED, GRID, steps, spoken.length)[1]
    used = jnp.where(spoken.nodes, unskewed(flow[0] + flow[1], spoken.nodes.shape[1]), 0)
    below = jnp.pad(jnp.cumsum(used, 2), ((0, 0), (0, 0), (1, size)), mode="edge")
    within = below[..., size:-1] - below[..., : -size - 1]
    first = jnp.argmax(within, 2).astype(jnp.int32)
    last = jnp.maximum(spoken.length + 1 - size, 0)[:, None]
    frames = jnp.any(spoken.nodes, 2)
    ends = ~jnp.pad(frames[:, 1:], ((0, 0), (0, 1)))  # at the last frame, and in padding
    first = jnp.where(ends, last, jnp.minimum(first, last))
    first = lax.cummin(first, 1, reverse=True)  # never back,
    most = (size - 1) * lax.broadcasted_iota(jnp.int32, first.shape, 1)
    first = most - lax.cummin(most - first, 1, reverse=True)  # never further than one overlap
    return jnp.minimum(first, most)


def pruned(x: Array, first: Array, spoken: Spoken) -> Moves:
    """Of logits [batch, time, size, classes] on the whole grid: -inf where there are none."""
    position = first[..., None] + lax.broadcasted_iota(first.dtype, x.shape[:3], 2)
    time, positions = spoken.nodes.shape[1:]
    inside = (position >= 0) & (position < positions)
    at = jnp.clip(position, 0, positions - 1)
    whole = lambda a: jnp.broadcast_to(a[:, None], (a.shape[0], time, a.shape[1]))
    classes = jnp.take_along_axis(whole(spoken.classes), at, 2)
    nodes = inside & jnp.take_along_axis(spoken.nodes, at, 2)
    given = x, classes, spoken.blank[None, None, None], nodes
    blanks, labels = lean(moves_of, static_argnums=4)(*given, None)
    u = lax.broadcasted_iota(first.dtype, (1, 1, positions), 2)
    kept = [position[..., r, None] == u for r in range(x.shape[2])]
    any_kept = functools.reduce(jnp.logical_or, kept)
    picked = lambda a: sum(jnp.where(k, a[..., r, None], 0) for r, k in enumerate(kept))
    return Moves(*(jnp.where(any_kept, picked(a), -jnp.inf) for a in (blanks, labels)))


def by_stride(a: Array, axis: int, chunks: int) -> Array:
    """[chunks, ...], each with every so manieth of `axis`: right however that is sharded."""
    a = jnp.pad(a, [(0, -n % chunks if i == axis else 0) for i, n in enumerate(a.shape)])
    a = a.reshape(*a.shape[:axis], a.shape[axis] // chunks, chunks, *a.shape[axis + 1 :])
    return jnp.moveaxis(a, axis + 1, 0)


def whole_again(a: Array, time: int) -> Array:
    """[batch, time, ...] of [chunks, batch, time in each, ...]."""
    a = jnp.moveaxis(a, 0, 2)
    return a.reshape(a.shape[0], a.shape[1] * a.shape[2], *a.shape[3:])[:, :time]
