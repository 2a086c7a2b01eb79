"""Result of a rule: the aggregate, and a verdict on every worker."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_TIE = 1e-6  # relative difference of scores that rounding may make


class Aggregate(NamedTuple):
    """The aggregate, and a verdict on every worker.

    Attributes:
        value: the aggregate, `(dim,)`, in the dtype and on the device of the messages.
        weights: `(workers,)` float64 with `value = weights @ messages`, or None where the rule is
            coordinate-wise and no such weights exist. They sum to one, unless something pulls
            towards the origin (clipping) or towards a remembered centre (centred clipping), to
            which the rest then belongs.
        scores: `(workers,)` float64; higher is more suspicious; infinite for dropped workers.
        dropped: `(workers,)` bool; the messages that never entered arithmetic (not finite).
        suspects: `(workers,)` bool; the dropped workers, and the outliers: those that the rule left
            out, or finds far from its aggregate. That is suspicion, no proof: a rule that leaves
            out f messages of n leaves out honest ones whenever fewer are Byzantine. Of messages
            that tie, the ones left out are no outliers, so nobody is where all are equal.

    A worker whose sample weight is 0 is not judged: its score is 0, and it is neither dropped nor a
    suspect.

    `value` lies on the device of the messages, the rest in main memory.
    """

    value: Float[Tensor, " dim"]
    weights: Float[Tensor, " workers"] | None
    scores: Float[Tensor, " workers"]
    dropped: Bool[Tensor, " workers"]
    suspects: Bool[Tensor, " workers"]

    def only(self, present: Bool[Tensor, " workers"]) -> "Aggregate":
        """The answer without a verdict on the workers that are not `present`."""
        return self._replace(
            scores=self.scores.where(present, 0.0),
            dropped=self.dropped & present,
            suspects=self.suspects & present,
        )


def left_out(
    kept: Bool[Tensor, " workers"], scores: Float[Tensor, " workers"]
) -> Bool[Tensor, " workers"]:
    """Who is not kept, and not tied with anybody who is: ties are broken by id, which is no ground.

    Equal messages have equal scores, up to rounding.
    """
    tied = torch.isclose(scores[:, None], scores[kept][None, :], rtol=_TIE, atol=0.0).any(dim=1)
    return ~kept & ~tied


def far_out(distances: Float[Tensor, " workers"]) -> Bool[Tensor, " workers"]:
    """Who is more than three times as far from the aggregate as the median worker.

    A heuristic: it names crude attackers, misses those that hide within the honest spread, and may
    name honest workers whose data differ a lot. Nothing is computed from it.
    """
    return distances > 3.0 * distances.sort().values[len(distances) // 2]
