"""A transformer learns the manual inside Python's `pydoc`, from logits that are never built.

Its vocabulary is the most frequent words, and bytes for all others. The fused loss takes hidden
states and the tied embedding, and gives what cross-entropy gives of their product; for both are
printed the loss, the speed of a step, and the temporary memory that the compiler planned for it.

`--padded` gives the embedding 32,768 rows, as many as real vocabularies have: there the logits are
most of the memory. A bias of -inf forbids the rows that stand for no token. Learning that they
never occur would take steps and change the loss; forbidden, they have neither probability nor
gradient, and the losses are those without `--padded`.
"""

import collections
import re
import sys
import timeit
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import jloss

VOCABULARY, PADDED, CONTEXT, BATCH = 4096, 32768, 128, 8
WIDTH, LAYERS, HEADS = 128, 2, 4


def read():
    """The manual as token numbers, each paragraph once: nine tenths to learn from, and the rest."""
    text = "\n\n".join(dict.fromkeys("\n\n".join(topics.values()).split("\n\n")))
    words = re.findall(r" ?\w+| ?[^\w\s]+|\s+", text)
    parts = words[: len(words) * 9 // 10], words[len(words) * 9 // 10 :]
    frequent = collections.Counter(parts[0]).most_common(VOCABULARY - 256)
    numbers = {word: [256 + i] for i, (word, _) in enumerate(frequent)}
    encode = lambda words: [n for word in words for n in numbers.get(word, word.encode())]
    return [np.array(encode(part), np.int32) for part in parts]


class Decoder(linen.Module):
    rows: int

    @linen.compact
    def __call__(self, tokens):
        embed, mask = linen.Embed(self.rows, WIDTH), linen.make_causal_mask(tokens)
        x = embed(tokens) + self.param("positions", linen.zeros_init(), (1, CONTEXT, WIDTH))
        for _ in range(LAYERS):
            x += linen.MultiHeadDotProductAttention(HEADS)(linen.LayerNorm()(x), mask=mask)
            x += linen.Dense(WIDTH)(jax.nn.gelu(linen.Dense(4 * WIDTH)(linen.LayerNorm()(x))))
        return linen.LayerNorm()(x), embed.embedding


def fused(hidden, embedding, labels, bias):
    kind = {"transposed": True, "reduction": jloss.mean}
    return jloss.linear_softmax_cross_entropy(hidden, embedding, labels, bias=bias, **kind)


def naive(hidden, embedding, labels, bias):
    logits = hidden @ embedding.T + bias[None, None]
    return jloss.softmax_cross_entropy_with_integer_labels(logits, labels, reduction=jloss.mean)


def main(steps=200, padded=False):
    learned, held_out = read()
    starts = np.random.default_rng(0).integers(len(learned) - CONTEXT, size=(steps, BATCH, 1))
    batches = learned[starts + np.arange(CONTEXT + 1)]
    model = Decoder(PADDED if padded else VOCABULARY)
    bias = jnp.where(jnp.arange(model.rows) < VOCABULARY, 0.0, -jnp.inf)
    params = model.init(jax.random.key(0), batches[0, :, 1:])
    optimizer = jloss.adamw(optax.warmup_cosine_decay_schedule(0.0, 6e-3, steps // 10, steps))
    state, losses, figures = optimizer.init(params), [], {}

    def objective(params, batch, way):
        return way(*model.apply(params, batch[:, :-1]), batch[:, 1:], bias)

    @jax.jit(static_argnums=3)
    def step(params, state, batch, way):
        loss, gradient = jax.value_and_grad(objective)(params, batch, way)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    run = {way: step.lower(params, state, batches[0], way).compile() for way in (fused, naive)}
    for batch in batches:
        params, state, loss = run[fused](params, state, batch)
        losses.append(float(loss))
    windows = held_out[: len(held_out) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)
    validation = float(objective(params, windows, fused))
    print(f"loss {losses[0]:.3f} -> {np.mean(losses[-10:]):.3f}, validation {validation:.3f}")
    for way, once in run.items():
        again = lambda once=once: jax.block_until_ready(once(params, state, batch)[-1])
        speed = BATCH * CONTEXT / min(timeit.repeat(again, number=1, repeat=5))
        figures[way] = float(again()), speed, once.memory_analysis().temp_size_in_bytes
        print(way.__name__, "{:.6f}, {:,.0f} tokens a second, {:,} bytes".format(*figures[way]))
    return losses, validation, figures


if __name__ == "__main__":
    main(padded="--padded" in sys.argv[1:])
