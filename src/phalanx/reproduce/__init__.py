"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.accordion import AccordionRecipe
from phalanx.reproduce.base import Claim, Findings, Recipe, Scope
from phalanx.reproduce.coded_computation import CodedComputation
from phalanx.reproduce.coded_shuffling import CodedShuffling
from phalanx.reproduce.detox import Detox
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.erasure_head import ErasureHeads
from phalanx.reproduce.large_batch_width import LargeBatchWidth
from phalanx.reproduce.learning_from_history import LearningFromHistory
from phalanx.reproduce.resampling import ResamplingAndBucketing
from phalanx.reproduce.run import recipes, reproduce
from phalanx.reproduce.secure_aggregation import SecureAggregationRecipe
from phalanx.reproduce.stochastic_block_code import StochasticBlockCodes

__all__ = [
    "AccordionRecipe",
    "Claim",
    "CodedComputation",
    "CodedShuffling",
    "Detox",
    "Draco",
    "ErasureHeads",
    "Findings",
    "LargeBatchWidth",
    "LearningFromHistory",
    "Recipe",
    "ResamplingAndBucketing",
    "Scope",
    "SecureAggregationRecipe",
    "StochasticBlockCodes",
    "recipes",
    "reproduce",
]
