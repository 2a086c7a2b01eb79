"""Centered clipping."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from phalanx.aggregation.aggregate import far_out
from phalanx.aggregation.base import State
from phalanx.aggregation.geometry_rule import GeometryRule, Verdict
from phalanx.aggregation.gram import Geometry
from phalanx.aggregation.weights import weighted_median
from phalanx.checks import require_above, require_at_least, require_one_of

Start = Literal["last", "medoid"]


@dataclass(frozen=True)
class CenteredClipping(GeometryRule):
    """Centered clipping: moves the last aggregate by the mean of the clipped offsets from it.

    `v <- v + 1 / n sum_i (x_i - v) min(1, tau / ||x_i - v||)`, from the last aggregate v.

    Remembers: the last aggregate, zero at first, through `init` and `update`; calling the rule is
    its first round. Meant for workers that send momentum, which varies little between rounds.
    With `start="medoid"` it remembers nothing, and starts from a message of the round itself, so
    that distances between messages are all it needs: for secure aggregation.

    Guarantee: an iteration moves by at most the radius, and a Byzantine worker moves it by at most
    radius / n. With an infinite radius it is the mean. The medoid is a message within r of more
    than half of the others for the smallest such r: while fewer than half are Byzantine it is no
    farther from any honest message than twice the diameter of these, whoever sent it.
    Scores: the distance of a message to the aggregate. Suspects, a heuristic: three times as far
    as the median message.
    Cost: two passes, whatever the number of iterations: n^2 d multiply-adds for the Gram matrix of
    the messages and the centre, n d for the weighted sum.
    Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization",
    ICML 2021, section 4. The automatic radius and the medoid are not from there.

    >>> import torch
    >>> from phalanx.aggregation import CenteredClipping
    >>> rule = CenteredClipping(radius=3.0)
    >>> state = rule.init(2)
    >>> for _ in range(2):
    ...     answer, state = rule.update(torch.tensor([[3.0, 0.0], [0.0, 3.0], [900.0, 0.0]]), state)
    >>> answer.value
    tensor([2.6667, 1.3322])
    """

    uses_sample_weights: ClassVar[bool] = True

    radius: float | None = None
    """How far a single message may pull (tau); None: the median distance to the messages."""

    iterations: int = 1
    """Steps per round (L); they cost next to nothing."""

    num_byzantine: int | None = None
    """Byzantine workers tolerated (f); None: as many as are fewer than half."""

    start: Start = "last"
    """Where the first step of a round starts: at the `last` aggregate, as published, or at the
    `medoid`, the message that is nearest to most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_above(0, radius=self.radius)
        require_at_least(1, iterations=self.iterations)
        require_one_of(get_args(Start), start=self.start)

    def init(
        self, dim: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> State:
        """The centre of the first round: the origin; nothing if rounds start at the medoid."""
        if self.start == "medoid":
            return ()
        return (torch.zeros(dim, dtype=dtype, device=device),)

    def weigh(self, geometry: Geometry, num_byzantine: int) -> Verdict:
        """Weights by clipped steps from the last point of the geometry, which is the centre."""
        gram, norms = geometry.reached_gram(), geometry.gram.diagonal()
        samples, medoid = geometry.sample_weights, None
        if self.start == "medoid":
            near = weighted_median(geometry.squared_distances(), samples, beyond=True)
            medoid = int(near.argmin())
            points = torch.tensor([*range(len(gram)), medoid])
            gram, norms = gram[points][:, points], norms[points]
        place = torch.zeros_like(norms)
        place[-1] = 1.0
        distances = _distances(gram, norms, place)
        given = None if self.radius is None else self.radius / geometry.unit
        for _ in range(self.iterations):
            radius = weighted_median(distances, samples) if given is None else given
            factors = torch.where(distances <= radius, 1.0, radius / distances)
            shares = factors * samples / len(samples)
            place = place * (1 - shares.sum())
            place[:-1] += shares
            distances = _distances(gram, norms, place)
        weights = place[:-1]
        if medoid is not None:
            weights[medoid] += place[-1]
        return Verdict(weights, distances, far_out(distances))


def _distances(gram: torch.Tensor, norms: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """From the messages to the point with these weights; infinite if beyond float64."""
    pulls = gram @ place
    return (norms - 2 * pulls + place @ pulls).clamp(min=0)[:-1].sqrt()
