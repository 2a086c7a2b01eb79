"""Per-sample gradients reduced to votes on their largest values, as in DP-TopAgg."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from phalanx.checks import require_one_of, require_share
from phalanx.computations.per_sample import PerSampleGradient
from phalanx.privacy.top_agg import Quantise, top_k_votes


@dataclass(frozen=True)
class TopAggGradient(PerSampleGradient):
    """Mean of the samples' top-k votes, each of Euclidean norm 1: compression in place of clipping.

    `1/b sum_i v(g_i) / sqrt(k)`, with the k largest values of every sample's gradient as signs, as
    stochastic signs, or as they are but for their norm; see `top_k_votes`. Adding or removing a
    sample moves the sum by at most 1, so that noise and accounting are those of DP-SGD. Which k is
    chosen for every sample by itself: a choice for the whole batch would leak.

    Cost: that of `ClippedGradient`, and a sort of every sample's gradient.
    Source: Wang, Wu, Long, Rimanic, Zhang and Li, "DataLens: Scalable Privacy Preserving Training
    via Gradient Compression and Aggregation", CCS 2021 (section on DP-SGD).

    >>> import torch
    >>> from phalanx.computations import Broadcast, Objective, Samples, TopAggGradient
    >>> objective = Objective(torch.nn.Linear(2, 1, bias=False), torch.nn.functional.mse_loss)
    >>> samples = Samples(torch.tensor([[9.0, 0.1]]), torch.zeros(1, 1))
    >>> votes = TopAggGradient(share=0.5)
    >>> votes.compute(objective, Broadcast(torch.tensor([1.0, 1.0])), samples, (), None).update
    tensor([1., 0.])
    """

    share: float = 0.01
    """Share of a gradient's values that are voted on (k over the number of parameters)."""

    quantise: Quantise = "sign"
    """Whether votes are `sign`, `stochastic` signs, or `values` scaled to the norm of signs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(share=self.share)
        require_one_of(("sign", "stochastic", "values"), quantise=self.quantise)

    @property
    def influence(self) -> float:
        """1, whatever the share."""
        return 1.0

    def bounded(
        self, gradients: Float[Tensor, "samples dim"], generator: torch.Generator | None
    ) -> Float[Tensor, " dim"]:
        """The sum of the votes, over the root of how many each sample has."""
        k = max(1, round(self.share * gradients.shape[1]))
        votes = top_k_votes(gradients, k, self.quantise, generator=generator)
        return votes.sum(dim=0).div(k**0.5)
