"""Fine-tuning for recipes: models that have learnt from another text, without compression."""

import csv
import gzip
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam

from phalanx.data import DataSource, Splits
from phalanx.data.arrays import in_memory
from phalanx.data.text import read_text
from phalanx.experiments import MakeModel, load
from phalanx.losses import cross_entropy
from phalanx.pipeline import split

_LEARNT: dict[tuple[str, str, int, int], Mapping[str, Tensor]] = {}
"""What was pre-trained in this process already."""


@dataclass(frozen=True)
class AsciiText(DataSource):
    """Sequences of characters of a text, or of the columns of a CSV file, numbered by ASCII.

    So all texts have one vocabulary, of 128; 0 stands for what is no ASCII.
    """

    path: Path
    """The file, plain or gzip-compressed."""
    columns: tuple[str, ...] = ()
    """Of a CSV file, those whose cells are the text, one after the other."""
    length: int = 32
    """Characters of a sequence."""

    def load(self) -> Splits:
        """The sequences; the last tenth is for testing. Targets are the characters that follow."""
        if self.columns:
            with gzip.open(self.path, "rt", encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(io.StringIO(file.read())))
            text = "\n".join(" ".join(row[name] for name in self.columns) for row in rows)
        else:
            text = read_text(self.path, "a text", 1 << 28)
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)
        codes = np.where(codes < 128, codes, 0)
        number = (len(codes) - 1) // self.length
        inputs, targets = (
            codes[start : start + number * self.length].reshape(-1, self.length) for start in (0, 1)
        )
        cut = number * 9 // 10
        train, test = (inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:])
        return in_memory(train, test, 128, str(self.path))


def pretrained(
    input_shape: tuple[int, ...],
    num_classes: int,
    model: MakeModel,
    name: str,
    source: DataSource,
    steps: int,
) -> nn.Sequential:
    """A model in four stages that has been trained on another text.

    Where the classes are as many its head is kept, else it is new.

    Adam with batches of 64, nothing compressed. The same seed of torch's global generator gives
    the same weights, which are kept for the next run in this process.
    """
    seed = torch.initial_seed()
    key = name, str(source), steps, seed
    if key not in _LEARNT:
        splits = load(source)
        inputs, targets = splits.train[:]
        own: Any = model(splits.input_shape, splits.num_classes)
        optimizer = Adam(own.parameters(), lr=0.003)
        for _ in range(steps):
            ids = torch.randint(len(inputs), (64,))
            optimizer.zero_grad()
            cross_entropy(own(inputs[ids]), targets[ids]).backward()
            optimizer.step()
        _LEARNT[key] = own.layers.state_dict()
    torch.manual_seed(seed)  # so that a new head is the same, whether all this was just learnt
    layers: Any = model(input_shape, num_classes).layers
    weights, learnt = layers.state_dict(), _LEARNT[key]
    taken = {one: learnt[one] for one in weights if learnt[one].shape == weights[one].shape}
    layers.load_state_dict({**weights, **taken})
    return nn.Sequential(*split(layers, 4))
