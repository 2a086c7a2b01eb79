"""Training loop: the state of a run between rounds, and one round after another."""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from phalanx.batch_size import DiversityMonitor, Spread, squared_norm
from phalanx.coding import Decoded
from phalanx.computations import Broadcast
from phalanx.docstrings import source
from phalanx.evaluation import with_statistics
from phalanx.training.attack_simulation import AttackMemory
from phalanx.training.callbacks import Callbacks
from phalanx.training.checkpoint import Checkpoint
from phalanx.training.composition import with_rates
from phalanx.training.conversation import converse, traffic
from phalanx.training.engines.base import Session
from phalanx.training.evaluator import Evaluator
from phalanx.training.exchange import Collected, ExchangeMemory, read_states
from phalanx.training.job import Job
from phalanx.training.reputation import Reputation, Standing
from phalanx.training.rounds import Rounds, total
from phalanx.training.run_folder import RunFolder
from phalanx.training.run_record import Run
from phalanx.training.worker_state import WorkerState, copied


class Loop(Rounds):
    """Training loop: the state of a run between rounds, and one round after another."""

    def __init__(
        self,
        job: Job,
        reputation: Reputation,
        evaluator: Evaluator,
        callbacks: Callbacks,
        folder: RunFolder | None,
        title: str | None,
        config: str | None,
        monitor: DiversityMonitor | None = None,
    ) -> None:
        title = title or type(job.round.code.method).__name__
        super().__init__(job.model, job.seed, callbacks, folder, title, config, evaluator.names)
        self.job, self.evaluator = job, evaluator
        device = next(job.model.parameters()).device
        self.decoder_state = job.round.code.init(
            job.sent.dim, dtype=job.layout.dtype, device=device
        )
        self.step_state = job.round.step.init(job.model)
        self.memory = ExchangeMemory()
        # As they were at the last checkpoint; those of clients that change places, as they are.
        self.worker_states: dict[int, WorkerState] = {}
        self.reputation, self.standing = reputation, reputation.init(job.num_clients)
        self.monitor, self.spread = monitor, Spread()
        self.policy = ""  # when rounds are over, in words: whose memory the checkpoint holds
        self.algorithm: object | None = None  # what the stages are of, if of one thing: to be cited

    def begin(self, session: Session) -> None:
        """Dismisses workers that were excluded before."""
        session.dismiss(self.standing.out)

    def round(self, session: Session, step: int, *, evaluate: bool) -> None:
        """One round, from the broadcast of the weights to the server's step."""
        began, stages, out = time.perf_counter(), self.job.round, self.standing.out
        step_state, first = self.step_state, None
        if stages.preparation is not None:
            told = self._broadcast(step_state)
            first = converse(session, self.job.preparing, step, told, preparing=True)
            step_state = stages.step.prepare(first.decoded.gradient, step_state)
        conversation = converse(
            session,
            self.job,
            step,
            self._broadcast(step_state),
            self.memory,
            self.decoder_state,
            out,
            self.worker_states if stages.order.moves else None,
        )
        self.open()
        # From here on the round is done: what it leaves is remembered together, or not at all.
        collected, decoded = conversation.collected, conversation.decoded
        self.decoder_state, self.memory = conversation.state, collected.memory
        self.step_state = stages.step.receive(
            self.job.model, conversation.received(self.job, step), step_state
        )
        clients = self.job.clients(step)
        if stages.order.moves:
            self.worker_states |= {clients[i]: copied(one) for i, one in collected.states.items()}
        suspects = conversation.suspects
        doubted = decoded.outliers
        outliers = [] if doubted is None else doubted.nonzero().flatten().tolist()
        arrived = torch.zeros(self.job.num_clients, dtype=torch.bool)
        arrived[list(clients)] = collected.arrived
        self.standing = self.reputation.update(
            self.standing, _ids(suspects, clients), arrived, _ids(outliers, clients)
        )
        session.dismiss([worker for worker in self.standing.out if worker not in out])
        self.tell(
            {
                **self._entry(step, collected, decoded, suspects, outliers),
                **traffic(conversation, first),
                "seconds": time.perf_counter() - began,
                "decode_seconds": conversation.decode_s + (first.decode_s if first else 0.0),
                **(self.evaluator.measure(self.job) if evaluate else {}),
            },
            evaluated=evaluate and bool(self.evaluator.sets),
        )

    def _entry(
        self,
        step: int,
        collected: Collected,
        decoded: Decoded,
        suspects: list[int],
        outliers: list[int],
    ) -> dict[str, Any]:
        """The metrics of a round."""
        trusted = [
            value
            for worker, value in enumerate(collected.losses.tolist())
            if collected.arrived[worker] and worker not in {*suspects, *outliers}
        ]
        if self.job.round.aggregation is not None:  # which may keep losses to itself
            trusted = [value for value in trusted if not math.isnan(value)]
        clients = self.job.clients(step)
        missing = {str(clients[worker]): why for worker, why in collected.missing.items()}
        entry: dict[str, Any] = {
            "step": step,
            "epoch": (step + 1) / self.job.batches.rounds_per_epoch,
            "loss": sum(trusted) / len(trusted) if trusted else None,
            "compute_seconds": collected.compute_s,
            "virtual_seconds": collected.virtual_s,
            "byzantine": _ids(self._byzantine(step, collected.missing), clients),
            "suspects": _ids(suspects, clients),
            "outliers": _ids(outliers, clients),
            "missing": missing,
            "residual": decoded.residual,
            "suspicion": [round(value, 4) for value in self.standing.suspicion.tolist()],
            "excluded": self.standing.out,
            "error": decoded.error,
            "saturated": decoded.saturated,
            **self.job.round.step.metrics(self.step_state),
        }
        if self.job.round.order.moves:
            entry["clients"] = list(clients)
        if self.monitor is not None:
            honest = collected.arrived.clone()
            honest[suspects + outliers] = False
            entry["gradient_diversity"] = self._diversity(self.monitor, collected.messages[honest])
        return entry

    def tell(self, entry: dict[str, Any], *, evaluated: bool) -> None:
        """Hands the metrics of a round to the server's step, the folder and the callbacks."""
        self.step_state = self.job.round.step.observe(self.step_state, entry)
        super().tell(entry, evaluated=evaluated)

    def checkpoint(self, session: Session, step: int) -> None:
        """Writes down all that round `step` and those after it depend on."""
        self.open()
        if self.folder is not None:
            if not self.job.round.order.moves:
                self.worker_states.update(read_states(session, self.job, step))
            self._save(step)

    def _saved(self, step: int) -> Checkpoint:
        attack = self.memory.attack
        return Checkpoint(
            step=step,
            composition=dict(self.composition),
            parameters=self._flat(),
            server_step=self.job.round.step.dump(self.step_state),
            decoder=list(self.decoder_state),
            attack={
                "past": [[one.parameters, dict(one.extra)] for one in attack.past],
                "plans": dict(attack.plans),
            },
            waiting=list(self.memory.waiting),
            policy=self.policy,
            workers={
                worker: {name: list(parts) for name, parts in state.items()}
                for worker, state in self.worker_states.items()
            },
            standing=list(self.standing),
            spread=list(self.spread),
            callbacks=self.callbacks.state_dict(),
        )

    def _restore(self, saved: Checkpoint, changes: Collection[str]) -> None:
        layout, model, step = self.job.layout, self.job.model, self.job.round.step
        layout.write(model, saved.parameters)
        device = next(model.parameters()).device
        dumped = saved.server_step
        if "lr" in changes:
            dumped = with_rates(dumped, step.dump(self.step_state))
        self.step_state = step.load(model, dumped)
        self.decoder_state = tuple(saved.decoder)
        past = tuple(
            Broadcast(parameters.to(device), {name: one.to(device) for name, one in extra.items()})
            for parameters, extra in saved.attack["past"]
        )
        attack = AttackMemory(past, saved.attack["plans"])
        if {"attack", "byzantine"} & set(changes):
            attack = AttackMemory()
        waiting = tuple(saved.waiting) if saved.policy == self.policy else ()
        self.memory = ExchangeMemory(attack, waiting)
        self.worker_states.update(
            {
                worker: {name: tuple(parts) for name, parts in state.items()}
                for worker, state in saved.workers.items()
            }
        )
        self.standing = Standing(*saved.standing)
        self.spread = Spread(*saved.spread)
        self.callbacks.load_state_dict(saved.callbacks)

    def finish(self, rounds: int, stopped: str | None = None) -> Run:
        """Writes the result down and hands the run over."""
        self.open()
        model, run = self.job.model, self.run
        self.callbacks.on_finish(run)
        evaluation = self._final_evaluation(last_round=stopped is None)
        model.load_state_dict(with_statistics(model, self.job.dataset).state_dict())
        code = self.job.round.code
        methods = [source(type(part)) for part in self._parts_of_method()]
        result = {
            "title": run.title,
            "rounds": rounds,
            "test_accuracy": evaluation.get("test_accuracy"),
            "test_loss": evaluation.get("test_loss"),
            "evaluation": {name: _finite(value) for name, value in evaluation.items()},
            "num_parameters": self.job.layout.dim,
            "num_workers": code.num_workers,
            "num_clients": self.job.num_clients,
            "num_partitions": code.num_partitions,
            "redundancy": code.redundancy,
            "decoder": repr(code.method),
            **{
                name: _shown(getattr(self.job.round, name))
                for name in ("order", "compute", "transforms", "attack", "step")
            },
            "message_bytes": total(run.rounds, "message_bytes"),
            "broadcast_bytes": total(run.rounds, "broadcast_bytes"),
            "stopped": stopped,
            "stopped_by": run.stopped_by,
            "excluded": self.standing.out,
            "virtual_seconds": total(run.rounds, "virtual_seconds"),
            **({"privacy": run.privacy} if run.privacy else {}),
            "methods": [text for text in methods if text],
        }
        if self.folder is not None:
            self.folder.save_model(model.state_dict())
            self.folder.write_json("result.json", result)
        run.result = result
        return run

    def _final_evaluation(self, *, last_round: bool) -> dict[str, float | None]:
        """That of the last round, unless there is none or callbacks then changed the weights."""
        run, before = self.run, self._flat()
        if last_round:
            self.callbacks.on_last_round(run)
        last = run.rounds[-1] if run.rounds else {}
        entry = last if last.get("step") == run.done - 1 else {}
        if self._flat().equal(before) and set(self.evaluator.names) <= set(entry):
            return {name: entry[name] for name in self.evaluator.names}
        return self.evaluator.measure(self.job)

    def _broadcast(self, step_state: Any) -> Broadcast:
        """What workers are told: the weights, and what the server step and the code add."""
        stages = self.job.round
        extra = {**stages.step.extra(step_state), **stages.code.broadcast(self.decoder_state)}
        return Broadcast(self._flat(), extra)

    def _parts_of_method(self) -> list[object]:
        """The stages, and what they are made of: whose papers a report cites."""
        stages = self.job.round
        parts: list[object] = [self.algorithm, stages.code.method, stages.order, stages.compute]
        parts += [*stages.transforms, stages.attack, stages.step, stages.aggregation]
        inner = [getattr(one, "compressor", None) for one in parts]
        inner += [getattr(one, "partitioner", None) for one in parts]
        inner += [getattr(one, "inner", None) for one in inner]  # of error feedback
        return [part for part in [*parts, *inner] if part is not None]

    def _diversity(self, monitor: DiversityMonitor, messages: Tensor) -> float | None:
        """B_S as it is known by now, from the gradients of workers that are not suspected."""
        if len(messages) > 1:
            own = squared_norm([messages]) / len(messages)
            whole = replace(monitor, num_workers=len(messages))
            self.spread = whole.update(self.spread, own, squared_norm([messages.mean(dim=0)]))
        return monitor.diversity(self.spread)

    def _byzantine(self, step: int, missing: dict[int, str]) -> list[int]:
        """Byzantine workers of a round; one that was only slow, and came in time, is honest.

        So did one that is to be behind in the first round: there is nothing to be behind of.
        """
        return [
            worker
            for worker, attack in self.job.conduct(step).items()
            if worker in missing
            or (attack.delay_s == 0 and (attack.rounds_behind == 0 or step > 0))
        ]

    def _flat(self) -> Tensor:
        return self.job.layout.read(self.job.model)


def _ids(workers: list[int], clients: Sequence[int]) -> list[int]:
    """The clients that workers computed for, in order."""
    return sorted(clients[worker] for worker in workers)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _shown(part: object | None) -> str | None:
    return repr(part) if part is not None and part != () else None
