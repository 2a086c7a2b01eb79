"""What a user might bring along on the path: a rule, a model and an attack by import path."""

from dataclasses import dataclass

from torch import nn

from phalanx.aggregation import Mean
from phalanx.attacks import ReverseGradient


@dataclass(frozen=True)
class MyRule(Mean):
    """The mean, under another name."""

    num_byzantine: int = 2
    """Liars survived, it says."""


class MyModel(nn.Sequential):
    """One layer."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, bias: bool = True):
        """Weights of one layer.

        Args:
            input_shape: shape of an input.
            num_classes: number of classes.
            bias: whether it has a bias.
        """
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes, bias=bias))


@dataclass(frozen=True)
class MyAttack(ReverseGradient):
    """A reversed gradient, under another name."""


@dataclass(frozen=True)
class MyBrokenRule(Mean):
    """A rule with a mistake."""

    def judge(self, rows):
        raise ArithmeticError("seven is not eight")
