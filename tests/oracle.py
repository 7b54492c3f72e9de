"""Exact values, gradients and Hessians, and how far rounding of the inputs moves them.

All follow from the one formula of a row of the catalogue, by mpmath at a hundred digits.
"""

import functools

import ml_dtypes
import mpmath as mp
import numpy as np
from catalog import CATALOG

REGIONS = {"1e-3": 1e-3, "3": 3.0, "40": 40.0}
ROUND = {  # to numbers that every dtype of the precision holds exactly
    "half": lambda a: a.astype("f2").astype(ml_dtypes.bfloat16).astype("f2").astype("f8"),
    "single": lambda a: a.astype("f4").astype("f8"),
}
EXAMPLES = 3
DIGITS = 100
STEP = mp.mpf(10) ** -30
mp.mp.dps = DIGITS


def budget(name):
    """How many units of conditioning a value or a gradient may be off."""
    return 16 + 4 * max(1, int(np.prod(CATALOG[name].event)))


@functools.cache
def examples(name, region, precision, count=EXAMPLES):
    """Inputs of a few examples, the first of them confident and right."""
    x, y = CATALOG[name].draw(7, count, REGIONS[region])
    return ROUND[precision](x), ROUND[precision](y) if y.dtype.kind == "f" else y


@functools.cache
def exact(name, region, precision, count=EXAMPLES, digits=DIGITS):
    """For each example: value and gradient, and the conditioning of either, in float64."""
    formula = CATALOG[name].formula
    slope = lambda i: lambda x, y: derivative(formula, x, y, i)
    value, gradient = [], []
    with mp.workdps(digits):
        for x, y in map(numbers, *examples(name, region, precision, count)):
            value.append(conditioned(formula, x, y))
            gradient.append([conditioned(slope(i), x, y) for i in range(len(x))])
    return np.array(value, float), np.array(gradient, float)


@functools.cache
def hessian(name):
    """The Hessian of the last example at scale 3."""
    x, y = numbers(*(a[-1] for a in examples(name, "3", "single")))
    entry = lambda i, j: float(derivative(CATALOG[name].formula, x, y, i, j))
    return np.array([[entry(i, j) for j in range(len(x))] for i in range(len(x))])


@functools.cache
def slope_in_truth(name):
    """As `exact` at scale 3, the gradient in the truth; NaN where the formula ends (0 log 0).

    It is a difference of losses, so what rounds the losses counts as conditioning too.
    """
    formula, rows = CATALOG[name].formula, []
    for x, y in map(numbers, *examples(name, "3", "single")):
        slopes = (conditioned(functools.partial(nudged, formula, i), x, y) for i in range(len(y)))
        size = abs(formula(x, y))
        rows.append([(mp.nan, 0) if mp.im(s) else (s, more + size) for s, more in slopes])
    return np.array(rows, float)


def nudged(formula, i, x, y):
    """The slope in y[i], also at the ends of [0, 1]: formulas know no ends."""
    either = ([v + sign * STEP if i == j else v for j, v in enumerate(y)] for sign in (1, -1))
    above, below = (formula(x, moved) for moved in either)
    return (above - below) / (2 * STEP)


def numbers(x, y):
    """One example as a formula takes it: mpmath's numbers, and integers for classes."""
    kind = int if np.ndim(y) < np.ndim(x) and y.dtype.kind in "iu" else mp.mpf
    return [mp.mpf(v) for v in np.ravel(x).tolist()], [kind(v) for v in np.ravel(y).tolist()]


def derivative(formula, x, y, *along):
    orders = tuple(along.count(i) for i in range(len(x)))
    return mp.diff(lambda *x: formula(list(x), y), tuple(x), orders)


def conditioned(f, x, y):
    """f, and |f| plus how far f moves when each input does, relative to that move."""
    here, moves = f(x, y), mp.mpf(0)
    for inputs in (x, y):
        for i, v in enumerate(inputs):
            if isinstance(v, mp.mpf):
                inputs[i] = v * (1 + STEP)
                moves += abs(f(x, y) - here) / STEP
                inputs[i] = v
    return here, abs(here) + moves
