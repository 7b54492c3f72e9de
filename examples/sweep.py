"""An MLP 64-32-10 learns digits with 64 learning rates at once, by one `vmap` over its training.

The rate is a tracer, in the schedule and in AdamW: all rates share one compilation. A loop over
them could share it too, and takes about as long on a CPU; what costs is to compile for each rate.
Far beyond the best rate training is chaos, where rounding alone may decide how it ends.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import mlp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jloss
from jloss.optimizers import schedules

BLUE, RED, GREY, PALE = "#1f5fa8", "#c8402f", "#8a8f98", "#e2e5ea"
cross_entropy = jloss.softmax_cross_entropy_with_integer_labels


def load():
    images, labels = load_digits(return_X_y=True)
    data = np.float32(images / 16), np.int32(labels)
    return jax.device_put(train_test_split(*data, test_size=500, random_state=0, stratify=labels))


def objective(params, images, labels):
    return cross_entropy(mlp.apply(params, images), labels, reduction=jloss.mean)


def train(rate, params, batches, images, valid, labels, valid_labels):
    """Training loss, validation loss and validation accuracy after all steps."""
    schedule = schedules.warmup_cosine(0.0, rate, len(batches) // 10, len(batches))
    optimizer = jloss.adamw(schedule, max_norm=1.0)

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(objective)(params, images[batch], labels[batch])
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
    losses = objective(params, images, labels), objective(params, valid, valid_labels)
    return *losses, jnp.mean(mlp.apply(params, valid).argmax(-1) == valid_labels)


def timed(what, f, *args):
    start = time.perf_counter()
    result = jax.block_until_ready(f(*args))
    print(f"{time.perf_counter() - start:5.2f} s to {what}")
    return result


def draw(path, rates, results, best, top=5.0):
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    plot, losses = figure.subplots(), np.nan_to_num(results[:, :2], nan=top).clip(max=top)
    for curve, color, name in zip(losses.T, (GREY, BLUE), ("training", "validation")):
        plot.loglog(rates, curve, color=color, linewidth=2, marker="o", ms=4, label=name)
    plot.axhline(np.log(10), color=GREY, linestyle=":", label="guessing")
    plot.axvline(rates[best], color=RED, linestyle=":", label=f"best rate, {rates[best]:.2g}")
    plot.set(xlabel="learning rate", ylabel=f"loss, cut off at {top:g}")
    plot.grid(color=PALE)
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(frameon=False)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"wrote {path}")


def main(steps=300, count=64, rebuilt=4, out="outputs/sweep.png"):
    data, rates = load(), np.geomspace(1e-5, 10, count, dtype=np.float32)
    params = mlp.init(jax.random.key(0), (64, 32, 10))
    batches = np.random.default_rng(0).integers(len(data[0]), size=(steps, 32))
    train_at = lambda rate: train(rate, params, batches, *data)
    sweep, alone = jax.jit(jax.vmap(train_at)), jax.jit(train_at)
    sweep = timed("compile for all rates at once", lambda: sweep.lower(rates).compile())
    at_once = np.stack(timed(f"run {count} rates at once", sweep, rates), -1)
    alone = timed("compile for any one rate", lambda: alone.lower(rates[0]).compile())
    in_turn = timed(f"run {count} rates in turn", lambda: [alone(rate) for rate in rates])
    for rate in rates[:rebuilt].tolist():
        timed(f"compile for {rate:.1e} alone, and run", jax.jit(train_at, static_argnums=0), rate)
    best = np.nan_to_num(at_once[:, 1], nan=np.inf).argmin()
    gap = abs(at_once - np.array(in_turn))[: best + 1, :2].max()
    print(f"up to the best rate, losses at once and in turn differ by {gap:.0e} at most")
    print("best rate {:.2g}, loss {:.3f}, accuracy {:.3f}".format(rates[best], *at_once[best, 1:]))
    draw(out, rates, at_once, best)
    return rates, at_once, np.array(in_turn)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="outputs/sweep.png")
    main(out=parser.parse_args().out)
