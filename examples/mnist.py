"""Trains a small convolutional network on 5,000 handwritten digits, and draws what it learned.

The last batch of an epoch is padded, and `where` deletes the padding from losses and metrics alike.
"""

import argparse

import digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

import jloss
from jloss.metrics import accuracy, classification_counts, f1_score
from jloss.optimizers import adamw
from jloss.training import early_stopping

BATCH = 128
cross_entropy = jloss.softmax_cross_entropy_with_integer_labels


def batches(images, labels, rng):
    order = rng.permutation(len(labels))
    for start in range(0, len(order), BATCH):
        index = order[start : start + BATCH]
        padded = np.pad(index, (0, BATCH - len(index)))
        yield images[padded], labels[padded], np.arange(BATCH) < len(index)


def network(params, x):
    *kernels, weights = params
    for kernel in kernels:
        x = jax.nn.relu(jax.lax.conv(x, kernel, (2, 2), "SAME"))
    return x.reshape(len(x), -1) @ weights.T


@jax.jit
def measure(params, images, labels, where=None):
    """The mean loss, and what adds up over batches: the loss as a tally, the counts of digits."""
    logits = network(params, images)
    loss = cross_entropy(logits, labels, where=where, reduction=jloss.tally)
    guesses = jnp.argmax(logits, axis=-1)
    return loss.mean(), (loss, classification_counts(guesses, labels, num_classes=10, where=where))


def train(data, valid, epochs, seed):
    """The parameters with the least validation loss, and losses and accuracies after each epoch."""
    rng, he = np.random.default_rng(seed), jax.nn.initializers.he_normal(in_axis=1, out_axis=0)
    keys = jax.random.split(jax.random.key(seed), 3)
    params = [he(keys[0], (32, 1, 5, 5)), he(keys[1], (64, 32, 5, 5)), he(keys[2], (10, 64 * 49))]
    steps = epochs * -(-len(data[1]) // BATCH)
    optimizer = adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-2)
    stopping = early_stopping(patience=5)
    state, stop, curves = optimizer.init(params), stopping.init(), []

    @jax.jit(donate_argnums=(0, 1))
    def step(params, state, key, images, labels, where):
        shifts = jax.random.randint(key, (BATCH, 2), -2, 3)
        images = jax.vmap(lambda image, shift: jnp.roll(image, shift, (1, 2)))(images, shifts)
        gradient, seen = jax.grad(measure, has_aux=True)(params, images, labels, where)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, seen

    line = "loss {:.3f}, validation {:.3f}, accuracy {:.3f}, validation {:.3f}"
    with Progress() as progress:
        for epoch in progress.track(range(epochs), description="training"):
            seen = []
            for batch in batches(*data, rng):
                key = jax.random.key(rng.integers(2**32))
                params, state, counted = step(params, state, key, *batch)
                seen.append(counted)
            loss, counts = jax.tree.map(lambda *parts: sum(parts), *seen)
            valid_loss, (_, valid_counts) = measure(params, *valid)
            curves.append([loss.mean(), valid_loss, accuracy(counts), accuracy(valid_counts)])
            progress.print(f"epoch {epoch + 1:2}", line.format(*curves[-1]))
            stop = stopping.update(valid_loss, stop)
            if stop.improved:  # a copy: the step takes over the memory of its arguments
                best = jax.tree.map(jnp.copy, params)
            if stop.should_stop:
                break
    return best, np.array(curves)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="outputs/mnist.png")
    options = parser.parse_args(argv)
    data, valid, test = digits.load(options.seed)
    params, curves = train(data, valid, options.epochs, options.seed)
    digits.draw(options.out, curves, network(params, test[0]), *test)
    _, (_, counts) = measure(params, *test)
    print(f"test accuracy {accuracy(counts):.4f}, macro F1 {f1_score(counts, average='macro'):.4f}")


if __name__ == "__main__":
    main()
