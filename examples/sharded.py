"""One step on eight devices with unequal masks, equal to the step on one device.

Two idioms are right. Under `jit` the arrays are sharded and the loss is written as ever: it sees
the whole batch. Under `shard_map` a loss sees one shard, and the reduction names the mesh axis:

    reduction=functools.partial(jloss.mean, axis_name="data")

Its gradient inside `shard_map` is the whole one already. The parameters are the same on every
device, and differentiating what they meet on each of them sums over the devices. So: no psum of the
gradients, it would count every device eight times.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jloss


def make_data(key, features=16, classes=10):
    """Parameters, and eight rows for each of eight devices with the mask of what is there."""
    of_params, of_features, of_labels = jax.random.split(key, 3)
    rows_left = jnp.array([8, 8, 7, 5, 3, 1, 1, 0])
    where = jnp.ravel(jnp.arange(8)[None] < rows_left[:, None])
    return jax.random.normal(of_params, (features, classes)), {
        "features": jax.random.normal(of_features, (len(where), features)),
        "labels": jax.random.randint(of_labels, (len(where),), 0, classes),
        "where": where,
    }


def objective(params, batch, reduction):
    return jloss.softmax_cross_entropy_with_integer_labels(
        batch["features"] @ params, batch["labels"], where=batch["where"], reduction=reduction
    )


def under_jit(params, batch):
    return jax.value_and_grad(objective)(params, batch, jloss.mean)


def with_axis_name(params, batch):
    reduction = functools.partial(jloss.mean, axis_name="data")
    return jax.value_and_grad(objective)(params, batch, reduction)


def with_tallies(params, batch):
    """As above, but summed by hand and once: what a loop over microbatches should do."""

    def total(params):
        tally = objective(params, batch, jloss.tally)
        return tally.total, tally

    own = jax.lax.pcast(params, "data", to="varying")  # so that the gradient is this device's
    gradient, tally = jax.lax.psum(jax.grad(total, has_aux=True)(own), "data")
    return tally.mean(), tally.divide(gradient)


def psum_twice(params, batch):
    loss, gradient = with_axis_name(params, batch)
    return loss, jax.lax.psum(gradient, "data")


def mean_of_means(params, batch):
    own = jax.lax.pcast(params, "data", to="varying")
    return jax.lax.pmean(under_jit(own, batch), "data")


def main():
    params, batch = make_data(jax.random.key(0))
    loss, gradient = jax.device_get(jax.jit(under_jit)(params, batch))
    print(f"{'one device':16}loss {loss:.4f}")
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    params = jax.device_put(params, NamedSharding(mesh, P()))
    batch = jax.device_put(batch, NamedSharding(mesh, P("data")))
    errors = {}
    for way in (under_jit, with_axis_name, with_tallies, psum_twice, mean_of_means):
        step = way if way is under_jit else jax.shard_map(way, mesh=mesh, out_specs=P())
        its_loss, its_gradient = jax.device_get(jax.jit(step)(params, batch))
        error = np.linalg.norm(its_gradient - gradient) / np.linalg.norm(gradient)
        name = way.__name__.replace("_", " ")
        print(f"{name:16}loss {its_loss:.4f}, gradient wrong by {100 * error:.5f} %")
        errors[way.__name__] = error
    return errors


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    main()
