"""Private training runs of recipes: features that look at no sample, and accuracy at a budget."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d, layer_norm
from torch.optim import SGD
from torch.utils.data import TensorDataset

from phalanx.computations import ClippedGradient, TopAggGradient
from phalanx.data import DataSource, Digits, Splits
from phalanx.evaluation import evaluate
from phalanx.experiments import build, load
from phalanx.experiments.runs import MakeModel
from phalanx.losses import cross_entropy
from phalanx.ordering import PoissonSampling
from phalanx.randomness import generator
from phalanx.training import DifferentialPrivacy, train

_PATCH = 6  # pixels along a side of a random filter
_TAIL = 1.5  # noise is beyond x with a probability of the order of x^-1.5: no variance


@dataclass(frozen=True)
class FixedFeatures(DataSource):
    """Features of images that are fixed beforehand, so that they cost no privacy.

    Pixels are averaged over squares; or random filters are applied, cut off at zero, averaged over
    quarters, and made to have mean 0 and standard deviation 1 for every image by itself.
    """

    images: DataSource = Digits()  # noqa: RUF009 - frozen
    """Where they are from."""
    pooling: int = 1
    """Pixels along a side of a square."""
    filters: int = 0
    """Random filters; none for pixels."""
    noise: float = 0.0
    """Scale of noise of infinite variance on every feature: normal numbers over `u^(2/3)`, with u
    uniform."""

    def load(self) -> Splits:
        """The features; see `DataSource.load`."""
        splits = load(self.images)
        parts = []
        for name, part in (("train", splits.train), ("test", splits.test)):
            inputs, targets = part[:]
            found = torch.cat([self._features(one) for one in inputs.split(500)])
            if self.noise:
                source = generator("heavy tails", name)
                normal = torch.randn(found.shape, generator=source)
                uniform = torch.rand(found.shape, generator=source).clamp(min=1e-6)
                found = found + self.noise * normal / uniform.pow(1 / _TAIL)
            parts.append(TensorDataset(found, targets))
        train_set, test_set = parts
        shape = tuple(train_set.tensors[0].shape[1:])
        return Splits(train_set, test_set, shape, splits.num_classes)

    def _features(self, inputs: Tensor) -> Tensor:
        if not self.filters:
            pooled: Tensor = avg_pool2d(inputs, self.pooling)
            return pooled
        shape = (self.filters, inputs.shape[1], _PATCH, _PATCH)
        drawn = torch.randn(shape, generator=generator("filters"))
        drawn = drawn - drawn.mean(dim=(1, 2, 3), keepdim=True)
        found = adaptive_avg_pool2d(conv2d(inputs, drawn, stride=2).relu(), (2, 2)).flatten(1)
        return layer_norm(found, list(found.shape[1:]))


def private_run(
    *,
    data: DataSource,
    model: MakeModel,
    compute: ClippedGradient | TopAggGradient,
    rate: float,
    epsilon: float,
    delta: float,
    steps: int,
    batch_size: int,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Private training on Poisson samples by one worker, by SGD without momentum.

    Args:
        data: what to train and test on; of the training part a sixth, or less, is held out.
        model: makes the model.
        compute: what bounds the influence of a sample.
        rate: the longest step that one sample can make, times the mean size of a batch.
        epsilon: of the whole run.
        delta: of it.
        steps: of the run.
        batch_size: on average.
        samples: to train on, if there are so many.
        seed: of everything random, the choice of samples and the noise among it.

    Returns:
        `error` on what was held out, `test_accuracy`, the `rate`, the `bound` (the norm of
        clipping, or the share of values) and the statement of `privacy`.
    """
    splits = load(data)
    inputs, targets = splits.train[:]
    order = torch.randperm(len(inputs), generator=generator(seed, "samples"))
    number = min(samples, len(inputs) * 5 // 6)
    own, held = order[:number], order[number : number + number // 5]
    network = build(model, splits, seed)
    run = train(
        network,
        TensorDataset(inputs[own], targets[own]),
        num_workers=1,
        batch_size=min(batch_size, number),
        steps=steps,
        compute=replace(compute, microbatch=2 * batch_size),
        order=PoissonSampling(),
        optimizer=partial(SGD, lr=rate / compute.influence),
        privacy=DifferentialPrivacy(epsilon, delta, repeatable=True),
        seed=seed,
        evaluate_every=steps,
        progress=False,
    )
    kept = TensorDataset(inputs[held], targets[held])
    accuracy = [
        evaluate(network, cross_entropy, part, splits.train).accuracy or 0.0
        for part in (kept, splits.test)
    ]
    bound = compute.max_norm if isinstance(compute, ClippedGradient) else compute.share
    told = {"rate": rate, "bound": bound, "privacy": run.privacy}
    return {"error": 1 - accuracy[0], "test_accuracy": accuracy[1], **told}
