"""Eight CPU devices and the strictest settings of JAX, for every test."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import pytest

# What one worker, or the run before, has compiled; pytest's --cache-clear forgets it.
COMPILED = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def subject(item):
    """What a test is about: the row of the catalogue if it has one, else its file."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    row = parameters.get("row", parameters.get("name"))
    return item.path.name, getattr(row, "loss", row) if item.path.name == "test_laws.py" else None


def pytest_collection_modifyitems(items):
    """All laws of one loss come together, so that they share what they compile."""
    order = {}
    for item in items:
        order.setdefault(str(subject(item)), len(order))
    items.sort(key=lambda item: order[str(subject(item))])


@pytest.fixture(autouse=True)
def forget_what_was_compiled_for_another_subject(request):
    """Compiled programs are kept for ever otherwise: gigabytes over the whole catalogue."""
    before = getattr(request.config, "subject", None)
    request.config.subject = subject(request.node)
    if before not in (None, request.config.subject):
        jax.clear_caches()
