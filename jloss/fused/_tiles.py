"""Logits a tile at a time: what a softmax over a vocabulary sees in them, and what it gives back.

A chunk is some tokens, a tile the logits of a chunk for some classes. Forward, each tile adds to
what was seen of its tokens; backward, each takes its slopes from that, and adds to the gradients.
Nothing is ever [tokens, vocabulary].
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

EXTRA = ("mean_logit", "entropy", "argmax")  # what costs something, and is seen only if wanted
NO_CLASS = 2**31 - 1


class Head(NamedTuple):
    """What turns hidden states into logits."""

    matrix: Any  # [hidden, vocabulary], or [vocabulary, hidden] if the plan says so
    bias: Any  # [vocabulary], or None, as the others
    soft_cap: Any
    temperature: Any


class Plan(NamedTuple):
    """What is decided before anything is traced."""

    chunk: int  # tokens at a time, at most
    tile: int  # classes at a time, about
    local: int  # classes on this device
    classes: int  # on all devices
    transposed: bool = False  # whether the matrix is [vocabulary, hidden]
    wanted: tuple[str, ...] = ()  # of EXTRA
    axis_name: str | None = None  # the mesh axis over which the vocabulary is split, if any


class LogProbs(NamedTuple):
    """What is known of each token's distribution over the vocabulary.

    Attributes:
        log_prob: the log-probability of the label.
        logsumexp: of the logits.
        mean_logit: the mean of the logits.
        entropy: of the distribution, in nats.
        argmax: the number of the likeliest class, the first if several are.
    """

    log_prob: Array
    logsumexp: Array
    mean_logit: Any = None
    entropy: Any = None
    argmax: Any = None


class Softmax(NamedTuple):
    """What the backward pass needs of a token: p = exp(logit - top) * scale, and what is known."""

    top: Array
    scale: Array
    known: LogProbs


class Seen(NamedTuple):
    """Of each token, after some tiles."""

    top: Array  # the largest logit
    others: Any  # the sum of exp(logit - top) over all classes but the label
    own: Any  # the label's logit, 0 before it was seen
    total: Array | None  # the sum of the logits
    tilted: Array | None  # the sum of exp(logit - top) (logit - top) over the others
    best: Array | None  # the class of the largest logit


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """What is added up in."""
    return dtype if dtype.itemsize > 4 else jnp.dtype(jnp.float32)


def zeros_as(array: Array, dtype: jnp.dtype) -> Array:
    """Zeros that lie on the mesh, and vary over devices, as an array does."""
    zeros, there = jnp.zeros_like(array, dtype), jax.typeof(array).sharding
    explicit = AxisType.Explicit in there.mesh.axis_types
    return jax.sharding.reshard(zeros, there) if explicit else zeros


def tiling(size: int, wanted: int) -> tuple[int, int]:
    """How many tiles, and how large: an even division into multiples of 16 near what is wanted.

    Where there is none, the last tile overlaps the one before.
    """
    least = max(1, -(-size // wanted))
    for count in range(least, least + max(2, least // 4) + 1):
        if size % count == 0 and (size // count) % 16 == 0:
            return count, size // count
    return least, min(size, wanted)


def squashed(products: Array, head: Head) -> Array:
    """The logits, from hidden states times the matrix; the bias as long as the tile."""
    logits = products if head.bias is None else products + head.bias.astype(products.dtype)[None]
    if head.soft_cap is not None:
        logits = head.soft_cap * jnp.tanh(logits / head.soft_cap)
    return logits if head.temperature is None else logits / head.temperature


def tile_of(plan: Plan, head: Head, i: Array) -> tuple[Head, Array]:
    """The head of tile i, and the numbers of its classes; -1 for those of the tile before."""
    count, size = tiling(plan.local, plan.tile)
    start = start_of(plan, i)
    matrix = columns(head.matrix, start, size, 0 if plan.transposed else 1)
    bias = None if head.bias is None else columns(head.bias, start, size, 0)
    classes = start + jnp.arange(size, dtype=jnp.int32)
    old = classes < i * size
    if plan.axis_name is not None:
        classes += lax.axis_index(plan.axis_name) * plan.local
    classes = classes if count * size == plan.local else jnp.where(old, -1, classes)
    return head._replace(matrix=matrix, bias=bias), classes[None]


def start_of(plan: Plan, i: Array) -> Array:
    """Where tile i starts; the last one early enough to be whole."""
    _, size = tiling(plan.local, plan.tile)
    return jnp.minimum(i * size, plan.local - size)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def columns(array: Array, start: Array, size: int, axis: int) -> Array:
    """A slice inside a loop; of two bytes as integers, or jax 0.10 on CPU widens all of it."""
    if array.dtype.itemsize != 2 or jax.__version_info__ >= (0, 11):
        return lax.dynamic_slice_in_dim(array, start, size, axis)
    bits = lax.bitcast_convert_type(array, jnp.uint16)
    return lax.bitcast_convert_type(lax.dynamic_slice_in_dim(bits, start, size, axis), array.dtype)


@columns.defjvp
def _(size, axis, primals, tangents):
    (array, start), (tangent, _) = primals, tangents
    plain = lambda a: lax.dynamic_slice_in_dim(a, start, size, axis)
    return plain(array), plain(tangent)  # integers have no slopes, and JAX drops the rule once used


def times(a: Array, b: Array, of_a: int, of_b: int) -> Array:
    """Contracts an axis of each, and adds up in float32 at least."""
    contracted = ((of_a,), (of_b,)), ((), ())
    left, right = (jax.typeof(array).sharding for array in (a, b))
    out = NamedSharding(left.mesh, P(left.spec[1 - of_a], right.spec[1 - of_b]))
    explicit = AxisType.Explicit in left.mesh.axis_types
    return lax.dot_general(
        a,
        b,
        contracted,
        preferred_element_type=wide(a.dtype),
        out_sharding=out if explicit else None,
    )


def unseen(plan: Plan, x: Array) -> Seen:
    """Of the tokens of a chunk, before the first tile."""
    dtype = wide(x.dtype)
    zero = zeros_as(jnp.any(x != x, -1), dtype)
    wanted = lambda name, value: value if name in plan.wanted else None
    return Seen(
        zero + float(jnp.finfo(dtype).min / 2),
        zero,
        zero,
        wanted("mean_logit", zero),
        wanted("entropy", zero),
        wanted("argmax", zero.astype(jnp.int32)),
    )


def see(plan: Plan, seen: Seen, logits: Array, classes: Array, labels: Array) -> Seen:
    """What was seen, and a tile of logits."""
    hit, new = classes == labels[:, None], fresh(plan, logits, classes, -jnp.inf)
    highest = jnp.max(new, -1)
    top = lax.stop_gradient(jnp.maximum(seen.top, highest))  # its slopes cancel
    less, (others, tilted) = new - top[:, None], raised(seen, top)
    e = jnp.where(hit, 0, jnp.exp(less))
    total, best = seen.total, seen.best
    if total is not None:
        total += jnp.sum(fresh(plan, logits, classes, 0), -1)
    if tilted is not None:
        tilted += jnp.sum(e * jnp.where(e > 0, less, 0), -1)
    if best is not None:
        first = jnp.min(jnp.where(new == highest[:, None], classes, NO_CLASS), -1)
        best = jnp.where(highest > seen.top, first, best)
    others += jnp.sum(e, -1)
    return Seen(top, others, seen.own + jnp.sum(jnp.where(hit, logits, 0), -1), total, tilted, best)


def raised(seen: Seen, top: Array) -> tuple[Any, Any]:
    """`others` and `tilted` as they are from a higher top."""
    scale, tilted = jnp.exp(seen.top - top), seen.tilted
    if tilted is not None:
        tilted = scale * (tilted + (seen.top - top) * seen.others)
    return scale * seen.others, tilted


def fresh(plan: Plan, tile: Array, classes: Array, fill: float) -> Array:
    """A tile without what the tile before had."""
    if plan.local % classes.size == 0:
        return tile
    return jnp.where(classes >= 0, tile, fill)


def of_all_devices(plan: Plan, seen: Seen) -> Seen:
    """What was seen of a vocabulary that is split over a mesh axis."""
    if plan.axis_name is None:
        return seen
    gather = lambda a: None if a is None else lax.psum(a, plan.axis_name)
    top = lax.pmax(lax.stop_gradient(seen.top), plan.axis_name)
    (others, tilted), best = raised(seen, top), seen.best
    if best is not None:
        best = lax.pmin(jnp.where(seen.top == top, best, NO_CLASS), plan.axis_name)
    others, own, total, tilted = map(gather, (others, seen.own, seen.total, tilted))
    return Seen(top, others, own, total, tilted, best)


def softmax(seen: Seen, size: int) -> Softmax:
    """What all tiles add up to; the sums have only terms of one sign, so that digits stay."""
    some, own = seen.others > 0, seen.own
    others = jnp.log(jnp.where(some, seen.others, 1)) + jnp.where(some, seen.top, -jnp.inf)
    log_prob, logsumexp = -jax.nn.softplus(others - own), jnp.logaddexp(others, own)
    mean = None if seen.total is None else seen.total / size
    entropy = None
    if seen.tilted is not None:
        of_others = (logsumexp - seen.top) * seen.others - seen.tilted
        of_others *= jnp.exp(seen.top - logsumexp)
        entropy = of_others - jnp.exp(log_prob) * jnp.where(jnp.isinf(log_prob), 0, log_prob)
    known = LogProbs(log_prob, logsumexp, mean, entropy, seen.best)
    return Softmax(seen.top, 1 / (seen.others + jnp.exp(own - seen.top)), known)


def slopes(soft: Softmax, by: LogProbs, logits: Array, hit: Array, size: int) -> Array:
    """Of a tile of logits, given those of what is known of its tokens."""
    column = lambda a: a[:, None]
    p = jnp.exp(logits - column(soft.top)) * column(soft.scale)
    known = soft.known
    own = column(-jnp.expm1(known.log_prob) * by.log_prob)
    slope = p * column(by.logsumexp) + jnp.where(hit, own, -p * column(by.log_prob))
    if by.mean_logit is not None:
        slope += column(by.mean_logit) / size
    if by.entropy is not None:
        surplus = jnp.where(p > 0, logits - column(known.logsumexp - known.entropy), 0)
        slope -= p * column(by.entropy) * surplus
    return slope


def products(x: Array, matrix: Array, transposed: bool) -> Array:
    """In the dtype of `x`, and added up in float32 at least."""
    return times(x, matrix.astype(x.dtype), 1, 1 if transposed else 0)


def products_of(plan: Plan, x: Array, part: Head) -> Array:
    """Of a chunk and a tile of the matrix; apart, or the CPU's compiler fuses it with its uses."""
    return lax.optimization_barrier(products(x, part.matrix, plan.transposed))


def forward(
    plan: Plan, x: Array, head: Head, labels: Array, keep: bool
) -> tuple[Softmax, Array | None]:
    """Of a chunk of tokens [n, hidden]; and the products of all tiles, if they are to be kept."""
    count, _ = tiling(plan.local, plan.tile)

    def step(seen, i):
        part, classes = tile_of(plan, head, i)
        products = products_of(plan, x, part)
        seen = see(plan, seen, squashed(products, part), classes, labels)
        return seen, products if keep else None

    seen, kept = lax.scan(step, unseen(plan, x), jnp.arange(count, dtype=jnp.int32))
    return softmax(of_all_devices(plan, seen), plan.classes), kept


def backward(
    plan: Plan, x: Array, head: Head, labels: Array, soft: Softmax, by: LogProbs,
    kept: Array | None, heads: Head,
) -> tuple[Array, Head]:  # fmt: skip
    """The gradient in a chunk, and that in the head added to `heads`."""
    across = lax.optimization_barrier(x.T)  # or the CPU's compiler widens two-byte products

    def step(carry, given):
        (of_x, heads), (i, products), (part, classes) = carry, given, tile_of(plan, head, given[0])
        if products is None:
            products = products_of(plan, x, part)
        logits, pull = jax.vjp(squashed, products, part._replace(matrix=None))
        slope = slopes(soft, by, logits, classes == labels[:, None], plan.classes)
        of_products, of_part = pull(fresh(plan, slope, classes, 0))
        of_products = lax.optimization_barrier(of_products.astype(x.dtype))
        of_x += times(of_products, part.matrix.astype(x.dtype), 1, 0 if plan.transposed else 1)
        if plan.transposed:
            of_matrix = times(of_products, x, 0, 0)
        else:
            of_matrix = times(across, of_products, 1, 0)
        return (of_x, added(plan, heads, of_part._replace(matrix=of_matrix), i)), None

    count, _ = tiling(plan.local, plan.tile)
    start = zeros_as(x, wide(x.dtype)), heads
    (of_x, heads), _ = lax.scan(step, start, (jnp.arange(count, dtype=jnp.int32), kept))
    return of_x.astype(x.dtype), heads


def added(plan: Plan, heads: Head, part: Head, i: Array) -> Head:
    """The gradient in the head, and that in tile i of it."""
    _, size = tiling(plan.local, plan.tile)

    def onto(whole, new, axis):
        old = lax.dynamic_slice_in_dim(whole, start_of(plan, i), size, axis)
        new = old + new.astype(whole.dtype)
        return lax.dynamic_update_slice_in_dim(whole, new, start_of(plan, i), axis)

    total = lambda whole, new: None if whole is None else whole + new.astype(whole.dtype)
    return Head(
        onto(heads.matrix, part.matrix, 0 if plan.transposed else 1),
        None if heads.bias is None else onto(heads.bias, part.bias, 0),
        total(heads.soft_cap, part.soft_cap),
        total(heads.temperature, part.temperature),
    )
