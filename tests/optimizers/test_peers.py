"""In float32 the optimizers are optax's and torch's: same path, same state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jloss.optimizers

STEPS = 120
RATE = 1e-3
halving = optax.exponential_decay(RATE, transition_steps=40, decay_rate=0.5)

OPTIONS = {
    "sgd": ("sgd", {}),
    "sgd-schedule": ("sgd", {"learning_rate": halving}),
    "sgd-momentum": ("sgd", {"momentum": 0.9}),
    "sgd-momentum-0": ("sgd", {"momentum": 0.0}),
    "sgd-nesterov": ("sgd", {"momentum": 0.8, "nesterov": True, "accumulator_dtype": "float32"}),
    "rmsprop": ("rmsprop", {}),
    "rmsprop-schedule": ("rmsprop", {"learning_rate": halving, "decay": 0.99, "eps": 1e-4}),
    "rmsprop-eps-outside": ("rmsprop", {"eps_in_sqrt": False, "initial_scale": 1.0}),
    "rmsprop-momentum": ("rmsprop", {"momentum": 0.9}),
    "rmsprop-nesterov": ("rmsprop", {"momentum": 0.0, "nesterov": True}),
    "rmsprop-centered": ("rmsprop", {"centered": True, "initial_scale": 0.5}),
    "rmsprop-unbiased": ("rmsprop", {"bias_correction": True}),
    "rmsprop-all": (
        "rmsprop",
        {"centered": True, "bias_correction": True, "momentum": 0.9, "initial_scale": 1.0}
        | {"eps_in_sqrt": False, "learning_rate": halving},
    ),
    "adam": ("adam", {}),
    "adam-schedule": ("adam", {"learning_rate": halving, "mu_dtype": "float32"}),
    "adam-betas": ("adam", {"b1": 0.5, "b2": 0.9, "eps": 1e-3, "eps_root": 1e-3}),
    "adam-nesterov": ("adam", {"nesterov": True}),
    "adamw": ("adamw", {}),
    "adamw-nesterov": ("adamw", {"weight_decay": 0.1, "nesterov": True}),
    "adamw-masked": ("adamw", {"weight_decay": 0.1, "mask": {"bias": False, "weights": True}}),
    "adamw-schedules": (
        "adamw",
        {"learning_rate": halving, "weight_decay": lambda count: 0.1 / (1 + count)},
    ),
}


def make(library, name, options):
    return getattr(library, name)(**({"learning_rate": RATE} | options))


def start():
    rng = np.random.default_rng(0)
    shapes = {"bias": (3,), "weights": (2, 3)}
    params = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    noise = {
        name: jnp.asarray(rng.normal(size=(STEPS, *s)), jnp.float32) for name, s in shapes.items()
    }
    return params, noise


@jax.jit(static_argnums=0)
def path(optimizer, params, noise):
    """Every point of the noisy descent of |p - 1|^2 / 2, and the last state."""

    def step(carry, n):
        params, state = carry
        grads = jax.tree.map(lambda p, e: p - 1 + e, params, n)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), points = jax.lax.scan(step, (params, optimizer.init(params)), noise)
    return points, state


def furthest(tree, other):
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in leaf_pairs(tree, other)
    )


def leaf_pairs(tree, other):
    return zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_path_is_that_of_optax(option):
    params, noise = start()
    points, state = path(make(jloss.optimizers, *OPTIONS[option]), params, noise)
    with jax.numpy_dtype_promotion("standard"):
        their_points, their_state = path(make(optax, *OPTIONS[option]), params, noise)
    assert furthest(points, params) > 1e-3
    assert furthest(points, their_points) <= 1e-6
    assert jax.tree.structure(state) == jax.tree.structure(their_state)
    for ours, theirs in leaf_pairs(state, their_state):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_state_is_that_of_optax(option):
    params, _ = start()
    state = make(jloss.optimizers, *OPTIONS[option]).init(params)
    their_state = make(optax, *OPTIONS[option]).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(their_state)
    for ours, theirs in leaf_pairs(state, their_state):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_array_equal(ours, theirs)


def test_momentum_is_sgd_with_momentum():
    params, noise = start()
    points, _ = path(jloss.optimizers.momentum(RATE), params, noise)
    with jax.numpy_dtype_promotion("standard"):
        their_points, _ = path(optax.sgd(RATE, momentum=0.9), params, noise)
    assert furthest(points, their_points) <= 1e-6


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_an_optax_state_goes_on(name):
    params, noise = start()
    first, last = (jax.tree.map(lambda n, s=s: n[s], noise) for s in np.s_[:60, 60:])
    with jax.numpy_dtype_promotion("standard"):
        all_points, _ = path(make(optax, name, {}), params, noise)
        points, state = path(make(optax, name, {}), params, first)
    params = jax.tree.map(lambda p: p[-1], points)
    optimizer = make(jloss.optimizers, name, {})
    resumed = optimizer._replace(init=lambda _: state)
    points, _ = path(resumed, params, last)
    assert furthest(points, jax.tree.map(lambda p: p[60:], all_points)) <= 1e-6


@pytest.mark.parametrize(
    ("name", "options", "theirs", "their_options"),
    [
        ("sgd", {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
        ("sgd", {"momentum": 0.9, "nesterov": True}, "SGD", {"momentum": 0.9, "nesterov": True}),
        ("rmsprop", {"decay": 0.99, "eps_in_sqrt": False}, "RMSprop", {}),
        (
            "rmsprop",
            {"decay": 0.9, "eps_in_sqrt": False, "momentum": 0.9},
            "RMSprop",
            {"alpha": 0.9, "momentum": 0.9},
        ),
        ("adam", {}, "Adam", {}),
        ("adamw", {"weight_decay": 0.1}, "AdamW", {"weight_decay": 0.1}),
    ],
)
def test_the_path_is_that_of_torch(name, options, theirs, their_options):
    """In float64, so that nothing but the formula can differ."""
    torch = pytest.importorskip("torch")
    params, noise = (np.float64(tree["weights"]) for tree in start())
    with jax.enable_x64(True):
        points, _ = path(make(jloss.optimizers, name, options), params, noise)
    point = torch.tensor(params, requires_grad=True)
    optimizer = getattr(torch.optim, theirs)([point], lr=RATE, **their_options)
    for ours, n in zip(np.asarray(points), noise, strict=True):
        point.grad = point.detach() - 1 + torch.tensor(n)
        optimizer.step()
        assert furthest(ours, point.detach().numpy()) <= 1e-12
