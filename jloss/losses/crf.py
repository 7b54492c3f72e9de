"""Losses of whole sequences of tags that depend on each other: the linear-chain CRF."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from jloss._core.checks import nan_unless
from jloss._core.classes import is_label
from jloss._core.devices import alike
from jloss._core.inputs import (
    blank,
    consumed,
    expect_shape,
    floats,
    integers,
    of_shape,
    required,
)
from jloss._core.sequences import rows_there, sequences
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Int, Real

    # of the others, the given path and the ways off it: masses, what to add to their logarithms,
    # and whether they are right
    Mix = Callable[[Array, Array, Array], tuple[Array, Array, Array]]


class BestPath(NamedTuple):
    """The likeliest tags of each sequence.

    Attributes:
        tags: int32, of the shape of the scores without their last axis; -1 beyond the length.
        score: of each sequence: the sum of the scores and transitions along its tags.
    """

    tags: Array
    score: Array


def crf_log_likelihood(
    scores: Float[ArrayLike, "*batch time tags"],
    tags: Int[ArrayLike, "*batch time"],
    transitions: Real[ArrayLike, "tags tags"],
    *,
    start: Real[ArrayLike, "tags"] | None = None,
    end: Real[ArrayLike, "tags"] | None = None,
    lengths: Int[ArrayLike, "*batch"] | None = None,
    where: Bool[ArrayLike, "*batch"] | None = None,
    weights: Real[ArrayLike, "*batch"] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards the whole sequence of tags over all others, where neighbouring tags depend.

    $$\log p(y) = s(y) - \log \sum_{y'} e^{s(y')}, \qquad
    s(y) = a_{y_1} + \sum_t x_{t, y_t} + \sum_{t > 1} A_{y_{t-1}, y_t} + b_{y_T}$$

    It is a likelihood: minimise its negative, `-crf_log_likelihood(..., reduction=jloss.mean)`.
    Exact for confident sequences too, where the score less the log-sum cancels. Its gradients are
    what the tags have less what the model expects: of a score, 1 at the tag less the marginal
    probability $p(y_t = j)$; differentiable to any order, in both modes.

    A score or transition of -inf forbids: the log-likelihood of a forbidden sequence is -inf, and
    its gradient 0.

    The sum over paths is a product of matrices, unless that might underflow (transitions that span
    more than 64, or -inf beside scores that do): then the whole batch takes a sum over pairs of
    tags, many times slower and as exact.

    Args:
        scores: $x$, of each tag at each time step, any leading axes.
        tags: $y$, tag numbers from 0.
        transitions: $A$, from the tag of the row to that of the column.
        start, end: $a$, $b$, of the first and of the last tag; None is 0.
        lengths: how many time steps each sequence has, from 0; None is all. What is stored beyond
            reaches no value and no gradient. An empty sequence has log-likelihood 0.
        where, weights, reduction: as in every loss, see `jloss.reduction`; both go by sequence.

    Returns:
        One value for each sequence, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that do not go together.
        TypeError: for scores that are not floating, tags or lengths that are not integers.

    A tag outside [0, tags) within the length, or a length outside [0, time], gives NaN, in value
    and gradient of its own sequence.

    References:
        Lafferty, McCallum and Pereira, "Conditional Random Fields: Probabilistic Models for
        Segmenting and Labeling Sequence Data", ICML 2001. Collobert et al., "Natural Language
        Processing (Almost) from Scratch", JMLR 2011.

    >>> forbid = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])  # no tag 1 after a 0
    >>> scores, tags = jnp.zeros((1, 2, 2)), jnp.array([[1, 0]])
    >>> print(jnp.exp(crf_log_likelihood(scores, tags, forbid)).round(4))  # of 00, 10, 11
    [0.3333]
    """
    shape = sequences("scores", scores, ("time", "tags")).shape
    batch, there = shape[:-2], rows_there(where, weights, shape, 2)
    chain = _chain(scores, transitions, start, end, lengths, there)
    size = chain.scores.shape[-1]
    y = integers("tags", tags)
    expect_shape("tags", y, (*batch, len(chain.scores)))
    y = jnp.moveaxis(y, -1, 0)
    valid = ((y >= 0) & (y < size)) | ~chain.live
    y = jnp.where(valid & chain.live, y, 0).astype(jnp.int32)
    message = f"`tags` should lie in [0, {size}) within `lengths`, which should lie in [0, time]"
    known = required(chain.known & jnp.all(valid, 0), there, message)
    values = nan_unless(known, _log_likelihood(chain, y))
    return finish(values, reduction, where=there, weights=weights)


def crf_decode(
    scores: Float[ArrayLike, "*batch time tags"],
    transitions: Real[ArrayLike, "tags tags"],
    *,
    start: Real[ArrayLike, "tags"] | None = None,
    end: Real[ArrayLike, "tags"] | None = None,
    lengths: Int[ArrayLike, "*batch"] | None = None,
) -> BestPath:
    r"""The likeliest tags of `crf_log_likelihood`, by Viterbi's algorithm.

    $$\arg\max_y s(y)$$

    Args:
        scores, transitions, start, end, lengths: as in `crf_log_likelihood`.

    Returns:
        The tags, -1 beyond the length, and their score: 0 for an empty sequence, -inf where every
        sequence is forbidden (its tags mean nothing). Of tags that tie, the lowest number.

    Raises:
        ValueError: for shapes that do not go together.
        TypeError: for scores that are not floating or lengths that are not integers.

    A length outside [0, time] gives NaN for the score.

    References:
        Viterbi, "Error Bounds for Convolutional Codes and an Asymptotically Optimum Decoding
        Algorithm", IEEE Transactions on Information Theory, 1967.

    >>> scores = jnp.array([[[0.0, 2.0], [1.0, 0.0], [9.0, 0.0]]])
    >>> path = crf_decode(scores, jnp.array([[0.0, 0.0], [-5.0, 0.0]]), lengths=jnp.array([2]))
    >>> print(path.tags, path.score)
    [[ 1  1 -1]] [2.]
    """
    chain = _chain(scores, transitions, start, end, lengths)
    known = required(chain.known, None, "`lengths` should lie in [0, time]")
    first, *_ = alike(chain.scores[0], chain.transitions, chain.live)
    (best, total), before = jax.lax.scan(
        functools.partial(_best_step, chain.transitions),
        (first, jnp.zeros_like(first[..., 0])),
        (chain.scores[1:], chain.live[1:]),
    )
    tags = _followed(jax.lax.argmax(best, best.ndim - 1, jnp.int32), before, chain.live[1:])
    tags = jnp.moveaxis(jnp.where(chain.live, tags, -1), 0, -1)
    score = jnp.where(chain.live[0], total + jnp.max(best, -1), 0)
    return BestPath(tags, nan_unless(known, score))


class _Chain(NamedTuple):
    """What defines the distribution, through the door; time first."""

    scores: Array  # [time, *batch, tags], with those of start and end; 0 beyond the length
    transitions: Array
    live: Array  # [time, *batch]: whether the sequence has that step
    known: Array  # [*batch]: whether its length may be one


def _chain(
    scores: ArrayLike,
    transitions: ArrayLike,
    start: ArrayLike | None,
    end: ArrayLike | None,
    lengths: ArrayLike | None,
    there: Array | None = None,
) -> _Chain:
    """The door in for all but the tags; sequences that are not `there` have length 0."""
    x = sequences("scores", scores, ("time", "tags"))
    *batch, time, size = consumed("scores", x, (-2, -1))[0].shape
    start, end = (0.0 if a is None else a for a in (start, end))
    x, matrix, start, end = floats(scores=x, transitions=transitions, start=start, end=end)
    expect_shape("transitions", matrix, (size, size))
    start, end = of_shape("start", start, (size,)), of_shape("end", end, (size,))
    n = integers("lengths", jnp.full(batch, time, jnp.int32) if lengths is None else lengths)
    expect_shape("lengths", n, tuple(batch))
    known = (n >= 0) & (n <= time)
    n = blank(jnp.where(known, n, time).astype(jnp.int32), there)[None]
    clock = jax.lax.broadcasted_iota(jnp.int32, (time,) + (1,) * len(batch), 0)
    x = jnp.where((clock < n)[..., None], jnp.moveaxis(x, -2, 0), 0)
    x += jnp.where(((clock == 0) & (n > 0))[..., None], _wide(start, x.ndim), 0)
    x += jnp.where((clock == n - 1)[..., None], _wide(end, x.ndim), 0)
    return _Chain(x, matrix, clock < n, known)


def _wide(row: Array, ndim: int) -> Array:
    """The last of `ndim` axes."""
    return jnp.expand_dims(row, tuple(range(ndim - row.ndim)))


def _level(log: Array, axis: int) -> Array:
    """What to take off before `exp`: the largest, or 0 where there is nothing."""
    top = jax.lax.stop_gradient(jnp.max(log, axis))
    return jnp.where(top == -jnp.inf, 0, top)


# The log-likelihood ---------------------------------------------------------------------------
#
# Masses are relative to the path of the given tags, which has mass 1, and in logarithms. `others`
# are those of all other paths that end in each tag: nothing cancels where they are few.

LEAST = 1e-28  # of sums whose terms are at most 1: what float32's underflow at 1e-38 cannot reach


class _Steps(NamedTuple):
    """What a scan over time reads."""

    gain: Array  # [time - 1, *batch, tags]: of each tag over the given one
    leave: Array  # [time - 1, *batch, tags]: from the given tag before to each but the given one
    live: Array  # [time - 1, *batch]


def _log_likelihood(chain: _Chain, y: Array) -> Array:
    """Of the tags `y`, [time, *batch]; 0 for an empty sequence."""
    scale = _level(chain.transitions, 0)
    first, steps, possible = _relative(chain, y, scale)
    # Carries have to vary as results do; and all that a branch reads, or the backward pass of one
    # that not all devices take would wait for them.
    first, matrix, steps, _ = alike(first, chain.transitions - scale[None], steps, y)
    fast, sure = _surprise(_by_product(matrix), first, steps)
    slow = jax.checkpoint(lambda *args: _surprise(_by_pairs(matrix), *args)[0])
    ok = _in_whole_batch(jnp.all(sure | ~steps.live))
    values = jax.lax.cond(ok, lambda *_: fast, slow, first, steps)
    return jnp.where(chain.live[0], jnp.where(possible, -values, -jnp.inf), 0)


def _relative(chain: _Chain, y: Array, scale: Array) -> tuple[Array, _Steps, Array]:
    """The masses of the other tags at first, the steps after that, and whether `y` may be at all.

    Steps are less `scale` as they leave, and more as they gain.
    """
    x, live, scale = chain.scores, chain.live[1:], _wide(scale, chain.scores.ndim)
    own = is_label(x, y, (x.ndim - 1,))
    at = lambda own, rows: jnp.sum(jnp.where(own, rows, 0), -1, keepdims=True)
    rows = _rows(chain.transitions, y[:-1], own[:-1])
    score, join = at(own, x), at(own[1:], rows)
    never = jnp.any(score == -jnp.inf, 0) | jnp.any((join == -jnp.inf) & live[..., None], 0)
    score, join = (jnp.where(a == -jnp.inf, 0, a) for a in (score, join))
    gain = x - score
    others = jnp.where(own, -jnp.inf, gain)[0]
    leave = jnp.where(own[1:], -jnp.inf, rows - scale)
    return others, _Steps(gain[1:] + (scale - join), leave, live), ~never[..., 0]


def _rows(matrix: Array, y: Array, own: Array) -> Array:
    """The rows of the matrix that `y` names, and `own` as one-hot rows.

    A mesh that shards the batch leaves a gather unresolved, and its gradient adds to a few rows
    from everywhere, which an accelerator is slow at. On CPU it saves a third of a training step.
    """
    lowest = float(jnp.finfo(matrix.dtype).min) / 2  # 0 times -inf is NaN

    def product(matrix, y, own):
        some = jnp.where(matrix == -jnp.inf, lowest, matrix)
        rows = jnp.matmul(own.astype(matrix.dtype), some, precision="highest")
        return jnp.where(rows <= lowest / 2, -jnp.inf, rows)

    if any(AxisType.Explicit in jax.typeof(a).sharding.mesh.axis_types for a in (matrix, own)):
        return product(matrix, y, own)
    gather = lambda matrix, y, own: matrix[y]
    return jax.lax.platform_dependent(matrix, y, own, cpu=gather, default=product)


def _surprise(mix: Mix, first: Array, steps: _Steps) -> tuple[Array, Array]:
    """log(1 + mass of the others) at the end; and for each step if `mix` could be trusted."""
    step = jax.checkpoint(functools.partial(_step, mix), prevent_cse=False)
    (others, own), sure = jax.lax.scan(step, (first, jnp.zeros_like(first[..., 0])), steps)
    top = _level(others, -1)
    others = _log(jnp.sum(jnp.exp(others - top[..., None]), -1)) + top
    return jax.nn.softplus(others - own), sure


def _step(mix: Mix, carry: tuple[Array, Array], step: _Steps) -> tuple[tuple[Array, Array], Array]:
    """One step in time, of the others and of the given path."""
    others, own = carry
    top = _level(others, -1)
    others, own = others - top[..., None], own - top
    mass, lift, sure = mix(others, own[..., None], step.leave)
    after = _log(mass) + lift + step.gain
    return (jnp.where(step.live[..., None], after, others), own), sure


def _by_product(matrix: Array) -> Mix:
    """exp(others) @ exp(matrix), and what leaves the given path.

    A sum below LEAST may have lost all to underflow, and counts as none. That is right, and the
    step trusted, if it has only forbidden terms: it is 0 though none of its terms could underflow.
    """
    weights = jnp.exp(matrix)
    lightest = lambda log: jnp.min(jnp.where(log == -jnp.inf, 0, log), -1)

    def mix(others, own, leave):
        mass = jnp.matmul(jnp.exp(others), weights, precision="highest")
        left, lift = jnp.exp(leave), jnp.maximum(own, 0)
        joined = mass * jnp.exp(-lift) + left * jnp.exp(own - lift)
        mass, lift = jnp.where(left > 0, joined, mass), jnp.where(left > 0, lift, 0)
        lost = (left == 0) & (own + leave > -82)
        exact = lightest(others) + jnp.min(lightest(matrix)) > -80
        none = (mass == 0) & (leave == -jnp.inf) & exact[..., None]
        return mass, lift, jnp.all(((mass >= LEAST) & ~lost) | none, -1)

    return mix


def _by_pairs(matrix: Array) -> Mix:
    """The same from all pairs of tags, in logarithms: slower, and always right."""

    def mix(others, own, leave):
        pairs = others[..., None] + _wide(matrix, others.ndim + 1)
        lift = jnp.maximum(jnp.max(pairs, -2), own + leave)
        lift = _level(lift[..., None], -1)
        mass = jnp.sum(jnp.exp(pairs - lift[..., None, :]), -2) + jnp.exp(own + leave - lift)
        return mass, lift, jnp.ones_like(own[..., 0], bool)

    return mix


def _log(mass: Array) -> Array:
    """log(mass), all of whose derivatives are within range; -inf, with slope 0, below LEAST."""
    some = jnp.where(mass < LEAST, 1, mass)
    value = jax.lax.stop_gradient(jnp.log(some))
    # The slopes of log are 1 / mass^n. About 1 rounding is lopsided, and gradients would drift.
    near = jnp.log(some * jax.lax.stop_gradient(1.5 / some))
    return jnp.where(mass < LEAST, -jnp.inf, value + (near - jax.lax.stop_gradient(near)))


@jax.custom_batching.custom_vmap
def _in_whole_batch(ok: Array) -> Array:
    """`ok`, and under `vmap` that of all: were it not a scalar, `cond` would run both branches."""
    return ok


@_in_whole_batch.def_vmap
def _(_size: int, _batched: list[bool], ok: Array) -> tuple[Array, bool]:
    return jnp.all(ok), False


# The likeliest tags ---------------------------------------------------------------------------


def _best_step(
    matrix: Array, carry: tuple[Array, Array], step: tuple[Array, Array]
) -> tuple[tuple[Array, Array], Array]:
    """The best score up to each tag, less a total; and the tag before on the way there."""
    (best, total), (scores, live) = carry, step
    top = _level(best, -1)
    best, total = best - top[..., None], total + top
    pairs = best[..., None] + _wide(matrix, best.ndim + 1)
    before = jax.lax.argmax(pairs, pairs.ndim - 2, jnp.int32)
    best = jnp.where(live[..., None], jnp.max(pairs, -2) + scores, best)
    return (best, total), before


def _followed(last: Array, before: Array, live: Array) -> Array:
    """The tags, [time, *batch], back from the last one; it is repeated beyond the length."""

    def back(tag, step):
        before, live = step
        earlier = jnp.where(is_label(before, tag, (tag.ndim,)), before, 0)
        return jnp.where(live, jnp.sum(earlier, -1, jnp.int32), tag), tag

    first, later = jax.lax.scan(back, last, (before, live), reverse=True)
    return jnp.concatenate([first[None], later])
