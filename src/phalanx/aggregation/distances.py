"""A rule's weights from pairwise distances alone, where nobody may see the messages."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from phalanx.aggregation.aggregate import Aggregate
from phalanx.aggregation.base import Aggregator, State
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.mixtures import Mixtures
from phalanx.errors import MoreThanDistancesError


def weigh_distances(
    rule: Aggregator,
    squared_distances: Float[Tensor, "present present"],
    num_byzantine: int,
    state: State,
    present: Bool[Tensor, " workers"] | None = None,
) -> tuple[Aggregate, State]:
    """One round of a rule that is told how far the messages lie apart, and nothing else.

    Args:
        rule: one that `needs_distances_only`, pipelines included.
        squared_distances: of every pair of messages that are there, float64.
        num_byzantine: how many of these messages may still be Byzantine.
        state: what the rule remembers: what `rule.init(0)` or the round before gave.
        present: whose messages these are, in order; as many workers as messages if not given.

    Returns:
        Weights, scores and suspects of all workers, with a `value` of no coordinates, and the next
        state. Workers that are not present have no weight and count as dropped.

    Raises:
        ValueError: if the rule needs more than distances.

    Cost: that of the rule on an n x n matrix.

    >>> import torch
    >>> from phalanx.aggregation import MultiKrum, weigh_distances
    >>> places = torch.tensor([[1.0], [2.0], [3.0], [900.0]], dtype=torch.float64)
    >>> weigh_distances(MultiKrum(1), torch.cdist(places, places).square(), 1, ())[0].weights
    tensor([0.3333, 0.3333, 0.3333, 0.0000], dtype=torch.float64)
    """
    require_distances_only(rule)
    if present is None:
        present = torch.ones(len(squared_distances), dtype=torch.bool)
    mixtures = Mixtures(
        rows=torch.empty(len(present), 0, dtype=torch.float64),
        finite=present,
        mixing=torch.eye(len(present), dtype=torch.float64)[present],
        geometry=Geometry(_centred_gram(squared_distances)).in_its_own_unit(),
    )
    return rule._combine(mixtures, num_byzantine, state)


def require_distances_only(rule: Aggregator) -> None:
    """Raises a `MoreThanDistancesError`, a ValueError, if the rule needs more than distances."""
    if not rule.needs_distances_only:
        remedy = ""
        if getattr(rule, "start", None) == "last":
            remedy = "; start='medoid' begins at a message of the round instead"
        raise MoreThanDistancesError(
            "rule must weigh messages by their distances alone (not by coordinates, and not from "
            f"an origin or a remembered centre), got {rule}{remedy}"
        )


def _centred_gram(squared: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    """The Gram matrix of the rows less the one with the nearest company.

    No minority far away can become the centre, so distances do not drown in rounding.
    """
    if not len(squared):
        return squared
    centre = squared.sort(dim=1).values[:, len(squared) // 2].argmin()
    return (squared[centre][:, None] + squared[centre][None, :] - squared) / 2
