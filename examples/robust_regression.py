"""A line through y = 2x + 1 + noise, with Adam 0.01, where one target in ten is off by 20.

The squared error follows the corrupted targets, a robust loss does not. `general_robust_loss` has
both as members: all of them are trained at once, by `vmap` over its hyperparameter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from linear_regression import make_data

import jloss

ALPHAS = (2.0, 1.0, 0.0, -2.0)  # l2_loss, pseudo-Huber, Cauchy, Geman-McClure
optimizer = jloss.adam(0.01)


def corrupt(y, share=0.1):
    bad = np.random.default_rng(0).uniform(size=len(y)) < share
    return np.where(bad, y + 20, y).astype(np.float32)


def objective(params, x, y, alpha):
    slope, intercept = params
    line = slope * x + intercept
    return jloss.general_robust_loss(line, y, alpha=alpha, scale=0.5, reduction=jloss.mean)


def train(params, x, y, alpha, steps):
    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(objective)(params, x, y, alpha)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params, losses


def main(steps=2000):
    x, y = make_data(0)
    start = jnp.zeros(()), jnp.zeros(())
    with_each = jax.jit(jax.vmap(lambda alpha: train(start, x, corrupt(y), alpha, steps)[0]))
    lines = np.stack(with_each(jnp.array(ALPHAS)), -1)
    for alpha, (slope, intercept) in zip(ALPHAS, lines):
        print(f"alpha {alpha:4}: slope {slope:.3f}, intercept {intercept:.3f}")
    return dict(zip(ALPHAS, lines))


if __name__ == "__main__":
    main()
