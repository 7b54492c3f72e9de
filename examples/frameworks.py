"""The same training with plain arrays, flax linen, flax nnx and equinox: the same losses.

A loss takes arrays and an optimizer takes pytrees, whatever made them. Frameworks that are not
installed are left out; `python examples/frameworks.py plain nnx` runs the two that it names.
"""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import optax

import jloss
from jloss.optimizers import adam

OPTIMIZER, STEPS = adam(1e-2), 30


def make_data(key):
    """Initial weights, and points with the number of the random direction that they lie nearest."""
    keys = jax.random.split(key, 4)
    weights = [jax.random.normal(keys[0], (8, 32)) / 3, jax.random.normal(keys[1], (32, 5)) / 6]
    inputs = jax.random.normal(keys[2], (256, 8))
    return weights, inputs, jnp.argmax(inputs @ jax.random.normal(keys[3], (8, 5)), axis=-1)


def mean_loss(logits, labels):
    return jloss.softmax_cross_entropy_with_integer_labels(logits, labels, reduction=jloss.mean)


def losses_of(logits_of, params, labels):
    """The losses of some steps from `params`, a pytree of arrays."""

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(lambda p: mean_loss(logits_of(p), labels))(params)
        updates, state = OPTIMIZER.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, OPTIMIZER.init(params)), length=STEPS)[1]


def plain(weights, inputs, labels):
    return losses_of(lambda params: jax.nn.relu(inputs @ params[0]) @ params[1], weights, labels)


def linen(weights, inputs, labels):
    from flax import linen

    layers = [linen.Dense(32, use_bias=False), linen.relu, linen.Dense(5, use_bias=False)]
    model = linen.Sequential(layers)
    hidden, out = ({"kernel": weight} for weight in weights)
    params = {"params": {"layers_0": hidden, "layers_2": out}}
    return losses_of(lambda params: model.apply(params, inputs), params, labels)


def nnx(weights, inputs, labels):
    from flax import nnx

    hidden, out = (nnx.Linear(*w.shape, use_bias=False, rngs=nnx.Rngs(0)) for w in weights)
    hidden.kernel[...], out.kernel[...] = weights
    model = nnx.Sequential(hidden, nnx.relu, out)
    optimizer = nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda model: mean_loss(model(inputs), labels))(model)
        optimizer.update(model, gradient)
        return loss

    return jnp.stack([step(model, optimizer) for _ in range(STEPS)])


def equinox(weights, inputs, labels):
    import equinox as eqx

    key, biases = jax.random.key(0), {"use_bias": False, "use_final_bias": False}
    model = eqx.nn.MLP(8, 5, 32, depth=1, key=key, **biases)
    transposed = [weight.T for weight in weights]
    model = eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, transposed)
    params, static = eqx.partition(model, eqx.is_array)
    return losses_of(lambda p: jax.vmap(eqx.combine(p, static))(inputs), params, labels)


def main(names=()):
    needs = {plain: "jax", linen: "flax", nnx: "flax", equinox: "equinox"}
    losses = {}
    for way, package in needs.items():
        name = way.__name__
        if importlib.util.find_spec(package) and (not names or name in names):
            losses[name] = way(*make_data(jax.random.key(0)))
            print(f"{name:8}", *(f"{loss:.6f}" for loss in losses[name][::6]))
    return losses


if __name__ == "__main__":
    main(sys.argv[1:])
