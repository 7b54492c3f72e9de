"""What the tests of several optimizers ask for."""

import jax
import pytest


@pytest.fixture
def standard_promotion():
    """`optax.apply_updates` adds float32 to bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield
