"""The state of a run between rounds, and what happens in one."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from phalanx.aggregation import Aggregator
from phalanx.attacks import Rule
from phalanx.batch_size.diversity_monitor import DiversityMonitor, Spread, squared_norm
from phalanx.coding import Code
from phalanx.data import Partitioner
from phalanx.docstrings import source
from phalanx.evaluation import Evaluation, evaluate, with_statistics
from phalanx.parameters import trained_parameters
from phalanx.training.decoding import Decoder, KnownRule, RuleDecoder
from phalanx.training.engines.base import Session
from phalanx.training.environment import environment
from phalanx.training.job import Job
from phalanx.training.reputation import Reputation, Standing
from phalanx.training.run_folder import RunFolder
from phalanx.training.worker_state import Memory

_MALFORMED = ("wrong shape", "wrong type", "malformed", "not finite")


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


class Loop:
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
        monitor: DiversityMonitor | None = None,
    ) -> None:
        self.job, self.decoding, self.optimizer, self.test = job, decoding, optimizer, test
        self.folder, self.title, self.config = folder, title, config
        self.parameters = trained_parameters(job.model)
        self.memory = decoding.init(sum(value.numel() for value in self.parameters))
        self.drill = Memory()
        self.reputation, self.standing = reputation, reputation.init(job.code.num_workers)
        self.monitor, self.spread = monitor, Spread()
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
        malformed = [worker for worker, why in collected.missing.items() if why in _MALFORMED]
        # Who sends what is no message is one liar fewer among the others, as who sends NaN is.
        decoding = self.decoding.excluding(len(self.standing.out) + len(malformed))
        decoded, memory = decoding.decode(collected.messages, collected.arrived, self.memory)
        decoded_in = time.perf_counter()
        self._open_folder()
        # From here on the round is done: what it leaves is remembered together, or not at all.
        self.memory, self.drill = memory, collected.memory
        self._step(decoded.gradient)
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
            "virtual_seconds": collected.virtual_s,
            "decode_seconds": decoded_in - messages_in,
            "message_bytes": collected.message_bytes,
            "byzantine": self._liars(step, collected.missing),
            "suspects": suspects,
            "missing": {str(worker): why for worker, why in collected.missing.items()},
            "residual": decoded.residual,
            "suspicion": [round(value, 4) for value in self.standing.suspicion.tolist()],
            "excluded": self.standing.out,
            "error": decoded.error,
        }
        if self.monitor is not None:
            honest = collected.arrived.clone()
            honest[suspects] = False
            entry["gradient_diversity"] = self._diversity(self.monitor, collected.messages[honest])
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
            self._save(0, self.drill)
        self.rounds = self.folder.truncate(self._first)

    def checkpoint(self, session: Session, step: int) -> None:
        """Writes down all that round `step` and those after it depend on."""
        self._open_folder()
        if self.folder is not None:
            self._save(step, session.recall(step, self.drill))

    def _save(self, step: int, drill: Memory) -> None:
        if self.folder is not None:
            content = {
                "parameters": self._flat(),
                "optimizer": self.optimizer.state_dict(),
                "memory": list(self.memory),
                "drill": {
                    "past": list(drill.past),
                    "plans": drill.plans,
                    "momenta": drill.momenta,
                    "waiting": list(drill.waiting),
                    "compression": [[list(state) for state in one] for one in drill.compression],
                },
                "standing": list(self.standing),
                "spread": list(self.spread),
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
        waiting = tuple(drill.get("waiting", ()))
        compression = tuple(
            tuple(tuple(part.to(self.parameters[0].device) for part in state) for state in one)
            for one in drill.get("compression", ())
        )
        self.drill = Memory(tuple(drill["past"]), drill["plans"], momenta, waiting, compression)
        if "standing" in saved:  # not in checkpoints of before there was any
            self.standing = Standing(*saved["standing"])
        self.spread = Spread(*saved.get("spread", ()))
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
            "compressor": _shown(self.job.compressor),
            "message_bytes": _total(self.rounds, "message_bytes"),
            "stopped": stopped,
            "excluded": self.standing.out,
            "virtual_seconds": _total(self.rounds, "virtual_seconds"),
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
        return KnownRule(decoding, self.memory, self.job.byzantine(step))

    def _split(self) -> Partitioner | None:
        return self.job.shards.split if self.job.shards is not None else None

    def _require_momenta(self, memory: Memory) -> None:
        if self.job.worker_momentum is not None and memory.momenta is None:
            raise ValueError("engine must know worker_momentum, got one that remembers none")

    def _parts_of_method(self) -> list[object]:
        compressor = self.job.compressor
        within = getattr(compressor, "inner", None)  # of error feedback
        drill = self.job.attack
        parts = [self._method(), self.job.worker_momentum, self._split(), compressor, within, drill]
        return [part for part in parts if part is not None]

    def _evaluation(self) -> dict[str, float | None]:
        if self.test is None:
            return {}
        found: Evaluation = evaluate(self.job.model, self.job.loss, self.test, self.job.dataset)
        return {"test_accuracy": found.accuracy, "test_loss": found.loss}

    def _diversity(self, monitor: DiversityMonitor, messages: Tensor) -> float | None:
        """B_S as it is known by now, from the gradients of workers that are not suspected."""
        if len(messages) > 1:
            own = squared_norm([messages]) / len(messages)
            whole = replace(monitor, num_workers=len(messages))
            self.spread = whole.update(self.spread, own, squared_norm([messages.mean(dim=0)]))
        return monitor.diversity(self.spread)

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


def _shown(part: object | None) -> str | None:
    return repr(part) if part is not None else None


def _total(rounds: list[dict[str, Any]], name: str) -> float | int | None:
    """The sum of a figure of all rounds; None if a round has none."""
    found: list[float | int] = [entry[name] for entry in rounds if entry.get(name) is not None]
    return sum(found) if found and len(found) == len(rounds) else None
