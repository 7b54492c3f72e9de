"""What the compilers for an H100 and a TPU say of a case, where neither is at hand.

Memory and traffic of a compiled program need no device, only its compiler; nothing is run. What it
takes, all of jax's own version: jax[tpu], jax-cuda12-plugin, jax-cuda12-pjrt, and
nvidia-cuda-nvcc-cu12.
"""

from __future__ import annotations

import functools
import importlib
import os
from importlib import util
from typing import Any

import jax
from jax.experimental import topologies

from benchmarks.competitors import Stepped
from benchmarks.traffic import bytes_moved

NEEDS = {
    "H100": {
        "jax_cuda12_plugin": "jax-cuda12-plugin",
        "jax_plugins.xla_cuda12": "jax-cuda12-pjrt",
        "nvidia.cuda_nvcc": "nvidia-cuda-nvcc-cu12",
    },
    "TPU v5e": {"libtpu": "jax[tpu]"},
}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 device_memory_size: 84978434048 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 }
"""


def missing(target: str) -> list[str]:
    """The packages without which nothing can be compiled for it."""
    return [package for module, package in NEEDS[target].items() if not found(module)]


def found(module):
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


@functools.cache
def device(target: str) -> jax.Device:
    """A device that can be compiled for and does not exist."""
    settings = {
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # there is no CUDA to check
        "TPU_WORKER_HOSTNAMES": "localhost",  # else libtpu looks for its host
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process at once fails
        "TPU_LOG_DIR": "disabled",
    }
    os.environ |= {name: os.environ.get(name, value) for name, value in settings.items()}
    if target == "TPU v5e":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    h100 = lambda: topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1")
    try:
        return h100().devices[0]
    except NotImplementedError:  # JAX started before the settings above and left the plugin out
        importlib.import_module("jax_plugins.xla_cuda12").initialize()
        return h100().devices[0]


def facts(case, target: str) -> list[dict[str, Any]]:
    """A row for each competitor in JAX: exact memory, and a count of the traffic."""
    place = jax.sharding.SingleDeviceSharding(device(target))
    on_target = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place)
    shapes = jax.tree.map(on_target, jax.eval_shape(case.draw))
    fixed = {"case": case.name, "at": dict(case.at), "target": target}
    fixed["floor_bytes"] = case.floor_bytes
    rows = []
    for name, competitor in case.competitors.items():
        try:
            lowered = competitor.lower(shapes)
            if lowered is not None:
                program = lowered.compile()
                row = {**fixed, "competitor": name, **memory_and_traffic(program)}
                if isinstance(competitor, Stepped):
                    row["moved_bytes"] = bytes_moved(program.as_text())
                rows.append(row)
        except Exception as error:  # one program that does not compile leaves the others
            print(f"    {name}: {case.name} does not compile for {target}: {error}", flush=True)
    return rows


def memory_and_traffic(compiled):
    memory = compiled.memory_analysis()
    return {
        "temp_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "compiler_bytes": cost(compiled)["bytes accessed"],
    }


def cost(compiled) -> dict[str, float]:
    """XLA's count; it counts the body of a loop once, and a gather as a read of everything."""
    own = compiled.cost_analysis()
    if own is not None:
        return own
    from jax._src.lib import _jax  # here alone: what is private may move

    (module,) = compiled.runtime_executable().hlo_modules()  # the GPU's compiler counts nothing
    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
