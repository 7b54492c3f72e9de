"""Logistic regression: Linear(10, 1), binary cross-entropy on logits, SGD 0.01."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jloss

optimizer = jloss.sgd(0.01)


def make_data(seed, n=500):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 10)).astype(np.float32)
    chance = 1 / (1 + np.exp(-x @ np.linspace(-2, 2, 10)))
    return x, (rng.uniform(size=n) < chance).astype(np.float32)


def objective(params, x, labels):
    weights, bias = params
    return jloss.sigmoid_binary_cross_entropy(x @ weights + bias, labels, reduction=jloss.mean)


@jax.jit(donate_argnums=(0, 1))
def step(params, state, x, labels):
    loss, gradient = jax.value_and_grad(objective)(params, x, labels)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def train(params, x, labels, steps):
    state, losses = optimizer.init(params), []
    for _ in range(steps):
        params, state, loss = step(params, state, x, labels)
        losses.append(loss)
    return params, np.array(losses)


def main(steps=2000):
    x, labels = make_data(0)
    params, losses = train((jnp.zeros(10), jnp.zeros(())), x, labels, steps)
    accuracy = float(np.mean((x @ params[0] + params[1] > 0) == (labels > 0)))
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, accuracy {accuracy:.3f}")
    return params, losses, accuracy


if __name__ == "__main__":
    main()
