"""FedDF: the server distils the clients' models into one, on unlabelled data."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from phalanx.data import DataSource
from phalanx.federated.distillation import Distillation, Distilled, teacher_logits
from phalanx.federated.fed_avg import FedAvg
from phalanx.fetch import fetch
from phalanx.parameters import ParameterLayout
from phalanx.randomness import generator
from phalanx.training import Received, ServerMomentum, ServerStep

Data = Dataset[tuple[Tensor, ...]] | DataSource


@dataclass(frozen=True)
class _State:
    """Rounds so far, the data, and what the last distillation came to."""

    rounds: int
    inputs: Tensor
    validation: Dataset[tuple[Tensor, ...]] | None
    last: Distilled | None = None
    ensemble: float | None = None


@dataclass(frozen=True)
class DistillationStep(ServerStep):
    """Server step that looks at the clients' models one by one, and distils them into the mean.

    The student starts as the model that the decoded update leads to; teachers are the models of all
    clients whose messages are usable.
    """

    distillation: Distillation = Distillation()  # noqa: RUF009 - frozen
    """How it is done."""

    unlabelled: Data | None = None
    """What on; targets are not looked at."""

    validation: Data | None = None
    """Labelled data of the server that choose the best student; without them the last one stays."""

    @property
    def needs_messages(self) -> bool:
        """True."""
        return True

    def init(self, model: nn.Module) -> Any:
        """No rounds, and the data in memory.

        Raises:
            ValueError: if there are no unlabelled data.
        """
        if self.unlabelled is None:
            raise ValueError(
                "unlabelled must be data that the server distils on, a data set or a DataSource "
                "such as NpzFile, got None; its targets are not read"
            )
        home = ParameterLayout.of(model).read(model).device
        data = _dataset(self.unlabelled, "unlabelled")
        size = len(data)  # type: ignore[arg-type]
        inputs = fetch(data, torch.arange(size))[0].to(home)
        held = None if self.validation is None else _dataset(self.validation, "validation")
        return _State(0, inputs, held)

    def apply(self, model: nn.Module, update: Float[Tensor, " dim"], state: Any) -> Any:
        """The mean alone, where nobody has the messages one by one."""
        layout = ParameterLayout.of(model)
        layout.write(model, layout.read(model) - update)
        return replace(state, rounds=state.rounds + 1)

    def receive(self, model: nn.Module, received: Received, state: Any) -> Any:
        """The mean, then the distillation."""
        layout = ParameterLayout.of(model)
        before = layout.read(model)
        teachers = []
        for message in received.messages[received.usable.to(before.device)]:
            teacher = copy.deepcopy(model)
            layout.write(teacher, before - message.to(before))
            teachers.append(teacher)
        state = self.apply(model, received.update, state)
        logits = teacher_logits(teachers, state.inputs)
        if not len(logits):
            return replace(state, last=None, ensemble=None)
        draws, targets = generator("distillation", state.rounds), self.distillation.targets(logits)
        done = self.distillation.distil(model, state.inputs, targets, state.validation, draws)
        held, ensemble = state.validation, None
        if held is not None:
            ensemble = self.distillation.ensemble_accuracy(teachers, held, state.inputs)
        return replace(state, last=done, ensemble=ensemble)

    def metrics(self, state: Any) -> Mapping[str, float]:
        """Steps of the distillation, and accuracies on the validation data.

        Of the mean, of the ensemble that teaches it, and of what it became.
        """
        if state.last is None:
            return {}
        found = {"distillation_steps": float(state.last.num_steps)}
        if state.last.before is not None:
            found |= {"mean_accuracy": state.last.before, "distilled_accuracy": state.last.after}
        if state.ensemble is not None:
            found["ensemble_accuracy"] = state.ensemble
        return found

    def dump(self, state: Any) -> Any:
        """The number of rounds."""
        return state.rounds

    def load(self, model: nn.Module, dumped: Any) -> Any:
        """So many rounds, and the data."""
        return replace(self.init(model), rounds=dumped)


@dataclass(frozen=True)
class FedDF(FedAvg):
    """FedDF: FedAvg whose mean model then learns from the ensemble of the clients' models.

    The server needs unlabelled data of about the clients' kind, and looks at their models one by
    one: neither a rule nor secure aggregation stands before it. A robust rule decides where the
    student starts; that of `distillation` aggregates what the teachers say. `server` is not used.

    Cost: that of FedAvg for the clients; see `Distillation` for the server.
    Source: Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated
    Learning", NeurIPS 2020 (Algorithm 1).

    >>> from phalanx.federated import Distillation, FedDF, noise_inputs
    >>> FedDF(unlabelled=noise_inputs((4,), 100), distillation=Distillation(num_steps=50)).lr
    0.1
    """

    distillation: Distillation = Distillation()  # noqa: RUF009 - frozen
    """How the server distils."""

    unlabelled: Data | None = None
    """Data that it distils on; targets are not looked at. It has to be given."""

    validation: Data | None = None
    """Labelled data of the server: with them a round is never worse than the mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server != ServerMomentum(momentum=0.0):
            raise ValueError(
                f"server must be left out: the distilled model is taken as it is, got {self.server}"
            )

    @property
    def step(self) -> ServerStep:
        """The distillation."""
        return DistillationStep(self.distillation, self.unlabelled, self.validation)


def _dataset(data: Any, name: str) -> Dataset[tuple[Tensor, ...]]:
    """A data set, or the training data of a source."""
    found = data.load().train if isinstance(data, DataSource) else data
    if not hasattr(found, "__len__") or not len(found):
        raise ValueError(f"{name} must hold samples, got {data!r:.80}")
    made: Dataset[tuple[Tensor, ...]] = found
    return made
