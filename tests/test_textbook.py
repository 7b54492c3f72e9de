"""The six textbook programs learn, and take the steps of their origins from the same weights."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.metrics

import jloss

close = np.testing.assert_allclose


@pytest.fixture
def program(monkeypatch, request):
    """Imports a program by its name, as running it would: its folder comes first."""
    pytest.importorskip("mlxtend")
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(request.config.rootpath / "examples")
    return pytest.importorskip


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def sequential(torch, params):
    """The same network in torch, with copies of the same weights."""
    layers = []
    for weights, biases in params:
        linear = torch.nn.Linear(*weights.shape)
        linear.weight.data = torch.tensor(np.array(weights).T)
        linear.bias.data = torch.tensor(np.array(biases))
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def losses_of(torch, optimizer, loss, batches):
    """The losses that torch sees on its way."""
    seen = []
    for batch in batches:
        optimizer.zero_grad()
        value = loss(*(torch.tensor(np.array(a)) for a in batch))
        value.backward()
        optimizer.step()
        seen.append(value.item())
    return seen


def small_digits(n=500, size=50, steps=40):
    """Batches of noise with digits' labels: what a trajectory needs of data."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(n, 784)).astype(np.float32)
    labels = rng.integers(0, 10, n, np.int64)
    starts = [i * size % n for i in range(steps)]
    return [(images[s : s + size], labels[s : s + size]) for s in starts]


# 784-64-64-10, mean squared error, Adam -------------------------------------------------------


def test_digits_by_squared_error_take_torch_s_steps(program, torch):
    digits, mlp = program("digits_squared_error"), program("mlp")
    params = mlp.init(jax.random.key(0), (784, 64, 64, 10))
    model, batches = sequential(torch, params), small_digits()
    one_hot = lambda y: torch.nn.functional.one_hot(y, 10).float()
    loss = lambda x, y: torch.nn.MSELoss()(model(x), one_hot(y))
    theirs = losses_of(torch, torch.optim.Adam(model.parameters(), 1e-3), loss, batches)
    _, ours = digits.train(params, [(x, np.int32(y)) for x, y in batches])
    close(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_digits_by_squared_error_are_learned(program):
    losses, accuracy = program("digits_squared_error").main(epochs=6)
    assert losses[-20:].mean() < 0.3 * losses[:20].mean()
    assert accuracy > 0.9


# 10-64-64-1, binary cross-entropy on logits, Adam 1e-3 ----------------------------------------


def rare(program, steps):
    module, mlp = program("rare_events"), program("mlp")
    x, labels = module.make_data(0)
    weights = np.asarray(jloss.class_balanced_weights(np.bincount(labels)))[labels]
    params = mlp.init(jax.random.key(0), (10, 64, 64, 1))
    _, ours = module.train(params, x, labels, weights, steps)
    params = mlp.init(jax.random.key(0), (10, 64, 64, 1))
    starts = [i * 200 % len(x) for i in range(steps)]
    batches = [[a[s : s + 200] for a in (x, labels.astype("f4"), weights)] for s in starts]
    return ours, params, batches


def test_rare_events_take_torch_s_steps(program, torch):
    ours, params, batches = rare(program, 60)
    model = sequential(torch, params)
    each = torch.nn.BCEWithLogitsLoss(reduction="none")
    mean = lambda loss, w: (w * loss).sum() / w.sum()
    loss = lambda x, y, w: mean(each(model(x)[:, 0], y), w)
    theirs = losses_of(torch, torch.optim.Adam(model.parameters(), 1e-3), loss, batches)
    close(ours, theirs, rtol=2e-5)


def test_rare_events_take_keras_s_steps(program):
    """Keras puts epsilon elsewhere in Adam, so the paths part slowly."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    module, mlp = program("rare_events"), program("mlp")
    x, labels = module.make_data(0)
    params = mlp.init(jax.random.key(0), (10, 64, 64, 1))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        dense = keras.layers.Dense
        layers = [dense(64, "relu"), dense(64, "relu"), dense(1)]
        model = keras.Sequential([keras.Input((10,)), *layers])
        model.set_weights([np.array(a) for layer in params for a in layer])
        bce = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-8), bce)
        theirs = [
            float(model.train_on_batch(x[s : s + 200], labels[s : s + 200, None]))
            for s in range(0, 4000, 200)
        ]
    _, ours = module.train(params, x, labels, np.ones(len(x), np.float32), 20)
    close(ours, theirs, rtol=1e-3)


@pytest.mark.slow
def test_rare_events_are_found_where_they_are_weighed(program):
    scores = program("rare_events").main(steps=400)
    (_, recall, f1), (_, balanced_recall, balanced_f1) = scores["plain"], scores["balanced"]
    assert balanced_recall > recall + 0.1
    assert min(f1, balanced_f1) > 0.4


# Linear(10, 1), binary cross-entropy on logits, SGD 0.01 --------------------------------------


def test_logistic_regression_takes_torch_s_hundred_steps(program, torch):
    module = program("logistic_regression")
    x, labels = module.make_data(0)
    weights = np.random.default_rng(1).normal(size=10).astype(np.float32)
    model = sequential(torch, [(weights[:, None], np.zeros(1, np.float32))])
    loss = lambda x, y: torch.nn.BCEWithLogitsLoss()(model(x)[:, 0], y)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    theirs = losses_of(torch, optimizer, loss, [(x, labels)] * 100)
    (found, bias), ours = module.train((jnp.asarray(weights), jnp.zeros(())), x, labels, 100)
    close(ours, theirs, rtol=1e-6)
    close(found, model[0].weight.detach().numpy()[0], rtol=1e-6, atol=1e-6)
    close(bias, model[0].bias.item(), rtol=1e-5, atol=1e-6)


def test_logistic_regression_goes_where_scikit_learn_goes(program):
    module = program("logistic_regression")
    x, labels = module.make_data(0)
    (weights, bias), _, accuracy = module.main(steps=1000)
    exact = sklearn.linear_model.LogisticRegression(C=np.inf).fit(x, labels)
    assert accuracy >= exact.score(x, labels) - 0.02
    assert np.corrcoef(weights, exact.coef_[0])[0, 1] > 0.99
    loss = lambda w, b: sklearn.metrics.log_loss(labels, 1 / (1 + np.exp(-(x @ w + b))))
    assert loss(np.array(weights), float(bias)) >= loss(exact.coef_[0], exact.intercept_[0])


# y = 2x + 1 + noise -----------------------------------------------------------------------------


def test_sgd_finds_least_squares(program):
    found, exact, losses = program("linear_regression").main()
    close(found, exact, rtol=1e-5)
    x, y = program("linear_regression").make_data(0)
    fitted = sklearn.linear_model.LinearRegression().fit(x[:, None].astype(float), y.astype(float))
    close(found, [fitted.coef_[0], fitted.intercept_], rtol=1e-5)
    assert (np.diff(losses) <= 1e-7).all()


def test_adam_finds_least_squares_too(program):
    module = program("robust_regression")
    x, y = module.make_data(0)
    start = jnp.zeros(()), jnp.zeros(())
    (slope, intercept), _ = jax.jit(lambda: module.train(start, x, y, 2.0, 2000))()
    close([slope, intercept], np.polyfit(x.astype(float), y.astype(float), 1), rtol=1e-4)


def test_a_line_by_adam_takes_torch_s_steps(program, torch):
    module = program("robust_regression")
    x, y = module.make_data(0)
    model = sequential(torch, [(np.zeros((1, 1), np.float32), np.zeros(1, np.float32))])
    loss = lambda x, y: 0.5 * torch.nn.MSELoss()(model(x[:, None])[:, 0], y) / 0.25
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    theirs = losses_of(torch, optimizer, loss, [(x, y)] * 100)
    start = jnp.zeros(()), jnp.zeros(())
    _, ours = jax.jit(lambda: module.train(start, x, y, 2.0, 100))()
    close(ours, theirs, rtol=1e-5)


def test_a_robust_loss_sees_through_corrupted_targets(program):
    lines = program("robust_regression").main()
    off = {alpha: np.abs(line - [2, 1]).max() for alpha, line in lines.items()}
    assert off[2.0] > 1
    assert off[-2.0] < 0.05
    assert off[2.0] > off[1.0] > off[0.0]


# 784-128-10, softmax cross-entropy, Adam 1e-3 -------------------------------------------------


def test_digits_by_cross_entropy_take_torch_s_steps(program, torch):
    module, mlp = program("digits_cross_entropy"), program("mlp")
    params = mlp.init(jax.random.key(0), (784, 128, 10))
    model, batches = sequential(torch, params), small_digits()
    weights = [p for p in model.parameters() if p.ndim > 1]
    penalty = lambda: 0.5 * 1e-3 * sum((w**2).sum() for w in weights)
    loss = lambda x, y: torch.nn.CrossEntropyLoss()(model(x), y) + penalty()
    theirs = losses_of(torch, torch.optim.Adam(model.parameters(), 1e-3), loss, batches)
    state, ours = module.optimizer.init(params), []
    for x, y in batches:
        params, state, value = module.step(params, state, x, np.int32(y), 1e-3)
        ours.append(value)
    close(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_what_is_regularised_does_not_learn_wrong_labels_by_heart(program):
    results = program("digits_cross_entropy").main()
    (_, plain, all_steps), (_, regularised, steps) = results["plain"], results["regularised"]
    assert regularised > max(0.87, plain + 0.02)
    assert steps < all_steps
