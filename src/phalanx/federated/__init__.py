"""Federated learning: many clients with data of their own, some of which take part in a round."""

from phalanx.federated.matching import Matching, MatchResult, match_layer

__all__ = ["MatchResult", "Matching", "match_layer"]
