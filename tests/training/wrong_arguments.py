"""Calls of `train` with arguments of the wrong kind, each with what must be said of it.

Run as a script, in a process whose calls no type checker looks at first, it prints what was said.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

import phalanx
from phalanx.aggregation import Krum
from phalanx.computations import MixedPrecision
from phalanx.training import EarlyStopping, Local, OptimizerStep
from training.drifting import a_model, some_data

DATA = some_data()
ADAM = torch.optim.Adam(a_model().parameters())
COSINE = partial(CosineAnnealingLR, T_max=3)
L1 = nn.functional.l1_loss
CASES = [
    ({"optimizer": ADAM}, r"optimizer must be a class or function .* got an instance of Adam"),
    ({"optimizer": lambda parameters: 3}, "optimizer must be .*, got one that makes int"),
    ({"lr_scheduler": COSINE(ADAM)}, "lr_scheduler must be .* an instance of CosineAnnealingLR"),
    ({"lr_scheduler": lambda optimizer: None}, "got one that makes NoneType"),
    ({"lr_scheduler": COSINE, "step": OptimizerStep()}, "lr_scheduler belongs to optimizer"),
    ({"lr_scheduler_interval": "step"}, "interval must be 'round' or 'epoch', got 'step'"),
    ({"lr_scheduler_monitor": "valid_loss"}, r"lr_scheduler_monitor must be one of \['loss'\]"),
    ({"max_grad_norm": 0}, "max_norm must be finite and above 0, got 0"),
    ({"mixed_precision": "16"}, "mixed_precision must be no, bf16 or fp16, got '16'"),
    ({"compute": MixedPrecision}, r"compute must be a Computation.*MixedPrecision\(...\)"),
    ({"rule": Krum}, r"rule must be an Aggregator, got the class Krum: .* Krum\(...\)"),
    ({"code": "DracoCyclic"}, "code must be a Code, got 'DracoCyclic'"),
    ({"engine": Local}, "engine must be an Engine, got the class Local"),
    ({"dataset": DataLoader(DATA)}, "dataset must be a Dataset, got a DataLoader"),
    ({"test": DataLoader(DATA)}, "test must be a Dataset, got a DataLoader"),
    ({"loss": nn.CrossEntropyLoss}, r"loss must be a function .*: give CrossEntropyLoss\(\)"),
    ({"model": nn.Linear}, "model must be a Module, got the class Linear"),
    ({"model": nn.Linear(5, 2, device="meta")}, "model must have values, .* meta device"),
    ({"device": "tpuu"}, "device must be one that can be used here, got 'tpuu'"),
    ({"callbacks": [EarlyStopping]}, r"callbacks must hold a Callback, .* EarlyStopping\(...\)"),
    ({"callbacks": EarlyStopping()}, "callbacks must be a list"),
    ({"callbacks": [EarlyStopping()]}, r"monitor must be a metric .* one of \[\], got"),
    ({"metrics": [L1]}, "metrics must be a dict of functions by name"),
    ({"metrics": {"mae": 3}}, "metrics must hold functions .* got 3 for 'mae'"),
    ({"metrics": {"loss": L1}}, "metrics must have names of their own, got 'loss'"),
    ({"steps": 3, "epochs": 2}, "give steps or epochs, not both"),
    ({"steps": -3}, "steps must be at least 1, got -3"),
    ({"epochs": -1}, "epochs must be finite and above 0, got -1"),
    ({"epochs": 0.01}, "epochs must come to at least 1 round"),
    ({"validation": 1.0}, "validation must be a dataset or a share"),
]


def said(options):
    """The error of a call, by its type and message, and what the call left behind."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        given = {"model": a_model(), "dataset": DATA, "num_workers": 7, "batch_size": 28}
        try:
            phalanx.train(**{**given, "out": out, **options})
        except Exception as error:
            return type(error).__name__, str(error), out.exists()
        return "nothing", "", out.exists()


if __name__ == "__main__":
    print(json.dumps([said(options) for options, _ in CASES]))
