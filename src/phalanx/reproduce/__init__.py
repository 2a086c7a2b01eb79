"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.base import Finding, Findings, Plot, Recipe, Table
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.erasure_head import ErasureHeads
from phalanx.reproduce.run import recipes, reproduce
from phalanx.reproduce.stochastic_block_code import StochasticBlockCodes

__all__ = [
    "Draco",
    "ErasureHeads",
    "Finding",
    "Findings",
    "Plot",
    "Recipe",
    "StochasticBlockCodes",
    "Table",
    "recipes",
    "reproduce",
]
