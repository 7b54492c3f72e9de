"""What do losses of sequences cost beside optax, torch and plain JAX, and how exact are they?

The sum over a batch and its gradient. CTC in logits, of sequences of 0.7 to 1 times the frames and
0.5 to 1 times the labels, or of full length. The RNN-Transducer, of such lengths: in logits of all
frames and positions; in hidden states and the matrix of a joint; in two arrays of logits that are
added ("simple"); in logits of 5 positions a frame ("pruned"). The CRF, of 0.5 to 1 times the
frames, in scores and transitions.

jloss twice where it need not hold all logits: as it is, and from all of them ("whole").

Peers: the CTC of optax and of torch as documented and, for bfloat16, behind a cast to float32 (the
only way in torch); torchaudio's RNN-T; pytorch-crf's module; and what users write in plain JAX and
differentiate: log_softmax, then a scan over frames with an associative scan over labels in each,
and a scan of log-sums over pairs of tags.
Floor: what is given read once, the gradients written once. FLOP: 6 for each logit, as of
cross-entropy; 9 for each frame and state of CTC (3 predecessors, there and back, and the share of
each), 10 for each node of the transducer, 6 for each frame and pair of tags; 2 for each product of
the joint, three times.
Check: the recursions in logarithms, differentiated, in float64. Exact is a value up to a relative
error of 3e-7, and the gradient up to 2e-6 in the Euclidean norm (bfloat16: one rounding, 2.5e-3).
That is 5e-6 of a slope in logits: a slope is at most 1, and the largest error of one was seen to be
2 to 3 times the relative error of all.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import jloss
from benchmarks.competitors import Case, Torch, value_and_gradient

CTC = {  # batch, frames, classes, labels; of the first few every label and frame is there, too
    "quick": [(2, 40, 12, 6)],
    "cpu": [
        (16, 500, 1000, 80),
        (32, 1000, 64, 100),
        (8, 1500, 32, 200),
        *((8, frames, 32, 100) for frames in (500, 1000, 2000, 4000)),
        *((8, 1000, 32, labels) for labels in (50, 200, 400)),
        *((8, 500, classes, 50) for classes in (32, 128, 129, 1000, 4000)),
    ],
    "accelerator": [
        (64, 1000, 1000, 100),
        (32, 2000, 128, 200),
        (64, 1000, 128, 100),
        *((32, frames, 128, 100) for frames in (500, 1000, 2000, 4000)),
    ],
}
RNNT = {  # batch, frames, labels, classes; the last also simple and pruned
    "quick": [(2, 10, 6, 8)],
    "cpu": [(8, 200, 40, 256), (4, 400, 80, 1024)],
    "accelerator": [(16, 200, 40, 1024), (16, 400, 80, 1024)],
}
JOINT = {  # likewise
    "quick": (2, 10, 6, 8),
    "cpu": (4, 200, 40, 1024),
    "accelerator": (16, 400, 80, 1024),
}
CRF = {  # batch, frames, tags
    "quick": [(3, 12, 5)],
    "cpu": [(32, 200, 16), (32, 200, 64)],
    "accelerator": [(512, 200, 64), (512, 200, 16), (64, 1000, 128)],
}
HIDDEN = 256  # of the joint
KEPT = 5  # positions of the pruned loss
NEVER = -1e30  # a log-probability whose differences are finite


def lengths(key, batch, most, least):
    """From `least` times the most on; the first is the longest."""
    return jax.random.randint(key, (batch,), int(least * most), most + 1).at[0].set(most)


def utterances(batch, frames, classes, labels, full=False):
    """Labels, and how many frames and labels there are."""
    one, two, three = jax.random.split(jax.random.key(1), 3)
    y = jax.random.randint(one, (batch, labels), 1, classes)
    frames = lengths(two, batch, frames, 1 if full else 0.7)
    return y, frames, lengths(three, batch, labels, 1 if full else 0.5)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# CTC ------------------------------------------------------------------------------------------


def draw_ctc(batch, frames, classes, labels, dtype, full):
    y, *there = utterances(batch, frames, classes, labels, full)
    paddings = [
        (jnp.arange(most)[None] >= n[:, None]).astype(jnp.float32)
        for most, n in zip((frames, labels), there)
    ]
    return normal(0, batch, frames, classes).astype(dtype), paddings[0], y, paddings[1]


def textbook_ctc(x, frame_paddings, y, label_paddings):
    """Over states: a blank, a label, a blank, ..., a label, a blank."""
    states = jnp.zeros((len(y), 2 * y.shape[1] + 1), y.dtype).at[:, 1::2].set(y)
    skips = (states != 0) & (states != jnp.roll(states, 2, 1))
    log_p = jnp.take_along_axis(jax.nn.log_softmax(x), states[:, None], 2)
    first = jnp.full(states.shape, NEVER, x.dtype).at[:, 0].set(0)

    def step(before, now):
        log_p, padded = now
        shifted = lambda n: jnp.pad(before[:, :-n], ((0, 0), (n, 0)), constant_values=NEVER)
        after = jnp.logaddexp(before, shifted(1))
        after = jnp.logaddexp(after, jnp.where(skips, shifted(2), NEVER)) + log_p
        return jnp.where(padded[:, None] > 0, before, after), None

    last, _ = jax.lax.scan(step, first, (log_p.swapaxes(0, 1), frame_paddings.T))
    end = 2 * jnp.sum(label_paddings == 0, 1)[:, None]
    ends = jnp.take_along_axis(last, jnp.concatenate([end - 1, end], 1), 1)
    return -jnp.sum(jax.nn.logsumexp(ends, 1))


def ours_ctc(*given):
    return jloss.ctc_loss(*given, reduction=jloss.sum)


def by_optax(*given):
    return optax.ctc_loss(*given).sum()


def by_optax_cast(x, *given):
    return by_optax(x.astype(jnp.float32), *given)


def by_torch(torch, x, frame_paddings, y, label_paddings):
    x = x.requires_grad_()
    frames, labels = ((p == 0).sum(1) for p in (frame_paddings, label_paddings))

    def call():
        log_p = torch.nn.functional.log_softmax(x.float(), -1).swapaxes(0, 1)
        value = torch.nn.functional.ctc_loss(log_p, y, frames, labels, reduction="sum")
        return value.detach(), *torch.autograd.grad(value, x)

    return call


def ctc(dtype, full, batch, frames, classes, labels):
    rivals = {"jloss": value_and_gradient(ours_ctc), "optax": value_and_gradient(by_optax)}
    if dtype == "bfloat16":
        rivals["optax cast"] = value_and_gradient(by_optax_cast)
    rivals["torch" if dtype == "float32" else "torch cast"] = Torch(by_torch)
    logits, states = batch * frames * classes, batch * frames * (2 * labels + 1)
    return case(
        "CTC, full length" if full else "CTC",
        {"dtype": dtype, "batch": batch, "frames": frames, "classes": classes, "labels": labels},
        functools.partial(draw_ctc, batch, frames, classes, labels, dtype, full),
        textbook_ctc,
        rivals,
        floor_bytes=2 * jnp.dtype(dtype).itemsize * logits + 4 * batch * (frames + 2 * labels),
        flops=6 * logits + 9 * states,
    )


# The RNN-Transducer ---------------------------------------------------------------------------


def draw_rnnt(batch, frames, labels, classes):
    given = utterances(batch, frames, classes, labels)
    return normal(0, batch, frames, labels + 1, classes), *given


def draw_joint(batch, frames, labels, classes):
    """What a joint joins: hidden states on both sides, and its matrix."""
    e, p = normal(0, batch, frames, HIDDEN), normal(2, batch, labels + 1, HIDDEN)
    w = normal(3, HIDDEN, classes) / HIDDEN**0.5
    return (e, p, w), *utterances(batch, frames, classes, labels)


def draw_simple(batch, frames, labels, classes):
    parts = normal(0, batch, frames, classes), normal(2, batch, labels + 1, classes)
    return parts, *utterances(batch, frames, classes, labels)


def draw_pruned(batch, frames, labels, classes):
    """At positions that go up evenly from the first to the last."""
    y, n, m = utterances(batch, frames, classes, labels)
    last = jnp.maximum(m + 1 - KEPT, 0)[:, None]
    ranges = jnp.minimum(last * jnp.arange(frames)[None] // (n[:, None] - 1), last)
    return normal(0, batch, frames, KEPT, classes), ranges, y, n, m


def from_moves(none, label, frames, labels):
    """The sum of -log p, from log-probabilities of a blank and of the next label at each node."""

    def then(one, other):
        return one[0] + other[0], jnp.logaddexp(one[1] + other[0], other[1])

    def step(enter, now):
        t, none, label = now
        reads = jnp.pad(label[:, :-1], ((0, 0), (1, 0)), constant_values=NEVER)
        after = jax.lax.associative_scan(then, (reads, enter), axis=1)[1] + none
        return jnp.where(t < frames[:, None], after, enter), None

    first = jnp.full(none[:, 0].shape, NEVER, none.dtype).at[:, 0].set(0)
    time = jnp.arange(none.shape[1])
    last, _ = jax.lax.scan(step, first, (time, none.swapaxes(0, 1), label.swapaxes(0, 1)))
    return -jnp.sum(jnp.take_along_axis(last, labels[:, None], 1))


def textbook_rnnt(x, y, frames, labels):
    log_p, own = jax.nn.log_softmax(x), jnp.pad(y, ((0, 0), (0, 1)))[:, None, :, None]
    label = jnp.take_along_axis(log_p, own, 3)[..., 0]
    return from_moves(log_p[..., 0], label, frames, labels)


def textbook_pruned(x, ranges, y, frames, labels):
    at = ranges[..., None] + jnp.arange(KEPT)[None, None]  # [batch, time, kept]
    own = jnp.take_along_axis(jnp.pad(y, ((0, 0), (0, KEPT)))[:, None], at, 2)
    log_p = jax.nn.log_softmax(x)
    label = jnp.take_along_axis(log_p, own[..., None], 3)[..., 0]
    nowhere = jnp.full((y.shape[1] + KEPT,), NEVER, x.dtype)
    place = jax.vmap(jax.vmap(lambda at, values: nowhere.at[at].set(values)))
    none, label = (place(at, a)[..., : y.shape[1] + 1] for a in (log_p[..., 0], label))
    return from_moves(none, label, frames, labels)


def ours_rnnt(*given):
    return jloss.rnnt_loss(*given, reduction=jloss.sum)


def ours_pruned(*given):
    return jloss.rnnt_pruned_loss(*given, reduction=jloss.sum)


def ours_joint(parts, *given):
    e, p, w = parts
    join = lambda e, p: jnp.tanh(e[..., None, :] + p[..., None, :, :]) @ w
    return jloss.rnnt_loss_from_joint(join, e, p, *given, reduction=jloss.sum)


def ours_simple(parts, *given):
    return jloss.rnnt_simple_loss(*parts, *given, reduction=jloss.sum)


def joined(parts):
    e, p, w = parts
    return jnp.tanh(e[:, :, None] + p[:, None]) @ w


def added(parts):
    e, p = parts
    return e[:, :, None] + p[:, None]


def of_whole(loss, logits):
    return lambda parts, *given: loss(logits(parts), *given)


def by_torchaudio(torch, x, y, frames, labels):
    from torchaudio.functional import rnnt_loss

    x, given = x.requires_grad_(), [a.int() for a in (y, frames, labels)]

    def call():
        value = rnnt_loss(x, *given, blank=0, reduction="sum")
        return value.detach(), *torch.autograd.grad(value, x)

    return call


def rnnt(scale, *sizes):
    """From logits."""
    batch, frames, labels, classes = sizes
    nodes = batch * frames * (labels + 1)
    rivals = {"jloss": value_and_gradient(ours_rnnt), "jax": value_and_gradient(textbook_rnnt)}
    if scale != "quick":
        rivals["torchaudio"] = Torch(by_torchaudio)
    return case(
        "RNN-T",
        rnnt_sizes(*sizes),
        functools.partial(draw_rnnt, *sizes),
        textbook_rnnt,
        rivals,
        floor_bytes=8 * nodes * classes + 4 * batch * (labels + 2),
        flops=nodes * (6 * classes + 10),
    )


def rnnt_from_joint(*sizes):
    batch, frames, labels, classes = sizes
    nodes, parts = batch * frames * (labels + 1), batch * (frames + labels + 1) + classes
    return case(
        "RNN-T from a joint",
        {**rnnt_sizes(*sizes), "hidden": HIDDEN},
        functools.partial(draw_joint, *sizes),
        of_whole(textbook_rnnt, joined),
        parts_rivals(ours_joint, joined),
        floor_bytes=8 * parts * HIDDEN + 4 * batch * (labels + 2),
        flops=nodes * (6 * classes * (HIDDEN + 1) + 10),
    )


def rnnt_simple(*sizes):
    batch, frames, labels, classes = sizes
    return case(
        "RNN-T, simple",
        rnnt_sizes(*sizes),
        functools.partial(draw_simple, *sizes),
        of_whole(textbook_rnnt, added),
        parts_rivals(ours_simple, added),
        floor_bytes=8 * batch * (frames + labels + 1) * classes + 4 * batch * (labels + 2),
        flops=batch * frames * (labels + 1) * (6 * classes + 10),
    )


def rnnt_pruned(*sizes):
    batch, frames, labels, classes = sizes
    nodes = batch * frames * KEPT
    return case(
        "RNN-T, pruned",
        {**rnnt_sizes(*sizes), "kept": KEPT},
        functools.partial(draw_pruned, *sizes),
        textbook_pruned,
        {"jloss": value_and_gradient(ours_pruned), "jax": value_and_gradient(textbook_pruned)},
        floor_bytes=8 * nodes * classes + 4 * batch * (frames + labels + 2),
        flops=nodes * (6 * classes + 10),
    )


def rnnt_sizes(batch, frames, labels, classes):
    at = {"batch": batch, "frames": frames, "labels": labels, "classes": classes}
    return {"dtype": "float32", **at}


def parts_rivals(ours, logits):
    """Of two parts, and of the logits that they make."""
    return {
        "jloss": value_and_gradient(ours),
        "jloss whole": value_and_gradient(of_whole(ours_rnnt, logits)),
        "jax": value_and_gradient(of_whole(textbook_rnnt, logits)),
    }


# The conditional random field -----------------------------------------------------------------


def draw_crf(batch, frames, tags):
    y = jax.random.randint(jax.random.key(1), (batch, frames), 0, tags)
    parts = 3 * normal(0, batch, frames, tags), normal(2, tags, tags)
    return parts, y, lengths(jax.random.key(3), batch, frames, 0.5)


def textbook_crf(parts, y, n):
    x, matrix = parts

    def step(before, now):
        t, x = now
        after = jax.nn.logsumexp(before[:, :, None] + matrix[None], 1) + x
        return jnp.where(t < n[:, None], after, before), None

    time = jnp.arange(x.shape[1])
    last, _ = jax.lax.scan(step, x[:, 0], (time[1:], x[:, 1:].swapaxes(0, 1)))
    own = jnp.take_along_axis(x, y[..., None], 2)[..., 0]
    own += jnp.pad(matrix[y[:, :-1], y[:, 1:]], ((0, 0), (1, 0)))
    own = jnp.sum(jnp.where(time[None] < n[:, None], own, 0), 1)
    return jnp.sum(jax.nn.logsumexp(last, 1) - own)


def ours_crf(parts, y, n):
    x, matrix = parts
    return -jloss.crf_log_likelihood(x, y, matrix, lengths=n, reduction=jloss.sum)


def by_torchcrf(torch, parts, y, n):
    from torchcrf import CRF

    x, matrix = parts[0].requires_grad_(), torch.nn.Parameter(parts[1])
    field = CRF(len(matrix), batch_first=True).to(x.device)
    torch.nn.init.zeros_(field.start_transitions)
    torch.nn.init.zeros_(field.end_transitions)
    field.transitions = matrix
    mask = torch.arange(x.shape[1], device=x.device) < n[:, None]

    def call():
        value = -field(x, y, mask)
        return value.detach(), torch.autograd.grad(value, (x, matrix))

    return call


def crf(scale, batch, frames, tags):
    rivals = {"jloss": value_and_gradient(ours_crf), "jax": value_and_gradient(textbook_crf)}
    if scale != "quick":
        rivals["torchcrf"] = Torch(by_torchcrf)
    steps = batch * frames
    return case(
        "CRF",
        {"dtype": "float32", "batch": batch, "frames": frames, "tags": tags},
        functools.partial(draw_crf, batch, frames, tags),
        textbook_crf,
        rivals,
        floor_bytes=8 * tags * (steps + tags) + 4 * (steps + batch),
        flops=6 * steps * tags**2,
    )


def case(name, at, draw, exact, rivals, **ceiling):
    tolerance = {"value": 3e-7, "gradient": 2e-6 if at["dtype"] == "float32" else 2.5e-3}
    return Case(name, at, draw, jax.value_and_grad(exact), tolerance, rivals, **ceiling)


def cases(scale):
    few = 1 if scale == "quick" else 3
    for sizes in CTC[scale]:
        yield ctc("float32", False, *sizes)
    for sizes in CTC[scale][:few]:
        yield ctc("float32", True, *sizes)
    yield ctc("bfloat16", False, *CTC[scale][0])
    for sizes in RNNT[scale]:
        yield rnnt(scale, *sizes)
    yield rnnt_from_joint(*JOINT[scale])
    yield rnnt_simple(*RNNT[scale][-1])
    yield rnnt_pruned(*RNNT[scale][-1])
    for sizes in CRF[scale]:
        yield crf(scale, *sizes)
