"""LeNet, as in the DRACO experiments."""

from jaxtyping import Float
from torch import Tensor, nn

from phalanx.models.shapes import image_shape


class LeNet(nn.Module):
    """Two 5 x 5 convolutions (20 and 50 filters) with pooling, then two linear layers.

    431 080 weights on MNIST (1 x 28 x 28, 10 classes), as in the experiments: there is no
    nonlinearity between the linear layers. Images below 16 pixels are padded by 2 on each side
    before each convolution, so that something is left of them.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
    Recognition", Proceedings of the IEEE, 1998, in the variant of Chen et al., "DRACO:
    Byzantine-resilient Distributed Training via Redundant Gradients", ICML 2018, experiments.

    >>> import torch
    >>> LeNet((3, 32, 32), 10)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 10])
    >>> sum(weight.numel() for weight in LeNet((1, 28, 28), 10).parameters())
    431080
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        """A model with weights drawn from torch's global generator.

        Args:
            input_shape: `(channels, height, width)` of one image, at least 4 x 4.
            num_classes: how many classes there are.

        Raises:
            ValueError: if `input_shape` is no such image or `num_classes` is below 1.
        """
        super().__init__()
        channels, height, width = image_shape(input_shape, num_classes, smallest=4)
        padding = 2 if min(height, width) < 16 else 0
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 20, kernel_size=5, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(20, 50, kernel_size=5, padding=padding),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        for _ in range(2):
            height, width = ((size + 2 * padding - 4) // 2 for size in (height, width))
        self.linear = nn.Sequential(
            nn.Flatten(), nn.Linear(50 * height * width, 500), nn.Linear(500, num_classes)
        )

    def forward(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.linear(self.convolutions(inputs))
        return logits
