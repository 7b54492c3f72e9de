"""MIGRATING.md is true: each row is executed, both sides, where the peer is installed."""

import importlib
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jloss

TEXT = (pathlib.Path(__file__).parent.parent / "MIGRATING.md").read_text()
PEERS = {  # heading of a table: the module whose names its first column uses
    "torch.nn": "torch.nn",
    "Keras 3": "keras.losses",
    "scikit-learn": "sklearn.metrics",
    "optax": "optax.losses",
}
TABLES = {
    heading: re.findall(
        r"^\| `(.+?)` \| (.+) \|$",
        TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0],
        re.MULTILINE,
    )
    for heading in PEERS
}
ROWS = [
    pytest.param(heading, theirs, ours, id=f"{heading}: {theirs}")
    for heading, rows in TABLES.items()
    for theirs, ours in rows
    if ours != "later" and not ours.startswith("not here: ")
]


def data():
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(size=(8, 5)).astype(np.float32)
    softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    labels = np.array([0, 1, 2, 3, 4, 0, 1, 2])
    frames, word_counts = np.array([6, 5, 4, 6, 6, 5, 4, 6]), np.array([2, 2, 1, 0, 1, 2, 1, 2])
    padding = lambda lengths, n: np.float32(np.arange(n)[None] >= lengths[:, None])
    return {
        "x": draw(),
        "y": draw(),
        "logits": draw(),
        "labels": labels,
        "padded": np.where(labels == 1, -100, labels),
        "one_hot": np.eye(5, dtype=np.float32)[labels],
        "p": softmax(draw()),
        "q": softmax(draw()),
        "w": np.linspace(0.5, 2, 5, dtype=np.float32),
        "bits": rng.integers(0, 2, (8, 5)).astype(np.float32),
        "signs": (2 * rng.integers(0, 2, (8, 5)) - 1).astype(np.float32),
        "counts": rng.poisson(2.0, (8, 5)).astype(np.float32),
        "positive": np.exp(draw()),
        "rate": np.exp(draw()),
        "chance": 1 / (1 + np.exp(-draw())),
        "speech": rng.normal(size=(8, 6, 5)).astype(np.float32),
        "words": rng.integers(1, 5, (8, 2)),
        "frames": frames,
        "word_counts": word_counts,
        "frame_paddings": padding(frames, 6),
        "word_paddings": padding(word_counts, 2),
    }


def peer(heading):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    pytest.importorskip(PEERS[heading].split(".")[0])
    return importlib.import_module(PEERS[heading])


@pytest.mark.parametrize(("heading", "theirs", "ours"), ROWS)
def test_a_row_gives_the_same_number(heading, theirs, ours):
    module, arrays = peer(heading), data()
    names = {**vars(jnp), **vars(jloss.metrics), **vars(jloss), "jloss": jloss}
    names["logsumexp"] = jax.nn.logsumexp
    kind = lambda a: jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else None)
    got = eval(ours.strip("`"), names | {k: kind(a) for k, a in arrays.items()})
    library = np
    if heading == "torch.nn":
        library = importlib.import_module("torch")
        arrays = {k: library.from_numpy(np.array(a)) for k, a in arrays.items()}
    elif heading == "optax":
        arrays, library = {k: kind(a) for k, a in arrays.items()}, jnp
    scope = {**vars(module), "log": library.log, "logsumexp": jax.nn.logsumexp, **arrays}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = eval(theirs, scope)
    np.testing.assert_allclose(got, np.asarray(expected), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("heading", PEERS)
def test_no_loss_of_a_peer_is_forgotten(heading):
    module = peer(heading)
    losses = {
        "torch.nn": lambda n: n.endswith("Loss"),
        "Keras 3": lambda n: (
            n[0].isupper() and isinstance(getattr(module, n), type) and n != "Loss"
        ),
        "scikit-learn": lambda n: re.search("loss|error|deviance", n) and n.islower(),
        "optax": lambda n: n.islower() and n[0] != "_" and callable(getattr(module, n)),
    }[heading]
    told = {re.match(r"\w+", theirs)[0] for theirs, _ in TABLES[heading]}
    assert {n for n in dir(module) if losses(n)} <= told


def test_every_row_says_something():
    for rows in TABLES.values():
        for _, ours in rows:
            assert ours == "later" or ours.startswith(("`", "not here: "))
