"""What a question compares: cases, and the ways in which a competitor runs.

A question is a module whose docstring asks it in the first line, and whose `cases(scale)` yields
the `Case`s for "quick", "cpu" or "accelerator"; `questions/value_checks.py` is a short one.
Nothing is allocated until a case is drawn.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

STEPS = 3  # that a competitor with a state takes before it is compared


class Run(NamedTuple):
    """A competitor at the start line."""

    call: Callable[[], Any]  # returns at once where the device works on its own
    wait: Callable[[Any], Any]
    result: Callable[[], tuple]  # what is compared, as JAX arrays; called before the clock runs
    compile_s: float | None = None
    compiled: jax.stages.Compiled | None = None
    peak_bytes: Callable[[], int | None] = lambda: None  # where there is no compiler to ask
    state_bytes: int | None = None  # kept from step to step beside the parameters


class Competitor(Protocol):
    def ready(self, arguments: tuple) -> Run: ...

    def lower(self, shapes: tuple) -> jax.stages.Lowered | None:
        """What one compiler can compile as a whole, or None."""


class NotHere(Exception):
    """A peer that is installed but cannot run on this device."""


class Case(NamedTuple):
    """One computation at one size, the same for every competitor."""

    name: str
    at: Mapping[str, Any]  # sizes and dtype; a size that takes several values gives a curve
    draw: Callable[[], tuple]  # the arguments, by jax.random
    exact: Callable[..., tuple]  # the results, from arguments in float64, by the textbook
    tolerance: Mapping[str, float]  # part of the result: largest relative error that is exact
    competitors: Mapping[str, Competitor]  # the package comes first in the name: "torch compiled"
    floor_bytes: float  # each input read once, each output written once; 0 where caches hold all
    flops: float  # by formula: the compiler counts the body of a scan once
    wrong: float = 0.1  # from this relative error on it is another computation, and is not timed


class Jitted(NamedTuple):
    """A JAX function, compiled for its arguments before the clock runs."""

    f: Callable[..., tuple]

    def lower(self, shapes):
        return jax.jit(self.f).lower(*shapes)

    def ready(self, arguments):
        compiled, seconds = timed(lambda: self.lower(arguments).compile())
        call = lambda: compiled(*arguments)
        return Run(call, jax.block_until_ready, call, seconds, compiled)


class Called(NamedTuple):
    """A JAX function as a user calls it, Python and dispatch included."""

    f: Callable[..., Any]
    read: Callable[[Any], tuple] = lambda result: result  # what is compared; not timed

    def lower(self, shapes):
        return None

    def ready(self, arguments):
        call = lambda: self.f(*arguments)
        _, seconds = timed(lambda: jax.block_until_ready(call()))
        return Run(call, jax.block_until_ready, lambda: self.read(call()), seconds)


class Stepped(NamedTuple):
    """A JAX step that donates its state; the arguments are a start and a list of batches."""

    start: Callable[[Any], Any]
    step: Callable[[Any, Any], Any]
    read: Callable[[Any], tuple]  # of the state what is compared: parameters, and more if any
    seen: Callable[..., tuple] = lambda *parts: parts  # of the change, and of what else was read

    def lower(self, shapes):
        start, batches = shapes
        state = jax.jit(self.start).lower(start).out_info
        state = jax.tree.map(placed_as(jax.tree.leaves(start)[0]), state)
        return jax.jit(self.step, donate_argnums=0).lower(state, batches[0])

    def ready(self, arguments):
        start, batches = arguments
        compiled, seconds = timed(lambda: self.lower(arguments).compile())
        state, turns = [jax.jit(self.start)(start)], itertools.cycle(batches)

        def call():
            state[0] = compiled(state[0], next(turns))
            return state[0]

        result = lambda: self.seen(*after_steps(lambda: self.read(call()), start))
        kept = nbytes(jax.eval_shape(self.start, start)) - nbytes(start)
        return Run(call, jax.block_until_ready, result, seconds, compiled, state_bytes=kept)


class Torch(NamedTuple):
    """A peer in torch: `make(torch, *tensors)` gives a function of nothing that gives tensors."""

    make: Callable[..., Callable[[], tuple]]

    def lower(self, shapes):
        return None

    def ready(self, arguments):
        torch, device = torch_and_device()
        call, wait = self.make(torch, *tensors(torch, device, arguments)), waiting(torch, device)
        _, seconds = timed(lambda: wait(call()))
        result = lambda: jax.tree.map(jax_array, call())
        return Run(call, wait, result, seconds, peak_bytes=lambda: peak(torch, device, call))


class TorchStepped(NamedTuple):
    """A step in torch: `make(torch, start)` gives a function of a batch, which gives what a
    `Stepped` competitor reads."""

    make: Callable[..., Callable[[Any], tuple]]

    def lower(self, shapes):
        return None

    def ready(self, arguments):
        torch, device = torch_and_device()
        start, batches = tensors(torch, device, arguments)
        step, turns = self.make(torch, start), itertools.cycle(batches)
        call, wait = lambda: step(next(turns)), waiting(torch, device)
        read = lambda: jax.tree.map(jax_array, call())
        result = lambda: after_steps(read, arguments[0])
        return Run(call, wait, result, peak_bytes=lambda: peak(torch, device, call))


def value_and_gradient(loss: Callable) -> Jitted:
    """Of a scalar loss in JAX, with the gradient in its first argument."""
    return Jitted(jax.value_and_grad(loss))


def torch_value_and_gradient(loss: Callable, compiled: bool = False) -> Torch:
    """Of a scalar `loss(torch.nn.functional, *tensors)`, likewise."""

    def make(torch, x, *others):
        x, scalar = x.requires_grad_(), torch_compiled(torch, loss) if compiled else loss

        def call():
            value = scalar(torch.nn.functional, x, *others)
            return value.detach(), *torch.autograd.grad(value, x)

        return call

    return Torch(make)


def torch_compiled(torch, f):
    """For these shapes alone, and not for those that were compiled before."""
    torch._dynamo.reset()
    return torch.compile(f, dynamic=False)


def after_steps(read, start):
    """The change of the parameters over STEPS steps, and what else is read."""
    for _ in range(STEPS):
        now, *others = read()
    return jax.tree.map(lambda now, then: now - then, now, start), *others


def nbytes(tree):
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def placed_as(array):
    return lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=array.sharding)


def torch_and_device():
    """torch, and its device of the kind that JAX runs on."""
    import torch

    backend = jax.default_backend()
    if backend == "cpu":
        return torch, "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return torch, "cuda"
    raise NotHere(f"this torch has no {backend} here")


def tensors(torch, device, arguments):
    """Tensors of torch's own, class numbers in the dtype that torch wants."""

    def tensor(array):
        host = np.asarray(array)
        plain = np.array(host if host.dtype.kind in "ib" else host.astype(np.float32))
        dtype = torch.long if host.dtype.kind == "i" else getattr(torch, str(host.dtype))
        return torch.from_numpy(plain).to(device, dtype)

    return jax.tree.map(tensor, arguments)


def waiting(torch, device):
    if device == "cuda":
        return lambda _: torch.cuda.synchronize()
    return lambda result: result


def peak(torch, device, call):
    """What torch's allocator adds at most during a call, the new results not counted."""
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    kept = torch.cuda.memory_allocated() - before
    del results
    return torch.cuda.max_memory_allocated() - before - kept


def jax_array(tensor):
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def timed(f):
    start = time.perf_counter()
    result = f()
    return result, time.perf_counter() - start
