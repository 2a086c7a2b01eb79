"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.accordion import AccordionRecipe
from phalanx.reproduce.activation_compression import ActivationCompression
from phalanx.reproduce.atomo import AtomoRecipe
from phalanx.reproduce.base import Claim, Findings, Recipe, Scope
from phalanx.reproduce.coded_computation import CodedComputation
from phalanx.reproduce.coded_shuffling import CodedShuffling
from phalanx.reproduce.detox import Detox
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.edge_case_backdoors import EdgeCaseBackdoors
from phalanx.reproduce.erasure_head import ErasureHeads
from phalanx.reproduce.fed_df import FedDFRecipe
from phalanx.reproduce.fedma import FedMARecipe
from phalanx.reproduce.large_batch_width import LargeBatchWidth
from phalanx.reproduce.learning_from_history import LearningFromHistory
from phalanx.reproduce.mime import MimeRecipe
from phalanx.reproduce.power_gossip import PowerGossipRecipe
from phalanx.reproduce.power_sgd import PowerSGDRecipe
from phalanx.reproduce.random_block import RandomBlocks
from phalanx.reproduce.resampling import ResamplingAndBucketing
from phalanx.reproduce.run import recipes, reproduce, reproduce_all
from phalanx.reproduce.secure_aggregation import SecureAggregationRecipe
from phalanx.reproduce.stochastic_block_code import StochasticBlockCodes
from phalanx.reproduce.top_agg import TopAggRecipe

__all__ = [
    "AccordionRecipe",
    "ActivationCompression",
    "AtomoRecipe",
    "Claim",
    "CodedComputation",
    "CodedShuffling",
    "Detox",
    "Draco",
    "EdgeCaseBackdoors",
    "ErasureHeads",
    "FedDFRecipe",
    "FedMARecipe",
    "Findings",
    "LargeBatchWidth",
    "LearningFromHistory",
    "MimeRecipe",
    "PowerGossipRecipe",
    "PowerSGDRecipe",
    "RandomBlocks",
    "Recipe",
    "ResamplingAndBucketing",
    "Scope",
    "SecureAggregationRecipe",
    "StochasticBlockCodes",
    "TopAggRecipe",
    "recipes",
    "reproduce",
    "reproduce_all",
]
