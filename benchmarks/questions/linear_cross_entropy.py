"""What does cross-entropy cost from the hidden states on, if the logits are never built?

The mean over tokens of the cross-entropy of hidden states [tokens, hidden] times a matrix [hidden,
vocabulary], value and gradient of both: made with the loss ("jloss"), or with the logits computed
again ("jloss recompute"); and the value alone.

Peers: the logits in float32 and optax's cross-entropy, which is what most trainers write; tokamax;
torch's linear and cross_entropy, and its linear_cross_entropy in chunks; on accelerators also by
torch.compile, and Liger's fused loss.
Floor: hidden states and matrix read once, their gradients written once. FLOP: 2 for each of tokens
x hidden x vocabulary and product; three products, where the logits are computed again four.
Check: the textbook in float64, at logits of standard deviation 6; exact is a relative error up to
1e-5 of the value, and of each gradient in float32 1e-5, in bfloat16 2.5e-3.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import jloss
from benchmarks.competitors import Case, Jitted, Torch, torch_compiled

SIZES = {  # tokens, hidden, vocabulary; the first at which the value alone is asked too
    "quick": [(256, 64, 4096)],
    "cpu": [
        (2048, 512, 32768),
        (1024, 512, 32768),
        (4096, 512, 32768),
        (2048, 512, 8192),
        (2048, 512, 50257),
        (4096, 768, 50304),
    ],
    "accelerator": [
        (4096, 4096, 128256),
        (16384, 4096, 128256),
        (32768, 4096, 128256),
        (16384, 4096, 32768),
    ],
}


def draw(tokens, hidden, vocabulary, dtype):
    one, two, three = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(one, (tokens, hidden)).astype(dtype)
    w = (6 / hidden**0.5 * jax.random.normal(two, (hidden, vocabulary))).astype(dtype)
    return x, w, jax.random.randint(three, (tokens,), 0, vocabulary)


def textbook(x, w, y):
    logits = x @ w
    own = jnp.take_along_axis(logits, y[:, None], 1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - own)


def of_logits(x, w, y):
    logits = jnp.dot(x, w, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def ours(x, w, y, **choice):
    return jloss.linear_softmax_cross_entropy(x, w, y, reduction=jloss.mean, **choice)


def by_tokamax(x, w, y):
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # it would parse the arguments of this program
        flags.FLAGS(["benchmarks"])
    return tokamax.linear_softmax_cross_entropy_loss(x, y, w, reduction="mean")


def of_torch(torch, x, w, y):
    logits = torch.nn.functional.linear(x, w.T)
    return torch.nn.functional.cross_entropy(logits, y)


def by_torch_in_chunks(torch, x, w, y):
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions()
    return torch.nn.functional.linear_cross_entropy(x, w.T, y, options=options)


def by_liger(torch, x, w, y):
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss = liger_fused_linear_cross_entropy(x, w.T.contiguous(), y)
    return loss if isinstance(loss, torch.Tensor) else loss[0]


def torch_gradients(loss, compiled=False):
    """In hidden states and matrix, of `loss(torch, hidden states, matrix, ...)`."""

    def make(torch, x, w, *others):
        x, w = x.requires_grad_(), w.requires_grad_()
        scalar = functools.partial(loss, torch)
        scalar = torch_compiled(torch, scalar) if compiled else scalar

        def call():
            value = scalar(x, w, *others)
            return value.detach(), torch.autograd.grad(value, (x, w))

        return call

    return Torch(make)


def case(tokens, hidden, vocabulary, dtype, scale):
    gradients = lambda f: Jitted(jax.value_and_grad(f, (0, 1)))
    size = jnp.dtype(dtype).itemsize
    rivals = {
        "jloss": gradients(ours),
        "jloss recompute": gradients(functools.partial(ours, implementation="recompute")),
        "optax": gradients(of_logits),
        "tokamax": gradients(by_tokamax),
        "torch": torch_gradients(of_torch),
        "torch in chunks": torch_gradients(by_torch_in_chunks),
    }
    if scale == "accelerator":
        rivals["torch compiled"] = torch_gradients(of_torch, compiled=True)
        rivals["liger_kernel"] = torch_gradients(by_liger)
    return Case(
        "linear layer and cross-entropy",
        {"dtype": dtype, "tokens": tokens, "hidden": hidden, "vocabulary": vocabulary},
        functools.partial(draw, tokens, hidden, vocabulary, dtype),
        jax.value_and_grad(textbook, (0, 1)),
        {"value": 1e-5, "gradient": 1e-5 if dtype == "float32" else 2.5e-3},
        rivals,
        floor_bytes=2 * size * hidden * (tokens + vocabulary) + 4 * tokens,
        flops=6 * tokens * hidden * vocabulary,
    )


def value_alone(tokens, hidden, vocabulary, dtype):
    """The loss without its gradients."""
    full = case(tokens, hidden, vocabulary, dtype, "cpu")
    value = lambda f: Jitted(lambda *given: (f(*given),))
    return full._replace(
        name="linear layer and cross-entropy, value alone",
        exact=lambda *given: (textbook(*given),),
        tolerance={"value": 1e-5},
        competitors={"jloss": value(ours), "optax": value(of_logits), "tokamax": value(by_tokamax)},
        floor_bytes=full.floor_bytes / 2,
        flops=full.flops / 3,
    )


def cases(scale):
    for dtype in ("float32", "bfloat16"):
        for sizes in SIZES[scale]:
            yield case(*sizes, dtype, scale)
        yield value_alone(*SIZES[scale][0], dtype)
