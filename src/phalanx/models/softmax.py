"""Softmax regression."""

from jaxtyping import Float
from torch import Tensor, nn

from phalanx.models.shapes import num_inputs


class Softmax(nn.Module):
    """Softmax regression: one linear layer over the flattened input. Convex with cross-entropy.

    Cost: `num_inputs * num_classes` multiplications per sample.

    >>> import torch
    >>> Softmax((1, 8, 8), 10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        """A model with weights drawn from torch's global generator.

        Args:
            input_shape: shape of one input, of any number of axes.
            num_classes: how many classes there are.

        Raises:
            ValueError: if a size is below 1.
        """
        super().__init__()
        self.linear = nn.Linear(num_inputs(input_shape, num_classes), num_classes)

    def forward(self, inputs: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.linear(inputs.flatten(start_dim=1))
        return logits
