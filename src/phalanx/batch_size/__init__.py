"""Batch size: gradient diversity, and adaptive batch sizes."""

from phalanx.batch_size.accordion_batch import (
    AccordionBatch,
    AccordionBatchSampler,
    BatchState,
    suggest_batch,
)
from phalanx.batch_size.diversity_monitor import DiversityMonitor, Spread, squared_norm
from phalanx.batch_size.gradient_diversity import GradientDiversity, gradient_diversity
from phalanx.batch_size.largest_batch import (
    BatchTrial,
    LargestBatch,
    epochs_to_accuracy,
    largest_batch,
)

__all__ = [
    "AccordionBatch",
    "AccordionBatchSampler",
    "BatchState",
    "BatchTrial",
    "DiversityMonitor",
    "GradientDiversity",
    "LargestBatch",
    "Spread",
    "epochs_to_accuracy",
    "gradient_diversity",
    "largest_batch",
    "squared_norm",
    "suggest_batch",
]
