"""What is true of connectionist temporal classification."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import log_softmax, logsumexp, softmax

import jloss
from jloss._core.lattice import CHAIN, EXTENDED, Steps, flows, log_total
from jloss.losses import ctc
from jloss.losses.ctc import log_probs, steps_of, through_the_door

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
same = np.testing.assert_array_equal
BATCH, TIME, CLASSES, LABELS = SHAPE = 64, 32, 4, 36  # most tests', padded: it compiles once


def draw(batch, time, classes, labels, seed=0, span=3.0):
    """Logits, labels, and how many there are of either: often at the border of a chunk of 32."""
    rng = np.random.default_rng(seed)
    border = [n for n in (0, 1, 30, 31, 32, 33, 63, 64, 65) if n <= time]
    frames = np.where(
        rng.uniform(size=batch) < 0.7,
        rng.choice(border, batch),
        rng.integers(time + 1, size=batch),
    )
    lengths = rng.integers(np.minimum(frames + 1, labels) + 1)
    lengths = np.where(rng.uniform(size=batch) < 0.5, lengths // 2, lengths)
    logits = span * rng.normal(size=(batch, time, classes))
    return np.float32(logits), rng.integers(1, classes, (batch, labels)), frames, lengths


def oracle(logits, labels, frames, lengths, blank=0):
    """By forward and backward sums of probabilities' logarithms in float64: values, gradients."""
    log_p = log_softmax(np.float64(logits), -1)
    batch, time, classes = log_p.shape
    row, states = np.arange(batch), np.full((batch, 2 * labels.shape[1] + 1), blank)
    states[:, 1::2] = labels
    skips = np.zeros(states.shape, bool)
    skips[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    emitted = np.take_along_axis(log_p, states[:, None], 2)
    there = np.arange(time)[:, None] < frames
    shifted = lambda a, by: np.pad(a, ((0, 0), (by, 0)), constant_values=-np.inf)[:, : a.shape[1]]
    reversed_shift = lambda a, by: shifted(a[:, ::-1], by)[:, ::-1]
    plus = lambda *logs: functools.reduce(np.logaddexp, logs)

    to = np.full((time + 1, *states.shape), -np.inf)
    to[0, :, 0] = 0
    for t in range(time):
        skipping = np.where(skips, shifted(to[t], 2), -np.inf)
        moved = plus(to[t], shifted(to[t], 1), skipping) + emitted[:, t]
        to[t + 1] = np.where(there[t, :, None], moved, to[t])

    back = np.full_like(to, -np.inf)
    back[-1, row, 2 * lengths] = 0
    back[-1, row[lengths > 0], 2 * lengths[lengths > 0] - 1] = 0
    for t in reversed(range(time)):
        left = back[t + 1] + emitted[:, t]
        skipping = reversed_shift(np.where(skips, left, -np.inf), 2)
        moved = plus(left, reversed_shift(left, 1), skipping)
        back[t] = np.where(there[t, :, None], moved, back[t + 1])

    total = plus(*np.moveaxis(to[-1] + back[-1], 1, 0))
    possible = total > -np.inf
    through = np.exp(to[1:] + back[1:] - np.where(possible, total, 0)[:, None])
    occupancy = np.einsum("tbs,bsv->btv", through, np.eye(classes)[states])
    counts = there.T[..., None] & possible[:, None, None]
    return -total, np.where(counts, np.exp(log_p) - occupancy, 0)


@jax.jit
def evaluate(logits, labels, logit_paddings=None, label_paddings=None, **options):
    """The values, and their own gradients."""
    loss = lambda x: jloss.ctc_loss(x, logit_paddings, labels, label_paddings, **options)
    values, pullback = jax.vjp(loss, logits)
    return values, pullback(jnp.ones_like(values))[0]


def counted(frames, lengths):
    return {"logit_lengths": frames, "label_lengths": lengths}


def padded(frames, lengths):
    """Of counts, as masks."""
    ends = (TIME, frames), (LABELS, lengths)
    return {
        name: np.float32(np.arange(size) >= counts[:, None])
        for name, (size, counts) in zip(("logit_paddings", "label_paddings"), ends)
    }


ALL = counted(np.full(BATCH, TIME), np.full(BATCH, LABELS))
ALL |= padded(*ALL.values())


def through_every_door(logits, labels, **options):
    """As `evaluate`, with whatever is not given as it would be."""
    return evaluate(logits, labels, **(ALL | {"blank_id": 0, "zero_infinity": False} | options))


def align(logits, labels, **options):
    return jit_alignment(logits, labels=labels, **(ALL | options))


jit_alignment = jax.jit(jloss.ctc_alignment)


def agrees(logits, labels, frames, lengths, *, rtol=3e-7, atol=5e-6, small=5e-7):
    got, gradient = evaluate(logits, labels, **counted(frames, lengths))
    expected, exact = oracle(logits, labels, frames, lengths)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=small)
    np.testing.assert_allclose(gradient, exact, rtol=0, atol=atol)
    same(np.asarray(gradient)[np.isinf(expected)], 0)
    assert (got >= 0).all()
    return np.isinf(expected)


# all paths ------------------------------------------------------------------------------------

PATHS = np.array(list(itertools.product(range(CLASSES), repeat=4)))


def said(path, blank=0):
    return tuple(int(c) for c, _ in itertools.groupby(path) if c != blank)


SAID = [said(path) for path in PATHS]
TEXTS = sorted({*SAID, (1, 1, 1), (2, 2, 2), (3, 3, 3)}, key=lambda text: (len(text), text))
ONE_HOT = np.eye(CLASSES)[PATHS]


def every_text(seed):
    """One sequence of four frames, and all that it might say, and a little that it cannot."""
    logits = np.float32(np.random.default_rng(seed).normal(size=(4, CLASSES)) * (1 + 2 * seed))
    labels = np.zeros((BATCH, LABELS), int)
    for row, text in zip(labels, TEXTS):
        row[: len(text)] = text
    padded = np.full((BATCH, TIME, CLASSES), np.nan, np.float32)
    padded[:, :4] = logits
    lengths = np.array([len(text) for text in TEXTS])
    scores = np.sum(log_softmax(np.float64(logits), -1) * ONE_HOT, (1, 2))
    return logits, scores, (padded, labels, np.full(BATCH, 4), lengths)


def paths_of(text):
    return np.array([s == text for s in SAID])


def test_every_text_is_there_and_repetitions_need_a_blank():
    assert len(TEXTS) == BATCH
    assert [t for t in TEXTS if not paths_of(t).any()] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_probability_of_all_paths_that_say_the_labels(seed):
    logits, scores, (padded, labels, *counts) = every_text(seed)
    values, gradients = evaluate(padded, labels, **counted(*counts))
    close(np.exp(-np.float64(values)).sum(), 1)
    for text, value, gradient in zip(TEXTS, values, gradients):
        own = paths_of(text)
        if not own.any():
            assert value == np.inf
            same(gradient, 0)
            continue
        close(value, -logsumexp(scores[own]))
        posterior = softmax(scores[own])
        occupancy = np.tensordot(posterior, ONE_HOT[own], 1)
        close(gradient[:4], softmax(np.float64(logits), -1) - occupancy)
        same(gradient[4:], 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_alignment_is_the_likeliest_of_these_paths(seed):
    _, scores, (padded, labels, *counts) = every_text(seed)
    got = align(padded, labels, **counted(*counts))
    for i, text in enumerate(TEXTS):
        own = paths_of(text)
        likeliest = PATHS[np.argmax(np.where(own, scores, -np.inf))] if own.any() else 0
        same(got.labels[i, :4], likeliest)
        close(got.log_likelihood[i], np.max(scores[own], initial=-np.inf))


with_forward_probs = jax.jit(jloss.ctc_loss_with_forward_probs)


def test_forward_probabilities_are_those_of_all_beginnings():
    logits, _, (x, labels, *counts) = every_text(1)
    paddings, label_paddings = padded(*counts).values()
    _, blanks, spoken = with_forward_probs(x, paddings, labels, label_paddings)
    assert (blanks.shape, spoken.shape) == ((TIME, BATCH, 1 + LABELS), (TIME, BATCH, LABELS))
    p = softmax(np.float64(logits), -1)
    for text in [(1, 1, 2), (3,), ()]:
        row = TEXTS.index(text)
        for t, n in itertools.product(range(4), range(len(text) + 1)):
            begun = [path for path in np.ndindex(*(CLASSES,) * (t + 1)) if said(path) == text[:n]]
            chance = {path: np.prod(p[np.arange(t + 1), path]) for path in begun}
            of_blank = sum(c for path, c in chance.items() if path[-1] == 0)
            close(np.exp(blanks[t, row, n]), of_blank)
            if n:
                close(np.exp(spoken[t, row, n - 1]), sum(chance.values()) - of_blank)
            if t == 3:
                close(np.exp(blanks[-1, row, n]), sum(chance.values()))


# forward and backward sums in float64 ---------------------------------------------------------


@pytest.mark.parametrize("time", [31, 32, 65])
def test_any_lengths_around_the_border_of_a_chunk(time):
    """Of 3 x 64 cases, some of which are impossible."""
    batch = draw(BATCH, time, CLASSES, LABELS, seed=time)
    impossible = agrees(*batch)
    assert 0 < impossible.sum() < BATCH


SPEECH = 3, 200, 40, 60


def speech(seed, span=3.0):
    logits, labels, *_ = draw(*SPEECH, seed=seed, span=span)
    return np.clip(logits, -20, 20), labels, np.array([200, 170, 140]), np.array([60, 35, 47])


@pytest.mark.parametrize("span", [0.01, 1.0, 3.0, 8.0])
def test_digits_of_a_spoken_sentence(span):
    assert not agrees(*speech(5, span)).any()


@pytest.mark.parametrize("lead", [20.0, 40.0, 90.0])
def test_digits_where_the_blank_is_almost_certain(lead):
    logits, *rest = speech(6, 1.0)
    logits[..., 0] = np.max(logits, -1) + lead
    agrees(logits, *rest)


def test_digits_of_logits_in_the_hundreds():
    logits, *rest = speech(7, 1.0)
    assert not agrees(300 * logits, *rest, atol=1e-4).any()


def test_digits_of_an_hour():
    logits, labels, *_ = draw(1, 8000, 6, 900, seed=8)
    agrees(logits, labels, np.array([8000]), np.array([900]), atol=2e-5)


def test_an_impossible_alignment_is_infinite_or_0_and_has_no_slope():
    logits, labels, *counts = draw(*SHAPE, seed=9)
    values, gradient = evaluate(logits, labels, **counted(*counts))
    impossible = np.isinf(values)
    zeroed, still = through_every_door(logits, labels, zero_infinity=True, **counted(*counts))
    close(zeroed, np.where(impossible, 0, values))
    close(still, gradient)
    same(zeroed[impossible], 0)
    same(still[impossible], 0)
    same(gradient[impossible], 0)
    assert impossible.any()


# others ---------------------------------------------------------------------------------------


def test_it_is_torch_s():
    torch = pytest.importorskip("torch")
    logits, labels, frames, lengths = draw(*SHAPE, seed=10)
    frames = np.maximum(frames, 1)
    x = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        torch.log_softmax(x, -1).transpose(0, 1),
        *map(torch.tensor, (labels, frames, lengths)),
        reduction="none",
    )
    values, gradient = evaluate(logits, labels, **counted(frames, lengths))
    close(values, expected.detach())
    possible = torch.isfinite(expected).numpy()
    expected[possible].sum().backward()
    np.testing.assert_allclose(gradient[possible], x.grad[possible], atol=1e-4)


def test_it_is_optax_s_with_all_that_it_returns():
    logits, labels, frames, lengths = draw(*SHAPE, seed=11)
    paddings, label_paddings = padded(frames, lengths).values()
    given = logits, paddings, labels, label_paddings
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = jax.jit(optax.ctc_loss_with_forward_probs)(*given)
    got = with_forward_probs(*given)
    possible = np.isfinite(got[0])
    close(got[0][possible], expected[0][possible])
    assert (expected[0][~possible] > 9e4).all()
    close(got[0], evaluate(logits, labels, **counted(frames, lengths))[0])
    label = np.arange(1 + LABELS)
    for ours, theirs, there in zip(
        got[1:], expected[1:], (label <= lengths[:, None], label[1:] <= lengths[:, None])
    ):
        ours, theirs = (np.exp(np.where(there, a, -np.inf)) for a in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-30)


# what is there --------------------------------------------------------------------------------


def test_lengths_and_paddings_say_the_same():
    logits, labels, frames, lengths = draw(*SHAPE, seed=12)
    by_length = evaluate(logits, labels, **counted(frames, lengths))
    by_padding = through_every_door(logits, labels, **padded(frames, lengths))
    jax.tree.map(close, by_padding, by_length)
    longer = counted(np.minimum(frames + 3, TIME), np.minimum(lengths + 2, LABELS))
    by_either = through_every_door(logits, labels, **padded(frames, lengths), **longer)
    jax.tree.map(same, by_either, by_padding)


def holed(seed):
    """A batch with padding anywhere, and nonsense in it; and the same with none before the end."""
    logits, labels, frames, _ = draw(*SHAPE, seed=seed)
    rng = np.random.default_rng(seed)
    frame_there, label_there = np.arange(TIME) < frames[:, None], np.arange(LABELS) < 12
    frame_there = frame_there & (rng.uniform(size=frame_there.shape) < 0.8)
    label_there = label_there & (rng.uniform(size=labels.shape) < 0.5)
    labels[0, :3], label_there[0], frame_there[0] = (1, 2, 1), np.arange(LABELS) % 2 == 0, True
    label_there[0, 3:] = frame_there[0, 2:] = False  # 1, a hole, 1: in two frames
    packed_logits, packed_labels = np.zeros_like(logits), np.zeros_like(labels)
    for b in range(BATCH):
        own, text = logits[b, frame_there[b]], labels[b, label_there[b]]
        packed_logits[b, : len(own)], packed_labels[b, : len(text)] = own, text
    logits[~frame_there], labels[~label_there] = np.nan, -100
    logits[1:, :5][~frame_there[1:, :5]] = np.inf
    packed = packed_logits, packed_labels, frame_there.sum(1), label_there.sum(1)
    holes = {
        "logit_paddings": np.float32(~frame_there),
        "label_paddings": np.float32(~label_there),
    }
    return logits, labels, frame_there, holes, packed


def test_holes_are_as_if_nothing_had_been_there():
    logits, labels, there, holes, packed = holed(13)
    values, gradient = through_every_door(logits, labels, **holes)
    expected, exact = oracle(*packed)
    assert values[0] == np.inf
    assert np.isfinite(values).sum() > BATCH // 3
    close(values, expected)
    same(gradient[~there], 0)
    for b in range(BATCH):
        close(gradient[b, there[b]], exact[b, : there[b].sum()])


def test_nonsense_in_padding_reaches_nothing():
    logits, labels, frames, lengths = draw(*SHAPE, seed=14)
    clean = evaluate(logits, labels, **counted(frames, lengths))
    for number, label in ((np.nan, -100), (np.inf, CLASSES), (-np.inf, 0), (3e38, 2**31 - 1)):
        logits[np.arange(TIME) >= frames[:, None]] = number
        labels[np.arange(LABELS) >= lengths[:, None]] = label
        jax.tree.map(same, evaluate(logits, labels, **counted(frames, lengths)), clean)


@pytest.mark.parametrize(("time", "size"), [(0, 2), (2, 0)])
def test_arrays_of_no_frames_or_no_labels(time, size):
    logits, labels = np.zeros((1, time, CLASSES), np.float32), np.arange(1, size + 1)[None]
    values, gradient = evaluate(logits, labels)
    expected, exact = oracle(logits, labels, np.array([time]), np.array([size]))
    close(values, expected)
    close(gradient, exact)


def test_no_frame_says_nothing_and_only_that():
    logits, labels, frames, lengths = draw(*SHAPE, seed=15)
    values, _ = evaluate(logits, labels, **counted(0 * frames, lengths))
    same(values, np.where(lengths == 0, 0, np.inf))
    values, _ = through_every_door(np.nan * logits, labels, **padded(0 * frames, lengths))
    same(values, np.where(lengths == 0, 0, np.inf))


def wrong():
    """A batch in which something is, and in which of its sequences; and the batch without it."""
    logits, labels, *_ = draw(*SHAPE, seed=16)
    labels[:] = np.resize([1, 2, 3], LABELS)
    clean = logits, labels, np.full(BATCH, 31), np.full(BATCH, 4)
    logits, labels, frames, lengths = (a.copy() for a in clean)
    frames[2], frames[3], lengths[5], lengths[6] = TIME + 1, -1, LABELS + 1, -1
    labels[8, 0], labels[9, 3], labels[10, 1] = -1, 0, CLASSES
    logits[12, 0, 0], logits[13, 30, 3], logits[14, 31, 1] = np.nan, np.nan, np.nan
    bad = np.isin(np.arange(BATCH), [2, 3, 5, 6, 8, 9, 10, 12, 13])
    return (logits, labels, frames, lengths), bad, clean


def test_what_is_wrong_is_nan_for_its_own_sequence_alone():
    (logits, labels, *counts), bad, clean = wrong()
    values, gradient = evaluate(logits, labels, **counted(*counts))
    same(np.isnan(values), bad)
    same(np.isnan(gradient).any((1, 2))[counts[0] > 0], bad[counts[0] > 0])
    expected = evaluate(*clean[:2], **counted(*clean[2:]))
    jax.tree.map(lambda got, plain: same(got[~bad], plain[~bad]), (values, gradient), expected)


def test_a_negative_number_of_frames_has_no_slope_either():
    (logits, labels, *counts), *_ = wrong()
    assert np.isnan(evaluate(logits, labels, **counted(*counts))[1][3]).any()


def test_where_something_is_wrong_there_is_no_alignment():
    (logits, labels, *counts), bad, _ = wrong()
    found = align(logits, labels, **counted(*counts))
    same(np.isnan(found.log_likelihood), bad)
    same(found.labels[bad], 0)
    same(found.positions[bad], -1)


@pytest.mark.parametrize("blank", [1, 3])
def test_the_blank_may_be_any_class(blank):
    logits, labels, frames, lengths = draw(*SHAPE, seed=17)
    order = np.r_[1 : blank + 1, 0, blank + 1 : CLASSES]  # where each class was before
    number = np.argsort(order)
    moved = logits[..., order], number[labels]
    values, gradient = through_every_door(*moved, blank_id=blank, **counted(frames, lengths))
    expected, exact = evaluate(logits, labels, **counted(frames, lengths))
    close(values, expected)
    close(gradient, exact[..., order])
    speaking = lengths > 0
    values, _ = through_every_door(logits, 0 * labels + 2, blank_id=2, **counted(frames, lengths))
    same(np.isnan(values), speaking)


def test_a_class_of_probability_0_that_no_label_needs_changes_nothing():
    logits, labels, frames, lengths = draw(*SHAPE, seed=18)
    labels = np.minimum(labels, 2)
    logits[..., 3] = -np.inf
    values, gradient = evaluate(logits, labels, **counted(frames, lengths))
    expected, exact = oracle(logits[..., :3], labels, frames, lengths)
    close(values, expected, rtol=3e-7)
    close(gradient[..., :3], exact, atol=5e-6)
    same(gradient[..., 3], 0)


def test_a_class_forbidden_at_some_frames():
    logits, labels, frames, lengths = draw(*SHAPE, seed=19)
    logits[np.random.default_rng(19).uniform(size=logits.shape) < 0.1] = -np.inf
    logits[..., 3] = np.maximum(logits[..., 3], -5)  # or there is no class at all
    agrees(logits, labels, frames, lengths // 2)


def test_infinities_that_forbid_the_labels_cost_infinitely_and_have_no_slope():
    logits, labels, frames, lengths = draw(*SHAPE, seed=20)
    labels = np.minimum(labels, 2)
    frames, lengths = frames * 0 + 31, lengths * 0 + 5
    labels[:, 0], labels[:, 1] = 1, 2
    logits[0, :, 1] = logits[1, 7, :3] = -np.inf
    values, gradient = evaluate(logits, labels, **counted(frames, lengths))
    same(np.isinf(values), np.arange(BATCH) < 2)
    assert np.isfinite(gradient[2:]).all()
    same(gradient[:2], 0)


def test_a_logit_that_is_no_number_is_told():
    logits, labels, frames, lengths = draw(*SHAPE, seed=20)
    right, slopes = evaluate(logits, labels, **counted(frames, lengths))
    logits[0, 0, 3], logits[1, 0, 2] = np.inf, np.nan
    values, gradient = evaluate(logits, labels, **counted(frames, lengths))
    assert np.isnan(values[:2]).all()
    assert np.isnan(gradient[:2, 0]).all()
    same(values[2:], right[2:])
    same(gradient[2:], slopes[2:])


# occupancies ----------------------------------------------------------------------------------


def test_softmax_less_the_gradient_is_how_likely_each_frame_says_each_class():
    logits, labels, frames, lengths = draw(*SHAPE, seed=21)
    values, gradient = evaluate(logits, labels, **counted(frames, lengths))
    there = (np.arange(TIME) < frames[:, None]) & np.isfinite(values)[:, None]
    occupancy = (softmax(logits, -1) - gradient)[there]
    assert occupancy.min() > -1e-6
    close(occupancy.sum(-1), 1)
    close(gradient.sum(-1), 0)
    own = np.any(labels[..., None] == np.arange(CLASSES), 1)
    own[:, 0] = True
    foreign = there[..., None] & ~own[:, None]
    same(np.asarray(gradient)[foreign] > 0, True)


# derivatives ----------------------------------------------------------------------------------

FEW = np.array([[1, 1, 2], [1, 2, 0], [3, 0, 0], [0, 0, 0], [1, 2, 3], [2, 2, 2]], np.int32)
FEW_LENGTHS = np.array([3, 2, 1, 0, 3, 3], np.int32)


def slope(x, y, n):
    """Of one sequence; and the slope again, with the value."""
    loss = lambda x: jloss.ctc_loss(x, None, y, label_lengths=n)
    value, gradient = jax.value_and_grad(loss)(x)
    return gradient, (gradient, value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_hessian_is_how_paths_vary_less_how_those_that_say_the_labels_vary(dtype):
    """The covariance of one-hot paths; in float64, to the last digits."""
    logits, scores, _ = every_text(1)
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(logits, dtype)
        all_three = jax.jit(jax.vmap(jax.jacfwd(slope, has_aux=True), (None, 0, 0)))
        hessians, (gradients, values) = all_three(x, FEW, FEW_LENGTHS)
    assert {a.dtype for a in (values, gradients, hessians)} == {np.dtype(dtype)}
    exact = functools.partial(close, rtol=0, atol=3e-6 if dtype == "float32" else 2e-14)
    flat = ONE_HOT.reshape(len(PATHS), -1)
    covariance = lambda p: (flat.T * p) @ flat - np.outer(p @ flat, p @ flat)
    for y, n, value, gradient, hessian in zip(FEW, FEW_LENGTHS, values, gradients, hessians):
        own = np.where(paths_of(tuple(y[:n].tolist())), scores, -np.inf)
        if np.isinf(value):
            assert np.isinf(own).all()
            same(gradient, 0)
            same(hessian, 0)
            continue
        p, q = softmax(own), softmax(scores)
        exact(value, -logsumexp(own))
        exact(gradient.ravel(), (q - p) @ flat)
        exact(hessian.reshape(flat.shape[1], -1), covariance(q) - covariance(p))


def pieces():
    """Steps of a batch whose walk is of two chunks, directions to move the weights, and ends."""
    logits, *integers = draw(6, 40, CLASSES, 8, seed=22, span=1.0)
    labels, frames, lengths = map(np.int32, integers)
    frames[:2], lengths[:2] = (40, 37), (8, 3)
    spoken = through_the_door(None, np.float64(logits), None, labels, None, 0, frames, lengths)
    steps = steps_of(spoken)
    rng = np.random.default_rng(22)
    return steps, tuple(rng.normal(size=w.shape) for w in steps.weights), spoken.length


def test_the_rule_of_the_sum_of_paths_is_plain_differentiation():
    """To the second order; and flows are its first."""

    def both():
        steps, along, end = pieces()

        def slopes(total):
            f = lambda w: jnp.sum(total(CHAIN, Steps(w, *steps[1:]), end))
            return jax.jvp(jax.grad(f), (steps.weights,), (along,))

        return slopes(log_total), slopes(log_total.fun), flows(EXTENDED, CHAIN, steps, end)

    with jax.enable_x64(True):
        rule, plain, (total, used) = jax.jit(both)()
    exact = functools.partial(close, rtol=1e-10, atol=1e-12)
    jax.tree.map(exact, rule, plain)
    jax.tree.map(exact, used, plain[0])
    assert np.isfinite(total).sum() > 2


def test_the_rule_of_log_probabilities_is_plain_differentiation():
    logits, labels, frames, _ = draw(6, 10, CLASSES, 8, seed=23)
    there, by = np.arange(10) < frames[:, None], np.random.default_rng(23).normal(size=(6, 10, 8))
    by = np.float32(by)
    for size in (CLASSES, 200):
        x = np.resize(logits, (6, 10, size))

        def slopes(f, x=x):
            f_ = lambda x: jnp.sum(f(x, jnp.asarray(labels), jnp.asarray(there), None) * by)
            return jax.jvp(jax.grad(f_), (x,), (jnp.cos(x),))

        got, expected = jax.jit(lambda: (slopes(log_probs), slopes(log_probs.fun)))()
        jax.tree.map(close, got, expected)


def test_a_scan_over_rematerialized_batches_has_the_same_gradient():
    logits, *rest = draw(*SHAPE, seed=24)
    values, gradient = evaluate(logits, rest[0], **counted(*rest[1:]))

    @jax.checkpoint
    def alone(x, y, frames, lengths):
        return jloss.ctc_loss(x, None, y, **counted(frames, lengths), zero_infinity=True)

    def scanned(x):
        rows = (jnp.reshape(a, (8, 8, *a.shape[1:])) for a in (x, *rest))
        add = lambda total, row: (total + jnp.sum(jax.vmap(alone)(*row)), None)
        return jax.lax.scan(add, jnp.zeros(()), tuple(rows))[0]

    total, in_scan = jax.jit(jax.value_and_grad(scanned))(logits)
    close(total, values[np.isfinite(values)].sum())
    close(in_scan, gradient)


def test_forward_mode_is_reverse_mode_and_leading_axes_are_one_batch():
    logits, *rest = draw(*SHAPE, seed=25)
    values, gradient = evaluate(logits, rest[0], **counted(*rest[1:]))

    @jax.jit
    def moved(x, along, y, *counts):
        return jax.jvp(lambda x: jloss.ctc_loss(x, None, y, **counted(*counts)), (x,), (along,))

    nested = (a.reshape(8, 8, *a.shape[1:]) for a in (logits, np.cos(logits), *rest))
    value, by = moved(*nested)
    close(value, values.reshape(8, 8))
    close(by, np.sum(gradient * np.cos(logits), (1, 2)).reshape(8, 8), atol=1e-5)


def test_second_derivatives_through_a_scan_over_batches():
    """In one scale of all logits, reverse over reverse."""
    rows = logits, labels, frames, lengths = draw(*SHAPE, seed=26, span=1.0)

    def scanned(scale):
        def add(total, batch):
            x, y, *counts = batch
            options = counted(*counts) | {"zero_infinity": True}
            return total + jnp.sum(jloss.ctc_loss(scale * x, None, y, **options)), None

        batches = (jnp.reshape(a, (4, 16, *a.shape[1:])) for a in rows)
        return jax.lax.scan(add, jnp.zeros(()), tuple(batches))[0]

    def slope(scale):
        _, gradient = evaluate(np.float32(scale) * logits, labels, **counted(frames, lengths))
        return np.sum(np.float64(gradient) * logits)

    got = jax.jit(jax.jacrev(jax.grad(scanned)))(1.5)
    np.testing.assert_allclose(got, (slope(1.51) - slope(1.49)) / 0.02, rtol=1e-3)


def test_lengths_and_labels_of_64_bits_go_with_logits_of_32():
    with jax.enable_x64(True):
        x, y, n = jnp.zeros((1, 2, 3), jnp.float32), jnp.array([[1]]), jnp.array([1])
        value = jloss.ctc_loss(x, None, y, label_lengths=n, logit_lengths=n + 1)
    assert value.dtype == jnp.float32
    close(value, np.log(3))


# sizes, dtypes, meshes ------------------------------------------------------------------------


def test_a_large_vocabulary_of_which_most_is_impossible_is_a_small_one():
    logits, labels, frames, lengths = draw(*SHAPE, seed=26)
    wide = np.full((BATCH, TIME, 200), -np.inf, np.float32)
    numbers = np.array([7, 130, 60, 199])
    wide[..., numbers] = logits
    values, gradient = evaluate(wide, numbers[labels], blank_id=7, **counted(frames, lengths))
    expected, exact = evaluate(logits, labels, **counted(frames, lengths))
    close(values, expected)
    close(gradient[..., numbers], exact)
    same(np.delete(gradient, numbers, 2), 0)


def test_bfloat16_is_float32_of_the_rounded_logits():
    logits, labels, *counts = draw(*SHAPE, seed=27)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    values, gradient = evaluate(rounded, labels, **counted(*counts))
    expected, exact = evaluate(rounded.astype(jnp.float32), labels, **counted(*counts))
    assert (values.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    close(values, expected, rtol=1e-6)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), exact.astype(jnp.bfloat16).astype(jnp.float32), rtol=1e-2
    )


@pytest.mark.parametrize("split", ["batch", "both"])
def test_by_hand_batch_and_classes_are_split(split):
    logits, labels, *counts = draw(*SHAPE, seed=28)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    classes = "model" if split == "both" else None

    def local(x, y, *counts):
        return jloss.ctc_loss(x, None, y, axis_name=classes, **counted(*counts))

    specs = P("data", None, classes), P("data"), P("data"), P("data")
    loss = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data"))

    @jax.jit
    def step(x, *rest):
        values, pullback = jax.vjp(lambda x: loss(x, *rest), x)
        return values, pullback(jnp.ones_like(values))[0]

    expected = evaluate(logits, labels, **counted(*counts))
    jax.tree.map(close, step(logits, labels, *counts), expected)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])
def test_a_mesh_that_splits_batch_and_classes_gathers_nothing(kind):
    logits, labels, *counts = draw(*SHAPE, seed=28)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    split = jax.device_put(logits, NamedSharding(mesh, P("data", None, "model")))
    rest = jax.device_put((labels, counted(*counts)), NamedSharding(mesh, P("data")))
    compiled = evaluate.lower(split, rest[0], **rest[1]).compile()
    expected = evaluate(logits, labels, **counted(*counts))
    jax.tree.map(close, compiled(split, rest[0], **rest[1]), expected)
    assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())


# decoding -------------------------------------------------------------------------------------


def test_greedy_decoding_is_a_loop_over_frames():
    logits, _, frames, _ = draw(*SHAPE, seed=29)
    there = np.random.default_rng(29).uniform(size=(BATCH, TIME)) < 0.8
    logits[~there] = np.nan
    decode = jax.jit(jloss.ctc_greedy_decode)
    for blank in (0, 3):
        got = decode(logits, ~there, blank_id=blank, logit_lengths=frames)
        for b in range(BATCH):
            own = logits[b, there[b] & (np.arange(TIME) < frames[b])]
            text = said(own.argmax(-1), blank)
            assert got.lengths[b] == len(text)
            same(got.labels[b, : len(text)], text)
            same(got.labels[b, len(text) :], blank)
            close(got.log_likelihood[b], log_softmax(np.float64(own), -1).max(-1).sum())


def test_no_decoding_stands_in_the_way_of_a_gradient():
    logits, labels, frames, lengths = draw(*SHAPE, seed=30)

    def loss(x):
        text = jloss.ctc_greedy_decode(x, logit_lengths=frames)
        found = jloss.ctc_alignment(x, None, labels, **counted(frames, lengths))
        return jnp.sum(x**2), (text.labels, found.labels)

    gradient, _ = jax.jit(jax.grad(loss, has_aux=True))(logits)
    close(gradient, 2 * logits)


def test_an_alignment_says_every_label_in_its_order():
    logits, labels, frames, lengths = draw(*SHAPE, seed=31)
    got = align(logits, labels, **counted(frames, lengths))
    values, _ = evaluate(logits, labels, **counted(frames, lengths))
    possible = np.isfinite(values)
    same(got.log_likelihood[~possible], -np.inf)
    same(got.positions[~possible], -1)
    assert (np.asarray(got.log_likelihood) <= -np.asarray(values) + 1e-4).all()
    log_p = log_softmax(np.float64(logits), -1)
    for b in np.nonzero(possible)[0]:
        path, positions = np.asarray(got.labels[b]), np.asarray(got.positions[b])
        spoken = positions[positions >= 0]
        assert (np.diff(spoken) >= 0).all()
        assert set(spoken.tolist()) == set(range(lengths[b]))
        same(path, np.where(positions >= 0, labels[b, positions], 0))
        assert said(path[: frames[b]]) == tuple(labels[b, : lengths[b]].tolist())
        same(positions[frames[b] :], -1)
        same(got.scores[b, frames[b] :], 0)
        own = np.arange(frames[b])
        close(got.scores[b, : frames[b]], log_p[b, own, path[: frames[b]]])
        close(got.log_likelihood[b], np.sum(got.scores[b]))


def test_an_alignment_passes_over_holes():
    logits, labels, there, holes, packed = holed(32)
    got = align(logits, labels, **holes)
    expected = align(*packed[:2], **counted(*packed[2:]))
    close(got.log_likelihood, expected.log_likelihood)
    same(got.positions[~there], -1)
    same(got.labels[~there], 0)
    same(got.scores[~there], 0)
    for b, own in enumerate(there):
        same(got.labels[b, own], expected.labels[b, : own.sum()])
        same(got.positions[b, own], expected.positions[b, : own.sum()])


@pytest.mark.parametrize("decode", ["alignment", "greedy", "beginnings"])
def test_what_frames_say_where_an_explicit_mesh_splits_batch_and_classes(decode):
    logits, labels, *counts = draw(*SHAPE, seed=33)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P("data", *spec)))
    whole = logits, labels, ALL | padded(*counts)
    split = place(logits, None, "model"), place(labels), place(whole[2])

    def of(x, y, doors):
        paddings, label_paddings = doors["logit_paddings"], doors["label_paddings"]
        if decode == "alignment":
            return align(x, y, **doors)
        if decode == "greedy":
            return jax.jit(jloss.ctc_greedy_decode)(x, paddings)
        return tuple(map(jnp.exp, with_forward_probs(x, paddings, y, label_paddings)[1:]))

    jax.tree.map(close, of(*split), of(*whole))


# bad arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"labels": np.ones((2, 3), int)}, ValueError, "`labels`"),
        ({"labels": np.ones((3, 2))}, TypeError, "`labels`"),
        ({"logits": np.zeros((3, 5, 4), int)}, TypeError, "`logits`"),
        ({"logits": np.zeros(4, np.float32)}, ValueError, "`logits`"),
        ({"logit_paddings": np.zeros((3, 4))}, ValueError, "`logit_paddings`"),
        ({"label_paddings": np.zeros((3, 5))}, ValueError, "`label_paddings`"),
        ({"logit_lengths": np.ones((3, 1), int)}, ValueError, "`logit_lengths`"),
        ({"label_lengths": np.ones(3)}, TypeError, "`label_lengths`"),
        ({"where": np.ones((3, 5), bool)}, ValueError, "`where`"),
    ],
)
def test_bad_arguments_are_told_by_name(change, error, told):
    good = {"logits": np.zeros((3, 5, 4), np.float32), "labels": np.ones((3, 2), int)}
    with pytest.raises(error, match=told):
        jloss.ctc_loss(**({"logit_paddings": None} | good | change))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_product_that_a_tpu_takes_is_the_gather(dtype):
    logits = jnp.asarray(np.random.default_rng(40).normal(size=(2, 5, 7)), dtype)
    logits = logits.at[0, 1, 3].set(-jnp.inf).at[1, 2].set(-jnp.inf)
    at = jnp.array([[0, 3, 2, 3], [6, 7, 1, 0]])  # 7 is another device's
    same(ctc.product(logits, at), ctc.gather(logits, at))
    slope_of = lambda f: jax.vjp(lambda x: f(x, at), jnp.zeros_like(logits))[1]
    slopes = [slope_of(f) for f in (ctc.one_hot_product, ctc.gather)]
    by = jnp.asarray(np.random.default_rng(41).normal(size=(2, 5, 4)), dtype)
    by = by.astype(jnp.float32).round(1).astype(dtype)
    tight = {"rtol": 1e-6, "atol": 1e-6} if dtype == "float32" else {"rtol": 2e-2, "atol": 2e-2}
    np.testing.assert_allclose(*(np.float32(slope(by)[0]) for slope in slopes), **tight)


@pytest.mark.parametrize("blank_id", [-1, 4])
def test_a_blank_that_is_no_class_is_told(blank_id):
    logits, labels = np.zeros((1, 3, 4), np.float32), np.array([[1]])
    loss = lambda x: jloss.ctc_loss(x, None, labels, blank_id=blank_id).sum()
    value, gradient = jax.value_and_grad(loss)(logits)
    assert np.isnan(value)
    assert np.isnan(gradient).all()
    assert np.isnan(jloss.ctc_greedy_decode(logits, blank_id=blank_id).log_likelihood)
    with pytest.raises(ValueError, match="`blank_id` should lie in"):
        jloss.checked(jax.jit(loss))(logits)


def test_what_is_no_padding_is_told():
    logits, labels = np.zeros((1, 2, 4), np.float32), np.array([[1, 2]])
    swapped = jax.jit(lambda x: jloss.ctc_loss(x, labels, labels))
    with pytest.raises(ValueError, match="`logit_paddings` should be 0, or 1"):
        jloss.checked(swapped)(logits)
    with pytest.raises(ValueError, match="come before what they pad"):
        jloss.ctc_loss(logits, np.array([2]), labels)
