"""Class moments: a linear generator from noisy means and covariances, in one release."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phalanx.checks import require_share
from phalanx.privacy.accountant import Budget, Relation, noise_multiplier_for
from phalanx.privacy.generation.domain import Domain
from phalanx.privacy.generation.private_data import PrivateData
from phalanx.privacy.generation.synthesizer import Fitting, Mechanism, Synthesizer
from phalanx.privacy.noise import noise_key, with_noise

_COUNT, _SUM = 0.2, 0.5  # weights beside the second moments' one


@dataclass(frozen=True)
class ClassMoments(Synthesizer):
    """Gaussians around noisy class means: the simple method that others have to beat.

    Counts, sums and second moments of the classes are released once, with Gaussian noise. Records,
    shifted to be nonnegative and clipped to a norm, contribute `(a, b u, u u^T)` to their class:
    two contributions have a nonnegative inner product, so that replacing one record moves the sum
    by at most `sqrt(2 (a^2 + b^2 + 1))`. Samples are `mean + V sqrt(lambda) g`, with the principal
    directions whose variance stands out of the noise, clipped to the domain.

    Source: noisy second moments are those of Dwork, Talwar, Thakurta, Zhang, "Analyze Gauss:
    Optimal Bounds for Privacy-Preserving Principal Component Analysis", STOC 2014.
    """

    relation: ClassVar[Relation] = "replace"
    not_counted: ClassVar[tuple[str, ...]] = ("choice of hyper-parameters",)

    clip: float = 0.35
    """Norm to which records are clipped, over that of the record whose numbers are all largest."""
    shared: bool = True
    """Whether one covariance is shared by all classes, which takes much less budget."""

    def __post_init__(self) -> None:
        require_share(clip=self.clip)

    def mechanism(self, num_records: int, domain: Domain, budget: Budget) -> Mechanism:
        """One release."""
        return Mechanism(noise_multiplier_for(budget), 1.0, 1, 1)

    def start(self, data: PrivateData, mechanism: Mechanism, seed: int) -> Fitting:
        """Nothing is released yet."""
        return _MomentsFitting(self, data, mechanism.noise_multiplier, seed)


class _MomentsFitting(Fitting):
    def __init__(
        self, method: ClassMoments, data: PrivateData, noise_multiplier: float, seed: int
    ) -> None:
        self._method, self._data, self._seed = method, data, seed
        self._sensitivity = math.sqrt(2 * (_COUNT**2 + _SUM**2 + 1))
        self._noise_std = noise_multiplier * self._sensitivity
        self._bound = method.clip * math.sqrt(data.domain.num_features)
        self._released: dict[str, Tensor] = {}

    def step(self, number: int) -> None:
        data = self._data
        num_classes, dim = len(data.domain.classes), data.domain.num_features
        u = (data.x + 1) / 2 / self._bound
        u = u / u.norm(dim=1, keepdim=True).clamp(min=1.0)
        hot = torch.nn.functional.one_hot(data.y, num_classes).float()
        groups = [u] if self._method.shared else [u[data.y == one] for one in range(num_classes)]
        second = torch.stack([(one.T @ one).double() for one in groups])
        # Both halves of a symmetric matrix count: the upper one is released, scaled by sqrt(2).
        upper = torch.ones(dim, dim, dtype=torch.float64).triu(1)
        eye = torch.eye(dim, dtype=torch.float64)
        exact = [_COUNT * hot.sum(dim=0), _SUM * (hot.T @ u), second * (math.sqrt(2) * upper + eye)]
        flat = torch.cat([one.double().flatten() for one in exact])
        key, label = noise_key(self._seed), f"moments {number}"
        noisy = with_noise(flat, self._noise_std, self._sensitivity, key, label)
        parts = noisy.split([one.numel() for one in exact])
        counts, sums, half = (part.view_as(one) for part, one in zip(parts, exact, strict=True))
        half = half * (upper / math.sqrt(2) + eye)
        self._released = {
            "counts": counts / _COUNT,
            "sums": sums / _SUM,
            "second": half + half.transpose(1, 2) * upper.T,
        }
        self._released.update(self._model())

    def _model(self) -> dict[str, Tensor]:
        """Means, and principal directions scaled by their standard deviations."""
        counts = self._released["counts"].clamp(min=1.0)
        sums, second = self._released["sums"], self._released["second"]
        means = sums / counts.unsqueeze(1)
        products = means.unsqueeze(2) * sums.unsqueeze(1)  # n m m^T of every class
        groups = [products.sum(dim=0)] if self._method.shared else list(products)
        edge = math.sqrt(2 * sums.shape[1]) * self._noise_std  # of the noise's own eigenvalues
        found = []
        for matrix, explained in zip(second, groups, strict=True):
            values, vectors = torch.linalg.eigh(matrix - (explained + explained.T) / 2)
            found.append(vectors * torch.where(values > edge, values, 0.0).sqrt())
        sizes = counts.sum().view(1) if self._method.shared else counts
        factors = torch.stack(found) / sizes.sqrt().view(-1, 1, 1)
        return {"means": means, "factors": factors}

    def sample(self, labels: Int[Tensor, " n"], chance: torch.Generator) -> Float[Tensor, "n d"]:
        means, factors = self._released["means"], self._released["factors"]
        g = torch.randn(len(labels), means.shape[1], dtype=torch.float64, generator=chance)
        if self._method.shared:
            spread = g @ factors[0].T
        else:
            spread = torch.empty_like(g)
            for one in labels.unique().tolist():
                spread[labels == one] = g[labels == one] @ factors[one].T
        found = (means[labels] + spread) * self._bound
        return (2 * found - 1).clamp(-1, 1).float()

    def class_shares(self) -> Tensor | None:
        counts = self._released["counts"].clamp(min=1.0)
        return counts / counts.sum()

    def state_dict(self) -> dict[str, Any]:
        return dict(self._released)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._released = dict(state)
