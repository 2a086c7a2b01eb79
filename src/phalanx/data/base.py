"""Base class of data sources, and the training and test sets that they load."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Splits:
    """A training set and a test set.

    An item of either set is a pair: an input of `input_shape`, and its class, an int64 number in
    `0 .. num_classes - 1`. Inputs are float32; those of texts are tokens, int64. Where the next
    token is asked for, there is a class at every place, and the target has the shape of the input.
    """

    train: Dataset[tuple[Tensor, ...]]
    """The training set; a `TensorDataset` where it is held in memory."""

    test: Dataset[tuple[Tensor, ...]]
    """The test set; no statistic of it enters the training set."""

    input_shape: tuple[int, ...]
    """Shape of one input: `(channels, height, width)` of an image, `(features,)` of a table row,
    `(length,)` of a text."""

    num_classes: int
    """How many classes there are; tokens, where the next one is asked for."""


@dataclass(frozen=True)
class DataSource(ABC):
    """Description of a labelled data set; nothing is read before `load`."""

    @abstractmethod
    def load(self) -> Splits:
        """The training and test sets: the same numbers in the same order, in every process.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if what is there is no such data; the message names file, key and rule.
        """
