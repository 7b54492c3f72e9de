"""The table: one row per loss. Every law in `test_laws.py` runs on every row.

A row says how to draw a batch, gives the textbook's formula for ONE example in mpmath, from which
value, gradient and Hessian follow to any precision, and the few facts that laws ask about.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
    unbounded: bool = True  # whether the output may be any number
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


integer_ce = jloss.softmax_cross_entropy_with_integer_labels
binary_ce = jloss.sigmoid_binary_cross_entropy
vector = {"event": (CLASSES,), "classes_exchange": True}
of_labels = {**vector, "names": ("logits", "labels"), "bad": (-1, -100, CLASSES, 10**6)}
of_bits = {"names": ("logits", "labels"), "bad": (2, -1)}

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
    ),
    "sigmoid_binary_cross_entropy": Row(
        binary_ce,
        binary,
        bit,
        **of_bits,
        hyperparameters={"pos_weight": (2.0, -1.0), "label_smoothing": (0.1, 10.0)},
    ),
    "sigmoid_binary_cross_entropy-soft": Row(binary_ce, binary, share, **of_bits),
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
    "sigmoid_focal_loss-soft": Row(jloss.sigmoid_focal_loss, focal, share, **of_bits),
    "sigmoid_focal_loss-balanced": Row(
        functools.partial(jloss.sigmoid_focal_loss, alpha=0.25, gamma=0.5),
        focal_balanced,
        bit,
        **of_bits,
    ),
    "kl_divergence": Row(
        jloss.kl_divergence,
        kl,
        distribution,
        **vector,
        domain=log_softmax,
        names=("log_predictions", "targets"),
        bad=(-0.5, 1.5),
        unbounded=False,
    ),
    "z_loss": Row(
        lambda x, _, **doors: jloss.z_loss(x, **doors),
        lambda x, _: logsumexp(x) ** 2,
        lambda rng, x: np.zeros(x.shape[:1]),
        **vector,
        names=("logits", ""),
    ),
}
