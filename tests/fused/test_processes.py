"""Two processes over `jax.distributed` compute what one alone would."""

import functools
import itertools
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import time
import traceback

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jloss

SECONDS = 120
TOKENS, FEATURES, CLASSES = 48, 16, 64
CASES = [  # who splits the work, what crosses the processes, reduction
    (*case, reduction)
    for case in [("jit", "tokens"), ("jit", "vocabulary"), ("shard_map", "both")]
    for reduction in ["mean", "each"]
]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(sys.path),
    "JAX_PLATFORMS": "cpu",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}


def data():
    """Hidden states, matrix, labels, `where`, and factors by which `each` is summed."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(TOKENS, FEATURES)).astype(np.float32)
    w = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    y = rng.integers(0, CLASSES, TOKENS, np.int32)
    number = np.arange(TOKENS)
    where = (number % 5 != 0) & (number > 12)  # 9 tokens in the first half, 19 in the second
    return x, w, y, where, np.linspace(-1, 2, TOKENS, dtype=np.float32)


def exact(reduction, x, w, y, where, factors):
    """Value and gradients in float64."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    powers = np.exp(x @ w)
    shares = powers / powers.sum(-1, keepdims=True)
    values = np.where(where, -np.log(shares[np.arange(TOKENS), y]), 0)
    by = where / where.sum() if reduction == "mean" else where * factors
    slopes = by[:, None] * (shares - np.eye(CLASSES)[y])
    return values @ by if reduction == "mean" else values, slopes @ w.T, x.T @ slopes


def compute(splitting, crossing, reduction):
    """Value and gradients, of which each process holds some."""
    (a, b), (c, d) = (jax.local_devices(process_index=process) for process in range(2))
    layouts = {
        "tokens": [[a, b], [c, d]],
        "vocabulary": [[a, c], [b, d]],
        "both": [[a, c], [d, b]],
    }
    mesh = Mesh(np.array(layouts[crossing]), ("data", "model"))
    specs = P("data"), P(None, "model"), P("data"), P("data"), P("data")
    by_hand = splitting == "shard_map"
    end = {
        "mean": functools.partial(jloss.mean, axis_name="data") if by_hand else jloss.mean,
        "each": jloss.each,
    }[reduction]

    def loss(x, w, y, where, factors):
        values = jloss.linear_softmax_cross_entropy(
            x, w, y, axis_name="model" if by_hand else None, where=where, reduction=end
        )
        return values if reduction == "mean" else values @ factors, values

    def step(*given):
        (_, values), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(*given)
        return values, *slopes

    if by_hand:
        results = P() if reduction == "mean" else P("data"), *specs[:2]
        step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=results)
    place = lambda a, spec: jax.make_array_from_callback(
        a.shape, NamedSharding(mesh, spec), lambda index: a[index]
    )
    return jax.jit(step)(*(place(a, spec) for a, spec in zip(data(), specs)))


def work(process, address, file):
    """What each of the processes does: it writes down its shards of all results."""
    jax.distributed.initialize(address, 2, process, initialization_timeout=SECONDS // 2)
    shards = lambda a: [(shard.index, np.asarray(shard.data)) for shard in a.addressable_shards]
    results = {case: [shards(a) for a in compute(*case)] for case in CASES}
    pathlib.Path(file).write_bytes(pickle.dumps(results))
    jax.distributed.shutdown()


def run_together(commands, folder):
    """Until all have ended, one has failed or the time is over; with what they had to say."""
    logs = [folder / f"{number}.log" for number in range(len(commands))]
    started = []
    end = time.monotonic() + SECONDS
    try:
        for command, log in zip(commands, logs):
            with log.open("w") as stream:
                given = {"env": os.environ | ENVIRONMENT, "stdout": stream, "stderr": stream}
                started.append(subprocess.Popen(command, **given))
        while None in (codes := [p.poll() for p in started]) and time.monotonic() < end:
            if any(codes):
                break
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
    said = "".join(f"\n{log.name}\n{log.read_text()}" for log in logs)
    assert codes == [0] * len(commands), f"exit codes {codes}, None if killed:{said}"


def test_two_processes_compute_what_one_alone_would(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = [tmp_path / f"{process}.pickle" for process in range(2)]
    start = [sys.executable, __file__]
    run_together([[*start, str(i), address, str(file)] for i, file in enumerate(files)], tmp_path)
    by_process = [pickle.loads(file.read_bytes()) for file in files]
    given = data()
    for case, results in itertools.product(CASES, by_process):
        names = "value", "slopes of hidden", "slopes of matrix"
        for name, shards, expected in zip(names, results[case], exact(case[-1], *given)):
            for index, shard in shards:
                told = {"rtol": 2e-5, "atol": 2e-6, "err_msg": f"{name}, {case}, {index}"}
                np.testing.assert_allclose(shard, expected[index], **told)


if __name__ == "__main__":
    try:
        work(int(sys.argv[1]), *sys.argv[2:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at a usual end `jax.distributed` would wait for the other process
