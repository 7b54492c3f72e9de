"""Connectionist temporal classification: labels in their order, at frames that nobody marked."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jloss._core.checks import nan_unless
from jloss._core.classes import classes_over_devices, gather, log_sum_exp_parts, of_device
from jloss._core.devices import on_auto_axes, total
from jloss._core.inputs import as_array
from jloss._core.lattice import (
    CHAIN,
    EXTENDED,
    MAX_PLUS,
    Steps,
    at_end,
    flows,
    has_nan,
    surprise,
    walked,
    whole,
)
from jloss._core.numerics import lean
from jloss._core.sequences import (
    blank_of,
    cleaned,
    first_place,
    normalizer,
    packed,
    present,
    rows_there,
    scores,
    sequences,
    shares,
    transcripts,
    unpadded,
)
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, Int, Real

FEW = 128  # classes, up to which adding gradients up by a product is faster than by a scatter


def ctc_loss(
    logits: Float[ArrayLike, "*batch time classes"],
    logit_paddings: Real[ArrayLike, "*batch time"] | None,
    labels: Int[ArrayLike, "*batch labels"],
    label_paddings: Real[ArrayLike, "*batch labels"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
    zero_infinity: Bool[ArrayLike, ""] = False,
    axis_name: str | None = None,
    where: Bool[ArrayLike, "*batch"] | None = None,
    weights: Real[ArrayLike, "*batch"] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards probability on all ways to spread the labels over the frames, in their order.

    $$\ell = -\log \sum_{\pi: B(\pi) = y} \prod_t \operatorname{softmax}(x_t)_{\pi_t}$$

    $B$ takes a path of one class for each frame, drops repetitions and then blanks. So each label
    takes one frame or more, and two that are the same have a blank between them.

    Gradients are exact at any length, by arithmetic whose exponents cannot overflow: no logarithms
    are added up. Memory beside the gradient is that of [time, batch, labels], a few times.

    Label smoothing and focal weights go around it. With $a$ of the labels spread over all classes,
    `(1 - a) * ctc_loss(...) + a * uniform`, where `uniform` sums over the frames that are there
    `softmax_cross_entropy(logits, jnp.full_like(logits, 1 / classes))`; and focal with gamma = 2,
    of the `loss` with `zero_infinity=True`, `jnp.expm1(-loss) ** 2 * loss`.

    Args:
        logits: $x$. A logit of -inf forbids a class.
        logit_paddings: 1 or True for frames that are padding, anywhere; None if none are, or where
            lengths are given by name.
        labels: $y$, class numbers, none of them the blank.
        label_paddings: 1 or True for labels that are padding, anywhere; None if none are.
        blank_id: the number of the blank.
        logit_lengths, label_lengths: how many frames and labels there are, the first ones: another
            way to say what is padding (with both, what either says is).
        zero_infinity: whether the loss is 0 where no path has the labels (too few frames: one for
            each label, and one for each repetition), and not inf. The gradient is 0 there, either
            way. (Paths less likely than $e^{-10^7}$ count as none.)
        axis_name: inside `shard_map` (that checks what varies), the mesh axis over which the
            classes are split.
        where, weights, reduction: as in every loss, see `jloss.reduction`, along the sequences. The
            mean is over sequences. (torch's divides each loss by its number of labels first: for
            that, `weights=1 / jnp.maximum(label_lengths, 1)`, and the mean of `each`.)

    Returns:
        The shape of the batch, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that do not go together.
        TypeError: for logits that are not floating or labels that are not integers.

    A label outside [0, classes) or equal to the blank, a length outside its array, or a logit of
    NaN or inf in a frame that is there gives NaN, in value and gradient of its own sequence.

    Differs from optax: an impossible alignment is inf with gradient 0, not 1e5 with a gradient; a
    logit of -inf, and NaN in padding, reach nothing else; gradients are exact for long sequences;
    any padding, not at the end alone; labels that are no class are NaN; no `log_epsilon`.

    References:
        Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification: Labelling
        Unsegmented Sequence Data with Recurrent Neural Networks", ICML, 2006.

    >>> logits = jnp.zeros((1, 2, 3))  # two frames, three classes alike: of 9 paths,
    >>> loss = ctc_loss(logits, None, jnp.array([[1]]))  # (1, 1), (0, 1), (1, 0) say [1]
    >>> print(f"{jnp.exp(-loss[0]):.4f}")
    0.3333
    >>> logits, labels = jnp.zeros((2, 4, 3)), jnp.array([[1, 2], [2, -1]])
    >>> lengths = {"logit_lengths": jnp.array([4, 2]), "label_lengths": jnp.array([2, 1])}
    >>> print([f"{p:.4f}" for p in jnp.exp(-ctc_loss(logits, None, labels, **lengths))])
    ['0.1852', '0.3333']
    """
    x = as_array("logits", logits)
    rows = rows_there(where, weights, x.shape, 2)
    doors = logit_paddings, labels, label_paddings, blank_id, logit_lengths, label_lengths, rows
    values = on_auto_axes(functools.partial(surprise_of_labels, axis_name), 2, x, *doors)
    values = jnp.where(jnp.asarray(zero_infinity) & (values == jnp.inf), 0, values)
    return finish(values, reduction, where=rows, weights=weights)


def ctc_loss_with_forward_probs(
    logits: Float[ArrayLike, "*batch time classes"],
    logit_paddings: Real[ArrayLike, "*batch time"] | None,
    labels: Int[ArrayLike, "*batch labels"],
    label_paddings: Real[ArrayLike, "*batch labels"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
) -> tuple[Array, Array, Array]:
    """`ctc_loss`, and the probabilities of all beginnings that it is made of.

    Args:
        logits, logit_paddings, labels, label_paddings, blank_id, logit_lengths, label_lengths: as
            in `ctc_loss`.

    Returns:
        The loss [batch]; the logarithms [time, batch, 1 + labels] of the probability that the
        frames so far say the first n labels and then a blank (at the last frame: whether or not
        there was a blank), and of the probability that they say them up to a label just now
        (`[t, b, n]` is the (n + 1)-th), [time, batch, labels]. -inf is what cannot be.

    Raises:
        ValueError, TypeError: as `ctc_loss`.

    References:
        See `ctc_loss`.

    >>> logits, labels = jnp.zeros((1, 2, 3)), jnp.array([[1]])
    >>> loss, blanks, spoken = ctc_loss_with_forward_probs(logits, None, labels)
    >>> print(jnp.rint(9 * jnp.exp(spoken[:, 0, 0])))  # (1, ?) and then (0, 1), (1, 1)
    [3. 2.]
    """
    doors = logit_paddings, labels, label_paddings, blank_id, logit_lengths, label_lengths
    x = as_array("logits", logits)
    values, *probs = on_auto_axes(forward_probs, 2, x, *doors)
    blanks, spoken = (jnp.moveaxis(a, -2, 0) for a in probs)
    return values, blanks, spoken


def forward_probs(x: Array, *doors) -> tuple[Array, Array, Array]:
    """The loss, [*batch, time, 1 + labels], and [*batch, time, labels]."""
    given = through_the_door(None, x, *doors)
    steps = steps_of(given)
    keep = lambda cells, _: tuple(map(EXTENDED.log, cells))
    (last, _), _, kept = walked(EXTENDED, CHAIN, steps, keep)
    blanks, spoken = (whole(log, steps) for log in kept)
    blanks = jnp.concatenate([blanks[:-1], jnp.logaddexp(blanks[-1:], spoken[-1:])])
    good = as_it_should_be(given, steps)
    values = nan_unless(good, -at_end(EXTENDED.log(last), given.length)).reshape(x.shape[:-2])
    told = lambda a: nan_unless(good[:, None, None], a.swapaxes(0, 1))
    as_given = lambda a: told(a).reshape(*x.shape[:-1], a.shape[-1])
    return values, as_given(blanks), as_given(spoken[..., 1:])


class Alignment(NamedTuple):
    """What each frame says, on the likeliest path.

    Attributes:
        labels: the class of each frame, the blank where it says none, [batch, time].
        positions: which of the sequence's labels (those that are no padding) that is, from 0; -1
            for blanks and padding, [batch, time].
        scores: the log-probability of each frame's class, 0 in padding, [batch, time].
        log_likelihood: that of the path, the sum of the scores, [batch].
    """

    labels: Array
    positions: Array
    scores: Array
    log_likelihood: Array


def ctc_alignment(
    logits: Float[ArrayLike, "*batch time classes"],
    logit_paddings: Real[ArrayLike, "*batch time"] | None,
    labels: Int[ArrayLike, "*batch labels"],
    label_paddings: Real[ArrayLike, "*batch labels"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
    label_lengths: Int[ArrayLike, "*batch"] | None = None,
) -> Alignment:
    """The likeliest of the paths that `ctc_loss` adds up: which frame says which label.

    Args:
        logits, logit_paddings, labels, label_paddings, blank_id, logit_lengths, label_lengths: as
            in `ctc_loss`.

    Returns:
        See `Alignment`. Where no path has the labels, or where `ctc_loss` is NaN, all frames are
        blank, and the log-likelihood is -inf, or NaN.

    Raises:
        ValueError, TypeError: as `ctc_loss`.

    References:
        See `ctc_loss`. Viterbi, "Error Bounds for Convolutional Codes and an Asymptotically Optimum
        Decoding Algorithm", IEEE Transactions on Information Theory, 1967.

    >>> logits = jnp.array([[[0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [5.0, 0.0, 0.0]]])
    >>> print(ctc_alignment(logits, None, jnp.array([[1, 2]])).labels)
    [[1 2 0]]
    """
    doors = logit_paddings, labels, label_paddings, blank_id, logit_lengths, label_lengths
    return on_auto_axes(aligned, 2, lax.stop_gradient(as_array("logits", logits)), *doors)


def aligned(x: Array, *doors) -> Alignment:
    """By the one path that all mass takes where merging takes the larger."""
    spoken = through_the_door(None, x, *doors)
    steps = steps_of(spoken)
    best, (used,) = flows(MAX_PLUS, CHAIN, steps, spoken.length)
    good = as_it_should_be(spoken, steps)
    used = (used[..., 1:] > 0) & (spoken.frames & good[:, None]).T[..., None]
    positions = first_place(used, 2).T
    log_p = steps.weights[0].swapaxes(0, 1)
    of_frames = jnp.take_along_axis(log_p, positions[..., None] + 1, 2)[..., 0]
    labels = jnp.take_along_axis(spoken.classes, positions + 1, 1)
    as_given = lambda a: a.reshape(*x.shape[:-2], *a.shape[1:])
    return Alignment(*map(as_given, (labels, positions, of_frames, nan_unless(good, best))))


class Transcript(NamedTuple):
    """What frames say.

    Attributes:
        labels: the classes in their order, and then the blank as padding, [batch, time].
        lengths: how many there are, [batch].
        log_likelihood: that of the path that says them, [batch].
    """

    labels: Array
    lengths: Array
    log_likelihood: Array


def ctc_greedy_decode(
    logits: Float[ArrayLike, "*batch time classes"],
    logit_paddings: Real[ArrayLike, "*batch time"] | None = None,
    *,
    blank_id: Int[ArrayLike, ""] = 0,
    logit_lengths: Int[ArrayLike, "*batch"] | None = None,
) -> Transcript:
    """What the likeliest class of each frame says: without repetitions, then without blanks.

    Args:
        logits, logit_paddings, blank_id, logit_lengths: as in `ctc_loss`.

    Returns:
        See `Transcript`.

    Raises:
        ValueError: for shapes that do not go together.
        TypeError: for logits that are not floating or lengths that are not integers.

    A length outside its array or a blank that is no class gives NaN for the log-likelihood.

    References:
        Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification: Labelling
        Unsegmented Sequence Data with Recurrent Neural Networks", ICML, 2006 ("best path").

    >>> logits = 5.0 * jax.nn.one_hot(jnp.array([[1, 1, 0, 1, 2, 2]]), 3)
    >>> transcript = ctc_greedy_decode(logits)
    >>> print(transcript.labels, transcript.lengths)
    [[1 1 2 0 0 0]] [3]
    """
    x = scores("logits", logits, ("time", "classes"))
    frames, good = present("logit_lengths", logit_lengths, x.shape[:-1], None)
    frames = unpadded("logit_paddings", logit_paddings, frames)
    blank, possible = blank_of(blank_id, x.shape[-1])
    blank = blank.astype(jnp.int32)
    clean = cleaned(x, frames)
    path = packed(jnp.argmax(clean, -1).astype(jnp.int32), frames, blank)
    before = jnp.concatenate([jnp.full_like(path[..., :1], -1), path[..., :-1]], -1)
    says = (path != before) & (path != blank)
    lengths = jnp.sum(says, -1, dtype=jnp.int32)
    score = jnp.sum(jnp.where(frames, -log_sum_exp_parts(clean)[1], 0), -1)
    return Transcript(packed(path, says, blank), lengths, nan_unless(good & possible, score))


class Spoken(NamedTuple):
    """A batch through the door in, its leading axes made one."""

    logits: Array  # [batch, time, classes], as they came
    classes: Array  # [batch, 1 + labels]: the blank, the labels, and the blank again as padding
    frames: Array  # bool [batch, time]
    length: Array  # how many labels there are, [batch]
    good: Array  # whether all is as it should be or deleted, [batch]


def through_the_door(
    axis_name,
    logits,
    logit_paddings,
    labels,
    label_paddings,
    blank_id,
    logit_lengths,
    label_lengths,
    rows=None,
) -> Spoken:
    """The door in: what is no label or is not there stands as a blank."""
    x = scores("logits", logits, ("time", "classes"))
    y = sequences("labels", labels, ("labels",))
    frames, good = present("logit_lengths", logit_lengths, x.shape[:-1], rows)
    frames = unpadded("logit_paddings", logit_paddings, frames)
    size, shape = classes_over_devices(x, axis_name), (*x.shape[:-2], y.shape[-1])
    y = transcripts(labels, label_paddings, label_lengths, blank_id, size, shape, rows)
    ends = *((0, 0, 0) for _ in shape[:-1]), (1, 0, 0)
    classes = lax.pad(y.labels, y.blank, ends)
    flat = lambda a: a.reshape(math.prod(shape[:-1]), *a.shape[len(shape) - 1 :])
    return Spoken(*map(flat, (x, classes, frames, y.length, good & y.good)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def log_probs(x: Array, classes: Array, frames: Array, axis_name: str | None) -> Array:
    """log softmax(x) at each sequence's classes, [batch, time, 1 + labels]; 0 in padded frames.

    The rule is what plain differentiation gives (its twin is `log_probs.fun`), but that on CPU the
    slopes of small vocabularies are added up by a product with one-hot rows, not by a scatter.
    """
    top, rest = (part[..., None] for part in normalizer(x, frames, axis_name))
    given = x, of_device(x, classes, axis_name)
    own = lax.platform_dependent(*given, tpu=product, default=gather).astype(top.dtype)
    return jnp.where(frames[..., None], total(own, axis_name) - top - rest, 0)


@log_probs.defjvp
def _(axis_name, primals, tangents):
    (x, classes, frames), (along, *_) = primals, tangents
    along = cleaned(along, frames)
    given = along, of_device(x, classes, axis_name)
    on_cpu = one_hot_product if x.shape[2] <= FEW else gather
    own = lax.platform_dependent(*given, cpu=on_cpu, tpu=one_hot_product, default=gather)
    own = own - jnp.sum(shares(x, frames, axis_name) * along, 2, keepdims=True)
    return log_probs(*primals, axis_name), total(own, axis_name)


def product(x: Array, at: Array) -> Array:
    """As `gather`, of logits: a TPU would lay them out anew for a gather or a scatter."""
    lowest = float(jnp.finfo(x.dtype).min) / 2  # 0 times -inf is NaN
    own = one_hot_product(jnp.where(x == -jnp.inf, lowest, x), at)
    return jnp.where(own <= lowest / 2, -jnp.inf, own)


def one_hot_product(x: Array, at: Array) -> Array:
    """As `gather`, of what is finite."""
    rows = jax.nn.one_hot(at, x.shape[2], dtype=x.dtype)
    return jnp.einsum("btv,bnv->btn", x, rows, precision=lax.Precision.HIGHEST)


def steps_of(spoken: Spoken, axis_name: str | None = None) -> Steps:
    """Through CTC's lattice, whose position n says that n labels have been read."""
    log_p = lean(log_probs, static_argnums=3)(*spoken[:3], axis_name).swapaxes(0, 1)
    y = spoken.classes
    repeats = jnp.pad(y[:, 1:-1] == y[:, 2:], ((0, 0), (1, 1)))[:, : y.shape[1]]
    return Steps((log_p,), spoken.frames.T[..., None], repeats)


def as_it_should_be(spoken: Spoken, steps: Steps) -> Array:
    """Lengths, labels and logits, [batch]; what is wrong with one logit its frame's blank shows."""
    return spoken.good & ~has_nan(steps.weights[0][..., :1])


def surprise_of_labels(axis_name: str | None, logits: Array, *given) -> Array:
    """-log p(labels); NaN where something is not as it should be."""
    spoken = through_the_door(axis_name, logits, *given)
    steps = steps_of(spoken, axis_name)
    value = nan_unless(as_it_should_be(spoken, steps), surprise(CHAIN, steps, spoken.length))
    return value.reshape(logits.shape[:-2])
