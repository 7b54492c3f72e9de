"""What is true of the RNN-Transducer."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import log_softmax, logsumexp, softmax

import jloss

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
same = np.testing.assert_array_equal
BATCH, TIME, LABELS, CLASSES = SHAPE = 16, 60, 25, 12  # most tests': it compiles once
FRAMES = np.array([60, 60, 45, 32, 1, 0, 0, 17, 31, 33, 2, 59, 60, 8, 40, 20])
LENGTHS = np.array([25, 0, 20, 12, 3, 0, 4, 25, 1, 0, 25, 24, 6, 25, 23, 13])
SAID, IMPOSSIBLE = (FRAMES > 0) | (LENGTHS == 0), 6  # no frame says four labels


def draw(batch, time, labels, classes, seed=0, span=1.0):
    """Logits, and labels that are not the blank."""
    rng = np.random.default_rng(seed)
    logits = np.float32(span * rng.normal(size=(batch, time, labels + 1, classes)))
    return logits, rng.integers(1, classes, (batch, labels))


def sides(batch, time, labels, classes, seed=0, span=1.0):
    """What the encoder and the predictor say, and labels."""
    rng = np.random.default_rng(seed)
    e, p = rng.normal(size=(batch, time, classes)), rng.normal(size=(batch, labels + 1, classes))
    return np.float32(span * e), np.float32(span * p), rng.integers(1, classes, (batch, labels))


def counted(frames=FRAMES, lengths=LENGTHS):
    return {"logit_lengths": frames, "label_lengths": lengths}


def outside(frames=FRAMES, lengths=LENGTHS, time=TIME, labels=LABELS):
    """The nodes of the grid that are not there."""
    frames, lengths = (a[:, None, None] for a in (frames, lengths))
    return (np.arange(time)[:, None] >= frames) | (np.arange(labels + 1) > lengths)


def walks(blank, label, frames, lengths):
    """Of logarithms [batch, time, positions] in float64, by anti-diagonals: to, and from, nodes."""
    batch, time, positions = blank.shape
    down, right = (
        np.pad(a, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf) for a in (blank, label)
    )
    to, left = np.full_like(down, -np.inf), np.full_like(down, -np.inf)
    end = np.arange(batch), frames + 1, lengths + 1
    to[:, 1, 1], left[end] = 0, 0
    for d in range(1, time + positions):
        u = np.arange(max(0, d - time), min(positions - 1, d) + 1) + 1
        t = d + 2 - u
        above, before = to[:, t - 1, u] + down[:, t - 1, u], to[:, t, u - 1] + right[:, t, u - 1]
        to[:, t, u] = np.logaddexp(above, before)
    for d in reversed(range(time + positions - 1)):
        u = np.arange(max(0, d - time + 1), min(positions - 1, d) + 1) + 1
        t = d + 2 - u
        below, after = left[:, t + 1, u] + down[:, t, u], left[:, t, u + 1] + right[:, t, u]
        left[:, t, u] = np.logaddexp(np.logaddexp(below, after), left[:, t, u])
    total = to[end]
    mass = np.where(total > -np.inf, total, 0)[:, None, None]
    nodes = slice(None), slice(1, -1), slice(1, -1)
    of_blank = to[nodes] + blank + left[:, 2:, 1:-1] - mass
    of_label = to[nodes] + label + left[:, 1:-1, 2:] - mass
    return total, np.exp(of_blank), np.exp(of_label)


def oracle(logits, labels, frames=FRAMES, lengths=LENGTHS, blank=0, kept=True):
    """Values; and gradients through blanks and through labels."""
    log_p = log_softmax(np.float64(logits), -1)
    classes = np.pad(labels, ((0, 0), (0, 1)))
    _, time, positions, _ = log_p.shape
    there = ~outside(frames, lengths, time, positions - 1) & kept
    more = np.arange(positions) < lengths[:, None, None]
    of_labels = np.take_along_axis(log_p, classes[:, None, :, None], -1)[..., 0]
    given = np.where(there, log_p[..., blank], -np.inf), np.where(there & more, of_labels, -np.inf)
    total, *used = walks(*given, frames, lengths)
    one_hot = np.eye(log_p.shape[-1])
    share = np.where(there[..., None], np.exp(log_p), 0)
    by_blank = used[0][..., None] * (share - one_hot[blank])
    return -total, (by_blank, used[1][..., None] * (share - one_hot[classes][:, None]))


def pulled(loss, x):
    """The values, and their own gradients."""
    values, pullback = jax.vjp(loss, x)
    return values, pullback(jnp.ones_like(values))[0]


@jax.jit
def evaluate(logits, labels, **options):
    return pulled(lambda x: jloss.rnnt_loss(x, labels, **options), logits)


align = jax.jit(jloss.rnnt_alignment)


def agrees(logits, labels, frames=FRAMES, lengths=LENGTHS, *, rtol=3e-7, atol=5e-6):
    values, gradient = evaluate(logits, labels, **counted(frames, lengths))
    expected, exact = oracle(logits, labels, frames, lengths)
    np.testing.assert_allclose(values, expected, rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(gradient, sum(exact), rtol=0, atol=atol)
    same(gradient[sum(exact) == 0], 0)


# all paths ------------------------------------------------------------------------------------

TINY = 3, 2, 3
CASES = [
    (time, text)
    for time in range(4)
    for n in range(3)
    for text in itertools.product((1, 2), repeat=n)
]
TIMES = np.array([time for time, _ in CASES])
SIZES = np.array([len(text) for _, text in CASES])
TEXTS = np.array([(*text, *[-100] * (2 - len(text))) for _, text in CASES])


def tiny(seed):
    """Of each case, with nonsense in padding."""
    logits, _ = draw(len(CASES), *TINY, seed=seed, span=1 + seed)
    logits[outside(TIMES, SIZES, 3, 2)] = np.nan
    return logits


def paths(log_p, text):
    """The frames at which labels are said, of each path; its logarithm; what it reads where."""
    time, *_ = log_p.shape
    for said in itertools.combinations_with_replacement(range(time), len(text)):
        reads, u = np.zeros_like(log_p), 0
        for t in range(time):
            for _ in range(said.count(t)):
                reads[t, u, text[u]], u = 1, u + 1
            reads[t, u, 0] = 1
        yield said, np.sum(reads * log_p), reads


def enumerated(logits, time, text):
    """All paths of one case: frames, logarithms, reads; and the logarithms of probabilities."""
    log_p = log_softmax(np.float64(logits[:time, : len(text) + 1]), -1)
    return *zip(*paths(log_p, text)), log_p


possible = [i for i, (time, text) in enumerate(CASES) if time or not text]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_probability_of_all_paths_that_say_the_labels(seed):
    logits = tiny(seed)
    values, gradient = evaluate(logits, TEXTS, **counted(TIMES, SIZES))
    same(np.isfinite(values), np.isin(np.arange(len(CASES)), possible))
    for i in possible:
        time, text = CASES[i]
        _, scores, reads, log_p = enumerated(logits[i], time, text)
        close(values[i], -logsumexp(scores))
        used = np.tensordot(softmax(scores), reads, 1)
        exact = np.sum(used, -1, keepdims=True) * np.exp(log_p) - used
        close(gradient[i, :time, : len(text) + 1], exact)
    same(gradient[np.isnan(logits)], 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_alignment_is_the_likeliest_of_these_paths(seed):
    logits = tiny(seed)
    found = align(logits, TEXTS, **counted(TIMES, SIZES))
    for i, (time, text) in enumerate(CASES):
        if i not in possible:
            assert found.log_likelihood[i] == -np.inf
            same(found.frames[i], -1)
            continue
        said, scores, *_ = enumerated(logits[i], time, text)
        close(found.log_likelihood[i], max(scores))
        same(found.frames[i, : len(text)], said[np.argmax(scores)])
        same(found.frames[i, len(text) :], -1)


def test_all_that_may_be_said_is_said_with_probability_1():
    """By a predictor that has heard what was said, and after four labels knows but the blank."""
    rng = np.random.default_rng(3)
    texts = [text for n in range(5) for text in itertools.product((1, 2), repeat=n)]
    heard = {text: rng.normal(size=(3, 3)) for text in texts}
    for text in texts[-16:]:
        heard[text][:, 1:] = -np.inf
    labels = np.array([(*text, *[1] * (4 - len(text))) for text in texts])
    logits = np.array([[heard[tuple(row[:u])] for u in range(5)] for row in labels.tolist()])
    lengths = np.array([len(text) for text in texts])
    frames = np.full(len(texts), 3)
    logits = np.float32(logits.swapaxes(1, 2))
    values, gradient = evaluate(logits, labels, **counted(frames, lengths))
    close(np.sum(np.exp(-values)), 1)
    assert np.isfinite(gradient).all()


# forward and backward sums in float64 ---------------------------------------------------------


@pytest.mark.parametrize("span", [0.01, 1.0, 3.0, 8.0])
def test_digits_of_a_spoken_sentence(span):
    agrees(*draw(*SHAPE, seed=4, span=span))


def test_digits_where_the_blank_is_almost_certain():
    logits, labels = draw(*SHAPE, seed=5)
    logits[..., 0] += 40
    agrees(logits, labels)


def test_digits_of_logits_in_the_hundreds():
    logits, labels = draw(*SHAPE, seed=6)
    agrees(300 * logits, labels, atol=2e-5)


def test_digits_of_a_long_recording():
    logits, labels = draw(1, 1000, 200, 4, seed=7)
    agrees(logits, labels, np.array([1000]), np.array([200]))


def test_it_is_torchaudio_s():
    torch = pytest.importorskip("torch")
    try:
        from torchaudio.functional import rnnt_loss
    except (ImportError, OSError) as error:  # its only wheels want CUDA's libraries
        pytest.skip(str(error))
    logits, labels = draw(*SHAPE, seed=8)
    frames, lengths = np.maximum(FRAMES, 1), np.maximum(LENGTHS, 1)
    x = torch.tensor(logits, requires_grad=True)
    integers = (torch.tensor(np.int32(a)) for a in (labels, frames, lengths))
    expected = rnnt_loss(x, *integers, blank=0, reduction="none")
    expected.sum().backward()
    values, gradient = evaluate(logits, labels, **counted(frames, lengths))
    close(values, expected.detach())
    close(gradient, x.grad, atol=1e-4)


# what is there --------------------------------------------------------------------------------

NONSENSE = (np.nan, -100), (np.inf, CLASSES), (-np.inf, 0), (3e38, 2**31 - 1)


def unheard(labels):
    """Those in padding."""
    return np.arange(labels.shape[1]) >= LENGTHS[:, None]


def test_nonsense_in_padding_reaches_nothing():
    logits, labels = draw(*SHAPE, seed=9)
    clean = evaluate(logits, labels, **counted())
    same(clean[1][outside()], 0)
    for number, label in NONSENSE:
        logits[outside()], labels[unheard(labels)] = number, label
        jax.tree.map(same, evaluate(logits, labels, **counted()), clean)


def test_no_frame_says_nothing_and_only_that():
    logits, labels = draw(*SHAPE, seed=10)
    values, gradient = evaluate(np.nan * logits, labels, **counted(0 * FRAMES))
    same(values, np.where(LENGTHS == 0, 0, np.inf))
    same(gradient, 0)


@pytest.mark.parametrize(("time", "size"), [(0, 2), (0, 0), (2, 0)])
def test_arrays_of_no_frames_or_no_labels(time, size):
    logits, labels = np.zeros((1, time, size + 1, 3), np.float32), np.arange(1, size + 1)[None]
    values, gradient = evaluate(logits, labels)
    expected, exact = oracle(logits, labels, np.array([time]), np.array([size]))
    close(values, expected)
    close(gradient, sum(exact))


@pytest.mark.parametrize(("time", "size"), [(0, 2), (0, 0), (2, 0)])
def test_an_alignment_of_no_frames_or_no_labels(time, size):
    logits, labels = np.zeros((1, time, size + 1, 3), np.float32), np.arange(1, size + 1)[None]
    found = align(logits, labels)
    same(found.frames, np.full((1, size), -1))
    close(found.log_likelihood, -np.inf if size else -time * np.log(3))


def wrong():
    """A batch in which something is, and in which of its sequences; and the batch without it."""
    logits, labels = draw(*SHAPE, seed=11)
    clean = logits, labels, np.full(BATCH, 50), np.full(BATCH, 4)
    logits, labels, frames, lengths = (a.copy() for a in clean)
    frames[1], frames[2], lengths[3], lengths[4] = TIME + 1, -1, LABELS + 1, -1
    labels[6, 0], labels[7, 3], labels[8, 1], labels[9, 4] = -1, 0, CLASSES, -100
    logits[11, 0, 0, 3], logits[12, 49, 4, 0], logits[13, 50, 0, 0] = np.nan, np.nan, np.nan
    logits[14, 3, 5, 0], logits[15, 30, 2, 11], logits[0, 50, 0, 0] = np.nan, np.inf, np.inf
    bad = np.isin(np.arange(BATCH), [1, 2, 3, 4, 6, 7, 8, 11, 12, 15])
    return (logits, labels, frames, lengths), bad, clean


def test_what_is_wrong_is_nan_for_its_own_sequence_alone():
    (logits, labels, *counts), bad, clean = wrong()
    values, gradient = evaluate(logits, labels, **counted(*counts))
    same(np.isnan(values), bad)
    same(np.isnan(gradient).any((1, 2, 3)), bad)
    expected = evaluate(*clean[:2], **counted(*clean[2:]))
    jax.tree.map(lambda got, plain: same(got[~bad], plain[~bad]), (values, gradient), expected)


def test_where_something_is_wrong_there_is_no_alignment():
    (logits, labels, *counts), bad, clean = wrong()
    found, expected = (
        align(logits, labels, **counted(*counts)),
        align(*clean[:2], **counted(*clean[2:])),
    )
    same(np.isnan(found.log_likelihood), bad)
    jax.tree.map(lambda got, plain: same(got[~bad], plain[~bad]), found, expected)


@pytest.mark.parametrize("blank", [1, CLASSES - 1])
def test_the_blank_may_be_any_class(blank):
    logits, labels = draw(*SHAPE, seed=12)
    order = np.r_[1 : blank + 1, 0, blank + 1 : CLASSES]  # where each class was before
    number = np.argsort(order)
    values, gradient = evaluate(logits[..., order], number[labels], blank_id=blank, **counted())
    expected, exact = evaluate(logits, labels, **counted())
    close(values, expected)
    close(gradient, exact[..., order])
    values, _ = evaluate(logits, 0 * labels + blank, blank_id=blank, **counted())
    same(np.isnan(values), LENGTHS > 0)


def test_a_class_of_probability_0_that_no_label_needs_changes_nothing():
    logits, labels = draw(*SHAPE, seed=13)
    labels = np.minimum(labels, CLASSES - 2)
    logits[..., -1] = -np.inf
    values, gradient = evaluate(logits, labels, **counted())
    expected, exact = oracle(logits[..., :-1], labels)
    close(values, expected, rtol=3e-7)
    close(gradient[..., :-1], sum(exact), atol=5e-6)
    same(gradient[..., -1], 0)


def test_labels_that_are_forbidden_cost_infinitely_and_have_no_slope():
    logits, labels = draw(*SHAPE, seed=14)
    labels[:2] = np.minimum(labels[:2], CLASSES - 2)
    labels[0, -1] = CLASSES - 1
    logits[:2, :, :, -1] = -np.inf
    values, gradient = evaluate(logits, labels, **counted())
    same(np.isinf(values), np.isin(np.arange(BATCH), [0, IMPOSSIBLE]))
    same(gradient[0], 0)
    assert np.isfinite(gradient).all()


def test_no_labels_cost_what_all_blanks_do():
    logits, labels = draw(*SHAPE, seed=15)
    values, _ = evaluate(logits, labels, **counted(FRAMES, 0 * LENGTHS))
    blanks = -log_softmax(np.float64(logits[:, :, 0]), -1)[..., 0]
    close(values, np.sum(np.where(np.arange(TIME) < FRAMES[:, None], blanks, 0), 1))


# joined a few frames at a time ----------------------------------------------------------------

SMALL = 4, 10, 5, 8
SMALL_FRAMES, SMALL_LENGTHS = np.array([10, 7, 10, 0]), np.array([5, 3, 0, 0])
SMALL_COUNTS = counted(SMALL_FRAMES, SMALL_LENGTHS)
MATRIX = np.float32(np.random.default_rng(16).normal(size=(8, 8)))


def joint(matrix):
    return lambda e, p: jnp.tanh(e[..., :, None, :] + p[..., None, :, :]) @ matrix


def summed(values):
    """Of those that are possible, each with another weight."""
    weights = jnp.linspace(1, 2, len(values), dtype=values.dtype)
    return jnp.sum(jnp.where(jnp.isinf(values), 0, values) * weights)


@functools.partial(jax.jit, static_argnums=0)
def in_chunks(chunk, e, p, matrix, labels, **options):
    """All at once if that is 0."""

    def loss(e, p, matrix):
        if chunk == 0:
            values = jloss.rnnt_loss(joint(matrix)(e, p), labels, **options)
        else:
            given = joint(matrix), e, p, labels
            values = jloss.rnnt_loss_from_joint(*given, chunk=chunk, **options)
        return summed(values), values

    return jax.grad(loss, (0, 1, 2), has_aux=True)(e, p, matrix)


@pytest.mark.parametrize("chunk", [None, 1, 3, 10])
def test_joined_in_chunks_it_is_the_loss_of_what_is_joined_at_once(chunk):
    e, p, labels = sides(*SMALL, seed=16)
    given = e, p, MATRIX, labels
    options = {"fastemit": 0.5, **SMALL_COUNTS}
    jax.tree.map(close, in_chunks(chunk, *given, **options), in_chunks(0, *given, **options))


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, -np.inf, 3e38])
def test_nonsense_in_padding_reaches_neither_side_nor_parameters(nonsense):
    e, p, labels = sides(*SMALL, seed=17)
    options = {"fastemit": 0.5, **SMALL_COUNTS}
    gradients, values = clean = in_chunks(3, e, p, MATRIX, labels, **options)
    frames = np.arange(10) >= SMALL_FRAMES[:, None]
    positions = (np.arange(6) > SMALL_LENGTHS[:, None]) | (SMALL_FRAMES == 0)[:, None]
    e[frames], p[positions] = nonsense, nonsense
    labels[np.arange(5) >= SMALL_LENGTHS[:, None]] = -100
    jax.tree.map(same, in_chunks(3, e, p, MATRIX, labels, **options), clean)
    same(gradients[0][frames], 0)
    same(gradients[1][positions], 0)
    assert all(np.isfinite(a).all() for a in (values, *gradients))


def temporary(f, *shapes):
    """Bytes that a compiled function needs besides what it gets and gives."""
    given = (jax.ShapeDtypeStruct(s, d) for s, d in shapes)
    return jax.jit(f).lower(*given).compile().memory_analysis().temp_size_in_bytes


def test_joined_in_chunks_it_needs_a_fraction_of_the_memory():
    batch, time, labels, classes = 2, 64, 15, 512
    shapes = (batch, time, 32), (batch, labels + 1, 32), (32, classes)
    given = *((s, jnp.float32) for s in shapes), ((batch, labels), jnp.int32)
    few, all_ = (temporary(functools.partial(in_chunks, chunk), *given) for chunk in (4, 0))
    logits = 4 * batch * time * (labels + 1) * classes
    assert all_ > logits
    assert few < logits / 4


def test_the_gradient_is_the_only_array_of_the_size_of_the_logits():
    given = ((4, 100, 21, 512), jnp.float32), ((4, 20), jnp.int32)
    assert temporary(lambda x, y: pulled(lambda x: jloss.rnnt_loss(x, y), x), *given) < 5 * 2**20


# a sum of two sides ---------------------------------------------------------------------------


@jax.jit
def both_ways(e, p, labels, **options):
    """The simple loss, and the loss of the sum; each with its gradients in both sides."""
    doors = {"fastemit": 0.5, **options}

    def simple(sides):
        return jloss.rnnt_simple_loss(*sides, labels, **doors)

    def plain(sides):
        e, p = sides
        return jloss.rnnt_loss(e[:, :, None] + p[:, None], labels, **doors)

    return pulled(simple, (e, p)), pulled(plain, (e, p))


@pytest.mark.parametrize("span", [0.1, 1.0, 5.0])
def test_the_simple_loss_is_the_loss_of_the_sum(span):
    simple, plain = both_ways(*sides(*SHAPE, seed=18, span=span), **counted())
    jax.tree.map(functools.partial(close, atol=2e-5), simple, plain)


def test_the_simple_loss_of_classes_that_the_predictor_rules_out():
    e, p, labels = sides(*SHAPE, seed=19)
    labels = np.minimum(labels, CLASSES - 2)
    p[..., -1] = -np.inf
    (values, gradients), plain = both_ways(e, p, labels, **counted())
    jax.tree.map(functools.partial(close, atol=2e-5), (values, gradients), plain)
    same(gradients[0][..., -1], 0)
    same(gradients[1][..., -1], 0)


def test_nonsense_in_padding_of_either_side_reaches_nothing():
    e, p, labels = sides(*SHAPE, seed=20)
    clean, _ = both_ways(e, p, labels, **counted())
    frames = np.arange(TIME) >= FRAMES[:, None]
    positions = (np.arange(LABELS + 1) > LENGTHS[:, None]) | (FRAMES == 0)[:, None]
    for number, label in NONSENSE:
        e[frames], p[positions], labels[unheard(labels)] = number, number, label
        jax.tree.map(same, both_ways(e, p, labels, **counted())[0], clean)
    same(clean[1][0][frames], 0)
    same(clean[1][1][positions], 0)


@pytest.mark.parametrize("odds", [60.0, 120.0, 1000.0])
def test_sides_at_odds_stay_finite_in_the_simple_loss(odds):
    """Each is sure of another class."""
    e, p, labels = sides(*SHAPE, seed=21)
    e[..., 1] += odds
    p[..., 2] += odds
    (values, gradients), plain = both_ways(e, p, labels, **counted())
    same(np.isfinite(values), SAID)
    assert all(np.isfinite(a).all() for a in gradients)
    if odds < 80:
        jax.tree.map(functools.partial(close, atol=2e-5), (values, gradients), plain)


# a few positions at each frame ----------------------------------------------------------------

ranges_of = jax.jit(jloss.rnnt_pruning_ranges, static_argnames="size")


@pytest.mark.parametrize("size", [2, 4, LABELS + 1, 30])
def test_ranges_lead_from_the_first_position_to_the_last(size):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        frames, lengths = rng.integers(TIME + 1, size=BATCH), rng.integers(LABELS + 1, size=BATCH)
        frames, lengths = (FRAMES, LENGTHS) if seed == 0 else (frames, lengths)
        e, p, labels = sides(*SHAPE, seed=seed, span=2.0)
        first = ranges_of(e, p, labels, size=size, **counted(frames, lengths))
        ends = np.maximum(0, lengths + 1 - size)
        assert first.dtype == jnp.int32
        assert ((first >= 0) & (first <= ends[:, None])).all()
        there = frames > 0
        first = np.asarray(first)[there]
        same(first[:, 0], 0)
        moves = np.diff(first)
        assert ((moves >= 0) & (moves < size)).all()
        lead = (lengths <= frames * (size - 1))[there]  # else no ranges of this size do
        same(first[lead, frames[there][lead] - 1], ends[there][lead])


def taken(array, first, size):
    """The positions from the first on; the last one again, past the end."""
    at = np.minimum(np.asarray(first)[..., None] + np.arange(size), array.shape[2] - 1)
    return np.take_along_axis(array, at[..., None], 2)


def kept(first, size, positions):
    """Which positions these are."""
    behind = np.arange(positions) - np.asarray(first)[..., None]
    return (behind >= 0) & (behind < size)


@jax.jit
def pruned(logits, first, labels, by, options):
    return pulled(
        lambda x: jloss.rnnt_pruned_loss(x, first, labels, fastemit=by, **options), logits
    )


def prune(logits, first, labels, by=0.0, **options):
    """Of four positions at each frame: it compiles once."""
    return pruned(logits, first, labels, by, options)


def test_with_all_positions_the_pruned_loss_is_the_loss():
    logits, labels = draw(*SHAPE, seed=23)
    few = counted(FRAMES, np.minimum(LENGTHS, 3))
    first = np.zeros((BATCH, TIME), int)
    values, gradient = prune(logits[:, :, :4], first, labels, 0.5, **few)
    expected, exact = evaluate(logits, labels, fastemit=0.5, **few)
    close(values, expected)
    close(gradient, exact[:, :, :4])


def test_the_pruned_loss_is_that_of_the_paths_within():
    e, p, labels = sides(*SHAPE, seed=24)
    logits, _ = draw(*SHAPE, seed=24)
    first = ranges_of(e, p, labels, size=4, **counted())
    values, gradient = prune(taken(logits, first, 4), first, labels, **counted())
    expected, exact = oracle(logits, labels, kept=kept(first, 4, LABELS + 1))
    close(values, expected, rtol=3e-7)
    same(np.isfinite(values), LENGTHS <= 3 * FRAMES)
    assert (np.asarray(values) >= oracle(logits, labels)[0] - 1e-5).all()
    exact = taken(sum(exact), first, 4)
    close(gradient, exact, atol=5e-6)
    same(gradient[exact == 0], 0)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38])
def test_nonsense_in_padding_of_what_was_pruned_reaches_nothing(number):
    logits, labels = draw(*SHAPE, seed=39)
    first = LENGTHS[:, None] * np.arange(TIME) // np.maximum(FRAMES, 1)[:, None]
    x = logits[:, :, :4]
    clean = prune(x, first, labels, **counted())
    ahead = first[..., None] + np.arange(4) > LENGTHS[:, None, None]
    padding = ahead | (np.arange(TIME) >= FRAMES[:, None])[..., None]
    x[padding], labels[unheard(labels)] = number, -100
    jax.tree.map(same, prune(x, first, labels, **counted()), clean)
    same(clean[1][padding], 0)


def test_ranges_may_lie_anywhere():
    """Going back, leaping, past either end: what no path can reach has no slope."""
    logits, labels = draw(*SHAPE, seed=25)
    steady = LENGTHS[:, None] * np.arange(TIME) // np.maximum(FRAMES, 1)[:, None]
    first = steady - np.random.default_rng(25).integers(3, size=steady.shape)
    first[:, 0] = np.minimum(first[:, 0], 0)
    first[0] = np.arange(TIME) * 2 // 5  # past the end
    first[2] = 3 + np.arange(TIME) // 3  # never at the start
    first[3] = np.arange(TIME) // 4 * 5  # in leaps
    x = logits[:, :, :4]
    values, gradient = prune(x, first, labels, **counted())
    at = first[..., None] + np.arange(4)
    row, t, r = np.nonzero((at >= 0) & (at <= LABELS))
    spread = np.zeros_like(logits)
    spread[row, t, at[row, t, r]] = x[row, t, r]
    expected, exact = oracle(spread, labels, kept=kept(first, 4, LABELS + 1))
    close(values, expected, rtol=3e-7)
    same(np.isfinite(values[:4]), [True, True, False, False])
    assert np.isfinite(values).sum() > BATCH // 2
    back = np.zeros(x.shape)
    back[row, t, r] = sum(exact)[row, t, at[row, t, r]]
    close(gradient, back, atol=5e-6)
    same(gradient[back == 0], 0)


def knowing(seed):
    """Both sides of a model that is sure of when each label is said; and another's, near by."""
    rng = np.random.default_rng(seed)
    batch, time, size, classes = SHAPE
    labels = np.stack([np.resize(rng.permutation(classes - 1) + 1, size) for _ in range(batch)])
    said = np.stack([np.sort(rng.choice(time, size, replace=False)) for _ in range(batch)])
    e, p = np.zeros((batch, time, classes)), np.zeros((batch, size + 1, classes))
    e[..., 0] = 18
    row = np.arange(batch)[:, None]
    e[row, said, labels] = 15
    p[row, np.arange(size), labels] = 9
    return np.float32(e), np.float32(p), labels


def test_pruned_by_a_model_that_knows_the_alignment_it_is_the_loss():
    e, p, labels = knowing(26)
    noise, _ = draw(*SHAPE, seed=26)
    logits = e[:, :, None] + p[:, None] + noise
    all_there = counted(np.full(BATCH, TIME), np.full(BATCH, LABELS))
    first = ranges_of(e, p, labels, size=4, **all_there)
    whole, _ = evaluate(logits, labels, **all_there)
    part, _ = prune(taken(logits, first, 4), first, labels, **all_there)
    assert (whole < 20).all()
    np.testing.assert_allclose(part, whole, rtol=0, atol=1e-3)


def test_one_position_at_a_time_leads_nowhere():
    with pytest.raises(ValueError, match="`size`"):
        jloss.rnnt_pruning_ranges(*sides(*SMALL), size=1)


def test_nothing_is_learned_through_ranges_or_an_alignment():
    e, p, labels = sides(*SMALL, seed=27)
    logits, _ = draw(*SMALL, seed=27)

    def loss(e, p, x):
        first = jloss.rnnt_pruning_ranges(e, p, labels, size=2)
        found = jloss.rnnt_alignment(x, labels)
        total = sum(jnp.sum(jnp.float32(a)) for a in (first, *found))
        return total + sum(jnp.sum(a**2) for a in (e, p, x))

    for gradient, own in zip(jax.jit(jax.grad(loss, (0, 1, 2)))(e, p, logits), (e, p, logits)):
        close(gradient, 2 * own)


# FastEmit -------------------------------------------------------------------------------------


def test_fastemit_makes_slopes_through_labels_larger_and_leaves_the_value():
    logits, labels = draw(*SHAPE, seed=28)
    strengths = np.float32([0, 0.01, 0.5, 3])
    loss = lambda by: pulled(lambda x: jloss.rnnt_loss(x, labels, fastemit=by, **counted()), logits)
    values, gradients = jax.jit(jax.vmap(loss))(strengths)
    plain, gradient = evaluate(logits, labels, **counted())
    close(gradients[0], gradient)
    _, (_, by_label) = oracle(logits, labels)
    for by, value, got in zip(strengths, values, gradients):
        close(value, plain, rtol=3e-7)
        close(got, gradient + by * by_label, rtol=0, atol=5e-6 * (1 + by))


def test_fastemit_of_a_forbidden_label_has_no_slope():
    logits, labels = draw(*SHAPE, seed=29)
    logits[0, :, :, 1:] = logits[1, :, 3:, 1:] = -np.inf
    values, gradient = evaluate(logits, labels, fastemit=0.5, **counted())
    assert values[0] == np.inf
    same(gradient[0], 0)
    assert np.isfinite(gradient).all()


# derivatives ----------------------------------------------------------------------------------


def slope(x, y, time, n):
    loss = lambda x: jloss.rnnt_loss(x, y, time, n)
    value, gradient = jax.value_and_grad(loss)(x)
    return gradient, (gradient, value)


def test_the_hessian_is_that_of_the_sum_of_all_paths():
    """How softmaxes bend where paths go, less how slopes vary between paths."""
    logits = np.nan_to_num(tiny(1))
    with jax.enable_x64(True):
        given = np.float64(logits), TEXTS, TIMES, SIZES
        all_three = jax.jit(jax.vmap(jax.jacfwd(slope, has_aux=True)))
        hessians, (gradients, values) = all_three(*given)
    exact = functools.partial(close, rtol=0, atol=1e-12)
    for i in possible:
        time, text = CASES[i]
        _, scores, reads, log_p = enumerated(logits[i], time, text)
        p, share, reads = softmax(scores), np.exp(log_p), np.array(reads)
        visits = np.sum(reads, -1, keepdims=True)
        slopes = (visits * share - reads).reshape(len(p), log_p.size)
        mean = p @ slopes
        used = np.tensordot(p, visits, 1) * share
        bend = np.zeros((*log_p.shape, *log_p.shape))
        for node in np.ndindex(log_p.shape[:2]):
            bend[(*node, slice(None), *node)] = np.diag(used[node]) - np.outer(
                used[node], share[node]
            )
        covariance = (slopes.T * p) @ slopes - np.outer(mean, mean)
        own = slice(time), slice(len(text) + 1), slice(None)
        exact(values[i], -logsumexp(scores))
        exact(gradients[i][own].ravel(), mean)
        exact(
            hessians[i][own + own].reshape(covariance.shape),
            bend.reshape(covariance.shape) - covariance,
        )
    same(hessians[~np.isin(np.arange(len(CASES)), possible)], 0)


def test_float64_keeps_all_its_digits():
    logits, labels = draw(*SHAPE, seed=30, span=3.0)
    with jax.enable_x64(True):
        values, gradient = evaluate(np.float64(logits), labels, **counted())
    expected, exact = oracle(logits, labels)
    assert gradient.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-13)
    np.testing.assert_allclose(gradient, sum(exact), rtol=0, atol=1e-12)


def batches(a):
    """[batches, in each, ...]."""
    return a.reshape(2, 2, *a.shape[1:])


def steepness(scale, x, y, *counts):
    """How steep the loss is, rematerialized; its slope is a second derivative."""
    loss = jax.checkpoint(lambda x: summed(jloss.rnnt_loss(x, y, *counts)))
    return jnp.sum(jax.grad(loss)(scale * x) ** 2)


def test_second_derivatives_inside_a_scan_are_those_outside():
    logits, labels = draw(*SMALL, seed=31)
    rows = tuple(map(batches, (np.float64(logits), labels, SMALL_FRAMES, SMALL_LENGTHS)))

    def scanned(scale):
        add = lambda total, batch: (total + steepness(scale, *batch), None)
        return jax.lax.scan(add, jnp.zeros(()), rows)[0]

    with jax.enable_x64(True):
        inside = jax.jit(jax.value_and_grad(scanned))(1.5)
        step = jax.jit(jax.value_and_grad(steepness))
        alone = np.array([step(1.5, *(a[i] for a in rows)) for i in range(2)])
    close(inside, alone.sum(0), rtol=1e-12)
    assert abs(inside[1]) > 1


def test_a_hessian_is_a_difference_of_slopes():
    """Along one direction, reverse over reverse."""
    logits, labels = draw(*SHAPE, seed=32)
    along = np.float32(np.random.default_rng(32).normal(size=logits.shape))
    total = lambda x: jnp.sum(jnp.where(SAID, jloss.rnnt_loss(x, labels, FRAMES, LENGTHS), 0))
    by = lambda x: jnp.sum(jax.grad(total)(x) * along)
    moved = [logits + np.float64(step) * along for step in (1e-4, -1e-4)]
    ahead, behind = (sum(oracle(x, labels)[1]) for x in moved)
    got = jax.jit(jax.grad(by))(logits)
    np.testing.assert_allclose(got, (ahead - behind) / 2e-4, rtol=0, atol=1e-4)


def test_forward_mode_is_reverse_mode_and_leading_axes_are_one_batch():
    logits, labels = draw(*SHAPE, seed=33)
    values, gradient = evaluate(logits, labels, **counted())

    @jax.jit
    def moved(x, along, y, frames, lengths):
        return jax.jvp(lambda x: jloss.rnnt_loss(x, y, frames, lengths), (x,), (along,))

    given = logits, np.cos(logits), labels, FRAMES, LENGTHS
    value, by = moved(*(a.reshape(4, 4, *a.shape[1:]) for a in given))
    close(value, values.reshape(4, 4))
    close(by, np.sum(gradient * np.cos(logits), (1, 2, 3)).reshape(4, 4), atol=1e-5)


# dtypes, meshes -------------------------------------------------------------------------------


def test_lengths_and_labels_of_64_bits_go_with_logits_of_32():
    with jax.enable_x64(True):
        value, gradient = evaluate(
            jnp.zeros((1, 2, 2, 3), jnp.float32),
            jnp.array([[1]]),
            **counted(jnp.array([2]), jnp.array([1])),
        )
    assert {value.dtype, gradient.dtype} == {np.dtype("float32")}
    close(value, np.log(27 / 2))


def test_bfloat16_is_float32_of_the_rounded_logits():
    logits, labels = draw(*SHAPE, seed=35)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    values, gradient = evaluate(rounded, labels, **counted())
    expected, exact = evaluate(rounded.astype(jnp.float32), labels, **counted())
    assert (values.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    close(values, expected, rtol=1e-6)
    exact = exact.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(gradient.astype(jnp.float32), exact, rtol=1e-2, atol=1e-8)


def mesh_of(kind):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)


@pytest.mark.parametrize("split", ["batch", "both"])
def test_by_hand_batch_and_classes_are_split(split):
    logits, labels = draw(*SHAPE, seed=36)
    logits[outside()], labels[unheard(labels)] = np.nan, -100
    rows, classes = ("data", "model") if split == "both" else (("data", "model"), None)

    def local(x, y, *counts):
        return jloss.rnnt_loss(x, y, *counts, axis_name=classes, fastemit=0.5)

    specs = P(rows, None, None, classes), P(rows), P(rows), P(rows)
    mesh = mesh_of(AxisType.Auto)
    loss = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(rows))
    step = jax.jit(lambda x, *rest: pulled(lambda x: loss(x, *rest), x))
    expected = evaluate(logits, labels, fastemit=0.5, **counted())
    jax.tree.map(close, step(logits, labels, FRAMES, LENGTHS), expected)


both = pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])


@both
def test_a_mesh_that_splits_batch_and_classes_gathers_nothing(kind):
    logits, labels = draw(*SHAPE, seed=37)
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh_of(kind), P("data", *spec)))
    split, rest = place(logits, None, None, "model"), place((labels, counted()))
    compiled = evaluate.lower(split, rest[0], **rest[1]).compile()
    expected = evaluate(logits, labels, **counted())
    jax.tree.map(close, compiled(split, rest[0], **rest[1]), expected)
    assert not re.search("all-gather|all-to-all|collective-permute", compiled.as_text())


@pytest.mark.parametrize("what", ["alignment", "ranges", "simple", "pruned", "joined"])
def test_an_explicit_mesh_that_splits_batch_and_classes_changes_nothing(what):
    shape = SMALL if what == "joined" else SHAPE
    e, p, labels = sides(*shape, seed=38)
    logits, _ = draw(*shape, seed=38)
    mesh = mesh_of(AxisType.Explicit)
    put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
    by_class = lambda a: put(a, "data", *(None,) * (a.ndim - 2), "model")
    by_row = lambda a: put(a, "data")
    y, doors = by_row((labels, SMALL_COUNTS if what == "joined" else counted()))
    first = np.zeros((BATCH, TIME), int)
    if what == "alignment":
        got, expected = align(by_class(logits), y, **doors), align(logits, labels, **counted())
    elif what == "ranges":
        got = ranges_of(by_class(e), by_class(p), y, size=4, **doors)
        expected = ranges_of(e, p, labels, size=4, **counted())
    elif what == "simple":
        got = both_ways(by_class(e), by_class(p), y, **doors)
        expected = both_ways(e, p, labels, **counted())
    elif what == "pruned":
        got = prune(by_class(logits[:, :, :4]), by_row(first), y, **doors)
        expected = prune(logits[:, :, :4], first, labels, **counted())
    else:
        got = in_chunks(3, by_row(e), by_row(p), put(MATRIX), y, fastemit=0.5, **doors)
        expected = in_chunks(3, e, p, MATRIX, labels, fastemit=0.5, **SMALL_COUNTS)
    jax.tree.map(close, got, expected)


# bad arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"labels": np.ones((2, 2), int)}, ValueError, "`labels`"),
        ({"labels": np.ones((3, 3), int)}, ValueError, "`labels`"),
        ({"labels": np.ones((3, 2))}, TypeError, "`labels`"),
        ({"logits": np.zeros((3, 5, 3, 4), int)}, TypeError, "`logits`"),
        ({"logits": np.zeros((5, 4), np.float32)}, ValueError, "`logits`"),
        ({"logits": np.zeros((3, 5, 3, 0), np.float32)}, ValueError, "`logits`"),
        ({"logit_lengths": np.ones((3, 1), int)}, ValueError, "`logit_lengths`"),
        ({"label_lengths": np.ones(3)}, TypeError, "`label_lengths`"),
        ({"blank_id": 0.0}, TypeError, "`blank_id`"),
        ({"where": np.ones((3, 5), bool)}, ValueError, "`where`"),
    ],
)
def test_bad_arguments_are_told_by_name(change, error, told):
    good = {"logits": np.zeros((3, 5, 3, 4), np.float32), "labels": np.ones((3, 2), int)}
    with pytest.raises(error, match=told):
        jloss.rnnt_loss(**(good | change))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda e, p, y: jloss.rnnt_simple_loss(e, p[:2], y), "`predictor`"),
        (lambda e, p, y: jloss.rnnt_simple_loss(e, p[:, 1:], y), "`labels`"),
        (lambda e, p, y: jloss.rnnt_pruned_loss(e[:, :, None], y, y), "`ranges`"),
    ],
)
def test_sides_that_do_not_go_together_are_told_by_name(call, told):
    with pytest.raises(ValueError, match=told):
        call(*sides(*SMALL))


@pytest.mark.parametrize("blank_id", [-1, 3])
def test_a_blank_that_is_no_class_is_told(blank_id):
    logits, labels = np.zeros((1, 2, 2, 3), np.float32), np.array([[1]])
    loss = lambda x: jloss.rnnt_loss(x, labels, blank_id=blank_id).sum()
    value, gradient = jax.value_and_grad(loss)(logits)
    assert np.isnan(value)
    assert np.isnan(gradient).all()
    with pytest.raises(ValueError, match="`blank_id` should lie in"):
        jloss.checked(jax.jit(loss))(logits)


def test_a_joint_of_other_axes_is_told():
    encoder, predictor = np.zeros((2, 3, 4), np.float32), np.zeros((2, 2, 4), np.float32)
    turned = lambda e, p: e[:, None] + p[:, :, None]
    with pytest.raises(ValueError, match=r"`joint\(...\)` should have shape \(2, 3, 2, 4\)"):
        jloss.rnnt_loss_from_joint(turned, encoder, predictor, np.array([[1], [2]]))


def test_hyperparameters_may_be_arrays_on_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    place = NamedSharding(mesh, P("data"))
    x, y = np.zeros((8, 3, 2, 4), np.float32), np.ones((8, 1), int)
    loss = jax.jit(lambda x, y, few, b: jloss.rnnt_loss(x, y, fastemit=few, blank_id=b))
    few = jnp.array(0.1), jnp.array(3)
    got = loss(jax.device_put(x, place), jax.device_put(y, place), *few)
    np.testing.assert_allclose(got, loss(x, y, *few), rtol=1e-6)
