"""From hidden states and a vocabulary matrix to losses and log-probabilities, without the logits.

Every engine here takes `implementation`: None chooses; "fused" makes the gradients together with a
loss that is reduced inside; "recompute" computes the logits again for the gradient and is least in
memory; "plain" holds the logits while it needs them, and is the one that forward-mode
differentiation (`jvp`) can pass: the others are reverse-mode, and may be differentiated again.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import chex
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jloss._core.checks import nan_unless
from jloss._core.classes import Labels, labelled
from jloss._core.devices import alike, mesh_axes
from jloss._core.inputs import as_array, blank, consumed, expect_shape, hyperparameter
from jloss._core.numerics import product
from jloss.fused._chunks import Plans, flat, reverse_only, shared
from jloss.fused._ends import Implementation, end_of, expect_implementation, reduced_inside
from jloss.fused._strategies import log_probs, plain, summed
from jloss.fused._tiles import EXTRA, Head, LogProbs, Plan, wide
from jloss.reduction import R, Reduction, each, finish

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Real

ON_CPU = {"chunk": 512, "tile": 2048}  # what stays in its caches
ELSEWHERE = {"chunk": 4096, "tile": 2**31 - 1}  # products large enough to fill an accelerator


def linear_softmax_cross_entropy(
    hidden: Float[ArrayLike, "*batch hidden"],
    matrix: Float[ArrayLike, "hidden vocabulary"],
    labels: Int[ArrayLike, "*batch"],
    *,
    bias: Float[ArrayLike, "vocabulary"] | None = None,
    soft_cap: Real[ArrayLike, ""] | None = None,
    temperature: Real[ArrayLike, ""] | None = None,
    label_smoothing: Real[ArrayLike, ""] | None = None,
    z_loss: Real[ArrayLike, ""] | None = None,
    class_weights: Real[ArrayLike, "vocabulary"] | None = None,
    transposed: bool = False,
    axis_name: str | None = None,
    implementation: Implementation = None,
    where: Bool[ArrayLike, "..."] | None = None,
    weights: Real[ArrayLike, "..."] | None = None,
    reduction: Reduction[R] = each,
) -> R:
    r"""Cross-entropy of a linear layer's logits, which are never all there at once.

    $$\ell = -\log \operatorname{softmax}(x)_y, \qquad
    x = c \tanh((h W + b) / c) \, / \, T$$

    What `softmax_cross_entropy_with_integer_labels(hidden @ matrix, labels)` gives, from logits in
    float32 whatever the dtypes, in memory that does not grow with tokens times vocabulary. With
    `reduction` `mean`, `sum` or `tally` (or `functools.partial` of one with `axis_name`) the
    gradients are made in one pass with the loss; with any other the logits are computed again.

    Args:
        hidden: $h$, any leading axes. Products are in its dtype, and added up in float32 at least.
        matrix: $W$, [hidden, vocabulary]; its gradient has its dtype, whatever that of `hidden`.
        labels: $y$, class numbers from 0, of the shape of `hidden` without its last axis. Labels
            that mark padding (-100, -1) have to be deleted: `where=labels != -100`.
        bias: $b$, added to the logits. One of -inf forbids a class.
        soft_cap: $c > 0$, beyond which no logit goes.
        temperature: $T > 0$, which divides the logits.
        label_smoothing: $\alpha$ in [0, 1], the share of the label that is spread evenly.
        z_loss: the factor of $(\log \sum_j e^{x_j})^2$, which is added.
        class_weights: a weight for each class, which multiplies the weights of its tokens.
        transposed: whether `matrix` is [vocabulary, hidden], as an embedding that is tied.
        axis_name: inside `shard_map`, the mesh axis over which the vocabulary is split.
        implementation: see `jloss.fused.linear`.
        where, weights, reduction: as in every loss, see `jloss.reduction`; tokens are deleted.

    Returns:
        The shape of the labels, unless `reduction` says otherwise.

    Raises:
        ValueError: for shapes that do not fit, or a `where` over the vocabulary.
        TypeError: for hidden states that are not floating or labels that are not integers.

    A label outside [0, vocabulary) gives NaN, in value and gradient of its own token (and so in
    what all tokens share, the gradient of the matrix).

    References:
        Wijmans, Huval, Hertzberg, Koltun and Krähenbühl, "Cut Your Losses in Large-Vocabulary
        Language Models", ICLR 2025. Soft cap: Gemma Team, "Gemma 2", 2024.

    >>> from jloss import mean
    >>> hidden, matrix = jnp.ones((3, 4)), jnp.zeros((4, 5))
    >>> loss = linear_softmax_cross_entropy(hidden, matrix, jnp.array([0, 1, 4]), reduction=mean)
    >>> print(f"{loss:.4f}")
    1.6094
    """
    wanted = () if label_smoothing is None else ("mean_logit",)
    head = Head(matrix, bias, soft_cap, temperature)
    doors = where, weights, class_weights
    hidden, head, y = through_the_door(hidden, head, labels, *doors, transposed, axis_name)
    plans = plans_for(head, transposed, wanted, axis_name)
    share = number("label_smoothing", label_smoothing, hidden, least=0, most=1)
    factors = share, number("z_loss", z_loss, hidden)
    expect_implementation(implementation)
    end, axes = end_of(reduction)
    if end is None or implementation in ("recompute", "plain"):
        known = known_by(implementation, plans, hidden, head, y)
        values = nan_unless(y.known, cross_entropy(known, jnp.ones_like(known.log_prob), factors))
        return finish(values, reduction, where=y.rows, weights=y.weights)

    def weighted_sum(weights):
        tokens = together(plans, hidden, head, y)
        shares = flat(nan_unless(y.known, weights), weights.ndim)
        _, *given = alike(tokens, shares, factors, but=axis_of(plans))
        with reverse_only():
            return summed(plans, cross_entropy, *tokens, *given)

    return reduced_inside(
        weighted_sum, y.number.shape, y.rows, y.weights, wide(hidden.dtype), end, axes
    )


def linear_token_log_probs(
    hidden: Float[ArrayLike, "*batch hidden"],
    matrix: Float[ArrayLike, "hidden vocabulary"],
    labels: Int[ArrayLike, "*batch"],
    *,
    bias: Float[ArrayLike, "vocabulary"] | None = None,
    soft_cap: Real[ArrayLike, ""] | None = None,
    temperature: Real[ArrayLike, ""] | None = None,
    transposed: bool = False,
    axis_name: str | None = None,
    implementation: Literal["recompute", "plain"] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "*batch"]:
    r"""What a model gives the tokens that were said: for preference and policy losses.

    $$\log \pi_y = \log \operatorname{softmax}(x)_y$$

    The `log_prob` of `linear_log_probs` without the price of the rest. With the prompt deleted by
    `where`, its sum over a sequence is the log-probability of the answer; its difference from that
    of the model which said it, the logarithm of the importance ratio.

    Args:
        hidden, matrix, labels, bias, soft_cap, temperature, transposed, axis_name, implementation:
            as in `linear_softmax_cross_entropy`.
        where: which tokens are there; those of the others are 0.

    Returns:
        The shape of the labels, in float32 at least.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for hidden states that are not floating or labels that are not integers.

    A label outside [0, vocabulary) gives NaN, in value and gradient of its own token.

    >>> where = jnp.array([[False, True, True]])
    >>> said = linear_token_log_probs(
    ...     jnp.ones((1, 3, 4)), jnp.zeros((4, 5)), jnp.array([[0, 1, 4]]), where=where)
    >>> print(f"{jnp.sum(said):.4f}")
    -3.2189
    """
    return 0 - linear_softmax_cross_entropy(
        hidden,
        matrix,
        labels,
        bias=bias,
        soft_cap=soft_cap,
        temperature=temperature,
        transposed=transposed,
        axis_name=axis_name,
        implementation=implementation,
        where=where,
    )


def linear_log_probs(
    hidden: Float[ArrayLike, "*batch hidden"],
    matrix: Float[ArrayLike, "hidden vocabulary"],
    labels: Int[ArrayLike, "*batch"],
    *,
    bias: Float[ArrayLike, "vocabulary"] | None = None,
    soft_cap: Real[ArrayLike, ""] | None = None,
    temperature: Real[ArrayLike, ""] | None = None,
    transposed: bool = False,
    axis_name: str | None = None,
    implementation: Literal["recompute", "plain"] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> LogProbs:
    """What a softmax over a vocabulary gives each token, without the logits.

    The log-probability of the label, the log-sum-exp and the mean of the logits, the entropy of the
    distribution and its likeliest class; all but the last differentiable, in `hidden`, `matrix`,
    `bias`, `soft_cap` and `temperature`.

    Args:
        hidden, matrix, labels, bias, soft_cap, temperature, transposed, axis_name, implementation:
            as in `linear_softmax_cross_entropy`.
        where: which tokens are there; what is known of the others is 0.

    Returns:
        `LogProbs`, each field of the shape of the labels, in float32 at least.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for hidden states that are not floating or labels that are not integers.

    A label outside [0, vocabulary) gives NaN as its log-probability.

    >>> known = linear_log_probs(jnp.ones((1, 4)), jnp.zeros((4, 5)), jnp.array([2]))
    >>> print(f"{known.log_prob[0]:.4f} {known.entropy[0]:.4f} {known.argmax[0]}")
    -1.6094 1.6094 0
    """
    head = Head(matrix, bias, soft_cap, temperature)
    hidden, head, y = through_the_door(
        hidden, head, labels, where, None, None, transposed, axis_name
    )
    expect_implementation(implementation)
    plans = plans_for(head, transposed, EXTRA, axis_name)
    known = known_by(implementation, plans, hidden, head, y)
    known = known._replace(log_prob=nan_unless(y.known, known.log_prob))
    return jax.tree.map(lambda a: blank(a, y.rows), known)


def through_the_door(
    hidden: ArrayLike,
    head: Head,
    labels: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    class_weights: ArrayLike | None,
    transposed: bool,
    axis_name: str | None,
) -> tuple[Array, Head, Labels]:
    """The door in: hidden states, 0 where deleted; the head, its numbers within their bounds."""
    x, head = head_on("", hidden, head, transposed)
    classes = classes_of(head, transposed, axis_name)
    y = labelled(labels, (*x.shape[:-1], classes), (x.ndim - 1,), where, weights, class_weights)
    expect_tokens(y.classes)
    y = y._replace(number=y.number.astype(jnp.int32))
    return blank(x, y.rows, axis=(x.ndim - 1,)), head, y


def head_on(whose: str, hidden: ArrayLike, head: Head, transposed: bool) -> tuple[Array, Head]:
    """Hidden states and the head that they go to, which is to fit them."""
    (x, _), matrix = consumed(f"{whose}hidden", hidden, -1), as_array(f"{whose}matrix", head.matrix)
    for name, array in (("hidden", x), ("matrix", matrix)):
        message = f"`{whose}{name}` should be floating, but is {array.dtype}: cast it first"
        chex.assert_type(array, jnp.floating, custom_message=message, exception_type=TypeError)
    x, matrix = (a.astype(jnp.float32) if a.dtype.itemsize == 1 else a for a in (x, matrix))
    size = matrix.shape[0 if transposed else -1] if matrix.ndim else 0
    layout = (size, x.shape[-1]) if transposed else (x.shape[-1], size)
    other = "drop `transposed`" if transposed else "for [vocabulary, hidden] say `transposed=True`"
    hint = f"hidden states have {x.shape[-1]} features; {other}"
    expect_shape(f"{whose}matrix", matrix, layout, hint)
    bias = None if head.bias is None else as_array(f"{whose}bias", head.bias)
    if bias is not None:
        expect_shape(f"{whose}bias", bias, (size,))
    cap = number(f"{whose}soft_cap", head.soft_cap, x, above=0)
    temperature = number("temperature", head.temperature, x, above=0)
    x, matrix, bias = contractible(x, matrix, bias, transposed)
    return x, Head(matrix, bias, cap, temperature)


def number(name: str, value: ArrayLike | None, hidden: Array, **within: Any) -> Array | None:
    """A hyperparameter, if it was given, in the dtype that hidden states are added up in."""
    like = jnp.zeros((), wide(hidden.dtype))
    return None if value is None else hyperparameter(name, value, like, **within)


def expect_tokens(classes: Array | None) -> None:
    """Raises if there is a mask over the vocabulary."""
    if classes is not None:
        raise ValueError("`where` deletes tokens here: to forbid a class, give it a bias of -inf")


def contractible(
    x: Array, matrix: Array, bias: Array | None, transposed: bool
) -> tuple[Array, Array, Array | None]:
    """On an Explicit mesh, features on all devices, as parameters sharded at rest need them.

    So is the vocabulary, where the axis over which it is sharded is that of the tokens.
    """
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types or jax.typeof(matrix).sharding.mesh.empty:
        return x, matrix, bias
    tokens, spec = jax.typeof(x).sharding.spec[:-1], jax.typeof(matrix).sharding.spec
    vocabulary = spec[0 if transposed else 1]
    taken = {name for entry in tokens for name in mesh_axes(entry)}
    vocabulary = None if taken & set(mesh_axes(vocabulary)) else vocabulary
    put = lambda a, *spec: jax.sharding.reshard(a, NamedSharding(mesh, P(*spec)))
    matrix = put(matrix, *((vocabulary, None) if transposed else (None, vocabulary)))
    there = bias is None or jax.typeof(bias).sharding.mesh.empty
    return put(x, *tokens, None), matrix, bias if there else put(bias, vocabulary)


def classes_of(head: Head, transposed: bool, axis_name: str | None) -> int:
    """How many there are on all devices."""
    local = head.matrix.shape[0 if transposed else 1]
    return local * (1 if axis_name is None else jax.lax.axis_size(axis_name))


def plans_for(
    head: Head, transposed: bool, wanted: tuple[str, ...], axis_name: str | None
) -> Plans:
    """For this vocabulary; a matrix that devices may share is not cut into tiles but by them."""
    local, classes = (classes_of(head, transposed, name) for name in (None, axis_name))
    given = {"local": local, "classes": classes, "axis_name": axis_name}
    given |= {"transposed": transposed, "wanted": wanted}
    on_cpu = ON_CPU | ({"tile": local} if shared() else {})
    return Plans(Plan(**on_cpu, **given), Plan(**ELSEWHERE, **given))


def together(plans: Plans, hidden: Array, head: Head, y: Labels) -> tuple[Array, Head, Array]:
    """Tokens along one axis; in `shard_map` all of one kind, labels the same for a vocabulary."""
    hidden, labels = flat(hidden, hidden.ndim - 1), flat(y.number, y.number.ndim)
    _, _, labels = alike(hidden, head, labels, but=axis_of(plans))
    hidden, head, _ = alike(hidden, head, labels)
    return hidden, head, labels


def axis_of(plans: Plans) -> str | None:
    """The mesh axis over which the vocabulary is split."""
    return plans.cpu.axis_name


def known_by(
    implementation: Implementation, plans: Plans, hidden: Array, head: Head, y: Labels
) -> LogProbs:
    """What is known of each token, of the shape of the labels."""
    hidden, head, labels = together(plans, hidden, head, y)
    by_rule = implementation != "plain"
    engine = functools.partial(log_probs, plans) if by_rule else functools.partial(plain, plans.cpu)
    with reverse_only():
        known = engine(hidden, head, labels)
    return jax.tree.map(lambda a: a.reshape(y.number.shape), known)


def cross_entropy(
    known: LogProbs, weights: Array, factors: tuple[Array | None, Array | None]
) -> Array:
    """Of each token, times its weight."""
    share, of_z = factors
    values = -known.log_prob
    if share is not None:
        even = known.logsumexp - known.mean_logit
        values = product(1 - share, values) + product(share, even)
    if of_z is not None:
        values += of_z * known.logsumexp**2
    return product(weights, values)
