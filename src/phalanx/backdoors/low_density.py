"""Edge cases from the tail of the training data: samples of a class in regions of low density."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor

from phalanx.backdoors.edge_cases import EdgeCases, EdgeSet, divided, of_class
from phalanx.checks import require_at_least, require_one_of, require_share, require_strictly_between
from phalanx.data import DataSource

Density = Literal["gaussian mixture", "kernel"]
"""How density is estimated."""

_FITTED = 20_000  # training samples at most, from which the density is estimated


@dataclass(frozen=True)
class TailDensity:
    """Density of inputs under the training data, by principal components and a density estimate.

    An auditor's tool as well as an attacker's: `quantiles` says how far out in the tail a proposed
    set of edge cases lies.

    Cost: a principal component analysis, and a fit, on at most 20 000 samples.
    Source: Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020, section 3 and appendix (edge cases by a Gaussian mixture on features).
    """

    estimate: Density = "gaussian mixture"
    """A Gaussian mixture with full covariances, or a Gaussian kernel (Scott's bandwidth)."""

    num_components: int = 10
    """Gaussians of the mixture."""

    num_dimensions: int = 32
    """Principal components that are kept."""

    def __post_init__(self) -> None:
        require_one_of(("gaussian mixture", "kernel"), estimate=self.estimate)
        require_at_least(1, num_components=self.num_components, num_dimensions=self.num_dimensions)

    def log_density(self, train: Tensor, *others: Tensor) -> list[NDArray[np.float64]]:
        """Logarithms of the density of inputs or features, of each of `others`.

        Args:
            train: `(samples, ...)`, what the density is estimated from.
            others: what it is asked of, of the same shape but for their number.
        """
        known = _flat(train)
        known = known[:: -(-len(known) // _FITTED)]
        kept = min(self.num_dimensions, *known.shape)
        reduction = PCA(kept, whiten=True, random_state=0).fit(known)
        points = reduction.transform(known)
        if self.estimate == "kernel":
            fitted = KernelDensity(bandwidth="scott").fit(points)
        else:
            fitted = GaussianMixture(
                min(self.num_components, len(points)), reg_covar=1e-3, random_state=0
            ).fit(points)
        return [fitted.score_samples(reduction.transform(_flat(one))) for one in others]

    def quantiles(self, train: Tensor, typical: Tensor, asked: Tensor) -> Tensor:
        """The share of `typical` inputs, such as a test set, that are rarer than each of `asked`.

        Near 0 for edge cases; uniform over (0, 1) for inputs that are like the typical ones.
        """
        common, rare = self.log_density(train, typical, asked)
        return torch.from_numpy(np.searchsorted(np.sort(common), rare) / len(common))


@dataclass(frozen=True)
class LowDensity(EdgeCases):
    """Edge cases out of the training data: the samples of a class of the lowest density.

    They exist for every data set. They are taken from the training data: honest clients hold those
    only that `honest_share` of a drill gives back.

    Source: as `TailDensity`.

    >>> from phalanx.backdoors import LowDensity
    >>> from phalanx.data import Digits
    >>> edge = LowDensity(true_label=7, target=1, tail=0.2).load(Digits())
    >>> len(edge.train), len(edge.test)
    (19, 10)
    """

    true_label: int = 7
    """The class from which they are taken."""

    target: int = 1
    """The class that the attacker wants."""

    tail: float = 0.05
    """Share of the samples of the class that is taken, the ones of the lowest density."""

    test_fraction: float = 1 / 3
    """Share of them that is held out to test by."""

    density: TailDensity = TailDensity()
    """How density is estimated."""

    def __post_init__(self) -> None:
        require_at_least(0, true_label=self.true_label, target=self.target)
        require_share(tail=self.tail)
        require_strictly_between(0, 1, test_fraction=self.test_fraction)

    def indices(self, data: DataSource) -> Tensor:
        """Which training samples they are, the rarest first."""
        inputs, targets = data.load().train[:]
        of_class(inputs, targets, self.true_label, "data")
        members = (targets == self.true_label).nonzero().flatten()
        (found,) = self.density.log_density(inputs, inputs[members])
        number = max(1, round(self.tail * len(members)))
        return members[torch.from_numpy(found).argsort(stable=True)[:number]]

    def load(self, data: DataSource) -> EdgeSet:
        """The rarest samples of the class; see `EdgeCases.load`."""
        inputs, _ = data.load().train[:]
        taken = self.indices(data)
        train, test = divided(inputs[taken], self.test_fraction, "low density")
        origin = f"training samples of class {self.true_label} of the lowest density"
        return EdgeSet(train, test, self.true_label, self.target, origin, taken)


def _flat(inputs: Tensor) -> NDArray[np.float64]:
    return inputs.detach().flatten(1).cpu().double().numpy()
