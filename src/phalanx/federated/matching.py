"""Matching of neurons across networks by Beta-Bernoulli process maximum a posteriori inference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from phalanx.checks import (
    require_at_least,
    require_finite_above,
    require_finite_at_least,
    require_one_of,
)
from phalanx.randomness import generator

Array = NDArray[Any]
_FLOOR = 1e-10  # of an estimated variance


@dataclass(frozen=True)
class Matching:
    """How the neurons of several networks are matched: priors, sweeps and the estimator.

    Global neurons have a Gaussian prior, local ones are Gaussian about their global one, and who
    holds which follows a Beta-Bernoulli process. A large `variance` and a small `mass` merge
    neurons, a small `variance` and a large `mass` keep them apart.

    Source: Wang, Yurochkin, Sun, Papailiopoulos and Khazaeni, "Federated Learning with Matched
    Averaging", ICLR 2020, section 2; Yurochkin, Agarwal, Ghosh, Greenewald, Hoang and Khazaeni,
    "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019.
    """

    variance: float = 1.0
    """Variance of a weight of a local neuron about its global one."""
    prior_variance: float = 1.0
    """Variance of a weight of a global neuron about zero."""
    mass: float = 7.0
    """Mass of the process: how many neurons are new at each network (gamma)."""
    sweeps: int = 5
    """How often every network is taken out and matched again."""
    estimator: Literal["mean", "map"] = "mean"
    """What a global neuron is: the mean of its members, or the mode of its posterior, which shrinks
    those of few members towards zero."""
    popularity_scale: float = 2.0
    """Factor of the logarithm of a neuron's popularity: 2 in the papers, 1 in their code."""
    max_width: int | None = None
    """Global neurons that a layer may have; never fewer than its widest network has, so 1 merges
    networks of one shape without growth."""
    hyper: Literal["fixed", "empirical"] = "fixed"
    """Whether the prior's mean and both variances are estimated anew after each sweep, with the
    determinants of the Gaussians in the benefit."""

    def __post_init__(self) -> None:
        require_finite_above(0, variance=self.variance, prior_variance=self.prior_variance)
        require_finite_above(0, mass=self.mass)
        require_at_least(0, sweeps=self.sweeps)
        require_finite_at_least(0, popularity_scale=self.popularity_scale)
        require_at_least(1, max_width=self.max_width)
        require_one_of(("mean", "map"), estimator=self.estimator)
        require_one_of(("fixed", "empirical"), hyper=self.hyper)


class MatchResult(NamedTuple):
    """Global neurons of a layer, and which of them each local one is.

    Attributes:
        assignments: per network `(units,)` int64: the global neuron of each of its own.
        atoms: `(width, features)` the global neurons, in the dtype of the local ones.
        counts: `(width,)` int64: how many networks hold each.
        objective: the log-posterior up to a constant, after the first pass and after each visit.
    """

    assignments: tuple[Int[Tensor, " _"], ...]
    atoms: Float[Tensor, "width features"]
    counts: Int[Tensor, " width"]
    objective: tuple[float, ...]


def match_layer(
    atoms: Sequence[Float[Tensor, "_ _"]],
    matching: Matching = Matching(),
    *,
    seed: int = 0,
) -> MatchResult:
    """Matches the neurons of a layer of several networks, of equal or different widths.

    The widest network gives the first global neurons; the others are matched one by one, then
    networks drawn at random are taken out and matched again. A visit solves an assignment problem;
    one that would lower the objective as a whole is undone, so the objective never decreases while
    variances are fixed.

    Cost: a visit takes one product `(units, features) x (features, width)` in float64 and
    O(units^2 width) for the assignment; there are `networks x (sweeps + 1)` visits.
    Source: see `Matching`.

    >>> import torch
    >>> first = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    >>> found = match_layer([first, first.flip(0)])
    >>> [one.tolist() for one in found.assignments], found.counts.tolist()
    ([[0, 1], [1, 0]], [2, 2])

    Args:
        atoms: per network a row for each neuron, of one number of features.
        matching: priors, sweeps and estimator.
        seed: of the order of the visits.

    Raises:
        ValueError: if there is no network, one has no neuron, features differ, or one is not
            finite.
    """
    _check(atoms)
    state = _Globals(atoms, matching)
    objective = []
    if len(atoms) > 1:
        source = generator(seed, "matching")
        objective.append(state.objective())
        for _ in range(matching.sweeps):
            for network in torch.randperm(len(atoms), generator=source).tolist():
                objective.append(state.visit(network, objective[-1]))
            if matching.hyper == "empirical":
                state.prior = state.estimated_prior()
                objective.append(state.objective())
    merged = state.merged() if matching.estimator == "map" else state.means()
    return MatchResult(
        tuple(torch.from_numpy(one) for one in state.assignments),
        torch.from_numpy(merged).to(atoms[0]),
        torch.from_numpy(state.counts),
        tuple(objective),
    )


@dataclass(frozen=True)
class Prior:
    """Means and precisions of the Gaussians, and what surrounds them in the benefit."""

    mean: Array | float
    """Mean of a global neuron, `(features,)` or of all features."""
    precision: float
    """One by the variance of a global neuron (s0)."""
    local_precision: float
    """One by the variance of a local neuron (s)."""
    matching: Matching
    """The rest."""

    @property
    def determinants(self) -> bool:
        """Whether determinants count."""
        return self.matching.hyper == "empirical"


def benefit(
    rows: Array, sums: Array, counts: Array, num_networks: int, num_new: int, prior: Prior
) -> Array:
    """What each assignment of a local neuron adds to the objective, `(units, width + num_new)`.

    With `b = s v` of a neuron v, `G = s0 mu0 + s sum(members)` and `S = s0 + s m` of a global one
    of m members, an entry is `|b + G|^2 / (S + s) - |G|^2 / S + 2 log(m / (J - m))`; of the q-th
    new one `|b + s0 mu0|^2 / (s0 + s) - |s0 mu0|^2 / s0 - 2 log q + 2 log(mass / J)`. Expanding the
    squares leaves one matrix product.

    Args:
        rows: `(units, features)` neurons of the network that is matched.
        sums: `(width, features)` sums of the members of each global neuron, without it.
        counts: `(width,)` how many they are.
        num_networks: J, all of them.
        num_new: how many new global neurons there may be.
        prior: means, precisions and scales.
    """
    s, features = prior.local_precision, rows.shape[1]
    b = s * rows
    squares = np.einsum("lf,lf->l", b, b)[:, None]
    old = _gaussian(b, squares, prior.precision * prior.mean + s * sums, counts, prior)
    with np.errstate(divide="ignore"):
        popularity = np.log(counts / (num_networks - counts))
    old += prior.matching.popularity_scale * popularity
    origin = np.broadcast_to(prior.precision * prior.mean, (1, features))
    new = _gaussian(b, squares, origin, np.zeros(1), prior)
    new = new - 2 * np.log(np.arange(1, num_new + 1))
    new += 2 * np.log(prior.matching.mass / num_networks)
    return np.concatenate([old, new], axis=1)


def _gaussian(b: Array, squares: Array, G: Array, counts: Array, prior: Prior) -> Array:
    """Change of the Gaussian part by one member more."""
    before = prior.precision + prior.local_precision * counts
    after = before + prior.local_precision
    own = np.einsum("if,if->i", G, G)
    gain: Array = (squares + 2 * (b @ G.T) + own) / after - own / before
    return gain + b.shape[1] * np.log(before / after) if prior.determinants else gain


class _Globals:
    """The global neurons while networks are matched."""

    def __init__(self, atoms: Sequence[Tensor], matching: Matching) -> None:
        self.rows = [one.detach().cpu().double().numpy() for one in atoms]
        widest = max(map(len, self.rows))
        self.limit = None if matching.max_width is None else max(matching.max_width, widest)
        self.prior = Prior(0.0, 1 / matching.prior_variance, 1 / matching.variance, matching)
        self.sums = np.zeros((0, self.rows[0].shape[1]))
        self.counts = np.zeros(0, dtype=np.int64)
        self.assignments = [np.zeros(0, dtype=np.int64)] * len(self.rows)
        first, *others = sorted(range(len(self.rows)), key=lambda one: -len(self.rows[one]))
        self._place(first, np.arange(widest))
        for network in others:
            self._match(network)

    def visit(self, network: int, objective: float) -> float:
        """Takes a network out and matches it again; the objective afterwards."""
        before = self.sums, self.counts, list(self.assignments)
        self._remove(network)
        self._match(network)
        found = self.objective()
        # Joining what one other network alone holds changes that network's number of own neurons,
        # which the benefit does not see: the paper's step may lower the objective it is derived
        # from, though it rarely does.
        if found < objective:
            self.sums, self.counts, self.assignments = before
            return objective
        return found

    def _match(self, network: int) -> None:
        rows, width = self.rows[network], len(self.counts)
        new = len(rows) if self.limit is None else min(len(rows), self.limit - width)
        gains = benefit(rows, self.sums, self.counts, len(self.rows), new, self.prior)
        from scipy.optimize import linear_sum_assignment  # `phalanx --help` need not wait for it

        chosen = linear_sum_assignment(gains, maximize=True)[1]
        added = chosen >= width
        chosen[added] = width + np.argsort(np.argsort(chosen[added]))  # without gaps
        self._place(network, chosen)

    def _place(self, network: int, chosen: Array) -> None:
        grown = max(len(self.counts), int(chosen.max()) + 1) - len(self.counts)
        self.sums = np.pad(self.sums, ((0, grown), (0, 0)))
        self.counts = np.pad(self.counts, (0, grown))
        self.sums[chosen] += self.rows[network]
        self.counts[chosen] += 1
        self.assignments[network] = chosen.astype(np.int64)

    def _remove(self, network: int) -> None:
        """Takes a network out; global neurons without members go, and the rest moves up."""
        mine = self.assignments[network]
        sums, counts = self.sums.copy(), self.counts.copy()
        sums[mine] -= self.rows[network]
        counts[mine] -= 1
        kept = counts > 0
        self.sums, self.counts, place = sums[kept], counts[kept], np.cumsum(kept) - 1
        self.assignments = [
            one[:0] if other == network else place[one]
            for other, one in enumerate(self.assignments)
        ]

    def objective(self) -> float:
        """Log-posterior, times two and up to a constant."""
        prior, networks = self.prior, len(self.rows)
        G, precisions = self._posterior()
        features, origin = G.shape[1], np.broadcast_to(prior.mean, G.shape[1:])
        value = (np.einsum("if,if->i", G, G) / precisions).sum()
        value -= len(G) * prior.precision * (origin**2).sum()
        if prior.determinants:
            value += features * np.log(prior.precision / precisions).sum()
        steps = np.arange(1, networks)
        climbed = np.concatenate([[0.0], np.log(steps / (networks - steps)).cumsum()])
        value += prior.matching.popularity_scale * climbed[self.counts - 1].sum()
        value += 2 * len(G) * np.log(prior.matching.mass / networks)
        alone = [(self.counts[one] == 1).sum() for one in self.assignments]
        return float(value - 2 * sum(math.lgamma(one + 1) for one in alone))

    def _posterior(self) -> tuple[Array, Array]:
        prior = self.prior
        G = prior.precision * prior.mean + prior.local_precision * self.sums
        return G, prior.precision + prior.local_precision * self.counts

    def means(self) -> Array:
        """The mean of the members, summed afresh."""
        total = np.zeros_like(self.sums)
        for rows, chosen in zip(self.rows, self.assignments, strict=True):
            total[chosen] += rows
        return total / self.counts[:, None]

    def merged(self) -> Array:
        """The mode of the posterior of each global neuron."""
        G, precisions = self._posterior()
        merged: Array = G / precisions[:, None]
        return merged

    def estimated_prior(self) -> Prior:
        """Mean and variances by moments, over all features."""
        means, (width, features) = self.means(), self.sums.shape
        spread = 0.0
        for rows, chosen in zip(self.rows, self.assignments, strict=True):
            spread += ((rows - means[chosen]) ** 2).sum()
        free = max(sum(map(len, self.rows)) - width, 1)
        local = max(spread / (free * features), _FLOOR)
        variance = means.var(axis=0).mean() - local * (1 / self.counts).sum() / width
        return replace(
            self.prior,
            mean=means.mean(axis=0),
            precision=1 / max(variance, _FLOOR),
            local_precision=1 / local,
        )


def _check(atoms: Sequence[Tensor]) -> None:
    if not atoms:
        raise ValueError("atoms must be those of at least 1 network, got none")
    shapes = [tuple(one.shape) for one in atoms]
    if any(len(shape) != 2 or shape[0] < 1 for shape in shapes) or len({s[1] for s in shapes}) > 1:
        raise ValueError(
            "atoms must be (units, features) with at least 1 unit and as many features in all "
            f"networks, got {shapes}"
        )
    if wrong := [number for number, one in enumerate(atoms) if not one.isfinite().all()]:
        raise ValueError(f"atoms must be finite, got NaN or Inf from networks {wrong}")
