"""`phalanx federate`: a federated algorithm, a partition and the stages of the round as options."""

from pathlib import Path
from typing import Any

import phalanx
from phalanx.cli.console import console
from phalanx.cli.run_report import reported
from phalanx.cli.train import MakeModel, run_folder
from phalanx.data import DataSource, Digits, DirichletPartitioner, Partitioner
from phalanx.federated import deal
from phalanx.losses import cross_entropy
from phalanx.models import MLP
from phalanx.training.arguments import usable


def federate(
    data: DataSource = Digits(),  # noqa: B008 - frozen
    partitioner: Partitioner = DirichletPartitioner(),  # noqa: B008 - frozen
    num_clients: int = 100,
    model: MakeModel = MLP,
    device: str = "cpu",
    title: str | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    _config: str | None = None,
    **options: Any,
) -> None:
    """Trains one model on clients with data of their own, and writes a run folder and a report.

    The algorithm and the stages of the round are options, and so is all else that
    `phalanx.federate` takes.

    Example: phalanx federate --algorithm Scaffold --partitioner DirichletPartitioner
    --partitioner.alpha 0.1 --num_clients 50 --clients_per_round 10 --rounds 30 --out runs/a

    Args:
        data: What to train and test on; its training data are dealt out to the clients.
        partitioner: How they are dealt out.
        num_clients: How many clients there are; fewer, if the partitioner leaves some with nothing.
        model: A class that is called with the shape of an input and the number of classes.
        device: Where the server keeps the model: cpu, cuda, cuda:1, ...
        title: What reports call the run.
        out: The run folder; a new one under runs/ if not given.
        resume: Go on with the run in this folder; its options are kept, and the others may be
            given anew: how many rounds, the engine, how often to evaluate and to write.
        options: Those of `phalanx.federate`.
    """
    folder = run_folder(out, resume, "federate")
    home = usable(device)
    splits = data.load()
    clients = deal(splits.train, partitioner, num_clients, options["seed"])
    if len(clients) < num_clients:
        left = num_clients - len(clients)
        console.print(f"{left} of {num_clients} clients hold nothing, and are left out", style="")
    with reported(folder):
        run = phalanx.federate(
            lambda: model(splits.input_shape, splits.num_classes).to(home),
            clients,
            loss=cross_entropy,
            test=splits.test,
            out=folder,
            resume=resume is not None,
            title=title,
            config=_config,
            **options,
        )
    if run.privacy:
        console.print(run.privacy, markup=False, soft_wrap=True)


# The algorithm, the stages of the round and the rest: nobody lists them a second time.
federate.options_of = phalanx.federate  # type: ignore[attr-defined]
federate.given = (  # type: ignore[attr-defined]
    "model_fn",
    "clients",
    "loss",
    "test",
    "config",
    "on_round",
)
