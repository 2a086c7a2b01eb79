"""Training runs as functions of an experiment, with or without compressed messages."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from phalanx.compression import Compressor, TensorStates, simulate
from phalanx.data import DataSource, Splits
from phalanx.errors import NotFiniteError, TooManyByzantineError
from phalanx.evaluation import evaluate
from phalanx.experiments.records import mean
from phalanx.fetch import fetch
from phalanx.identity import description, digest
from phalanx.losses import cross_entropy
from phalanx.models import MLP
from phalanx.randomness import generator, seeded
from phalanx.reporting import SAME_WEIGHTS, detection
from phalanx.training import train
from phalanx.transforms import Compressed

MakeModel = Callable[[tuple[int, ...], int], nn.Module]
"""Makes a model from the shape of an input and the number of classes: a class, or a function of a
module, or a `functools.partial` of one."""

_AVERAGED = 5  # evaluations at the end of a run, as papers' logs average them
_KEPT = 2  # data sets and reference runs that a process keeps for its next cells
_kept: dict[str, Any] = {}


def load(data: DataSource) -> Splits:
    """The data of a source; a process that asks for the same again does not read them again."""
    splits: Splits = _once("data", {"data": data}, data.load)
    return splits


def build(model: MakeModel, splits: Splits, seed: int) -> nn.Module:
    """An untrained model for the data; its weights depend on the seed alone."""
    with seeded(seed, "weights"):
        return model(splits.input_shape, splits.num_classes)


def train_run(
    *,
    data: DataSource,
    model: MakeModel = MLP,
    seed: int = 0,
    device: str = "cpu",
    milestones: Sequence[int] = (),
    curves: Sequence[str] = (),
    reference: Mapping[str, Any] | None = None,
    compressor: Compressor | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`phalanx.train`, summed up in figures. Without an attack `byzantine` is left out.

    Args:
        data: what to train and test on.
        model: makes the model.
        seed: of weights and run.
        device: where to compute.
        milestones: rounds after which the learning rate falls to a tenth.
        curves: metrics of rounds (see `metrics.jsonl`) that are given whole, such as `"loss"`.
        reference: options that another run has instead, with whose final weights those of this run
            are compared; a process trains equal references once.
        compressor: of messages, after all transforms; sent as they are if not given.
        options: all others that `phalanx.train` has, by their names.

    Returns:
        `rounds`: rounds completed.
        `test_accuracy` and `test_loss` of the last weights; the accuracy is a share in [0, 1].
        `last_accuracies`: mean test accuracy of the last five evaluations.
        `evaluated` and `accuracies`: rounds completed and test accuracy at each evaluation.
        `round_seconds`, `compute_seconds`, `decode_seconds` and `message_bytes`: medians per round.
        `lies`, `caught`, `false_alarms`, `unheard`, `proven`, `framed`, `precision` and `recall`:
        see `Detection`.
        `weights`: a hash of all final weights; those of equal runs are the same bit by bit.
        `weight_difference`, `relative_difference` and `share_moved`, with a reference: the largest
        difference of a weight, that relative to the reference's largest weight, and the share of
        weights that differ by more than `SAME_WEIGHTS` of it.
        `stopped`: why, if more messages were unusable than the code or rule tolerates.
    """
    if compressor is not None:
        options["transforms"] = [*options.get("transforms", ()), Compressed(compressor)]
    call = {"model": model, "seed": seed, "device": device, "milestones": milestones, **options}
    splits = load(data)
    network, rounds, stopped = _trained(splits, **call)
    if stopped is None:
        accuracy, loss = rounds[-1]["test_accuracy"], rounds[-1]["test_loss"]
    else:
        measured = options.get("loss", cross_entropy)
        accuracy, loss, _ = evaluate(network, measured, splits.test, splits.train)
    weights = _flat(network)
    values = {"test_accuracy": accuracy, "test_loss": loss, **_summary(rounds, curves)}
    values["weights"] = hashlib.blake2b(weights.numpy().tobytes(), digest_size=8).hexdigest()
    if reference is not None:
        other = {**call, **reference}
        theirs: Tensor = _once(
            "reference", {"data": data, **other}, lambda: _flat(_trained(splits, **other)[0])
        )
        values |= _differences(weights, theirs)
    return values if stopped is None else values | {"stopped": stopped}


def _summary(rounds: Sequence[dict[str, Any]], curves: Sequence[str]) -> dict[str, Any]:
    """What `train_run` says of rounds."""
    evaluated = [one for one in rounds if one.get("test_accuracy") is not None]
    accuracies, found = [one["test_accuracy"] for one in evaluated], detection(rounds)
    return {
        "rounds": len(rounds),
        "last_accuracies": mean(accuracies[-_AVERAGED:]) if accuracies else None,
        "evaluated": [one["step"] + 1 for one in evaluated],
        "accuracies": accuracies,
        "round_seconds": _median(rounds, "seconds"),
        **{name: _median(rounds, name) for name in _MEDIANS},
        **{name: getattr(found, name) for name in _DETECTED},
        **{name: [one.get(name) for one in rounds] for name in curves},
    }


_MEDIANS = ("compute_seconds", "decode_seconds", "virtual_seconds", "message_bytes")
_DETECTED = (
    *("lies", "caught", "false_alarms", "unheard", "proven", "framed"),
    *("precision", "recall"),
)


def _trained(
    splits: Splits,
    *,
    model: MakeModel,
    seed: int,
    device: str,
    milestones: Sequence[int],
    **options: Any,
) -> tuple[nn.Module, list[dict[str, Any]], str | None]:
    """The trained model, its rounds, and why it stopped, if it did."""
    network, rounds = build(model, splits, seed).to(device), list[dict[str, Any]]()
    if options.get("attack") is None:
        options.pop("byzantine", None)
    if milestones:
        options["lr_scheduler"] = partial(MultiStepLR, milestones=list(milestones))
    quiet = {"on_round": rounds.append, "progress": False}
    try:
        train(network, splits.train, seed=seed, **{"test": splits.test, **quiet, **options})
    except TooManyByzantineError as error:
        return network, rounds, str(error)
    return network, rounds, None


def compressed_run(
    *,
    data: DataSource,
    compressor: Compressor,
    rate: float,
    epochs: int,
    model: MakeModel = MLP,
    seed: int = 0,
    milestones: Sequence[int] = (),
    num_workers: int = 4,
    samples: int = 32,
    watch: Callable[[TensorStates], None] = lambda _: None,
    evaluate_every: int | None = None,
    target: float | None = None,
) -> dict[str, Any]:
    """SGD with momentum 0.9 after the mean that workers, simulated in step, decode.

    Order of samples and initial weights follow from the seed alone, so that runs with different
    compressors differ in nothing else. Unlike in `train_run`, compressors may sum while they
    compress, as `PowerSGD` does.

    Args:
        data: what to train and test on.
        compressor: of all workers.
        rate: learning rate at first.
        epochs: passes over the data; samples that do not fill a last round wait for the next one.
        model: makes the model.
        seed: of weights, order and compression.
        milestones: epochs after which the learning rate falls to a tenth.
        num_workers: workers.
        samples: per worker and round.
        watch: called before every round with what the first worker remembers.
        evaluate_every: rounds from one evaluation to the next; only the last weights are evaluated
            if not given.
        target: test accuracy at which an evaluation ends the run.

    Returns:
        `test_accuracy`, a share in [0, 1], and `train_loss` of the last weights; a run whose
        numbers left the range guesses, and its loss is 1e4.
        `evaluated` and `accuracies`: rounds completed and test accuracy at each evaluation.
        `reached`: rounds to the target; None if it was not reached, or none was given.
        `message_bytes`: of one worker and round, a mean over Gaussian tensors.
        `stopped`: why, if numbers left the range.
    """
    splits = load(data)
    network = build(model, splits, seed)
    shapes = [tuple(value.shape) for value in network.parameters()]
    values: dict[str, Any] = {"message_bytes": message_bytes(compressor, shapes)}
    optimizer = SGD(network.parameters(), lr=rate, momentum=0.9)
    schedule = MultiStepLR(optimizer, list(milestones))
    memories, size = [TensorStates()] * num_workers, len(splits.train)  # type: ignore[arg-type]
    evaluated, accuracies = list[int](), list[float]()
    per_epoch = size // (num_workers * samples)
    values |= {"evaluated": evaluated, "accuracies": accuracies, "reached": None}
    try:
        for step, batch in enumerate(_batches(size, num_workers * samples, epochs, seed)):
            watch(memories[0])
            parts = [fetch(splits.train, one) for one in batch.split(samples)]
            rows = [_gradients(network, *part) for part in parts]
            means, memories = simulate(compressor, rows, memories, seed=seed)
            for name, value in network.named_parameters():
                value.grad = means[0][name]
            optimizer.step()
            if (step + 1) % per_epoch == 0:
                schedule.step()
            if evaluate_every is not None and (step + 1) % evaluate_every == 0:
                found = evaluate(network, cross_entropy, splits.test, splits.train).accuracy
                evaluated.append(step + 1)
                accuracies.append(found or 0.0)
                if target is not None and accuracies[-1] >= target:
                    values["reached"] = step + 1
                    break
    except NotFiniteError as error:
        guess = {"test_accuracy": 1 / splits.num_classes, "train_loss": _DIVERGED}
        return values | guess | {"stopped": str(error)}
    accuracy = evaluate(network, cross_entropy, splits.test, splits.train).accuracy
    loss = evaluate(network, cross_entropy, splits.train, splits.train).loss
    loss = loss if loss < _DIVERGED else _DIVERGED
    return values | {"test_accuracy": accuracy, "train_loss": loss}


def _batches(size: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """The samples of every round; what does not fill a last one is left out."""
    for epoch in range(epochs):
        order = torch.randperm(size, generator=generator(seed, "order", epoch))
        yield from order.split(batch_size)[: size // batch_size]


_DIVERGED = 1e4  # the loss of a run whose numbers left the range


def message_bytes(compressor: Compressor, shapes: Sequence[tuple[int, ...]]) -> float:
    """Bytes of a worker's messages about Gaussian tensors of these shapes: a mean of ten draws."""
    source = generator(0, "sizes")
    sizes = [
        compressor.encode(torch.randn(shape, generator=source), source).num_bytes
        for _ in range(10)
        for shape in shapes
    ]
    return sum(sizes) / 10


def _gradients(network: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    named = dict(network.named_parameters())
    found = torch.autograd.grad(cross_entropy(network(inputs), targets), list(named.values()))
    return dict(zip(named, found, strict=True))


def _once(kind: str, described: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """What was made of an equal description before, if it was among the last few of its kind."""
    key = f"{kind} {digest(description(described))}"
    if key not in _kept:
        alike = [one for one in _kept if one.startswith(kind)]
        for old in alike[: len(alike) - _KEPT + 1]:
            del _kept[old]
        _kept[key] = make()
    return _kept[key]


def _flat(network: nn.Module) -> Tensor:
    """All weights in float64; counters, such as those of batch normalisation, are none."""
    found = [value for value in network.state_dict().values() if value.is_floating_point()]
    return torch.cat([value.detach().cpu().double().flatten() for value in found])


def _differences(weights: Tensor, theirs: Tensor) -> dict[str, float]:
    apart, scale = (weights - theirs).abs(), theirs.abs().max()
    return {
        "weight_difference": apart.max().item(),
        "relative_difference": (apart.max() / scale).item(),
        "share_moved": 1 - (apart <= SAME_WEIGHTS * scale).double().mean().item(),
    }


def _median(rounds: Sequence[Mapping[str, Any]], name: str) -> float | None:
    found = [one[name] for one in rounds if one.get(name) is not None]
    return float(median(found)) if found else None
