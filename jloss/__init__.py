"""Loss functions and gradient transforms for JAX: see the README for a tour."""

from jloss import metrics as metrics
from jloss import training as training
from jloss._core.checks import checked as checked
from jloss.fused.chunks import chunked as chunked
from jloss.fused.distillation import LinearTeacher as LinearTeacher
from jloss.fused.distillation import TopKTeacher as TopKTeacher
from jloss.fused.distillation import (
    linear_jensen_shannon_divergence as linear_jensen_shannon_divergence,
)
from jloss.fused.distillation import linear_kl_divergence as linear_kl_divergence
from jloss.fused.linear import linear_log_probs as linear_log_probs
from jloss.fused.linear import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from jloss.fused.linear import linear_token_log_probs as linear_token_log_probs
from jloss.losses.binary import binary_cross_entropy as binary_cross_entropy
from jloss.losses.binary import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from jloss.losses.binary import sigmoid_focal_loss as sigmoid_focal_loss
from jloss.losses.classification import categorical_cross_entropy as categorical_cross_entropy
from jloss.losses.classification import nll_loss as nll_loss
from jloss.losses.classification import poly_loss_cross_entropy as poly_loss_cross_entropy
from jloss.losses.classification import safe_softmax_cross_entropy as safe_softmax_cross_entropy
from jloss.losses.classification import smooth_labels as smooth_labels
from jloss.losses.classification import softmax_cross_entropy as softmax_cross_entropy
from jloss.losses.classification import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from jloss.losses.classification import softmax_focal_loss as softmax_focal_loss
from jloss.losses.crf import crf_decode as crf_decode
from jloss.losses.crf import crf_log_likelihood as crf_log_likelihood
from jloss.losses.ctc import ctc_alignment as ctc_alignment
from jloss.losses.ctc import ctc_greedy_decode as ctc_greedy_decode
from jloss.losses.ctc import ctc_loss as ctc_loss
from jloss.losses.ctc import ctc_loss_with_forward_probs as ctc_loss_with_forward_probs
from jloss.losses.divergence import gaussian_kl_divergence as gaussian_kl_divergence
from jloss.losses.divergence import generalized_kl_divergence as generalized_kl_divergence
from jloss.losses.divergence import jensen_shannon_divergence as jensen_shannon_divergence
from jloss.losses.divergence import kl_divergence as kl_divergence
from jloss.losses.divergence import kl_divergence_with_log_targets as kl_divergence_with_log_targets
from jloss.losses.divergence import total_variation_distance as total_variation_distance
from jloss.losses.imbalance import asymmetric_loss as asymmetric_loss
from jloss.losses.imbalance import class_balanced_weights as class_balanced_weights
from jloss.losses.imbalance import ldam_loss as ldam_loss
from jloss.losses.imbalance import logit_adjusted_cross_entropy as logit_adjusted_cross_entropy
from jloss.losses.margin import hinge_loss as hinge_loss
from jloss.losses.margin import make_fenchel_young_loss as make_fenchel_young_loss
from jloss.losses.margin import multiclass_hinge_loss as multiclass_hinge_loss
from jloss.losses.margin import multiclass_perceptron_loss as multiclass_perceptron_loss
from jloss.losses.margin import multiclass_sparsemax_loss as multiclass_sparsemax_loss
from jloss.losses.margin import perceptron_loss as perceptron_loss
from jloss.losses.margin import sparsemax_loss as sparsemax_loss
from jloss.losses.margin import squared_hinge_loss as squared_hinge_loss
from jloss.losses.noisy_labels import generalized_cross_entropy as generalized_cross_entropy
from jloss.losses.noisy_labels import symmetric_cross_entropy as symmetric_cross_entropy
from jloss.losses.probabilistic import gamma_deviance as gamma_deviance
from jloss.losses.probabilistic import gaussian_nll_loss as gaussian_nll_loss
from jloss.losses.probabilistic import poisson_nll_loss as poisson_nll_loss
from jloss.losses.probabilistic import tweedie_deviance as tweedie_deviance
from jloss.losses.quantile import expectile_loss as expectile_loss
from jloss.losses.quantile import quantile_huber_loss as quantile_huber_loss
from jloss.losses.quantile import quantile_loss as quantile_loss
from jloss.losses.regression import absolute_error as absolute_error
from jloss.losses.regression import absolute_percentage_error as absolute_percentage_error
from jloss.losses.regression import epsilon_insensitive_loss as epsilon_insensitive_loss
from jloss.losses.regression import general_robust_loss as general_robust_loss
from jloss.losses.regression import huber_loss as huber_loss
from jloss.losses.regression import l2_loss as l2_loss
from jloss.losses.regression import log_cosh as log_cosh
from jloss.losses.regression import smooth_l1_loss as smooth_l1_loss
from jloss.losses.regression import squared_error as squared_error
from jloss.losses.regression import squared_log_error as squared_log_error
from jloss.losses.regularization import confidence_penalty as confidence_penalty
from jloss.losses.regularization import elastic_net_regularization as elastic_net_regularization
from jloss.losses.regularization import l1_regularization as l1_regularization
from jloss.losses.regularization import l2_regularization as l2_regularization
from jloss.losses.regularization import z_loss as z_loss
from jloss.losses.similarity import cosine_distance as cosine_distance
from jloss.losses.similarity import cosine_similarity as cosine_similarity
from jloss.losses.transducer import rnnt_alignment as rnnt_alignment
from jloss.losses.transducer import rnnt_loss as rnnt_loss
from jloss.losses.transducer import rnnt_loss_from_joint as rnnt_loss_from_joint
from jloss.losses.transducer import rnnt_pruned_loss as rnnt_pruned_loss
from jloss.losses.transducer import rnnt_pruning_ranges as rnnt_pruning_ranges
from jloss.losses.transducer import rnnt_simple_loss as rnnt_simple_loss
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
