"""An MLP 10-64-64-1 finds rare events, by binary cross-entropy on logits with Adam 1e-3.

One example in twenty is positive. Without weights the network may well say "never" too often; with
`class_balanced_weights` each positive counts as several, in the loss and in the mean's denominator.
"""

import jax
import jax.numpy as jnp
import mlp
import numpy as np
import optax

import jloss
from jloss.metrics import classification_counts, f1_score, precision, recall

optimizer = jloss.adam(1e-3)


def make_data(seed, n=4000):
    """Inputs `[n, 10]`, and whether a noisy quadratic of them is among its highest twentieth."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 10)).astype(np.float32)
    score = x[:, 0] * x[:, 1] + x[:, 2] + 0.5 * rng.normal(size=n)
    return x, (score > np.quantile(score, 0.95)).astype(np.int32)


def objective(params, x, labels, weights):
    logits = mlp.apply(params, x)[:, 0]
    return jloss.sigmoid_binary_cross_entropy(logits, labels, weights=weights, reduction=jloss.mean)


@jax.jit(donate_argnums=(0, 1))
def step(params, state, *batch):
    loss, gradient = jax.value_and_grad(objective)(params, *batch)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def train(params, x, labels, weights, steps, size=200):
    """The parameters after `steps` batches in order, and the losses."""
    state, losses = optimizer.init(params), []
    for i in range(steps):
        start = i * size % len(x)
        batch = (a[start : start + size] for a in (x, labels, weights))
        params, state, loss = step(params, state, *batch)
        losses.append(loss)
    return params, np.array(losses)


def main(steps=600):
    (x, labels), (test_x, test_labels) = make_data(0), make_data(1)
    counts = np.bincount(labels)
    balanced = np.asarray(jloss.class_balanced_weights(counts, beta=0.9999))[labels]
    scores = {}
    for name, weights in (("plain", np.ones_like(balanced)), ("balanced", balanced)):
        params = mlp.init(jax.random.key(0), (10, 64, 64, 1))
        params, _ = train(params, x, labels, weights, steps)
        guesses = (mlp.apply(params, test_x)[:, 0] > 0).astype(jnp.int32)
        counted = classification_counts(guesses, test_labels, num_classes=2)
        scores[name] = [float(score(counted)[1]) for score in (precision, recall, f1_score)]
        print("{:9} precision {:.3f}, recall {:.3f}, F1 {:.3f}".format(name, *scores[name]))
    return scores


if __name__ == "__main__":
    main()
