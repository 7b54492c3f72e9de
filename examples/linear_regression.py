"""A line through y = 2x + 1 + noise, by SGD on the squared error: it finds ordinary least squares.

The whole training is one `lax.scan` under one `jit`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jloss


def make_data(seed, n=200):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=n).astype(np.float32)
    return x, np.float32(2 * x + 1 + 0.1 * rng.normal(size=n))


def objective(params, x, y):
    slope, intercept = params
    return jloss.squared_error(slope * x + intercept, y, reduction=jloss.mean)


@functools.partial(jax.jit, static_argnames=("optimizer", "steps"))
def train(params, x, y, optimizer, steps):
    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(objective)(params, x, y)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params, losses


def main():
    x, y = make_data(0)
    params, losses = train((jnp.zeros(()), jnp.zeros(())), x, y, jloss.sgd(0.1), 1000)
    exact = np.polyfit(x.astype(float), y.astype(float), 1)
    found = np.array(params)
    print("slope and intercept by SGD           ", *found)
    print("slope and intercept by least squares ", *exact)
    return found, exact, losses


if __name__ == "__main__":
    main()
