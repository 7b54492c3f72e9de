"""What models are judged by: counts that add up over batches and devices, and their ratios."""

from __future__ import annotations

from jloss.metrics.classification import ClassificationCounts as ClassificationCounts
from jloss.metrics.classification import accuracy as accuracy
from jloss.metrics.classification import classification_counts as classification_counts
from jloss.metrics.classification import confusion_matrix as confusion_matrix
from jloss.metrics.classification import f1_score as f1_score
from jloss.metrics.classification import fbeta_score as fbeta_score
from jloss.metrics.classification import precision as precision
from jloss.metrics.classification import recall as recall
from jloss.metrics.classification import top_k_accuracy as top_k_accuracy
from jloss.metrics.sequence import edit_distance as edit_distance
