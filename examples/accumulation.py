"""Gradients over unequal microbatches, exactly: totals and weights are added up, and divided last.

Sentences of unequal length leave unequal numbers of tokens in the microbatches. A mean of their
means counts a token for more, the fewer others are beside it. `jloss.tally` keeps the sum and the
weight apart until every microbatch is in.
"""

import jax
import jax.numpy as jnp
import optax

import jloss

SENTENCES, LENGTH, FEATURES, CLASSES = 4, 32, 16, 10


def make_data(key):
    """Parameters, and five microbatches of tokens with the mask of those that are there."""
    of_params, of_features, of_noise = jax.random.split(key, 3)
    params = {
        "hidden": jax.random.normal(of_params, (FEATURES, 64)) / 4,
        "out": jax.random.normal(of_noise, (64, CLASSES)) / 8,
    }
    lengths = jnp.array(
        [[32, 30, 31, 29], [25, 2, 11, 7], [8, 9, 3, 5], [4, 6, 2, 3], [1, 2, 1, 1]]
    )
    where = jnp.arange(LENGTH)[None, None] < lengths[..., None]
    features = jax.random.normal(of_features, (*where.shape, FEATURES))
    labels = jnp.argmax(features[..., :CLASSES], axis=-1)
    return params, {"features": features, "labels": labels, "where": where}


def objective(params, batch, reduction):
    logits = jnp.tanh(batch["features"] @ params["hidden"]) @ params["out"]
    return jloss.softmax_cross_entropy_with_integer_labels(
        logits, batch["labels"], where=batch["where"], reduction=reduction
    )


@jax.jit
def full_batch(params, microbatches):
    """What the others should equal: all tokens in memory at once."""
    return jax.value_and_grad(objective)(params, microbatches, jloss.mean)


@jax.jit
def added_tallies(params, microbatches):
    """One microbatch in memory at a time. A weight has no gradient, so only totals need one."""

    def total(params, batch):
        tally = objective(params, batch, jloss.tally)
        return tally.total, tally

    def add(so_far, batch):
        gradient, tally = jax.grad(total, has_aux=True)(params, batch)
        return jax.tree.map(jnp.add, so_far, (gradient, tally)), None

    zero = jax.tree.map(jnp.zeros_like, params), jloss.Tally(jnp.zeros(()), jnp.zeros(()))
    (gradient, tally), _ = jax.lax.scan(add, zero, microbatches)
    return tally.mean(), tally.divide(gradient)


@jax.jit
def mean_of_means(params, microbatches):
    """The usual mistake."""

    def one(batch):
        return jax.value_and_grad(objective)(params, batch, jloss.mean)

    return jax.tree.map(lambda parts: jnp.mean(parts, axis=0), jax.lax.map(one, microbatches))


def main():
    params, microbatches = make_data(jax.random.key(0))
    print("tokens in the microbatches:", *jnp.sum(microbatches["where"], axis=(1, 2)))
    loss, gradient = full_batch(params, microbatches)
    print(f"{'all at once':15} loss {loss:.4f}")
    errors = {}
    for way in (added_tallies, mean_of_means):
        its_loss, its_gradient = way(params, microbatches)
        difference = jax.tree.map(jnp.subtract, its_gradient, gradient)
        error = float(optax.tree.norm(difference) / optax.tree.norm(gradient))
        name = way.__name__.replace("_", " ")
        print(f"{name:15} loss {its_loss:.4f}, gradient wrong by {100 * error:.5f} %")
        errors[way.__name__] = error
    return errors


if __name__ == "__main__":
    main()
