"""Multilayer perceptron."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from phalanx.models.shapes import num_inputs


class MLP(nn.Module):
    """A multilayer perceptron: fully connected layers with ReLU between them.

    Cost: as many multiplications per sample as it has weights.

    >>> import torch
    >>> MLP((1, 8, 8), 10, hidden=[32, 16])(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, hidden: Sequence[int] = (64,)
    ) -> None:
        """A model with weights drawn from torch's global generator.

        Args:
            input_shape: shape of one input, of any number of axes.
            num_classes: how many classes there are.
            hidden: widths of the hidden layers, in order.

        Raises:
            ValueError: if a size or a width is below 1.
        """
        super().__init__()
        if any(width < 1 for width in hidden):
            raise ValueError(f"hidden must have widths of at least 1, got {list(hidden)}")
        sizes = [num_inputs(input_shape, num_classes), *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.layers(inputs)
        return logits
