"""Penalties to be added to a loss with a factor: on parameters, and on logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jloss._core.classes import entropy
from jloss._core.inputs import Axis, blank, clean, consumed, floats, hyperparameter, masks
from jloss._core.numerics import absolute, lean
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Bool, Float, PyTree, Real

Mask = Any | Callable[[Any], Any]


def l1_regularization(params: PyTree, *, mask: Mask | None = None) -> Array:
    r"""Rewards parameters that are exactly 0.

    $$\ell = \sum_i |w_i|$$

    Args:
        params: a pytree of arrays, summed over all floating and complex entries in float32 at
            least. Other leaves (counters, None) are passed over.
        mask: what is penalised: a pytree of booleans with the structure of `params` or a prefix of
            it, or a function from `params` to one, as in `optax.masked`. A boolean array lies along
            its leaf, leading axes first. Whatever is stored where it is False, NaN included,
            reaches no value and no gradient.

    Returns:
        A scalar.

    References:
        Tibshirani, "Regression Shrinkage and Selection via the Lasso", Journal of the Royal
        Statistical Society B, 1996.

    >>> l1_regularization({"w": jnp.array([3.0, -4.0]), "b": jnp.array(5.0)})
    Array(12., dtype=float32)
    """
    return _total(absolute, params, mask)


def l2_regularization(params: PyTree, *, mask: Mask | None = None) -> Array:
    r"""Rewards small parameters; its gradient is the parameters themselves, as in weight decay.

    $$\ell = \frac{1}{2} \sum_i |w_i|^2$$

    The factor 1/2 is that of scikit-learn's elastic net and of torch's `weight_decay` under SGD;
    Keras's `L2` has none: its factor is half of jloss's.

    Args:
        params: a pytree of arrays, as in `l1_regularization`.
        mask: what is penalised, as in `l1_regularization`: often the matrices and not the biases,
            `lambda params: jax.tree.map(lambda w: w.ndim > 1, params)`.

    Returns:
        A scalar.

    References:
        Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems",
        Technometrics, 1970.

    >>> l2_regularization({"w": jnp.array([3.0, -4.0]), "b": jnp.array(5.0)})
    Array(25., dtype=float32)
    >>> l2_regularization({"w": jnp.array([3.0, -4.0]), "b": jnp.array(5.0)},
    ...                   mask={"w": True, "b": False})
    Array(12.5, dtype=float32)
    """
    return 0.5 * _total(_square, params, mask)


def elastic_net_regularization(
    params: PyTree, *, l1_ratio: Real[ArrayLike, ""] = 0.5, mask: Mask | None = None
) -> Array:
    r"""Rewards parameters that are 0, and spreads what is left over those that go together.

    $$\ell = \rho \sum_i |w_i| + \frac{1 - \rho}{2} \sum_i |w_i|^2$$

    The factors are those of scikit-learn's `ElasticNet`.

    Args:
        params: a pytree of arrays, as in `l1_regularization`.
        l1_ratio: $\rho$ in [0, 1]: 1 is `l1_regularization`, 0 is `l2_regularization`.
        mask: what is penalised, as in `l1_regularization`.

    Returns:
        A scalar; NaN for a ratio outside [0, 1].

    References:
        Zou and Hastie, "Regularization and Variable Selection via the Elastic Net", Journal of the
        Royal Statistical Society B, 2005.

    >>> elastic_net_regularization({"w": jnp.array([3.0, -4.0])}, l1_ratio=0.5)
    Array(9.75, dtype=float32)
    """
    l1, l2 = l1_regularization(params, mask=mask), l2_regularization(params, mask=mask)
    l1_ratio = hyperparameter("l1_ratio", l1_ratio, l1, least=0, most=1)
    return l1_ratio * l1 + (1 - l1_ratio) * l2


def _square(w: Array) -> Array:
    return (w * jnp.conj(w)).real


def _total(measure: Callable[[Array], Array], params: PyTree, mask: Mask | None) -> Array:
    """The sum of `measure` over the entries that `mask` leaves."""
    is_function = callable(mask) and jax.tree_util.all_leaves([mask])  # an equinox mask is no leaf
    mask = True if mask is None else mask(params) if is_function else mask

    def below(kept: ArrayLike, branch: PyTree) -> Array:
        return _add([_leaf_total(measure, leaf, kept) for leaf in jax.tree.leaves(branch)])

    return _add(jax.tree.leaves(jax.tree.map(below, mask, params)))


def _leaf_total(measure: Callable[[Array], Array], leaf: ArrayLike, kept: ArrayLike) -> Array:
    if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact):
        return jnp.zeros((), jnp.float32)
    leaf = jnp.asarray(leaf)
    with jax.numpy_dtype_promotion("standard"):
        leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    _, there = masks(kept, None, leaf.shape, name="mask")
    return jnp.sum(measure(blank(leaf, there)))


def _add(terms: list[Array]) -> Array:
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.add, terms, jnp.zeros((), jnp.float32))


def z_loss(
    logits: Float[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards logits that are log-probabilities already: keeps the softmax's normaliser near 1.

    $$\ell = \Big(\log \sum_j e^{x_j}\Big)^2$$

    Usually added to a cross-entropy with a factor of 1e-4, which the keyword `z_loss` of
    `softmax_cross_entropy_with_integer_labels` does in the same pass; here it stands alone, for a
    log or for another loss.

    Args:
        logits: $x$, any shape.
        axis: the axes along which the classes lie; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the logits without `axis`, unless `reduction` says otherwise.

    Raises:
        TypeError: for logits that are not floating.

    References:
        Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", JMLR 2023.

    >>> z_loss(jnp.zeros((1, 4)))
    Array([1.921812], dtype=float32)
    """
    logits, axis = consumed("logits", logits, axis)
    classes, rows = masks(where, weights, logits.shape, axis)

    @lean
    def formula(x):
        (x,) = floats(logits=x)
        x = clean(x, classes, rows, axis, -jnp.inf)
        return jax.nn.logsumexp(x, axis) ** 2

    return finish(formula(logits), reduction, where=rows, weights=weights)


def confidence_penalty(
    logits: Float[ArrayLike, "*batch classes"],
    axis: Axis = -1,
    where: Bool[ArrayLike, "..."] | None = None,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Rewards doubt: the negative entropy of the predicted distribution.

    $$\ell = \sum_j p_j \log p_j, \qquad p = \operatorname{softmax}(x)$$

    Args:
        logits: $x$, any shape.
        axis: the axes along which the classes lie; None for all.
        where, weights, reduction: as in every loss, see `jloss.reduction`. `where` over `axis`
            deletes classes.

    Returns:
        The shape of the logits without `axis`, unless `reduction` says otherwise. Between $-\log
        K$, for $K$ classes alike, and 0.

    Raises:
        TypeError: for logits that are not floating.

    References:
        Pereyra, Tucker, Chorowski, Kaiser and Hinton, "Regularizing Neural Networks by Penalizing
        Confident Output Distributions", ICLR workshop 2017.

    >>> confidence_penalty(jnp.zeros((1, 2)))
    Array([-0.6931472], dtype=float32)
    """
    logits, axis = consumed("logits", logits, axis)
    classes, rows = masks(where, weights, logits.shape, axis)

    @lean
    def formula(x):
        (x,) = floats(logits=x)
        return -entropy(clean(x, classes, rows, axis, -jnp.inf), axis)

    return finish(formula(logits), reduction, where=rows, weights=weights)
