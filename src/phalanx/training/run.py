"""A run: rounds until done, each of them written down, each of them repeatable."""

import inspect
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from os import cpu_count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import Dataset

import phalanx
from phalanx.aggregation import Aggregator, Mean
from phalanx.attacks import Attack, RandomWorkers, Rule, Schedule
from phalanx.coding import Code
from phalanx.data import Shards
from phalanx.docstrings import source
from phalanx.errors import TooManyByzantineError
from phalanx.training.decoding import Decoder, RuleDecoder, Uncoded, decoder
from phalanx.training.engine import Engine, Session
from phalanx.training.evaluation import Evaluation, evaluate, with_statistics
from phalanx.training.holdings import deal
from phalanx.training.job import Job, Loss
from phalanx.training.local import Local
from phalanx.training.memory import Memory
from phalanx.training.reputation import Reputation, Standing
from phalanx.training.run_folder import RunFolder
from phalanx.training.worker_momentum import WorkerMomentum

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
_MALFORMED = ("wrong shape", "wrong type")
_SAMPLES = 16  # a partition, unless the batch size is given


def default_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """SGD with learning rate 0.1 and momentum 0.9."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@dataclass
class Run:
    """What a run came to."""

    model: nn.Module
    """The trained model: the one that was given, changed in place."""

    rounds: list[dict[str, Any]] = field(repr=False)
    """One dictionary a round, as in `metrics.jsonl`."""

    result: dict[str, Any]
    """The summary, as in `result.json`."""

    folder: Path | None = None
    """Where it is written, if anywhere."""


def train(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, ...]],
    code: Code | None = None,
    *,
    rule: Aggregator | None = None,
    num_workers: int = 15,
    attack: Attack | None = None,
    byzantine: Schedule | None = None,
    worker_momentum: WorkerMomentum | None = None,
    shards: Shards | None = None,
    engine: Engine | None = None,
    optimizer: MakeOptimizer = default_optimizer,
    loss: Loss = cross_entropy,
    steps: int = 200,
    batch_size: int | None = None,
    seed: int = 0,
    exclude_after: int | None = None,
    test: Dataset[tuple[Tensor, ...]] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    evaluate_every: int = 20,
    checkpoint_every: int = 20,
    title: str | None = None,
    config: str | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Trains a model on workers some of which may lie, lag or die.

    The same arguments give the same weights, on any engine, interrupted or not: order, batches,
    drills and random layers follow from `seed` and the number of the round.

    Args:
        model: any module; its parameters are trained in place.
        dataset: pairs of input and target.
        code: a gradient code; it also says how many workers there are.
        rule: a robust rule instead of a code; each of `num_workers` workers then computes the
            gradient of one partition. The plain mean if neither is given.
        num_workers: workers under a rule.
        attack: a drill: what bad workers do.
        byzantine: a drill: who is bad when; by default as many as the code or rule survives, drawn
            afresh every round.
        worker_momentum: what workers remember of their messages, and send; nothing by default.
        shards: how the data are dealt out to workers that have data of their own; by default every
            sample may fall to every worker. Under a rule only. Workers that are bad for good hold
            random samples of all classes.
        engine: where the workers run; in this process by default.
        optimizer: makes the optimizer from the parameters.
        loss: mean loss of a batch from the model's output and the targets.
        steps: rounds in all, those before an interruption included.
        batch_size: samples a round over all partitions; a multiple of their number. 16 a partition
            by default.
        seed: of everything random.
        exclude_after: excludes a worker for good once it was suspected in so many rounds more than
            its messages were held good, see `Reputation`; no more workers than the code or rule
            survives. By default nobody is excluded.
        test: data to evaluate on.
        out: a folder for metrics, checkpoints and weights; nothing is written if None. It is made
            once the first round has been decoded: arguments that do not fit leave nothing behind.
        resume: go on with the run in `out`, from its last checkpoint; give the model as it was when
            the run began, since parameters that are not trained are not saved.
        evaluate_every: rounds between evaluations.
        checkpoint_every: rounds between checkpoints.
        title: what reports call the run.
        config: text that is kept in the folder as `config.yaml`: how to repeat the run.
        on_round: called after every round with its metrics.

    Returns:
        The run. The model's batch normalisation, if any, has running statistics of its final
        weights.

    Raises:
        ValueError: if arguments do not fit, alone or together.
        TooManyByzantineError: if more workers fail in a round than the code or rule survives (its
            subclass `DecodeError` for codes). What was trained until then is in the last
            checkpoint.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the round is done and a checkpoint is
            written.
    """
    if code is None and rule is None:
        rule = Mean()
    decoding = decoder(code, rule, num_workers)
    if attack is not None and byzantine is None:
        byzantine = RandomWorkers(_survived(code or rule))
    if batch_size is None:
        batch_size = _SAMPLES * decoding.code.num_partitions
    job = Job(
        model, loss, dataset, decoding.code, batch_size, seed, attack, byzantine, worker_momentum
    )
    counts = {
        "steps": steps,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
    }
    if exclude_after is not None:
        counts["exclude_after"] = exclude_after
    _check(job, test, counts, shards)
    reputation = _reputation(decoding, exclude_after)
    if shards is not None:
        job = replace(job, shards=deal(shards, dataset, job.code.num_workers, byzantine, seed))
    if out is None and resume:
        raise ValueError("resume needs out, the folder of the run, got None")
    folder = RunFolder(Path(out), resume=resume) if out is not None else None
    made = optimizer(_trained(model))
    _check_optimizer(made)
    loop = _Loop(job, decoding, reputation, made, test, folder, title, config)
    first = loop.restore() if resume else 0
    if first > steps:
        raise ValueError(f"steps must be at least the {first} rounds that are done, got {steps}")
    with (engine or Local()).start(job) as session, _graceful() as interrupted:
        session.exclude(loop.standing.out)
        for step in range(first, steps):
            last = step + 1 == steps
            try:
                entry = loop.round(session, step, evaluate=last or (step + 1) % evaluate_every == 0)
            except TooManyByzantineError as error:
                loop.checkpoint(step)
                loop.finish(step, stopped=str(error))
                error.add_note(f"stopped in round {step}; the weights before it are kept")
                raise
            if on_round is not None:
                on_round(entry)
            if last or interrupted() or (step + 1) % checkpoint_every == 0:
                loop.checkpoint(step + 1)
            if interrupted() and not last:
                kept = "; a checkpoint is written" if folder is not None else ""
                raise KeyboardInterrupt(f"stopped after {step + 1} of {steps} rounds{kept}")
    return loop.finish(steps)


class _Loop:
    """The state of a run between rounds, and what happens in one."""

    def __init__(
        self,
        job: Job,
        decoding: Decoder,
        reputation: Reputation,
        optimizer: Optimizer,
        test: Dataset[tuple[Tensor, ...]] | None,
        folder: RunFolder | None,
        title: str | None,
        config: str | None,
    ) -> None:
        self.job, self.decoding, self.optimizer, self.test = job, decoding, optimizer, test
        self.folder, self.title, self.config = folder, title, config
        self.parameters = _trained(job.model)
        self.memory = decoding.init(sum(value.numel() for value in self.parameters))
        self.drill = Memory()
        self.reputation, self.standing = reputation, reputation.init(job.code.num_workers)
        self.rounds: list[dict[str, Any]] = []
        self._first = 0  # the round that begins this part of the run
        self._open = False

    def round(self, session: Session, step: int, *, evaluate: bool) -> dict[str, Any]:
        """One round, from the broadcast of the weights to the step of the optimizer."""
        began = time.perf_counter()
        decoding = self.decoding.excluding(len(self.standing.out))
        collected = session.round(step, self._flat(), self.drill, self._rule(decoding, step))
        self._require_momenta(collected.memory)
        messages_in = time.perf_counter()
        decoded, memory = decoding.decode(collected.messages, collected.arrived, self.memory)
        decoded_in = time.perf_counter()
        self._open_folder()
        # From here on the round is done: what it leaves is remembered together, or not at all.
        self.memory, self.drill = memory, collected.memory
        self._step(decoded.gradient)
        malformed = [worker for worker, why in collected.missing.items() if why in _MALFORMED]
        suspects = sorted({*decoded.suspects.nonzero().flatten().tolist(), *malformed})
        self.standing = self.reputation.update(self.standing, suspects, collected.arrived)
        session.exclude(self.standing.out)
        trusted = [
            value
            for worker, value in enumerate(collected.losses.tolist())
            if collected.arrived[worker] and worker not in suspects
        ]
        entry: dict[str, Any] = {
            "step": step,
            "loss": sum(trusted) / len(trusted) if trusted else None,
            "seconds": time.perf_counter() - began,
            "compute_seconds": collected.compute_s,
            "decode_seconds": decoded_in - messages_in,
            "byzantine": self._liars(step, collected.missing),
            "suspects": suspects,
            "missing": {str(worker): why for worker, why in collected.missing.items()},
            "residual": decoded.residual,
            "suspicion": [round(value, 4) for value in self.standing.suspicion.tolist()],
            "excluded": self.standing.out,
            "error": decoded.error,
        }
        if evaluate:
            entry |= self._evaluation()
        self.rounds.append(entry)
        if self.folder is not None:
            self.folder.append(entry)
        return entry

    def _open_folder(self) -> None:
        """Begins to write: before the first step of the optimizer, so that it can be repeated."""
        if self.folder is None or self._open:
            return
        self._open = True
        self.folder.open()
        if self.config is not None:
            self.folder.write_text("config.yaml", self.config)
        if not self.folder.checkpoints():
            self.folder.write_json("env.json", environment(self.job.seed))
            self._save(0)
        self.rounds = self.folder.truncate(self._first)

    def checkpoint(self, step: int) -> None:
        """Writes down all that round `step` and those after it depend on."""
        self._open_folder()
        self._save(step)

    def _save(self, step: int) -> None:
        if self.folder is not None:
            content = {
                "parameters": self._flat(),
                "optimizer": self.optimizer.state_dict(),
                "memory": list(self.memory),
                "drill": {
                    "past": list(self.drill.past),
                    "plans": self.drill.plans,
                    "momenta": self.drill.momenta,
                },
                "standing": list(self.standing),
            }
            self.folder.save_checkpoint(step, content)

    def restore(self) -> int:
        """Goes back to the last checkpoint; returns the round to go on with. Writes nothing."""
        assert self.folder is not None
        saved = self.folder.load_checkpoint()
        flat = saved["parameters"]
        if flat.numel() != sum(value.numel() for value in self.parameters):
            raise ValueError(
                f"the checkpoint in {self.folder.path} has {flat.numel()} parameters, the model "
                f"{sum(value.numel() for value in self.parameters)}"
            )
        with torch.no_grad():
            for value, part in zip(self.parameters, self._parts(flat), strict=True):
                value.copy_(part)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.memory = tuple(saved["memory"])
        drill = saved["drill"]
        momenta = drill.get("momenta")
        if momenta is not None:
            momenta = momenta.to(self.parameters[0].device)
        self.drill = Memory(tuple(drill["past"]), drill["plans"], momenta)
        if "standing" in saved:  # not in checkpoints of before there was any
            self.standing = Standing(*saved["standing"])
        self._first = saved["step"]
        return self._first

    def finish(self, rounds: int, stopped: str | None = None) -> Run:
        """Writes the result down and hands the run over."""
        self._open_folder()
        model = self.job.model
        ready = with_statistics(model, self.job.dataset)
        model.load_state_dict(ready.state_dict())
        measured = self.rounds[-1] if self.rounds else {}
        if "test_accuracy" not in measured:
            measured = self._evaluation()
        code = self.decoding.code
        methods = [source(type(part)) for part in self._parts_of_method()]
        result = {
            "title": self.title or type(self._method()).__name__,
            "rounds": rounds,
            "test_accuracy": measured.get("test_accuracy"),
            "test_loss": measured.get("test_loss"),
            "num_parameters": sum(value.numel() for value in self.parameters),
            "num_workers": code.num_workers,
            "num_partitions": code.num_partitions,
            "redundancy": code.redundancy,
            "decoder": repr(self._method()),
            "attack": _shown(self.job.attack),
            "worker_momentum": _shown(self.job.worker_momentum),
            "shards": _shown(self._split()),
            "stopped": stopped,
            "excluded": self.standing.out,
            "methods": [text for text in methods if text],
        }
        if self.folder is not None:
            self.folder.save_model(model.state_dict())
            self.folder.write_json("result.json", result)
        return Run(model, self.rounds, result, self.folder.path if self.folder else None)

    def _method(self) -> Code | Aggregator:
        if isinstance(self.decoding, RuleDecoder):
            return self.decoding.rule
        return self.decoding.code

    def _rule(self, decoding: Decoder, step: int) -> Rule | None:
        """The decoder as a rule, for attacks of a drill that know it; None under an exact code."""
        if self.job.attack is None or decoding.code.exact:
            return None
        byzantine = self.job.byzantine(step)
        return partial(decoding.aggregate, state=self.memory, byzantine=byzantine)

    def _split(self) -> Shards | None:
        return self.job.shards.split if self.job.shards is not None else None

    def _require_momenta(self, memory: Memory) -> None:
        if self.job.worker_momentum is not None and memory.momenta is None:
            raise ValueError("engine must know worker_momentum, got one that remembers none")

    def _parts_of_method(self) -> list[object]:
        parts = [self._method(), self.job.worker_momentum, self._split(), self.job.attack]
        return [part for part in parts if part is not None]

    def _evaluation(self) -> dict[str, float | None]:
        if self.test is None:
            return {}
        found: Evaluation = evaluate(self.job.model, self.job.loss, self.test, self.job.dataset)
        return {"test_accuracy": found.accuracy, "test_loss": found.loss}

    def _liars(self, step: int, missing: dict[int, str]) -> list[int]:
        """The bad workers of a round; one that was only slow, and came in time, told the truth.

        So did one that is to be behind in the first round: there is nothing to be behind of.
        """
        return [
            worker
            for worker, attack in self.job.conduct(step).items()
            if worker in missing
            or (attack.delay_s == 0 and (attack.rounds_behind == 0 or step > 0))
        ]

    def _flat(self) -> Tensor:
        return torch.cat([value.detach().reshape(-1) for value in self.parameters])

    def _parts(self, flat: Tensor) -> Iterator[Tensor]:
        sizes = [value.numel() for value in self.parameters]
        for part, value in zip(flat.split(sizes), self.parameters, strict=True):
            yield part.view_as(value)

    def _step(self, gradient: Tensor) -> None:
        for value, part in zip(self.parameters, self._parts(gradient), strict=True):
            value.grad = part
        self.optimizer.step()
        self.optimizer.zero_grad()


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine, commit and seed: what one must know to repeat a run."""
    return {
        "phalanx": phalanx.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": cpu_count(),
        "num_threads": torch.get_num_threads(),
        "commit": _commit(),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit of the folder that one works in, if it is a git checkout."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


def _survived(method: Code | Aggregator | None) -> int:
    found = getattr(method, "num_byzantine", None)
    if found is None:
        raise ValueError(
            f"byzantine must say who is bad: {method} does not say how many liars it survives"
        )
    return int(found)


def _shown(part: object | None) -> str | None:
    return repr(part) if part is not None else None


def _reputation(decoding: Decoder, exclude_after: int | None) -> Reputation:
    if exclude_after is None:
        return Reputation()
    if decoding.num_tolerated == 0:
        raise ValueError(
            f"exclude_after needs a code or rule that survives liars, got {exclude_after} with one "
            "that survives none"
        )
    return Reputation(exclude_after, decoding.num_tolerated)


def _check(
    job: Job,
    test: Dataset[tuple[Tensor, ...]] | None,
    counts: dict[str, int],
    shards: Shards | None,
) -> None:
    """Raises ValueError with everything that does not fit together, not only the first of it."""
    problems = []
    trained = _trained(job.model)
    kinds = {f"{value.dtype} on {value.device}" for value in trained}
    if not trained:
        problems.append("model must have parameters that require gradients, got none")
    elif len(kinds) > 1:
        problems.append(
            f"model must have trained parameters of one dtype and device, got {sorted(kinds)}"
        )
    num_partitions, batch_size = job.code.num_partitions, job.batch_size
    if batch_size < 1 or batch_size % num_partitions:
        problems.append(
            f"batch_size must be a multiple of the {num_partitions} partitions, got {batch_size}"
        )
    if not hasattr(job.dataset, "__len__") or not hasattr(job.dataset, "__getitem__"):
        problems.append(
            "dataset must have a length and items by number, which "
            f"{type(job.dataset).__name__} has not"
        )
    elif shards is None and len(job.dataset) < batch_size:
        problems.append(
            f"dataset must fill one batch of {batch_size} samples, got {len(job.dataset)}"
        )
    if shards is not None and not isinstance(job.code, Uncoded):
        problems.append(
            "shards needs a rule instead of a code: a code has several workers compute the same "
            f"samples, which a worker with data of its own does not have, got {job.code}"
        )
    if job.worker_momentum is not None and job.code.at(1) is not job.code:
        problems.append(
            "worker_momentum needs workers that compute the same partitions in every round, for "
            f"replicas to agree, got {job.code}, which is drawn anew"
        )
    if test is not None and len(test) == 0:  # type: ignore[arg-type]
        problems.append("test must have at least 1 sample, got 0")
    if job.schedule is not None and job.attack is None:
        problems.append("byzantine says who is bad, and needs attack to say what they do, got None")
    problems += [
        f"{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1
    ]
    if problems:
        raise ValueError("; ".join(problems))
    job.byzantine(0)  # the schedule must fit the number of workers


def _check_optimizer(optimizer: Optimizer) -> None:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer must take one gradient a step, and {type(optimizer).__name__} asks for more"
        )


@contextmanager
def _graceful() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a flag: no round is torn; the second kills."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        previous = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        previous = {}
    try:
        yield lambda: asked
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
