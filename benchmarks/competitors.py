"""What a question compares: cases, and the ways in which a competitor runs.

A question is a module whose docstring asks it in the first line, and whose `cases(scale)` yields
the `Case`s for "quick", "cpu" or "accelerator". Nothing is allocated until a case is drawn.
"""

from __future__ import annotations

import itertools
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
    peak_bytes: Callable[[], int | None] = lambda: None  # beyond the inputs, where it can be asked


class Competitor(Protocol):
    def ready(self, arguments: tuple) -> Run: ...

    def lower(self, shapes: tuple) -> jax.stages.Lowered | None:
        """What one compiler can compile as a whole, or None."""


class Case(NamedTuple):
    """One computation at one size, the same for every competitor."""

    name: str
    at: Mapping[str, Any]  # sizes and dtype; a size that takes several values gives a curve
    draw: Callable[[], tuple]  # the arguments, by jax.random
    exact: Callable[..., tuple]  # the results, from arguments in float64, by the textbook
    tolerance: Mapping[str, float]  # part of the result: largest relative error that is exact
    competitors: Mapping[str, Competitor]  # the package comes first in the name: "torch compiled"
    floor_bytes: float  # each input read once, each output written once
    flops: float  # by formula: the compiler counts the body of a scan once
    wrong: float = 0.1  # from this relative error on it is another computation


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

    f: Callable[..., tuple]

    def lower(self, shapes):
        return None

    def ready(self, arguments):
        call = lambda: self.f(*arguments)
        _, seconds = timed(lambda: jax.block_until_ready(call()))
        return Run(call, jax.block_until_ready, call, seconds)


class Stepped(NamedTuple):
    """A JAX step that donates its state; the arguments are a start and a list of batches."""

    start: Callable[[Any], Any]
    step: Callable[[Any, Any], Any]
    read: Callable[[Any], Any]  # what of the state is compared: its change over STEPS steps

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

        result = lambda: (change_over_steps(lambda: self.read(call()), start),)
        return Run(call, jax.block_until_ready, result, seconds, compiled)


class Torch(NamedTuple):
    """A peer in torch: `make(torch, *tensors)` gives a function of nothing that gives tensors."""

    make: Callable[..., Callable[[], tuple]]

    def lower(self, shapes):
        return None

    def ready(self, arguments):
        import torch

        call = self.make(torch, *tensors(torch, arguments))
        result = lambda: jax.tree.map(jax_array, call())
        return Run(call, torch_wait(torch), result, peak_bytes=lambda: torch_peak(torch, call))


class TorchStepped(NamedTuple):
    """A step in torch: `make(torch, start)` gives a function of a batch that gives parameters."""

    make: Callable[..., Callable[[Any], Any]]

    def lower(self, shapes):
        return None

    def ready(self, arguments):
        import torch

        start, batches = tensors(torch, arguments)
        step, turns = self.make(torch, start), itertools.cycle(batches)
        call = lambda: step(next(turns))
        parameters = lambda: jax.tree.map(jax_array, call())
        result = lambda: (change_over_steps(parameters, arguments[0]),)
        return Run(call, torch_wait(torch), result, peak_bytes=lambda: torch_peak(torch, call))


def value_and_gradient(loss: Callable) -> Jitted:
    """Of a scalar loss in JAX, with the gradient in its first argument."""
    return Jitted(jax.value_and_grad(loss))


def torch_value_and_gradient(loss: Callable, compiled: bool = False) -> Torch:
    """Of a scalar `loss(torch.nn.functional, *tensors)`, likewise."""

    def make(torch, x, *others):
        x, scalar = x.requires_grad_(), torch.compile(loss) if compiled else loss

        def call():
            value = scalar(torch.nn.functional, x, *others)
            return value.detach(), *torch.autograd.grad(value, x)

        return call

    return Torch(make)


def change_over_steps(parameters, start):
    for _ in range(STEPS):
        now = parameters()
    return jax.tree.map(lambda now, then: now - then, now, start)


def placed_as(array):
    return lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=array.sharding)


def tensors(torch, arguments):
    """Tensors of torch's own on its fastest device; class numbers in the dtype that torch wants."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def tensor(array):
        host = np.asarray(array)
        plain = np.array(host if host.dtype.kind in "ib" else host.astype(np.float32))
        dtype = torch.long if host.dtype.kind == "i" else getattr(torch, str(host.dtype))
        return torch.from_numpy(plain).to(device, dtype)

    return jax.tree.map(tensor, arguments)


def torch_wait(torch):
    if torch.cuda.is_available():
        return lambda _: torch.cuda.synchronize()
    return lambda result: result


def torch_peak(torch, call):
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def jax_array(tensor):
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def timed(f):
    start = time.perf_counter()
    result = f()
    return result, time.perf_counter() - start
