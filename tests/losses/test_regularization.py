"""What is true of each penalty on parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import sklearn.linear_model

import jloss
from jloss._core.classes import entropy

PARAMS = {"w": jnp.array([[3.0, -4.0], [0.0, 1.0]]), "b": jnp.array([2.0, -2.0])}
every_penalty = pytest.mark.parametrize(
    "penalty",
    [jloss.l1_regularization, jloss.l2_regularization, jloss.elastic_net_regularization],
)


def test_the_factors():
    assert jloss.l1_regularization(PARAMS) == 12
    assert jloss.l2_regularization(PARAMS) == (9 + 16 + 1 + 4 + 4) / 2
    assert jloss.elastic_net_regularization(PARAMS, l1_ratio=0.25) == 0.25 * 12 + 0.75 * 17


def test_its_gradient_is_weight_decay():
    gradient = jax.grad(jloss.l2_regularization)(PARAMS)
    decay = optax.add_decayed_weights(1.0)
    expected, _ = decay.update(jax.tree.map(jnp.zeros_like, PARAMS), decay.init(PARAMS), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, gradient, expected)
    slopes = jax.grad(jloss.l1_regularization)(PARAMS)
    jax.tree.map(lambda s, w: np.testing.assert_array_equal(s, np.sign(w)), slopes, PARAMS)


def test_it_is_the_penalty_of_scikit_learn_s_elastic_net():
    """At scikit-learn's solution the slope of half the mean squared error meets the penalty's."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(50, 4)), np.array([2.0, -1.0, 0.5, 3.0])
    y = x @ w + 0.1 * rng.normal(size=50)
    net = sklearn.linear_model.ElasticNet(alpha=0.1, l1_ratio=0.3, fit_intercept=False, tol=1e-10)
    w = jnp.asarray(net.fit(x, y).coef_, jnp.float32)

    def objective(w):
        data = jloss.l2_loss(jnp.asarray(x, "f4") @ w, jnp.asarray(y, "f4"), reduction=jloss.mean)
        return data + 0.1 * jloss.elastic_net_regularization(w, l1_ratio=0.3)

    np.testing.assert_allclose(jax.grad(objective)(w), 0, atol=1e-5)


@every_penalty
def test_a_mask_says_what_is_penalised(penalty):
    only_w = penalty(PARAMS["w"])
    for mask in (
        {"w": True, "b": False},
        {"w": np.array(True), "b": np.array([False, False])},
        {"w": jnp.ones((2, 2), bool), "b": False},
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ):
        assert penalty(PARAMS, mask=mask) == only_w
    nested = {"layer": PARAMS, "head": PARAMS}
    assert penalty(nested, mask={"layer": False, "head": True}) == penalty(PARAMS)
    rows = {"w": np.array([True, False]), "b": False}
    assert penalty(PARAMS, mask=rows) == penalty(PARAMS["w"][0])


@every_penalty
def test_what_is_masked_reaches_nothing(penalty):
    params = {**PARAMS, "b": jnp.array([jnp.nan, 1.0])}
    mask = {"w": True, "b": np.array([False, True])}
    value, gradient = jax.value_and_grad(lambda p: penalty(p, mask=mask))(params)
    assert np.isfinite(value)
    assert gradient["b"][0] == 0


@every_penalty
def test_half_precision_is_summed_in_float32(penalty):
    many = jnp.ones(5000, jnp.bfloat16)
    assert penalty(many).dtype == jnp.float32
    assert penalty(many) == penalty(jnp.ones(5000))
    assert jax.grad(penalty)(many).dtype == jnp.bfloat16


@every_penalty
def test_odd_trees(penalty):
    assert penalty({}) == 0
    assert penalty(None) == 0
    assert penalty({"w": jnp.ones(2), "step": jnp.array(7), "none": None}) == penalty(jnp.ones(2))
    assert penalty([jnp.ones(3, jnp.bfloat16), jnp.ones(2)]) == penalty(jnp.ones(5))
    assert jnp.isfinite(
        jax.jit(jax.grad(lambda w: penalty(w).real))(jnp.zeros(2, jnp.complex64))
    ).all()


@every_penalty
def test_equinox_models_and_masks(penalty):
    model = eqx.nn.MLP(2, 3, 4, depth=1, key=jax.random.key(0))
    weights = [layer.weight for layer in model.layers]
    mask = jax.tree.map(lambda leaf: getattr(leaf, "ndim", 0) == 2, model)
    np.testing.assert_allclose(penalty(model, mask=mask), penalty(weights), rtol=1e-6)
    biases = [layer.bias for layer in model.layers]
    np.testing.assert_allclose(penalty(model), penalty([weights, biases]), rtol=1e-6)


@every_penalty
def test_a_mask_of_numbers_is_told_by_name(penalty):
    with pytest.raises(TypeError, match="boolean"):
        penalty(PARAMS, mask={"w": 1.0, "b": 0.0})


def test_l1_ratio_is_traced():
    f = lambda r: jloss.elastic_net_regularization(PARAMS, l1_ratio=r)
    np.testing.assert_allclose(jax.vmap(f)(jnp.array([0.0, 1.0])), [17, 12])
    assert jax.grad(f)(0.5) == 12 - 17


def test_confidence_is_negative_entropy():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)) * 2, jnp.float32)
    p = np.exp(np.asarray(jax.nn.log_softmax(logits), float))
    np.testing.assert_allclose(
        jloss.confidence_penalty(logits), -scipy.stats.entropy(p, axis=-1), rtol=1e-5
    )
    np.testing.assert_allclose(jloss.confidence_penalty(jnp.zeros(8)), -np.log(8), rtol=1e-6)
    assert jloss.confidence_penalty(jnp.array([500.0, 0.0])) == 0


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_rule_of_the_entropy_is_plain_differentiation(order):
    x = jnp.asarray(np.random.default_rng(1).normal(size=5), jnp.float32)
    ours, plain = (lambda x, f=f: f(x, (0,)) for f in (entropy, entropy.fun))
    for _ in range(order):
        ours, plain = jax.jacrev(ours), jax.jacrev(plain)
    np.testing.assert_allclose(jax.jit(ours)(x), jax.jit(plain)(x), rtol=1e-4, atol=1e-6)


def test_the_slope_of_confidence_near_no_preference():
    """Without the rule of `entropy` three digits of seven are lost here."""
    x = jnp.array([1e-4, -1e-4, 2e-4, -2e-4])
    slope = jax.grad(jloss.confidence_penalty)(x)
    np.testing.assert_allclose(slope, x / 4, rtol=1e-3)


def test_a_ratio_out_of_bounds_is_nan():
    assert np.isnan(jloss.elastic_net_regularization(PARAMS, l1_ratio=2.0))
