"""An MLP 784-64-64-10 learns digits by mean squared error from one-hot targets, with Adam.

The loss is written for one example and mapped over the batch by `vmap`; the step is jitted, and
takes over the memory of the parameters and of the optimizer's state.
"""

import digits
import jax
import jax.numpy as jnp
import mlp
import numpy as np
import optax

import jloss

optimizer = jloss.adam(1e-3)


def loss_of_one(params, image, label):
    target = jax.nn.one_hot(label, 10)
    return jloss.squared_error(mlp.apply(params, image), target, reduction=jloss.mean)


def objective(params, images, labels):
    return jnp.mean(jax.vmap(loss_of_one, (None, 0, 0))(params, images, labels))


@jax.jit(donate_argnums=(0, 1))
def step(params, state, images, labels):
    loss, gradient = jax.value_and_grad(objective)(params, images, labels)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def train(params, batches):
    """The parameters after one step for each batch, and the losses before it."""
    state, losses = optimizer.init(params), []
    for images, labels in batches:
        params, state, loss = step(params, state, images, labels)
        losses.append(loss)
    return params, np.array(losses)


def batches(images, labels, epochs, size=50):
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for index in np.split(rng.permutation(len(labels)), len(labels) // size):
            yield images[index], labels[index]


def main(epochs=10):
    (images, labels), _, (test_images, test_labels) = digits.load(seed=0)
    flat = lambda images: images.reshape(len(images), -1)
    params = mlp.init(jax.random.key(0), (784, 64, 64, 10))
    params, losses = train(params, batches(flat(images), labels, epochs))
    guesses = jnp.argmax(mlp.apply(params, flat(test_images)), -1)
    accuracy = float(np.mean(guesses == test_labels))
    print(f"loss {losses[:70].mean():.4f} -> {losses[-70:].mean():.4f}, accuracy {accuracy:.3f}")
    return losses, accuracy


if __name__ == "__main__":
    main()
