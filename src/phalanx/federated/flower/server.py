"""Server of a federation on Flower: the loop of every other run, over a grid."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import TensorDataset

from phalanx.federated.client_privacy import protected
from phalanx.federated.client_sampling import ClientSampling
from phalanx.federated.flower.engine import FlowerEngine
from phalanx.federated.flower.nodes import NodeRegistry
from phalanx.federated.flower.plan import FederationPlan
from phalanx.federated.flower.records import import_flower
from phalanx.files import owned
from phalanx.training import Reputation, Run
from phalanx.training.callbacks import Callbacks
from phalanx.training.checks import check_job, hidden_problems
from phalanx.training.composition import composition
from phalanx.training.evaluator import Evaluator
from phalanx.training.interruption import terminable
from phalanx.training.job import Job
from phalanx.training.loop import Loop
from phalanx.training.run import check_resume, run_rounds
from phalanx.training.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class RemoteClients(ClientSampling):
    """Sampling of clients whose samples are elsewhere; how many, they say themselves."""

    told: Tensor | None = None
    """`(clients,)`, filled in as clients are heard of."""

    def num_held(self, client: int) -> int:
        """How many samples a client says that it holds; 1 before it has."""
        assert self.told is not None
        return max(1, int(self.told[client]))


def server_app(plan: FederationPlan) -> Any:
    """The `ServerApp` of a federation."""
    app = import_flower("flwr.serverapp").ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Any, context: Any) -> None:
        """All rounds."""
        serve_rounds(plan, grid)

    return app


def serve_rounds(plan: FederationPlan, grid: Any) -> Run:
    """All rounds of a federation, over a grid of Flower."""
    number, model = plan.num_clients, plan.model()
    _refuse_statistics(model)
    sizes = torch.zeros(number, dtype=torch.int64)
    order = RemoteClients(torch.arange(number), torch.ones(number, dtype=torch.int64), sizes)
    # The samples are elsewhere; what stands for them is one empty row for each client.
    nothing = TensorDataset(torch.zeros(number, 0), torch.zeros(number))
    job = Job(model, plan.loss, nothing, plan.stages(order), plan.num_sampled, plan.seed)
    if problems := hidden_problems(job.round):
        raise ValueError("; ".join(problems))
    job = job.fitted()
    sets: Mapping[str, Any] = {} if plan.test_fn is None else {"test": plan.test_fn()}
    if sets:  # else clients find out what does not fit
        check_job(replace(job, dataset=sets["test"]), sets, {})
    check_resume(plan.out, plan.resume, ())
    if plan.resume and job.remembers:
        raise ValueError(
            f"resume must be False where clients remember rounds, as in {plan.algorithm}: what "
            "they keep ends with the run of Flower that is interrupted"
        )
    private, ledgers = protected(plan.privacy, job, plan.rounds, resume=plan.resume)
    told = [*plan.callbacks, *ledgers]
    out = None if plan.out is None else Path(plan.out)
    registry = NodeRegistry(grid, sizes, plan.round_timeout_s)
    engine = FlowerEngine(
        grid,
        registry,
        plan.quorum,
        plan.round_timeout_s,
        plan.start_timeout_s,
        plan.attempts,
        plan.poll_s,
    )
    with terminable(), owned(out) if out is not None else nullcontext():
        loop = Loop(
            private,
            Reputation(None, 0, None, plan.rounds),
            Evaluator(sets, plan.metrics or {}),
            Callbacks(told),
            RunFolder(out, resume=plan.resume) if out is not None else None,
            plan.title or type(plan.algorithm).__name__,
            None,
        )
        loop.algorithm = plan.algorithm
        if out is not None:
            loop.composition = composition(
                job,
                loop.step_state,
                **({} if plan.privacy is None else {"privacy": plan.privacy}),
            )
        first = loop.restore() if plan.resume else 0
        if first > plan.rounds:
            raise ValueError(
                f"rounds must be at least the {first} rounds that are done, got {plan.rounds}"
            )
        remaining = range(first, plan.rounds)
        return run_rounds(loop, engine, remaining, plan.evaluate_every, plan.checkpoint_every)


def _refuse_statistics(model: nn.Module) -> None:
    tracked = [
        name
        for name, one in model.named_modules()
        if isinstance(one, _NormBase) and one.running_mean is not None
    ]
    if tracked:
        raise ValueError(
            "model_fn must give a model without running statistics, whose samples the server has "
            f"not, got them in {tracked}; use GroupNorm, or track_running_stats=False"
        )
