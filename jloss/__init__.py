"""Loss functions and gradient transforms for JAX: see the README for a tour."""

from jloss import metrics as metrics
from jloss import training as training
from jloss._core.checks import checked as checked
from jloss.losses.binary import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from jloss.losses.binary import sigmoid_focal_loss as sigmoid_focal_loss
from jloss.losses.classification import softmax_cross_entropy as softmax_cross_entropy
from jloss.losses.classification import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from jloss.losses.divergence import kl_divergence as kl_divergence
from jloss.losses.regression import absolute_error as absolute_error
from jloss.losses.regression import huber_loss as huber_loss
from jloss.losses.regression import l2_loss as l2_loss
from jloss.losses.regression import log_cosh as log_cosh
from jloss.losses.regression import squared_error as squared_error
from jloss.losses.regularization import elastic_net_regularization as elastic_net_regularization
from jloss.losses.regularization import l1_regularization as l1_regularization
from jloss.losses.regularization import l2_regularization as l2_regularization
from jloss.losses.regularization import z_loss as z_loss
from jloss.losses.similarity import cosine_distance as cosine_distance
from jloss.losses.similarity import cosine_similarity as cosine_similarity
from jloss.optimizers.adam import adam as adam
from jloss.optimizers.adam import adamw as adamw
from jloss.optimizers.rmsprop import rmsprop as rmsprop
from jloss.optimizers.sgd import momentum as momentum
from jloss.optimizers.sgd import sgd as sgd
from jloss.reduction import Reduction as Reduction
from jloss.reduction import Tally as Tally
from jloss.reduction import each as each
from jloss.reduction import mean as mean
from jloss.reduction import sum as sum
from jloss.reduction import tally as tally

__version__ = "0.1.0"
