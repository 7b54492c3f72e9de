"""Two small recognisers learn to hear digits, one with CTC and one as a transducer.

eSpeak NG says two to five digits at a time, never the same twice. The voices and speeds of the test
are not those of training. Printed is the word error rate of greedy decoding: digits inserted,
deleted or substituted, over digits said. The picture shows where each hears the digits of a test:
early, because the convolutions hear 0.3 seconds ahead.

`pip install espeakng-loader` brings eSpeak NG, which is under the GPL, version 3 or later. Nothing
of it is in jloss, and nothing that it says is kept.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
import spoken
from flax import linen

import jloss
from jloss.metrics import edit_distance

LABELS, WIDTH, BATCH, MOST = len(spoken.WORDS), 64, 32, 8


def encode(x):
    for stride in (spoken.STRIDE, 1, 1):
        x = linen.LayerNorm()(jax.nn.relu(linen.Conv(WIDTH, (7,), stride)(x)))
    return linen.RNN(linen.GRUCell(WIDTH))(x)


class Recognisers(linen.Module):
    @linen.compact
    def __call__(self, features, labels):
        """Logits of CTC, and of a transducer that was told none of the labels, one, two, ..."""
        told = linen.Embed(LABELS, WIDTH)(jnp.pad(labels, ((0, 0), (1, 0))))
        told = linen.Dense(WIDTH)(linen.RNN(linen.GRUCell(WIDTH))(told))
        joint = jnp.tanh(linen.Dense(WIDTH)(encode(features))[:, :, None] + told[:, None])
        return linen.Dense(LABELS)(encode(features)), linen.Dense(LABELS)(joint)


def objective(params, features, labels, lengths, sizes):
    logits, joint = Recognisers().apply(params, features, labels)
    known = {"logit_lengths": lengths, "label_lengths": sizes, "reduction": jloss.mean}
    ctc = jloss.ctc_loss(logits, None, labels, None, **known)
    rnnt = jloss.rnnt_loss(joint, labels, lengths, sizes, reduction=jloss.mean)
    return ctc + rnnt, (ctc, rnnt)


def transcribe(apply, params, features, lengths):
    """What the transducer hears if it does the likeliest, and says one digit a step at most."""
    heard, start = np.zeros((len(features), MOST), np.int32), np.zeros((len(features), 1), np.int32)
    for n in range(MOST):
        best = np.asarray(apply(params, features, heard)[1][:, :, n].argmax(-1))
        steps = np.arange(best.shape[1])[None]
        best = np.where((start <= steps) & (steps < lengths[:, None]), best, 0)
        first = (best > 0).argmax(1)[:, None]
        heard[:, n] = np.take_along_axis(best, first, 1)[:, 0]
        start = np.where(heard[:, n : n + 1], first + 1, spoken.FRAMES)
    return heard, np.count_nonzero(heard, 1)


def main(steps=250, learned=2000, tested=200, out="outputs/speech.png"):
    rng = np.random.default_rng(0)
    data, test = spoken.load(learned, tested, rng)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), jloss.adamw(schedule))
    params = jax.jit(Recognisers().init)(jax.random.key(0), test[0][:1], test[1][:1])
    state, losses, rates = optimizer.init(params), [], {}

    @jax.jit
    def step(params, state, batch):
        gradient, losses = jax.grad(objective, has_aux=True)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, losses

    for _ in range(steps):
        chosen = rng.choice(len(data[0]), BATCH)
        params, state, both = step(params, state, [part[chosen] for part in data])
        losses.append([float(loss) for loss in both])
    (features, labels, lengths, sizes), apply = test, jax.jit(Recognisers().apply)
    logits, joint = apply(params, features, labels)
    ctc = jloss.ctc_greedy_decode(logits, logit_lengths=lengths)[:2]
    heard = {"CTC": ctc, "transducer": transcribe(apply, params, features, lengths)}
    for name, (guesses, counts) in heard.items():
        edits = edit_distance(guesses, labels, prediction_lengths=counts, label_lengths=sizes)
        rates[name] = int(edits.sum()) / int(sizes.sum())
        print(f"{name}: word error rate {rates[name]:.3f}")
    known = {"logit_lengths": lengths, "label_lengths": sizes}
    positions = np.asarray(jloss.ctc_alignment(logits, None, labels, **known).positions)
    frames = np.asarray(jloss.rnnt_alignment(joint, labels, lengths, sizes).frames)
    spoken.draw(out, *(part[lengths.argmax()] for part in (*test, positions, frames)))
    return np.array(losses), rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="outputs/speech.png")
    main(out=parser.parse_args().out)
