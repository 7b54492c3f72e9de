"""A multilayer perceptron in two functions, for the programs beside it."""

import itertools

import jax
import jax.numpy as jnp


def init(key, sizes):
    """[(weights, biases), ...], drawn as torch's `Linear` draws them."""
    params = []
    for below, above in itertools.pairwise(sizes):
        key, of_weights, of_biases = jax.random.split(key, 3)
        bound = below**-0.5
        weights = jax.random.uniform(of_weights, (below, above), minval=-bound, maxval=bound)
        biases = jax.random.uniform(of_biases, (above,), minval=-bound, maxval=bound)
        params.append((weights, biases))
    return params


def apply(params, x):
    *hidden, (weights, biases) = params
    for w, b in hidden:
        x = jax.nn.relu(jnp.matmul(x, w) + jnp.broadcast_to(b, (*x.shape[:-1], len(b))))
    return jnp.matmul(x, weights) + jnp.broadcast_to(biases, (*x.shape[:-1], len(biases)))
