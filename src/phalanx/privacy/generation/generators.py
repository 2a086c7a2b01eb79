"""Class-conditional generators of images and of rows of tables."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from phalanx.randomness import seeded


class ConditionalGenerator(nn.Module):
    """Records of a class from uniform noise: `G(z, y)` with `z` in `[-1, 1]^num_noise`.

    Images whose sides are multiples of four are grown by two transposed convolutions; everything
    else comes from two hidden layers. Values lie in `[-1, 1]`. Batch normalisation keeps the
    classes apart: with normalisation within a record all of them soon come out the same.

    Args:
        shape: of a record, `(channels, height, width)` or `(features,)`.
        num_classes: C.
        num_noise: numbers of z.
        width: neurons of a hidden layer, and channels of the smallest image.
        seed: of the initial weights.
    """

    def __init__(
        self, shape: tuple[int, ...], num_classes: int, num_noise: int, width: int, seed: int
    ) -> None:
        super().__init__()
        self.num_noise, self.num_classes = num_noise, num_classes
        entry = num_noise + num_classes
        with seeded(seed, "generator"):
            if len(shape) == 3 and shape[1] % 4 == shape[2] % 4 == 0:
                channels, height, top = shape[0], shape[1] // 4, shape[2] // 4
                half = max(width // 2, 8)
                self.layers = nn.Sequential(
                    nn.Linear(entry, width * height * top),
                    nn.Unflatten(1, (width, height, top)),
                    *(nn.BatchNorm2d(width, momentum=None), nn.ReLU()),
                    nn.ConvTranspose2d(width, half, 4, stride=2, padding=1),
                    *(nn.BatchNorm2d(half, momentum=None), nn.ReLU()),
                    nn.ConvTranspose2d(half, channels, 4, stride=2, padding=1),
                    *(nn.Flatten(), nn.Tanh()),
                )
            else:
                total = torch.Size(shape).numel()
                self.layers = nn.Sequential(
                    nn.Linear(entry, width),
                    *(nn.BatchNorm1d(width, momentum=None), nn.ReLU()),
                    nn.Linear(width, 2 * width),
                    *(nn.BatchNorm1d(2 * width, momentum=None), nn.ReLU()),
                    *(nn.Linear(2 * width, total), nn.Tanh()),
                )

    def forward(self, y: Int[Tensor, " n"], chance: torch.Generator) -> Float[Tensor, "n d"]:
        """Records of the classes y, flat."""
        z = 2 * torch.rand(len(y), self.num_noise, generator=chance) - 1
        # As long as all the noise together can be: a class must not drown in it.
        hot = math.sqrt(self.num_noise) * nn.functional.one_hot(y, self.num_classes)
        found: Tensor = self.layers(torch.cat([z, hot], dim=1))
        return found

    def sample(self, y: Int[Tensor, " n"], chance: torch.Generator) -> Float[Tensor, "n d"]:
        """Records of the classes y, none of which depends on those that are made beside it.

        The statistics of normalisation are estimated anew, from fakes of all classes.
        """
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.reset_running_stats()
            for _ in range(4):
                self(torch.arange(500) % self.num_classes, chance)
            self.eval()
            found = torch.cat([self(part, chance) for part in y.split(1000)])
            self.train()
        return found
