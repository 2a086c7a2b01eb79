"""Training runs of Accordion's recipe: levels that are counted, batches that grow."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from phalanx.batch_size import AccordionBatch, AccordionBatchSampler, squared_norm
from phalanx.compression import Accordion, TensorStates, Uncompressed
from phalanx.data import DataSource
from phalanx.evaluation import evaluate
from phalanx.experiments import build, compressed_run, load
from phalanx.experiments.runs import MakeModel
from phalanx.fetch import fetch
from phalanx.losses import cross_entropy


def level_run(
    *, data: DataSource, model: MakeModel, compressor: Accordion, **options: Any
) -> dict[str, Any]:
    """`compressed_run` with messages at the level of every layer.

    Returns:
        What `compressed_run` does; `megabytes`, the payload of one worker's messages over the run;
        `updates`, steps of the optimizer; and `low_share`, per epoch the share of the compressed
        values that were at the low level.
    """
    named = build(model, load(data), 0).named_parameters()
    shapes = {name: tuple(value.shape) for name, value in named}
    codecs = {"low": compressor.low, "high": compressor.high, "dense": Uncompressed()}
    sent, low = list[int](), list[float]()

    def count(states: TensorStates) -> None:
        """What a round will send; vectors are sent as they are."""
        known = compressor.levels(states)
        found = {n: known.get(n, "low" if len(s) > 1 else "dense") for n, s in shapes.items()}
        sent.append(sum(codecs[found[n]].num_bytes(s, torch.float32) for n, s in shapes.items()))
        compressed = {n: math.prod(s) for n, s in shapes.items() if found[n] != "dense"}
        kept = sum(values for n, values in compressed.items() if found[n] == "low")
        low.append(kept / sum(compressed.values()))

    ended = compressed_run(data=data, model=model, compressor=compressor, watch=count, **options)
    counts = {"megabytes": sum(sent) / 1e6, "updates": len(low)}
    steps = compressor.steps_per_epoch  # of an equal share each
    shares = [fmean(low[start : start + steps]) for start in range(0, len(low), steps)]
    return {**ended, **counts, "low_share": shares}


def batch_run(
    *,
    data: DataSource,
    model: MakeModel,
    batch: AccordionBatch,
    rate: float,
    epochs: int,
    milestones: Sequence[int] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Trains one worker with batches that may grow; the learning rate grows with them.

    Returns:
        What `level_run` does, but for `message_bytes`; `low_share` is 1 in epochs of small batches.
    """
    splits = load(data)
    network = build(model, splits, seed)
    values = list(network.parameters())
    optimizer = SGD(values, lr=rate, momentum=0.9)
    schedule = MultiStepLR(optimizer, list(milestones))
    sampler = AccordionBatchSampler(len(splits.train), batch, seed=seed)  # type: ignore[arg-type]
    updates, shares = 0, []
    for _ in range(epochs):
        now = float(schedule.get_last_lr()[0])
        optimizer.param_groups[0]["lr"] = now * batch.factor(sampler.state)
        total = [torch.zeros_like(value) for value in values]
        for samples in sampler:
            inputs, targets = fetch(splits.train, torch.tensor(samples))
            found = torch.autograd.grad(cross_entropy(network(inputs), targets), values)
            for value, whole, gradient in zip(values, total, found, strict=True):
                whole += gradient
                value.grad = gradient
            optimizer.step()
            updates += 1
        shares.append(float(sampler.state.size == batch.low))
        optimizer.param_groups[0]["lr"] = now  # the schedule multiplies what stands there
        schedule.step()
        sampler.on_epoch_end(squared_norm(total) ** 0.5, now, float(schedule.get_last_lr()[0]))
    return {
        "test_accuracy": evaluate(network, cross_entropy, splits.test, splits.train).accuracy,
        "train_loss": min(1e4, evaluate(network, cross_entropy, splits.train, splits.train).loss),
        "megabytes": updates * sum(value.nbytes for value in values) / 1e6,
        "updates": updates,
        "low_share": shares,
    }
