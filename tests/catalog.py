"""The table: one row per loss. Every law in `test_laws.py` runs on every row.

A row says how to draw a batch, gives the textbook's formula for ONE example in mpmath, from which
value, gradient and Hessian follow to any precision, and the few facts that laws ask about.
"""

import collections
import functools
import itertools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import mpmath as mp
import numpy as np

import jloss

CLASSES = 5


class Row(NamedTuple):
    loss: Callable[..., Any]
    formula: Callable[[list, list], mp.mpf]  # (output, truth) of one example, flat
    truth: Callable[[np.random.Generator, np.ndarray], np.ndarray]  # drawn for the output x
    event: tuple[int, ...] = ()  # the shape of the output of one example: what the loss consumes
    domain: Callable[[np.ndarray], np.ndarray] = lambda x: x  # what may come out of the model
    names: tuple[str, str] = ("predictions", "targets")
    bad: tuple[float, ...] = ()  # truths that no data has
    classes_exchange: bool = False
    none_is_0: bool = False  # whether None will do for the truth
    log_truth: bool = False  # whether the truth is the logarithm of a distribution
    any_axis: bool = True  # whether the classes may lie along another axis than the last
    reach: tuple[float, float] = (-np.inf, np.inf)  # outputs at which the loss has to be finite
    bounded: bool = False  # whether it is finite even for a class that was ruled out
    class_masks: bool = True  # whether `where` may delete classes
    reverse_only: bool = False  # whether forward mode takes another implementation
    lattice: bool = False  # whether it adds up paths: of whole sequences, flat where there is none
    laws: bool = True  # whether the laws run; a variant need only be accurate
    hyperparameters: Mapping[str, tuple[float, float]] = types.MappingProxyType(
        {}
    )  # name: one to use, one out of bounds

    def draw(self, seed: int, batch: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
        """A batch in float64 (and integers); the first example is confident and right."""
        rng = np.random.default_rng(seed)
        x = self.domain(rng.normal(size=(batch, *self.event)) * scale)
        return x, self.truth(rng, x)


def number(rng, x):
    return rng.normal(size=x.shape) * np.abs(x).mean()


def bit(rng, x):
    y = rng.integers(0, 2, size=x.shape)
    y[:1] = x[:1] > 0
    return y


def share(rng, x):
    return rng.uniform(size=x.shape)


def label(rng, x):
    y = rng.integers(0, x.shape[-1], size=x.shape[:-1])
    y[:1] = x[:1].argmax(-1)
    return y


def distribution(rng, x):
    y = rng.dirichlet(np.ones(x.shape[-1]), size=x.shape[:-1])
    y[:1] = np.eye(x.shape[-1])[x[:1].argmax(-1)]
    return y


def sign(rng, x):
    return 2 * bit(rng, x) - 1


def count(rng, x):
    return rng.poisson(np.exp(x))


def amount(rng, x):
    return np.exp(x + rng.normal(size=x.shape) / 2)


def amount_or_none(rng, x):
    return amount(rng, x) * (rng.uniform(size=x.shape) < 0.7)


def beyond(least):
    return lambda rng, x: least + np.abs(number(rng, x))


def two_labels(rng, x):
    return rng.integers(1, CLASSES, size=(len(x), 2))


def one_label(rng, x):
    return two_labels(rng, x)[:, :1]


def log_distribution(rng, x):
    return log_softmax(rng.normal(size=x.shape))


def small_number(rng, x):
    return np.clip(number(rng, x), -8, 8)


def within_8(x):
    return np.clip(x, -8, 8)


def probability(x):
    return np.clip(1 / (1 + np.exp(-x)), 1 / 64, 63 / 64)


def probabilities(x):
    return 0.9 * np.exp(log_softmax(x)) + 0.1 / x.shape[-1]


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softplus(t):
    return mp.log1p(mp.exp(-abs(t))) + max(t, mp.mpf(0))


def surprise(x, j):
    return mp.log1p(mp.fsum(mp.exp(v - x[j]) for k, v in enumerate(x) if k != j))


def logsumexp(x):
    return x[0] + surprise(x, 0)


def huber(x, y, delta=1):
    e = abs(x[0] - y[0])
    return e * e / 2 if e <= delta else delta * (e - delta / 2)


def cosine(x, y):
    norm = lambda v: mp.sqrt(mp.fsum(a * a for a in v))
    return mp.fsum(a * b for a, b in zip(x, y)) / norm(x) / norm(y)


def smoothed(x, y, alpha=0.125):
    uniform = mp.fsum(surprise(x, j) for j in range(len(x))) / len(x)
    return (1 - alpha) * surprise(x, y[0]) + alpha * uniform


def binary(x, y, pos_weight=1):
    return pos_weight * y[0] * softplus(-x[0]) + (1 - y[0]) * softplus(x[0])


def binary_smoothed(x, y, alpha=0.25):
    return binary(x, [(1 - alpha) * y[0] + alpha / 2], pos_weight=3)


def focal(x, y, gamma=2):
    hit = y[0] / (1 + mp.exp(-x[0])) + (1 - y[0]) / (1 + mp.exp(x[0]))
    miss = y[0] / (1 + mp.exp(x[0])) + (1 - y[0]) / (1 + mp.exp(-x[0]))
    assert abs(hit + miss - 1) < mp.mpf(10) ** -30
    return binary(x, y) * miss**gamma


def focal_balanced(x, y, alpha=0.25):
    return (alpha * y[0] + (1 - alpha) * (1 - y[0])) * focal(x, y, mp.mpf("0.5"))


def kl(x, y):
    return mp.fsum(p * (mp.log(p) - q) for q, p in zip(x, y) if p)


def smooth_l1(x, y, beta=1):
    e = abs(x[0] - y[0])
    return e * e / (2 * beta) if e < beta else e - mp.mpf(beta) / 2


def ctc(x, y):
    ways = {(0, 0): mp.mpf(1)}  # (labels read, class of the frame before): probability
    for frame in (x[i : i + CLASSES] for i in range(0, len(x), CLASSES)):
        before, ways = ways, collections.defaultdict(mp.mpf)
        likely = [mp.exp(v) for v in frame]
        total = mp.fsum(likely)
        for (n, last), way in before.items():
            for j in range(CLASSES):
                new = j not in (0, last)
                if not new or (n < len(y) and y[n] == j):
                    ways[n + new, j] += way * likely[j] / total
    return -mp.log(mp.fsum(way for (n, _), way in ways.items() if n == len(y)))


def rnnt(x, y, positions=2):
    """Of logits [time, labels + 1, classes]."""
    rows = iter([x[i : i + CLASSES] for i in range(0, len(x), CLASSES)])
    time, ways = len(x) // CLASSES // positions, collections.defaultdict(mp.mpf)
    ways[0, 0] = mp.mpf(1)
    for t, u in itertools.product(range(time), range(positions)):
        likely = [mp.exp(v) for v in next(rows)]
        ways[t + 1, u] += ways[t, u] * likely[0] / mp.fsum(likely)
        if u < len(y):
            ways[t, u + 1] += ways[t, u] * likely[y[u]] / mp.fsum(likely)
    return -mp.log(ways[time, len(y)])


SIMPLE = np.random.default_rng(0).integers(-8, 8, size=(2, CLASSES)) / 4


def rnnt_simple(x, y):
    frames = (x[i : i + CLASSES] for i in range(0, len(x), CLASSES))
    return rnnt([v + mp.mpf(w) for e in frames for p in SIMPLE for v, w in zip(e, p)], y)


def rnnt_simply_joined(encoder, labels, **doors):
    shape = (*np.shape(encoder)[:-2], *SIMPLE.shape)
    predictor = jnp.broadcast_to(jnp.asarray(SIMPLE, getattr(encoder, "dtype", None)), shape)
    return jloss.rnnt_simple_loss(encoder, predictor, labels, **doors)


def rnnt_joined(encoder, labels, **doors):
    """The joint that is nothing but a reshape."""
    joint = lambda e, p: e.reshape(*e.shape[:-1], 2, e.shape[-1] // 2)
    predictor = jnp.zeros((*np.shape(encoder)[:-2], 2, 1), jnp.float32)
    return jloss.rnnt_loss_from_joint(joint, encoder, predictor, labels, chunk=1, **doors)


def rnnt_within_all(logits, labels, **doors):
    ranges = jnp.zeros(np.shape(logits)[:-2], jnp.int32)
    return jloss.rnnt_pruned_loss(logits, ranges, labels, **doors)


TRANSITIONS = np.random.default_rng(1).integers(-8, 8, size=(CLASSES, CLASSES)) / 4


def crf(x, y):
    rows = [x[i : i + CLASSES] for i in range(0, len(x), CLASSES)]
    ways = [mp.exp(v) for v in rows[0]]
    given = ways[y[0]]
    for i, row in enumerate(rows[1:]):
        step = [[mp.exp(v + mp.mpf(a[j])) for j, v in enumerate(row)] for a in TRANSITIONS]
        ways = [mp.fsum(w * s[j] for w, s in zip(ways, step)) for j in range(CLASSES)]
        given *= step[y[i]][y[i + 1]]
    return mp.log(given / mp.fsum(ways))


def tags(rng, x):
    return rng.integers(0, CLASSES, size=x.shape[:-1])


def crf_of_these_transitions(scores, tags, **doors):
    transitions = jnp.asarray(TRANSITIONS, jnp.float32)
    return jloss.crf_log_likelihood(scores, tags, transitions, **doors)


def ctc_of_whole_sequences(logits, labels, **doors):
    return jloss.ctc_loss(logits, None, labels, **doors)


def tilt(x, y, share):
    return 1 - mp.mpf(share) if x[0] > y[0] else mp.mpf(share)


def robust(alpha):
    def formula(x, y):
        z = (x[0] - y[0]) ** 2
        if alpha == 2:
            return z / 2
        if alpha == 0:
            return mp.log(z / 2 + 1)
        if alpha == -np.inf:
            return 1 - mp.exp(-z / 2)
        a, b = mp.mpf(alpha), abs(mp.mpf(alpha) - 2)
        return b / a * ((z / b + 1) ** (a / 2) - 1)

    return formula


def tweedie(power):
    def formula(x, y):
        p, mu, y = mp.mpf(power), mp.exp(x[0]), y[0]
        if power == 1:
            return 2 * ((y * mp.log(y / mu) if y else 0) - y + mu)
        if power == 2:
            return 2 * (y / mu - 1 - mp.log(y / mu))
        first = y ** (2 - p) / ((1 - p) * (2 - p)) if y else 0
        return 2 * (first - y * mu ** (1 - p) / (1 - p) + mu ** (2 - p) / (2 - p))

    return formula


def focal_of_classes(x, y, gamma=2):
    return (-mp.expm1(-surprise(x, y[0]))) ** gamma * surprise(x, y[0])


def poly(x, y, epsilon=2):
    loss = lambda s: s - epsilon * mp.expm1(-s)
    return mp.fsum(p * loss(surprise(x, j)) for j, p in enumerate(y) if p)


def lead(x, y):
    return x[y[0]] - max(v for j, v in enumerate(x) if j != y[0])


def sparse_plus(x, y):
    s = (1 - 2 * y[0]) * x[0]
    return mp.mpf(0) if s <= -1 else s if s >= 1 else (s + 1) ** 2 / 4


def sparsemax(x, y):
    """By definition: the maximum over distributions of <x, p> - |p|^2 / 2, and 1/2, less x_y."""
    largest = sorted(x, reverse=True)
    sums = [mp.fsum(largest[: k + 1]) for k in range(len(x))]
    size = max(k for k in range(len(x)) if 1 + (k + 1) * largest[k] > sums[k])
    threshold = (sums[size] - 1) / (size + 1)
    p = [max(v - threshold, mp.mpf(0)) for v in x]
    return mp.fsum(a * (b - a / 2) for a, b in zip(p, x)) + mp.mpf(1) / 2 - x[y[0]]


def with_counts(loss):
    """The loss of classes that are the rarer the smaller their number."""

    def of_counted(x, y, *, axis=-1, **doors):
        shape = np.shape(x) or (1,)
        sizes = tuple(shape[a] for a in (axis if isinstance(axis, tuple) else (axis,)))
        counts = np.arange(1.0, np.prod(sizes) + 1, dtype=np.float32).reshape(sizes)
        return loss(x, y, class_counts=counts, axis=axis, **doors)

    return of_counted


def adjusted(x, y):
    return surprise([v + mp.log(j + 1) for j, v in enumerate(x)], y[0])


def ldam(x, y, margin=0.5, scale=4):
    less = lambda j: margin / mp.mpf(j + 1) ** mp.mpf("0.25") if j == y[0] else 0
    return surprise([scale * (v - less(j)) for j, v in enumerate(x)], y[0])


def asymmetric(x, y, on=1, off=4, m=0.0625):
    p = 1 / (1 + mp.exp(-x[0]))
    q = max(p - m, mp.mpf(0))
    positive = (1 - p) ** on * softplus(-x[0])
    return y[0] * positive - (1 - y[0]) * q**off * mp.log(1 - q)


def generalized(x, y, q=0.5):
    return -mp.expm1(-q * surprise(x, y[0])) / q


def symmetric(x, y):
    return surprise(x, y[0]) / 8 - 4 * mp.expm1(-surprise(x, y[0]))


def jensen_shannon(x, y):
    q = [mp.exp(v) for v in x]
    half = lambda a, b: mp.fsum(v * mp.log(2 * v / (v + w)) for v, w in zip(a, b) if v)
    return (half(q, y) + half(y, q)) / 2


def kl_of_gaussians(x, y):
    return mp.fsum(m * m + mp.expm1(s) - s for m, s in zip(x, y)) / 2


def entropy(x):
    return mp.fsum(mp.exp(-surprise(x, j)) * surprise(x, j) for j in range(len(x)))


def of_logits(x, y, **doors):
    """The loss of a linear layer whose logits are its hidden states."""
    identity = np.eye(*np.shape(x)[-1:] or (1,), dtype=np.float32)
    return jloss.linear_softmax_cross_entropy(x, identity, y, **doors)


def between_logits(loss):
    """The divergence between two linear layers whose logits are their hidden states."""

    def of_hidden(x, y, **doors):
        ours, theirs = (np.eye(*np.shape(a)[-1:] or (1,), dtype=np.float32) for a in (x, y))
        return loss(x, ours, jloss.LinearTeacher(y, theirs), **doors)

    return of_hidden


def of_softmax(divergence):
    return lambda x, y: divergence(*([-surprise(v, j) for j in range(len(v))] for v in (x, y)))


def kl_of_logs(log_q, log_p):
    return mp.fsum(mp.exp(p) * (p - q) for q, p in zip(log_q, log_p))


integer_ce = jloss.softmax_cross_entropy_with_integer_labels
binary_ce = jloss.sigmoid_binary_cross_entropy
vector = {"event": (CLASSES,), "classes_exchange": True}
of_labels = {**vector, "names": ("logits", "labels"), "bad": (-1, -100, CLASSES, 10**6)}
of_bits = {"names": ("logits", "labels"), "bad": (2, -1)}
of_signs = {"names": ("predictor_outputs", "targets"), "bad": (0, 2)}
of_two_heads = {
    **vector,
    "names": ("hidden", "teacher.hidden"),
    "any_axis": False,
    "class_masks": False,
    "reverse_only": True,
}
of_paths = {
    "event": (2, 2, CLASSES),
    "names": ("logits", "labels"),
    "bad": (-1, 0, CLASSES),
    "any_axis": False,
    "class_masks": False,
    "lattice": True,
}
of_scores = {**of_labels, "names": ("scores", "labels")}
of_counts = {**of_labels, "classes_exchange": False}
of_logs = {"domain": within_8, "names": ("log_predictions", "targets")}
of_distributions = {
    **vector,
    "domain": log_softmax,
    "names": ("log_predictions", "targets"),
    "bad": (-0.5, 1.5),
    "reach": (-np.inf, 0),
}

CATALOG: dict[str, Row] = {
    "squared_error": Row(
        jloss.squared_error, lambda x, y: (x[0] - y[0]) ** 2, number, none_is_0=True
    ),
    "l2_loss": Row(jloss.l2_loss, lambda x, y: (x[0] - y[0]) ** 2 / 2, number, none_is_0=True),
    "absolute_error": Row(
        jloss.absolute_error, lambda x, y: abs(x[0] - y[0]), number, none_is_0=True
    ),
    "huber_loss": Row(
        jloss.huber_loss, huber, number, none_is_0=True, hyperparameters={"delta": (1.5, -1.0)}
    ),
    "log_cosh": Row(
        jloss.log_cosh, lambda x, y: mp.log(mp.cosh(x[0] - y[0])), number, none_is_0=True
    ),
    "cosine_similarity": Row(
        jloss.cosine_similarity, cosine, number, **vector, hyperparameters={"epsilon": (1e-3, -1.0)}
    ),
    "cosine_distance": Row(
        jloss.cosine_distance,
        lambda x, y: 1 - cosine(x, y),
        number,
        **vector,
        hyperparameters={"epsilon": (1e-3, -1.0)},
    ),
    "softmax_cross_entropy": Row(
        jloss.softmax_cross_entropy,
        lambda x, y: mp.fsum(p * surprise(x, j) for j, p in enumerate(y) if p),
        distribution,
        **{**of_labels, "bad": (-0.5, 1.5)},
    ),
    "softmax_cross_entropy_with_integer_labels": Row(
        integer_ce,
        lambda x, y: surprise(x, y[0]),
        label,
        **of_labels,
        hyperparameters={"label_smoothing": (0.1, 1.5), "z_loss": (1e-3, np.nan)},
    ),
    "softmax_cross_entropy_with_integer_labels-smoothed": Row(
        functools.partial(integer_ce, label_smoothing=0.125), smoothed, label, **of_labels
    ),
    "softmax_cross_entropy_with_integer_labels-z_loss": Row(
        functools.partial(integer_ce, z_loss=0.25),
        lambda x, y: surprise(x, y[0]) + logsumexp(x) ** 2 / 4,
        label,
        **of_labels,
        laws=False,
    ),
    "linear_softmax_cross_entropy": Row(
        of_logits,
        lambda x, y: surprise(x, y[0]),
        label,
        **{**of_labels, "names": ("hidden", "labels")},
        any_axis=False,
        class_masks=False,
        reverse_only=True,
        hyperparameters={
            "soft_cap": (30.0, -1.0),
            "temperature": (2.0, -1.0),
            "label_smoothing": (0.1, 1.5),
            "z_loss": (1e-3, np.nan),
        },
    ),
    "linear_kl_divergence": Row(
        between_logits(jloss.linear_kl_divergence),
        of_softmax(kl_of_logs),
        number,
        **of_two_heads,
        hyperparameters={"temperature": (2.0, -1.0)},
    ),
    "linear_jensen_shannon_divergence": Row(
        between_logits(jloss.linear_jensen_shannon_divergence),
        of_softmax(lambda log_q, log_p: jensen_shannon(log_q, [mp.exp(v) for v in log_p])),
        small_number,
        **of_two_heads,
        domain=within_8,  # far out, slopes in classes that matter to neither cancel
        hyperparameters={"temperature": (2.0, -1.0), "beta": (0.3, 1.5)},
    ),
    "sigmoid_binary_cross_entropy": Row(
        binary_ce,
        binary,
        bit,
        **of_bits,
        hyperparameters={"pos_weight": (2.0, -1.0), "label_smoothing": (0.1, 10.0)},
    ),
    "sigmoid_binary_cross_entropy-soft": Row(binary_ce, binary, share, **of_bits, laws=False),
    "sigmoid_binary_cross_entropy-weighted-smoothed": Row(
        functools.partial(binary_ce, pos_weight=3.0, label_smoothing=0.25),
        binary_smoothed,
        bit,
        **of_bits,
    ),
    "sigmoid_focal_loss": Row(
        jloss.sigmoid_focal_loss,
        focal,
        bit,
        **of_bits,
        hyperparameters={"alpha": (0.25, 2.0), "gamma": (2.0, -1.0)},
    ),
    "sigmoid_focal_loss-soft": Row(jloss.sigmoid_focal_loss, focal, share, **of_bits, laws=False),
    "sigmoid_focal_loss-balanced": Row(
        functools.partial(jloss.sigmoid_focal_loss, alpha=0.25, gamma=0.5),
        focal_balanced,
        bit,
        **of_bits,
        laws=False,
    ),
    "kl_divergence": Row(
        jloss.kl_divergence,
        kl,
        distribution,
        **vector,
        domain=log_softmax,
        names=("log_predictions", "targets"),
        bad=(-0.5, 1.5),
        reach=(-np.inf, 0),
    ),
    "z_loss": Row(
        lambda x, _, **doors: jloss.z_loss(x, **doors),
        lambda x, _: logsumexp(x) ** 2,
        lambda rng, x: np.zeros(x.shape[:1]),
        **vector,
        names=("logits", ""),
    ),
    "confidence_penalty": Row(
        lambda x, _, **doors: jloss.confidence_penalty(x, **doors),
        lambda x, _: -entropy(x),
        lambda rng, x: np.zeros(x.shape[:1]),
        **vector,
        names=("logits", ""),
    ),
    "smooth_l1_loss": Row(
        jloss.smooth_l1_loss,
        smooth_l1,
        number,
        none_is_0=True,
        hyperparameters={"beta": (1.5, -1.0)},
    ),
    "epsilon_insensitive_loss": Row(
        functools.partial(jloss.epsilon_insensitive_loss, epsilon=0.125),
        lambda x, y: max(abs(x[0] - y[0]) - mp.mpf(0.125), mp.mpf(0)),
        number,
        none_is_0=True,
        hyperparameters={"epsilon": (0.5, -1.0)},
    ),
    "absolute_percentage_error": Row(
        jloss.absolute_percentage_error,
        lambda x, y: abs(x[0] - y[0]) / max(abs(y[0]), mp.mpf(1e-7)),
        number,
        hyperparameters={"epsilon": (1.0, -1.0)},
    ),
    "squared_log_error": Row(
        jloss.squared_log_error,
        lambda x, y: (mp.log1p(x[0]) - mp.log1p(y[0])) ** 2,
        beyond(0),
        domain=np.abs,
        bad=(-1.0, -2.0),
        reach=(-1e-39, np.inf),
    ),
    **{
        f"general_robust_loss-{alpha}": Row(
            functools.partial(jloss.general_robust_loss, alpha=alpha),
            robust(alpha),
            number,
            none_is_0=True,
            hyperparameters={"alpha": (1.0, 3.0), "scale": (1.5, -1.0)},
            laws=alpha == 1,
        )
        for alpha in (-np.inf, -2.0, 0.0, 1.0, 1.9375, 2.0)
    },
    "quantile_loss": Row(
        functools.partial(jloss.quantile_loss, quantile=0.75),
        lambda x, y: tilt(x, y, 0.75) * abs(x[0] - y[0]),
        number,
        none_is_0=True,
        hyperparameters={"quantile": (0.75, 1.5)},
    ),
    "quantile_huber_loss": Row(
        functools.partial(jloss.quantile_huber_loss, quantile=0.75, delta=2.0),
        lambda x, y: tilt(x, y, 0.75) * smooth_l1(x, y, 2),
        number,
        none_is_0=True,
        hyperparameters={"quantile": (0.75, 1.5), "delta": (1.5, -1.0)},
    ),
    "expectile_loss": Row(
        functools.partial(jloss.expectile_loss, expectile=0.75),
        lambda x, y: tilt(x, y, 0.75) * (x[0] - y[0]) ** 2,
        number,
        none_is_0=True,
        hyperparameters={"expectile": (0.75, 1.5)},
    ),
    "poisson_nll_loss": Row(
        jloss.poisson_nll_loss,
        lambda x, y: mp.exp(x[0]) - y[0] * x[0],
        count,
        **of_logs,
        bad=(-1,),
        reach=(-np.inf, 80),
    ),
    "gamma_deviance": Row(
        jloss.gamma_deviance, tweedie(2), amount, **of_logs, bad=(0.0, -1.0), reach=(-80, 80)
    ),
    **{
        f"tweedie_deviance-{power}": Row(
            functools.partial(jloss.tweedie_deviance, power=power),
            tweedie(power),
            amount_or_none if power < 2 else amount,
            **of_logs,
            bad=(-1.0,) if power < 2 else (-1.0, 0.0),
            reach=(-80, 80) if power < 3 else (-20, 80),
            hyperparameters={"power": (1.5, 0.5)} if power < 2 else {},
            laws=power == 1.5,
        )
        for power in (1.0, 1.5, 2.0, 3.0)
    },
    "gaussian_nll_loss": Row(
        functools.partial(jloss.gaussian_nll_loss, log_variance=0.5),
        lambda x, y: ((x[0] - y[0]) ** 2 * mp.exp(-0.5) + 0.5) / 2,
        number,
        hyperparameters={"log_variance": (0.5, np.nan)},
    ),
    "safe_softmax_cross_entropy": Row(
        jloss.safe_softmax_cross_entropy,
        lambda x, y: mp.fsum(p * surprise(x, j) for j, p in enumerate(y) if p),
        distribution,
        **{**of_labels, "bad": (-0.5, 1.5)},
        any_axis=False,
        laws=False,
    ),
    "categorical_cross_entropy": Row(
        jloss.categorical_cross_entropy,
        lambda x, y: -mp.fsum(p * mp.log(q) for q, p in zip(x, y) if p),
        distribution,
        **vector,
        domain=probabilities,
        names=("probabilities", "labels"),
        bad=(-0.5, 1.5),
        reach=(0.1, 0.9),
    ),
    "binary_cross_entropy": Row(
        jloss.binary_cross_entropy,
        lambda x, y: -y[0] * mp.log(x[0]) - (1 - y[0]) * mp.log(1 - x[0]),
        bit,
        domain=probability,
        names=("probabilities", "labels"),
        bad=(2, -1),
        reach=(0.1, 0.9),
    ),
    "nll_loss": Row(
        jloss.nll_loss,
        lambda x, y: -x[y[0]],
        label,
        **{**of_labels, "names": ("log_predictions", "labels")},
        domain=log_softmax,
        reach=(-np.inf, 0),
    ),
    "softmax_focal_loss": Row(
        jloss.softmax_focal_loss,
        focal_of_classes,
        label,
        **of_labels,
        hyperparameters={"gamma": (2.0, -1.0)},
    ),
    "softmax_focal_loss-steep": Row(
        functools.partial(jloss.softmax_focal_loss, gamma=0.5),
        functools.partial(focal_of_classes, gamma=mp.mpf("0.5")),
        label,
        **of_labels,
        laws=False,
    ),
    "poly_loss_cross_entropy": Row(
        jloss.poly_loss_cross_entropy,
        poly,
        distribution,
        **{**of_labels, "bad": (-0.5, 1.5)},
        hyperparameters={"epsilon": (2.0, np.nan)},
    ),
    "hinge_loss": Row(
        jloss.hinge_loss, lambda x, y: max(1 - y[0] * x[0], mp.mpf(0)), sign, **of_signs
    ),
    "squared_hinge_loss": Row(
        jloss.squared_hinge_loss,
        lambda x, y: max(1 - y[0] * x[0], mp.mpf(0)) ** 2,
        sign,
        **of_signs,
    ),
    "perceptron_loss": Row(
        jloss.perceptron_loss, lambda x, y: max(-y[0] * x[0], mp.mpf(0)), sign, **of_signs
    ),
    "multiclass_hinge_loss": Row(
        jloss.multiclass_hinge_loss, lambda x, y: max(1 - lead(x, y), mp.mpf(0)), label, **of_scores
    ),
    "multiclass_perceptron_loss": Row(
        jloss.multiclass_perceptron_loss,
        lambda x, y: max(-lead(x, y), mp.mpf(0)),
        label,
        **of_scores,
    ),
    "sparsemax_loss": Row(
        jloss.sparsemax_loss, sparse_plus, bit, names=("logits", "labels"), bad=(0.5, 2.0)
    ),
    "multiclass_sparsemax_loss": Row(
        jloss.multiclass_sparsemax_loss, sparsemax, label, **of_scores
    ),
    "logit_adjusted_cross_entropy": Row(
        with_counts(jloss.logit_adjusted_cross_entropy),
        adjusted,
        label,
        **of_counts,
        hyperparameters={"temperature": (1.0, -1.0)},
    ),
    "ldam_loss": Row(
        functools.partial(with_counts(jloss.ldam_loss), scale=4.0),
        ldam,
        label,
        **of_counts,
        hyperparameters={"max_margin": (0.5, np.nan), "scale": (3.0, -1.0)},
    ),
    "asymmetric_loss": Row(
        functools.partial(jloss.asymmetric_loss, margin=0.0625),
        asymmetric,
        bit,
        **of_bits,
        hyperparameters={
            "gamma_positive": (1.0, -1.0),
            "gamma_negative": (4.0, -1.0),
            "margin": (0.0625, 2.0),
        },
    ),
    "asymmetric_loss-soft": Row(
        functools.partial(jloss.asymmetric_loss, margin=0.0),
        functools.partial(asymmetric, m=0),
        share,
        **of_bits,
        laws=False,
    ),
    "generalized_cross_entropy": Row(
        functools.partial(jloss.generalized_cross_entropy, q=0.5),
        generalized,
        label,
        **of_labels,
        bounded=True,
        hyperparameters={"q": (0.5, 1.5)},
    ),
    "symmetric_cross_entropy": Row(
        functools.partial(jloss.symmetric_cross_entropy, alpha=0.125),
        symmetric,
        label,
        **of_labels,
        hyperparameters={
            "alpha": (0.5, np.nan),
            "beta": (1.0, np.nan),
            "log_of_zero": (-4.0, 1.0),
        },
    ),
    "kl_divergence_with_log_targets": Row(
        jloss.kl_divergence_with_log_targets,
        lambda x, y: mp.fsum(mp.exp(p) * (p - q) for q, p in zip(x, y)),
        log_distribution,
        **{**of_distributions, "names": ("log_predictions", "log_targets"), "bad": (1.0, 20.0)},
        log_truth=True,
    ),
    "generalized_kl_divergence": Row(
        jloss.generalized_kl_divergence,
        lambda x, y: mp.fsum(
            (p * (mp.log(p) - q) - p if p else 0) + mp.exp(q) for q, p in zip(x, y)
        ),
        amount,
        **{**of_distributions, "domain": within_8, "bad": (-0.5, -2.0), "reach": (-np.inf, 80)},
    ),
    "jensen_shannon_divergence": Row(
        jloss.jensen_shannon_divergence,
        jensen_shannon,
        distribution,
        **of_distributions,
        bounded=True,
    ),
    "total_variation_distance": Row(
        jloss.total_variation_distance,
        lambda x, y: mp.fsum(abs(p - mp.exp(q)) for q, p in zip(x, y)) / 2,
        distribution,
        **of_distributions,
        bounded=True,
    ),
    "ctc_loss": Row(
        ctc_of_whole_sequences,
        ctc,
        two_labels,
        **{**of_paths, "event": (3, CLASSES)},
    ),
    "crf_log_likelihood": Row(
        crf_of_these_transitions,
        crf,
        tags,
        **{**of_paths, "event": (3, CLASSES), "names": ("scores", "tags"), "bad": (-1, CLASSES)},
    ),
    "rnnt_loss": Row(jloss.rnnt_loss, rnnt, one_label, **of_paths),
    "rnnt_loss_from_joint": Row(
        rnnt_joined,
        rnnt,
        one_label,
        **{**of_paths, "event": (2, 2 * CLASSES), "names": ("encoder", "labels")},
    ),
    "rnnt_pruned_loss": Row(rnnt_within_all, rnnt, one_label, **of_paths),
    "rnnt_simple_loss": Row(
        rnnt_simply_joined,
        rnnt_simple,
        one_label,
        **{**of_paths, "event": (2, CLASSES), "names": ("encoder", "labels")},
        reach=(-80, 80),
    ),
    "gaussian_kl_divergence": Row(
        jloss.gaussian_kl_divergence,
        kl_of_gaussians,
        small_number,
        **vector,
        names=("means", "log_variances"),
    ),
}
