"""Finds the label that is out of range, deep inside a compiled step.

Under `jit` no value can raise. A bad label gives NaN in the loss and the gradient of its own row,
and from there it reaches all parameters. `jloss.checked` runs the same function with checks on, and
its error says which argument was wrong. Without it the program holds no trace of a check.
"""

import jax
import jax.numpy as jnp

import jloss

CLASSES = 10


def make_data(key):
    """Four batches of eight examples, and one label too large, as an off-by-one makes them."""
    of_inputs, of_labels = jax.random.split(key)
    inputs = jax.random.normal(of_inputs, (4, 8, 16))
    labels = jax.random.randint(of_labels, (4, 8), 0, CLASSES)
    return inputs, labels.at[2, 5].set(CLASSES)


def loss_of_one(params, x, label):
    return jloss.softmax_cross_entropy_with_integer_labels(x @ params, label)


@jax.jit
def train(params, inputs, labels):
    """A step of gradient descent per batch: a scan over grads of a mean over a vmap."""

    def objective(params, batch):
        return jnp.mean(jax.vmap(loss_of_one, (None, 0, 0))(params, *batch))

    def step(params, batch):
        loss, gradient = jax.value_and_grad(objective)(params, batch)
        return params - 0.1 * gradient, loss

    return jax.lax.scan(step, params, (inputs, labels))


def main():
    params, (inputs, labels) = jnp.zeros((16, CLASSES)), make_data(jax.random.key(0))
    after, losses = train(params, inputs, labels)
    print("losses:", *losses)
    print(f"parameters that are NaN: {jnp.mean(jnp.isnan(after)):.0%}")
    try:
        jloss.checked(train)(params, inputs, labels)
    except ValueError as error:
        print("checked:", error)
        return str(error)
    return None


if __name__ == "__main__":
    main()
