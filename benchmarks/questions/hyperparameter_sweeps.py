"""What does a sweep of hyperparameters cost in one `vmap`, beside a loop over them?

Two sweeps over 64 values. A loss: the mean sigmoid focal loss of one batch, value and gradient,
for each gamma. A training run: a linear classifier by Adam from one start, for each learning rate,
its loss at the end. The loops call one program, compiled once, with the value as an argument.

Peers: optax, whose arguments are traced here as well.
Floor: of the loss, the batch read once and one gradient for each value written; caches hold what a
run reads. FLOP by the formulas.
Check: the textbook's formulas in float64; exact is a relative error up to 1e-5 for the loss, and
1e-3 for the run, which amplifies rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jloss
from benchmarks.competitors import Called, Case, Jitted

VALUES, FEATURES, CLASSES = 64, 64, 10
SIZES = {  # batch of the loss; batch and steps of the run
    "quick": (256, 256, 10),
    "cpu": (2048, 1024, 50),
    "accelerator": (65536, 16384, 100),
}


def focal(x, y, gamma):
    surprise = jnp.logaddexp(0, (1 - 2 * y) * x)
    return jnp.mean((-jnp.expm1(-surprise)) ** gamma * surprise)


def loss_sweep(batch):
    def draw():
        one, other = jax.random.split(jax.random.key(0))
        x = 3 * jax.random.normal(one, (batch, FEATURES))
        y = jax.random.bernoulli(other, 0.2, x.shape).astype(x.dtype)
        return x, y, jnp.linspace(0.5, 5, VALUES)

    entries = batch * FEATURES
    ours = lambda x, y, gamma: jloss.sigmoid_focal_loss(x, y, gamma=gamma, reduction=jloss.mean)
    theirs = lambda x, y, gamma: optax.sigmoid_focal_loss(x, y, gamma=gamma).mean()
    return Case(
        "focal loss over gamma",
        {"dtype": "float32", "values": VALUES, "batch": batch, "features": FEATURES},
        draw,
        swept(jax.value_and_grad(focal)),
        {"value": 1e-5, "gradient": 1e-5},
        sweeps(jax.value_and_grad(ours), jax.value_and_grad(theirs)),
        floor_bytes=4 * entries * (2 + VALUES),
        flops=16 * entries * VALUES,
    )


def swept(f):
    return lambda *given: jax.vmap(lambda value: f(*given[:-1], value))(given[-1])


def looped(f):
    one = jax.jit(f)
    loop = lambda *given: [one(*given[:-1], value) for value in np.asarray(given[-1])]
    return Called(loop, lambda results: jax.tree.map(lambda *each: jnp.stack(each), *results))


def sweeps(ours, theirs):
    return {
        "jloss vmap": Jitted(swept(ours)),
        "jloss loop": looped(ours),
        "optax vmap": Jitted(swept(theirs)),
        "optax loop": looped(theirs),
    }


def trained(loss, adam, steps, x, y, rate):
    """The loss after training; `adam(rate)` is an optax transform."""
    tx = adam(rate)

    def step(state, _):
        weights, inner = state
        gradient = jax.grad(lambda w: loss(x @ w, y))(weights)
        updates, inner = tx.update(gradient, inner, weights)
        return (weights + updates, inner), None

    start = jnp.zeros((x.shape[1], CLASSES), x.dtype)
    (weights, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return (loss(x @ weights, y),)


def textbook_adam(rate):
    """Kingma and Ba's algorithm 1, with the bias corrected in float64."""

    def init(p):
        return jnp.zeros_like(p), jnp.zeros_like(p), 0

    def update(g, state, _):
        m, v, t = state
        m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, t + 1
        direction = m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return -rate * direction, (m, v, t)

    return optax.GradientTransformation(init, update)


def run_sweep(batch, steps):
    def draw():
        one, other = jax.random.split(jax.random.key(0))
        x = jax.random.normal(one, (batch, FEATURES))
        weights = jax.random.normal(other, (FEATURES, CLASSES))
        return x, (x @ weights).argmax(-1), jnp.geomspace(1e-4, 1e-2, VALUES)

    cross_entropy = jloss.softmax_cross_entropy_with_integer_labels
    ours = functools.partial(cross_entropy, reduction=jloss.mean)
    theirs = lambda x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean()
    exact = lambda x, y: jnp.mean(jax.nn.logsumexp(x, -1) - x[jnp.arange(len(y)), y])
    return Case(
        "training run over the learning rate",
        {"dtype": "float32", "values": VALUES, "batch": batch, "steps": steps},
        draw,
        swept(functools.partial(trained, exact, textbook_adam, steps)),
        {"loss": 1e-3},
        sweeps(
            functools.partial(trained, ours, jloss.adam, steps),
            functools.partial(trained, theirs, optax.adam, steps),
        ),
        floor_bytes=0,
        flops=VALUES * steps * 4 * batch * FEATURES * CLASSES,
    )


def cases(scale):
    batch, examples, steps = SIZES[scale]
    yield loss_sweep(batch)
    yield run_sweep(examples, steps)
