"""Optimizers as optax transformations, with optax's names and states, right in low precision.

All arithmetic is in float32 or wider and rounded once, when the update is done: bfloat16 and
float16 parameters have float32 moments, bias corrections do not cancel, updates come in the
parameters' dtype, and a state keeps its dtypes for ever (it may be carried by `jax.lax.scan`).
The states are optax's own classes, so an optax checkpoint of float32 parameters goes on here.
Around any optax transformation go `bf16_params` (parameters in bfloat16), `encode_state` (moments
in two bytes or one), `guard` (clipping, bad steps, loss scales) and `state_shardings`; `schedules`
has schedules that trace.
"""

from __future__ import annotations

from jloss.optimizers import schedules as schedules
from jloss.optimizers.adam import adam as adam
from jloss.optimizers.adam import adamw as adamw
from jloss.optimizers.bf16_parameters import bf16_params as bf16_params
from jloss.optimizers.codecs import bf16 as bf16
from jloss.optimizers.codecs import encode_state as encode_state
from jloss.optimizers.codecs import f32 as f32
from jloss.optimizers.codecs import int8 as int8
from jloss.optimizers.rmsprop import rmsprop as rmsprop
from jloss.optimizers.safety import DynamicLossScale as DynamicLossScale
from jloss.optimizers.safety import guard as guard
from jloss.optimizers.sgd import momentum as momentum
from jloss.optimizers.sgd import sgd as sgd
from jloss.optimizers.sharding import state_shardings as state_shardings
