"""Law 7: values and derivatives against exact ones, in units of what rounding the inputs may do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from catalog import CATALOG

every_loss = pytest.mark.parametrize("name", CATALOG)
every_place = pytest.mark.parametrize(
    ("dtype", "region"),
    list(itertools.product(["float16", "bfloat16", "float32", "float64"], oracle.REGIONS)),
)


def inputs(name, region, dtype):
    x, y = oracle.examples(name, region, "half" if "16" in dtype else "single")
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype if y.dtype.kind == "f" else None)


def errors(got, exact, size=0):
    """In units of conditioning: 1 is what rounding every input once would do (or one of `size`)."""
    eps, tiny = (float(getattr(jnp.finfo(got.dtype), k)) for k in ("eps", "tiny"))
    got = np.asarray(got, float).reshape(exact.shape[:-1])
    return np.abs(got - exact[..., 0]) / (eps * (exact[..., 1] + size) + tiny)


@every_loss
@every_place
def test_values_and_gradients_are_exact(name, dtype, region):
    row = CATALOG[name]
    with jax.enable_x64(dtype == "float64"):
        x, y = inputs(name, region, dtype)
        value = jax.jit(row.loss)(x, y)
        gradient = jax.jit(jax.grad(lambda x: row.loss(x, y).sum()))(x)
    exact_value, exact_gradient = oracle.exact(name, region, "half" if "16" in dtype else "single")
    assert value.dtype == ("float64" if dtype == "float64" else "float32")
    assert gradient.dtype == dtype
    budget = oracle.budget(name)
    assert errors(value, exact_value).max() <= budget
    # of paths, the gradient is a difference of probabilities
    assert errors(gradient, exact_gradient, size=int(row.lattice)).max() <= budget


@every_loss
def test_the_slope_in_the_truth_is_exact(name):
    """At labels of exactly 0 and 1 as well, where powers and logarithms have their ends."""
    row = CATALOG[name]
    x, y = oracle.examples(name, "3", "single")
    if x.shape != y.shape:
        pytest.skip("the truth is a class, or none")
    x, y = (jnp.asarray(a, jnp.float32) for a in (x, y))
    gradient = jax.jit(jax.grad(lambda y: row.loss(x, y).sum()))(y)
    exact = oracle.slope_in_truth(name).reshape(*y.shape, 2)
    off = np.where(np.isnan(exact[..., 0]), 0, errors(gradient, exact))
    assert off.max() <= oracle.budget(name)


@every_loss
def test_hessian_is_exact(name):
    with jax.enable_x64(True):
        x, y = (a[-1] for a in inputs(name, "3", "float64"))
        hessian = jax.jit(jax.hessian(lambda x: CATALOG[name].loss(x, y)))(x)
    exact = oracle.hessian(name)
    scale = max(np.abs(exact).max(), 1e-30)  # below is rounding at a hundred digits
    assert np.abs(np.asarray(hessian).reshape(exact.shape) - exact).max() <= 1e-12 * scale
