"""Gradient diversity: up to which size larger batches pay."""

import math
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from phalanx.evaluation import with_statistics
from phalanx.fetch import fetch
from phalanx.losses import Loss, cross_entropy
from phalanx.randomness import generator

_BLOCK_BYTES = 2**24  # gradients held at a time, if the chunk size is left to us


class GradientDiversity(NamedTuple):
    """Gradient diversity, from two sums over the gradients of samples.

    With M^2 the mean of the squared norms, a step of size gamma along the sum of B gradients, drawn
    with replacement, leads from weights w to w+ such that for every w*

        E ||w+ - w*||^2 = ||w - w*||^2
            - B (2 gamma <mean gradient, w - w*> - gamma^2 (1 + (B - 1) / value) M^2):

    B samples together do what B steps one by one would do, but for the factor
    `1 + (B - 1) / value` of the last term.

    Attributes:
        num_samples: how many gradients.
        mean_square: mean of their squared norms (M^2).
        square_of_mean: squared norm of their mean.
    """

    num_samples: int
    mean_square: float
    square_of_mean: float

    @property
    def value(self) -> float:
        """B_S of these samples, at least 1; infinity where the mean is zero, NaN if all are."""
        return _ratio(self.mean_square, self.square_of_mean)

    @property
    def extrapolated(self) -> float:
        """B_S of the data that the samples are drawn from, at random and without repetition.

        The mean over a sample holds noise, so `value` can never be above `num_samples`. Here the
        noise is taken off. Infinity where the samples do not tell it from zero: take more.
        """
        if self.num_samples < 2:
            return math.nan
        noise = (self.mean_square - self.square_of_mean) * self.num_samples / (self.num_samples - 1)
        signal = self.square_of_mean - noise / self.num_samples
        return _ratio(signal + noise, signal)


def gradient_diversity(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, ...]],
    loss: Loss = cross_entropy,
    *,
    num_samples: int | None = 1000,
    chunk_size: int | None = None,
    seed: int = 0,
) -> GradientDiversity:
    """The gradient diversity of a model as it is, exactly, on some of the data or all of them.

    The model is not changed. Dropout is off, and batch normalisation, in which a sample has no
    gradient of its own, uses running statistics of the data, with a warning. Diversity changes many
    times over as training goes: compare models at equal loss.

    Args:
        model: its trained parameters count.
        dataset: pairs of input and target.
        loss: mean loss over a batch, from the model's output and the targets.
        num_samples: how many, drawn at random; None for all.
        chunk_size: samples whose gradients are computed by one call of `torch.func.vmap`; 1 for
            models that it cannot take. As many as fit into 16 MiB by default. The result does not
            depend on it but for rounding.
        seed: of the draw.

    Returns:
        The two sums; `value` is the diversity.

    Raises:
        ValueError: if a size is below 1.

    Cost: a gradient a sample; memory for `chunk_size` gradients and one in float64.
    Source: Yin, Pananjady, Lam, Papailiopoulos, Ramchandran, Bartlett, "Gradient Diversity: a Key
    Ingredient for Scalable Distributed Learning", AISTATS 2018, definition 1; Chen, Wang, Zhao,
    Papailiopoulos, Koutris, "The Effect of Network Width on the Performance of Large-batch
    Training", NeurIPS 2018, section 2.

    >>> from torch.utils.data import TensorDataset
    >>> from torch.nn.functional import mse_loss
    >>> model = nn.Linear(3, 1, bias=False)
    >>> orthogonal = TensorDataset(torch.eye(3), model(torch.eye(3)).detach() + 1)
    >>> round(gradient_diversity(model, orthogonal, mse_loss).value, 4)
    3.0
    """
    for name, value in {"num_samples": num_samples, "chunk_size": chunk_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        warnings.warn(
            "with batch normalisation a sample has no gradient of its own: running statistics are "
            "taken for those of the batch (group normalisation needs no such stand-in)",
            stacklevel=2,
        )
    size = len(dataset)  # type: ignore[arg-type]
    order = torch.randperm(size, generator=generator(seed, "diversity"))[:num_samples]
    ready = with_statistics(model, dataset)
    trained = [value for value in ready.parameters() if value.requires_grad]
    row_bytes = sum(value.nbytes for value in trained)
    chunk_size = chunk_size or max(1, _BLOCK_BYTES // max(row_bytes, 1))
    device = trained[0].device
    total = torch.zeros(sum(value.numel() for value in trained), dtype=torch.float64, device=device)
    squares = 0.0
    for samples in order.split(chunk_size):
        inputs, targets = (one.to(device) for one in fetch(dataset, samples))
        rows = _gradients(ready, loss, inputs, targets)
        squares += float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2
        total += rows.sum(dim=0, dtype=torch.float64)
    count = len(order)
    return GradientDiversity(count, squares / count, float((total / count).square().sum()))


def _gradients(
    model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor
) -> Float[Tensor, "samples dim"]:
    """Each sample's gradient, flattened."""
    named = dict(model.named_parameters())
    values = {name: value.detach() for name, value in named.items() if value.requires_grad}
    fixed = {name: value.detach() for name, value in named.items() if not value.requires_grad}
    fixed |= dict(model.named_buffers())

    def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, {**values, **fixed}, (x.unsqueeze(0),))
        return loss(outputs, y.unsqueeze(0))

    if len(inputs) > 1:
        gradients = vmap(grad(one), in_dims=(None, 0, 0))(values, inputs, targets)
        return torch.cat([gradients[name].flatten(1) for name in values], dim=1)
    leaves = {name: value.requires_grad_() for name, value in values.items()}
    found = torch.autograd.grad(
        one(leaves, inputs[0], targets[0]), list(leaves.values()), materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in found]).unsqueeze(0)


def _ratio(above: float, below: float) -> float:
    """One over the other: infinity where there is nothing below, NaN if above neither."""
    if below > 0:
        return above / below
    return math.inf if above > 0 else math.nan
