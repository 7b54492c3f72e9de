"""What does distillation cost from both models' hidden states on, if no logits are ever built?

The mean over tokens of the Kullback-Leibler divergence of a student's distribution over the
vocabulary from its teacher's, each from hidden states [tokens, 512] times a matrix [512,
vocabulary], and its gradient in the student's: made with the loss ("jloss"), or with the logits
computed again ("jloss recompute"); and from the 64 likeliest classes of the teacher, stored.

Peers: the logits of both in float32, log_softmax and optax's divergence; torch's linear,
log_softmax and kl_div, on accelerators also by torch.compile. Of stored classes the plain twin:
all logits, log_softmax and optax's divergence of the 64 and the rest.
Floor: what is given read once, the gradients written once. FLOP: 2 for each of tokens x hidden x
vocabulary and product; four products, of stored classes three.
Check: the textbook in float64, at logits of standard deviation 3; exact is a relative error up to
1e-5 of the value, and of each gradient in float32 1e-5, in bfloat16 2.5e-3.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import jloss
from benchmarks.competitors import Case, Jitted
from benchmarks.questions.linear_cross_entropy import torch_gradients

SIZES = {  # tokens, hidden, vocabulary
    "quick": [(256, 64, 4096)],
    "cpu": [(2048, 512, 32768)],
    "accelerator": [(4096, 4096, 128256), (16384, 4096, 32768)],
}
STORED = 64


def draw(tokens, hidden, vocabulary, dtype):
    """Student and teacher."""
    keys = jax.random.split(jax.random.key(0), 4)
    states = lambda key: jax.random.normal(key, (tokens, hidden)).astype(dtype)
    matrix = lambda key: 3 / hidden**0.5 * jax.random.normal(key, (hidden, vocabulary))
    return (
        states(keys[0]),
        matrix(keys[1]).astype(dtype),
        states(keys[2]),
        matrix(keys[3]).astype(dtype),
    )


def draw_stored(*sizes):
    """Student, and the likeliest classes of the teacher."""
    x, w, theirs, their_w = draw(*sizes)
    logits = jnp.dot(theirs, their_w, preferred_element_type=jnp.float32)
    log_p, classes = jax.lax.top_k(jax.nn.log_softmax(logits), STORED)
    return x, w, log_p, classes


def log_probs(x, w):
    return jax.nn.log_softmax(jnp.dot(x, w, preferred_element_type=jnp.float32))


def by_optax(x, w, theirs, their_w):
    log_q, log_p = log_probs(x, w), log_probs(theirs, their_w)
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p).mean()


def textbook(x, w, theirs, their_w):
    log_q, log_p = jax.nn.log_softmax(x @ w), jax.nn.log_softmax(theirs @ their_w)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))


def ours(x, w, theirs, their_w, **choice):
    teacher = jloss.LinearTeacher(theirs, their_w)
    return jloss.linear_kl_divergence(x, w, teacher, reduction=jloss.mean, **choice)


def ours_stored(x, w, log_p, classes, **choice):
    teacher = jloss.TopKTeacher(log_p, classes)
    return jloss.linear_kl_divergence(x, w, teacher, reduction=jloss.mean, **choice)


def buckets(log_q, log_p, classes):
    """Log-probabilities of the classes, and of all others together."""
    taken = jax.vmap(lambda row, at: row.at[at].set(-jnp.inf))(log_q, classes)
    log_q = jnp.take_along_axis(log_q, classes, -1)
    rest = jax.nn.logsumexp(taken, -1, keepdims=True)
    rest_p = jnp.log(-jnp.expm1(jax.nn.logsumexp(log_p, -1, keepdims=True)))
    return jnp.concatenate([log_q, rest], -1), jnp.concatenate([log_p, rest_p], -1)


def by_optax_stored(x, w, log_p, classes):
    both = buckets(log_probs(x, w), log_p, classes)
    return optax.losses.kl_divergence_with_log_targets(*both).mean()


def textbook_stored(x, w, log_p, classes):
    log_q, log_p = buckets(jax.nn.log_softmax(x @ w), log_p, classes)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))


def of_torch(torch, x, w, theirs, their_w):
    f = torch.nn.functional
    log_q, log_p = (f.log_softmax(f.linear(a, b.T), -1) for a, b in ((x, w), (theirs, their_w)))
    return f.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def case(name, tokens, hidden, vocabulary, dtype, given, exact, rivals, products):
    model = jnp.dtype(dtype).itemsize * hidden * (tokens + vocabulary)
    teacher = model if products == 4 else 8 * tokens * STORED
    return Case(
        name,
        {"dtype": dtype, "tokens": tokens, "hidden": hidden, "vocabulary": vocabulary},
        functools.partial(given, tokens, hidden, vocabulary, dtype),
        jax.value_and_grad(exact, (0, 1)),
        {"value": 1e-5, "gradient": 1e-5 if dtype == "float32" else 2.5e-3},
        rivals,
        floor_bytes=2 * model + teacher,
        flops=2 * products * tokens * hidden * vocabulary,
    )


def cases(scale):
    gradients = lambda f, **choice: Jitted(
        jax.value_and_grad(functools.partial(f, **choice), (0, 1))
    )
    rivals = {
        "jloss": gradients(ours),
        "jloss recompute": gradients(ours, implementation="recompute"),
        "optax": gradients(by_optax),
        "torch": torch_gradients(of_torch),
    }
    if scale == "accelerator":
        rivals["torch compiled"] = torch_gradients(of_torch, compiled=True)
    stored = {
        "jloss": gradients(ours_stored),
        "jloss recompute": gradients(ours_stored, implementation="recompute"),
        "optax": gradients(by_optax_stored),
    }
    for dtype in ("float32", "bfloat16"):
        for sizes in SIZES[scale]:
            yield case("distillation, two heads", *sizes, dtype, draw, textbook, rivals, 4)
            name = f"distillation, {STORED} stored classes"
            yield case(name, *sizes, dtype, draw_stored, textbook_stored, stored, 3)
