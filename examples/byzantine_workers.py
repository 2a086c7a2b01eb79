# %% [markdown]
# # Training with Byzantine workers
#
# Nine workers compute gradients; two of them send the reversed gradient, ten times as long. The
# same model is trained three ways: with the plain mean, with a robust rule, and with a code that
# undoes what the two send.
#
# This notebook is built from `examples/byzantine_workers.py` by `make notebook`.

# %%
from pathlib import Path
from tempfile import mkdtemp

import torch
from matplotlib import pyplot
from rich.console import Console

import phalanx
from phalanx.aggregation import Krum, Mean
from phalanx.attacks import FixedWorkers, ReverseGradient
from phalanx.coding import DracoCyclic
from phalanx.data import Digits
from phalanx.models import MLP
from phalanx.reporting import answer, compare_runs, load_run, plot_accuracy, terminal_table

splits = Digits().load()  # images of 8 x 8 pixels that scikit-learn brings
folder = Path(mkdtemp())

# %% [markdown]
# ## Four runs
#
# One seed, so all runs see the same samples in the same order and start from the same weights.
# The first has no attack: it is what the others are held against.

# %%
attack = {"attack": ReverseGradient(scale=10.0), "byzantine": FixedWorkers([2, 5])}
runs = {
    "mean, no attack": {"rule": Mean()},
    "mean": {"rule": Mean(), **attack},
    "Krum": {"rule": Krum(num_byzantine=2), **attack},
    "DRACO": {"code": DracoCyclic(num_workers=9, num_byzantine=2), **attack},
}
for title, stages in runs.items():
    torch.manual_seed(0)
    phalanx.train(
        MLP(splits.input_shape, splits.num_classes),
        splits.train,
        test=splits.test,
        num_workers=9,
        steps=40,
        evaluate_every=10,
        out=folder / title,
        title=title,
        **stages,
    )

# %% [markdown]
# ## What came of it

# %%
records = [load_run(folder / title) for title in runs]
rows = compare_runs(records, records[0])
console = Console(width=100)
console.print(terminal_table(rows))
console.print(answer(records, rows))

# %% [markdown]
# DRACO ends with the weights of the run without an attack, to rounding, and names both workers in
# every round. Krum keeps one message a round, so it survives and learns from less. The mean is
# lost.

# %%
figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
plot_accuracy(records, axes)
pyplot.show()

# %%
assert rows[3].relative_difference < 1e-5, "DRACO ends with the weights of the run without attack"
assert rows[3].detection.precision == rows[3].detection.recall == 1.0
