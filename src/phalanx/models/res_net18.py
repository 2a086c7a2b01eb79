"""ResNet-18 for small images."""

from math import gcd
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from phalanx.checks import require_at_least
from phalanx.models.shapes import image_shape


class ResNet18(nn.Module):
    """ResNet-18 with the 3 x 3 stem for images of 32 x 32: 11 173 962 weights at 10 classes.

    `norm="group"` (the default) normalises every sample by itself: gradients of partitions add up
    to the gradient of the batch, and nothing but weights is learnt.

    `norm="batch"` normalises by the statistics of the partition that a sample is computed with.
    Every replica of a partition sees the same ones, so coded training stays exact with respect to
    an uncoded run over the same partitions; but it is another function than normalisation over
    the whole batch, and it changes with the number of partitions. Running statistics are not
    updated in training (`torch.func.vmap` could not, and replicas would update them several
    times): `track_running_stats` is off, and the buffers stay at mean 0 and variance 1 until they
    are estimated on the server's own data, which must happen before evaluation. To do that, set
    `track_running_stats = True` and `momentum = None` on the `BatchNorm2d` modules and run forward
    passes in training mode.

    Cost: 0.56 G multiplications per sample of 3 x 32 x 32.
    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, with
    Wu, He, "Group Normalization", ECCV 2018.

    >>> import torch
    >>> ResNet18((3, 32, 32), 10, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        norm: Literal["group", "batch"] = "group",
        width: int = 64,
    ) -> None:
        """A model with weights drawn from torch's global generator.

        Args:
            input_shape: `(channels, height, width)` of one image, at least 8 x 8.
            num_classes: how many classes there are.
            norm: `group` or `batch` normalisation.
            width: channels of the first stage; the others have 2, 4 and 8 times as many.

        Raises:
            ValueError: if `input_shape` is no such image, a size is below 1, or `norm` is unknown.
        """
        super().__init__()
        channels, _, _ = image_shape(input_shape, num_classes, smallest=8)
        if norm not in ("group", "batch"):
            raise ValueError(f"norm must be group or batch, got {norm!r}")
        require_at_least(1, width=width)
        blocks: list[nn.Module] = []
        before = width
        for stage in range(4):
            after = width * 2**stage
            blocks += [
                _Block(before, after, stride=1 if stage == 0 else 2, norm=norm),
                _Block(after, after, stride=1, norm=norm),
            ]
            before = after
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            _norm(norm, width),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)
        )

    def forward(
        self, inputs: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.head(self.blocks(self.stem(inputs)))
        return logits


class _Block(nn.Module):
    """Two convolutions, and the input added to what they give."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False),
            _norm(norm, after),
            nn.ReLU(),
            nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False),
            _norm(norm, after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False),
                _norm(norm, after),
            )

    def forward(
        self, inputs: Float[Tensor, "batch before height width"]
    ) -> Float[Tensor, "batch after newheight newwidth"]:
        """The features after this block."""
        features: Tensor = self.residual(inputs) + self.shortcut(inputs)
        return features.relu()


def _norm(norm: str, channels: int) -> nn.Module:
    if norm == "group":
        # 32 groups, or as many as leave 2 channels each: a group of one number is all zeros, and
        # whether ReLU lets its gradient through is then left to rounding.
        return nn.GroupNorm(max(gcd(64, channels) // 2, 1), channels)
    layer = nn.BatchNorm2d(channels)
    # Switched off afterwards: the buffers stay, to be filled before evaluation.
    layer.track_running_stats = False
    return layer
