"""Papers' experiments run again: what each claims, and what is measured here."""

from phalanx.reproduce.base import Finding, Findings, Plot, Recipe, Table
from phalanx.reproduce.coded_computation import CodedComputation
from phalanx.reproduce.coded_shuffling import CodedShuffling
from phalanx.reproduce.draco import Draco
from phalanx.reproduce.run import recipes, reproduce

__all__ = [
    "CodedComputation",
    "CodedShuffling",
    "Draco",
    "Finding",
    "Findings",
    "Plot",
    "Recipe",
    "Table",
    "recipes",
    "reproduce",
]
