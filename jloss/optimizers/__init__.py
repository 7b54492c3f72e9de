"""Optimizers as optax transformations, with optax's names and states, right in low precision.

All arithmetic is in float32 or wider and rounded once, when the update is done: bfloat16 and
float16 parameters have float32 moments, bias corrections do not cancel, updates come in the
parameters' dtype, and a state keeps its dtypes for ever (it may be carried by `jax.lax.scan`).
The states are optax's own classes, so an optax checkpoint of float32 parameters goes on here.
"""

from __future__ import annotations

from jloss.optimizers import schedules as schedules
from jloss.optimizers.adam import adam as adam
from jloss.optimizers.adam import adamw as adamw
from jloss.optimizers.rmsprop import rmsprop as rmsprop
from jloss.optimizers.sgd import momentum as momentum
from jloss.optimizers.sgd import sgd as sgd
