"""From a student's hidden states and a teacher's to divergences over a vocabulary, in chunks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jloss._core.checks import insist, nan_unless
from jloss._core.inputs import (
    as_array,
    blank,
    consumed,
    expect_shape,
    floats,
    hyperparameter,
    integers,
    log_probable,
    masks,
    required,
)
from jloss.fused._chunks import Given, Plans
from jloss.fused._ends import Implementation, in_chunks
from jloss.fused._terms import jensen_shannon_terms, kl_terms
from jloss.fused._tiles import Head, wide
from jloss.fused._two_heads import How, of_all_classes, of_the_likeliest, wider
from jloss.fused.linear import classes_of, expect_tokens, head_on
from jloss.reduction import R, Reduction, each

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Real

PLANS = Plans(cpu=128, default=2048)  # tokens, of which two heads hold several arrays of logits


class LinearTeacher(NamedTuple):
    """A teacher with a linear layer of its own, over the same vocabulary.

    Attributes:
        hidden: its hidden states, [*batch, features]: as many tokens as the student's.
        matrix: [features, vocabulary], transposed where the student's is.
        bias: [vocabulary].
        soft_cap: beyond which no logit goes.
    """

    hidden: Any
    matrix: Any
    bias: Any = None
    soft_cap: Any = None


class TopKTeacher(NamedTuple):
    """What was stored of a teacher: its likeliest classes.

    Attributes:
        log_probs: their log-probabilities, [*batch, k], of the whole distribution (not normalised
            to the k). One of -inf fills a place, where fewer than k were stored.
        classes: their numbers, [*batch, k], all different.
    """

    log_probs: Any
    classes: Any


def linear_kl_divergence(
    hidden: Float[ArrayLike, "*batch hidden"],
    matrix: Float[ArrayLike, "hidden vocabulary"],
    teacher: LinearTeacher | TopKTeacher,
    *,
    bias: Float[ArrayLike, "vocabulary"] | None = None,
    soft_cap: Real[ArrayLike, ""] | None = None,
    temperature: Real[ArrayLike, ""] | None = None,
    transposed: bool = False,
    axis_name: str | None = None,
    implementation: Implementation = None,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Distillation: the nats that a student wastes, coding what its teacher would say.

    $$\ell = \sum_j p_j (\log p_j - \log q_j), \qquad q = \operatorname{softmax}(h W + b)$$

    What `kl_divergence_with_log_targets` gives from both models' log-probabilities, of which only a
    chunk is ever there. Of a `TopKTeacher`, all classes beyond the k are one, with what probability
    is left: the divergence if k is the size of the vocabulary, and else a lower bound of it. (With
    the k normalised to 1 instead, a student that gives them next to nothing may have no loss.)

    Args:
        hidden: $h$ of the student, any leading axes. Products are in its dtype, and added up in
            float32 at least.
        matrix: $W$ of the student, [hidden, vocabulary].
        teacher: $p$, a `LinearTeacher` (differentiable too: the reverse divergence is this one,
            with the two in each other's place) or a `TopKTeacher` (data: no gradient).
        bias: $b$ of the student. One of -inf forbids a class.
        soft_cap: beyond which none of the student's logits goes.
        temperature: $T > 0$, which divides the student's logits and a `LinearTeacher`'s. (Stored
            log-probabilities are taken as they are. Gradients shrink by $T^2$: Hinton et al.
            multiply the loss by that.)
        transposed: whether matrices are [vocabulary, hidden], as an embedding that is tied.
        axis_name: inside `shard_map`, the mesh axis over which the vocabulary is split.
        implementation: see `jloss.fused.linear`.
        where, weights, reduction: as in every loss, see `jloss.reduction`; tokens are deleted.

    Returns:
        The shape of `hidden` without its last axis, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for hidden states that are not floating, or classes that are not integers.

    A stored log-probability above 0 or a class outside [0, vocabulary) gives NaN.

    References:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", NIPS Deep Learning
        Workshop, 2014.

    >>> teacher = LinearTeacher(jnp.ones((1, 2)), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
    >>> loss = linear_kl_divergence(jnp.ones((1, 4)), jnp.zeros((4, 2)), teacher)
    >>> print(f"{loss[0]:.4f}")
    0.3278
    """
    student = hidden, Head(matrix, bias, soft_cap, temperature)
    how = How(kl_terms, transposed, axis_name, implementation)
    return divergence(how, (), student, teacher, where, weights, reduction)


def linear_jensen_shannon_divergence(
    hidden: Float[ArrayLike, "*batch hidden"],
    matrix: Float[ArrayLike, "hidden vocabulary"],
    teacher: LinearTeacher | TopKTeacher,
    *,
    beta: Real[ArrayLike, ""] = 0.5,
    bias: Float[ArrayLike, "vocabulary"] | None = None,
    soft_cap: Real[ArrayLike, ""] | None = None,
    temperature: Real[ArrayLike, ""] | None = None,
    transposed: bool = False,
    axis_name: str | None = None,
    implementation: Implementation = None,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Distillation that is bounded: how far teacher and student are from their mixture.

    $$\ell = \beta \sum_j p_j \log \frac{p_j}{m_j} + (1 - \beta) \sum_j q_j \log \frac{q_j}{m_j},
    \qquad m = \beta p + (1 - \beta) q$$

    With $\beta$ near 0, over $\beta$ it is `linear_kl_divergence`; near 1, over $1 - \beta$, the
    reverse one. Of a `TopKTeacher`, all classes beyond the k are one, as there.

    Args:
        hidden, matrix, bias, soft_cap: the student $q$, as in `linear_kl_divergence`.
        teacher: $p$, a `LinearTeacher` or a `TopKTeacher`, as there.
        beta: the teacher's share of the mixture, in [0, 1].
        temperature, transposed, axis_name, implementation: as there.
        where, weights, reduction: as in every loss, see `jloss.reduction`; tokens are deleted.

    Returns:
        The shape of `hidden` without its last axis, unless `reduction` says otherwise. In nats, and
        at most $\log 2$.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for hidden states that are not floating, or classes that are not integers.

    A stored log-probability above 0, a class outside [0, vocabulary), or a `beta` outside [0, 1]
    gives NaN.

    References:
        Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist and Bachem, "On-Policy Distillation of
        Language Models: Learning from Self-Generated Mistakes", ICLR 2024.

    >>> teacher = LinearTeacher(jnp.ones((1, 2)), jnp.array([[1.0, 0.0], [1.0, 0.0]]))
    >>> loss = linear_jensen_shannon_divergence(jnp.ones((1, 4)), jnp.zeros((4, 2)), teacher)
    >>> print(f"{loss[0]:.4f}")
    0.0895
    """
    student = hidden, Head(matrix, bias, soft_cap, temperature)
    how = How(jensen_shannon_terms, transposed, axis_name, implementation)
    like = jnp.zeros((), wide(as_array("hidden", hidden).dtype))
    share = hyperparameter("beta", beta, like, least=0, most=1)
    return divergence(how, (share,), student, teacher, where, weights, reduction)


def divergence(
    how: How,
    numbers: tuple[Array, ...],
    student: tuple[ArrayLike, Head],
    teacher: LinearTeacher | TopKTeacher,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: Reduction[R],
) -> R:
    """The sum of the terms over the vocabulary, of each token, reduced."""
    x, head = head_on("", *student, how.transposed)
    batch = x.shape[:-1]
    classes, rows = masks(where, weights, x.shape, (x.ndim - 1,))
    expect_tokens(classes)
    if isinstance(teacher, TopKTeacher):
        log_p, classes, rounding = stored(teacher, head, batch, rows, how)
        values = functools.partial(of_the_likeliest, how, rounding)
        given = Given((wider(head), numbers), (x, log_p.astype(wide(x.dtype)), classes))
    elif isinstance(teacher, LinearTeacher):
        x_of, head_of = teaching(teacher, head, batch, how)
        values = functools.partial(of_all_classes, how)
        given = Given((wider(head), wider(head_of), numbers), (x, x_of))
    else:
        raise TypeError(f"`teacher` is a LinearTeacher or a TopKTeacher, but not {type(teacher)}")
    doors = rows, weights
    return in_chunks(values, given, batch, doors, PLANS, how.implementation, reduction)


def teaching(
    teacher: LinearTeacher, head: Head, batch: tuple[int, ...], how: How
) -> tuple[Array, Head]:
    """The teacher's hidden states and head, which are to fit the student's."""
    theirs = Head(teacher.matrix, teacher.bias, teacher.soft_cap, head.temperature)
    x, theirs = head_on("teacher.", teacher.hidden, theirs, how.transposed)
    expect_shape("teacher.hidden", x, (*batch, x.shape[-1]), "as many tokens as the student has")
    ours, size = (classes_of(h, how.transposed, None) for h in (head, theirs))
    if ours != size:
        raise ValueError(f"`teacher.matrix` has {size} classes, but `matrix` has {ours}")
    return x, theirs


def stored(
    teacher: TopKTeacher, head: Head, batch: tuple[int, ...], rows: Array | None, how: How
) -> tuple[Array, Array, float]:
    """The teacher's log-probabilities, NaN where they are none; classes; how the first round."""
    given, _ = consumed("teacher.log_probs", teacher.log_probs, -1)
    (log_p,) = floats(**{"teacher.log_probs": given})
    classes = integers("teacher.classes", teacher.classes).astype(jnp.int32)
    expect_shape("teacher.log_probs", log_p, (*batch, log_p.shape[-1]), "k for each token")
    expect_shape("teacher.classes", classes, log_p.shape)
    log_p = blank(log_p, rows, -jnp.inf, axis=(len(batch),))
    ok = log_probable("teacher.log_probs", jax.nn.logsumexp(log_p, -1), given)
    size, missing = classes_of(head, how.transposed, how.axis_name), log_p == -jnp.inf
    within = missing | ((classes >= 0) & (classes < size))
    ok &= required(jnp.all(within, -1), rows, f"`teacher.classes` should lie in [0, {size})")
    k = classes.shape[-1]
    in_order = jnp.sort(jnp.where(missing, size + jnp.arange(k, dtype=jnp.int32), classes), -1)
    insist(in_order[..., 1:] > in_order[..., :-1], "`teacher.classes` should all be different")
    log_p = jax.lax.stop_gradient(nan_unless(ok[..., None], log_p))
    eps = lambda dtype: float(jnp.finfo(dtype).eps)
    return log_p, classes, max(eps(given.dtype), k * eps(jnp.float32))
