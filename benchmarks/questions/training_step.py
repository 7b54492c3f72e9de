"""What does one training step cost from end to end, beside optax and torch?

A perceptron with two hidden layers and a classifier: forward, cross-entropy, backward, AdamW; three
batches in turn, the state donated. float32, and float32 parameters with bfloat16 products.

Peers: the same model with optax's loss and optimizer; torch, with fused AdamW, eager and (on
accelerators) the model compiled by torch.compile.
Floor: parameters, both moments and the batch read once, parameters and moments written. FLOP: 2
for each weight, example and product: three products of a layer, and two of the first.
Check: three steps in float64 by the textbook, the change of the parameters and the first moments,
which hold the gradients. Exact is a relative error up to 1e-3 of either; in bfloat16 up to 0.1 of
the moments and 0.2 of the change, since Adam divides small gradients by themselves.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import optax

import jloss
from benchmarks.competitors import STEPS, Case, Stepped, TorchStepped, torch_compiled

RATE, DECAY = 1e-3, 1e-2
SIZES = {  # batch, width of each layer
    "quick": (64, (64, 128, 128, 100)),
    "cpu": (256, (784, 1024, 1024, 1000)),
    "accelerator": (16384, (4096, 8192, 8192, 32768)),
}


def draw(batch, widths):
    keys = iter(jax.random.split(jax.random.key(0), len(widths) + 2 * STEPS))
    he = lambda key, i, o: jax.random.normal(key, (i, o)) * jnp.sqrt(2 / i)
    weights = [he(next(keys), i, o) for i, o in itertools.pairwise(widths)]
    features = lambda: jax.random.normal(next(keys), (batch, widths[0]))
    labels = lambda: jax.random.randint(next(keys), (batch,), 0, widths[-1])
    return weights, [(features(), labels()) for _ in range(STEPS)]


def logits(weights, x, dtype):
    for w in weights[:-1]:
        x = jax.nn.relu(x.astype(dtype) @ w.astype(dtype))
    return x.astype(dtype) @ weights[-1].astype(dtype)


def stepped(loss, tx, dtype):
    def step(state, batch):
        weights, inner = state
        (x, y) = batch
        gradient = jax.grad(lambda w: loss(logits(w, x, dtype), y))(weights)
        updates, inner = tx.update(gradient, inner, weights)
        return optax.apply_updates(weights, updates), inner

    read = lambda state: (state[0], optax.tree.get(state[1], "mu"))
    return Stepped(lambda w: (w, tx.init(w)), step, read)


def exact(start, batches):
    """Three steps of AdamW, written out."""

    def loss(weights, x, y):
        out = logits(weights, x, x.dtype)
        return jnp.mean(jax.nn.logsumexp(out, -1) - out[jnp.arange(len(y)), y])

    w, m, v = start, [0.0] * len(start), [0.0] * len(start)
    for t, batch in enumerate(batches, 1):
        gradient = jax.grad(loss)(w, *batch)
        m = [0.9 * a + 0.1 * g for a, g in zip(m, gradient)]
        v = [0.999 * a + 0.001 * g**2 for a, g in zip(v, gradient)]
        step = lambda p, a, b, t=t: (
            a / (1 - 0.9**t) / (jnp.sqrt(b / (1 - 0.999**t)) + 1e-8) + DECAY * p
        )
        w = [p - RATE * step(p, a, b) for p, a, b in zip(w, m, v)]
    return [now - then for now, then in zip(w, start)], m


def torch_stepped(dtype, compiled):
    def prepare(torch, weights):
        functional = torch.nn.functional
        weights = [torch.nn.Parameter(w.T.contiguous()) for w in weights]
        optimizer = torch.optim.AdamW(weights, RATE, weight_decay=DECAY, fused=True)

        def loss(x, y):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                for w in weights[:-1]:
                    x = functional.linear(x, w).relu()
                return functional.cross_entropy(functional.linear(x, weights[-1]), y)

        forward = torch_compiled(torch, loss) if compiled else loss

        def step(batch):
            forward(*batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            return [w.T for w in weights], [optimizer.state[w]["exp_avg"].T for w in weights]

        return step

    return TorchStepped(prepare)


def case(batch, widths, dtype, scale):
    weights = sum(i * o for i, o in itertools.pairwise(widths))
    ours = functools.partial(jloss.softmax_cross_entropy_with_integer_labels, reduction=jloss.mean)
    theirs = lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean()
    rivals = {
        "jloss": stepped(ours, jloss.adamw(RATE, weight_decay=DECAY), dtype),
        "optax": stepped(theirs, optax.adamw(RATE, weight_decay=DECAY), dtype),
        "torch": torch_stepped(dtype, compiled=False),
    }
    if scale == "accelerator":
        rivals["torch compiled"] = torch_stepped(dtype, compiled=True)
    return Case(
        "perceptron, cross-entropy, AdamW",
        {"dtype": dtype, "batch": batch, "parameters": weights},
        functools.partial(draw, batch, widths),
        exact,
        {"change": 0.2, "moments": 0.1}
        if dtype == "bfloat16"
        else {"change": 1e-3, "moments": 1e-3},
        rivals,
        floor_bytes=24 * weights + 4 * batch * (widths[0] + 1),
        flops=batch * (6 * weights - 2 * widths[0] * widths[1]),
        wrong=0.3,
    )


def cases(scale):
    for dtype in ("float32", "bfloat16"):
        yield case(*SIZES[scale], dtype, scale)
