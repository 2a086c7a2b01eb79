"""Backdoor drill: a federation under an attacker and a defence, summed up in figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import Subset, TensorDataset

from phalanx.aggregation import Aggregator, Mean
from phalanx.attacks import PeriodicWorkers
from phalanx.backdoors.backdoor import Backdoor
from phalanx.backdoors.edge_cases import EdgeCases, EdgeSet
from phalanx.backdoors.low_density import LowDensity
from phalanx.backdoors.poisoned_steps import PoisonedSteps
from phalanx.checks import (
    require_above,
    require_at_least,
    require_between,
    require_finite_at_least,
)
from phalanx.computations import Broadcast, Objective, Samples
from phalanx.data import DataSource, Digits, DirichletPartitioner
from phalanx.evaluation import evaluate
from phalanx.experiments import MakeModel, build, load
from phalanx.federated import FedAvg, deal, federate
from phalanx.losses import cross_entropy
from phalanx.models import MLP
from phalanx.randomness import generator
from phalanx.training import Callback, NoisyStep, Run, ServerMomentum, ServerStep, train


@dataclass(frozen=True)
class Federation:
    """A federation as a drill has it: data, clients, local training and rounds."""

    data: DataSource = Digits()  # noqa: RUF009 - frozen
    """What is learned, dealt out to the clients."""
    model: MakeModel = MLP
    """Makes the model, whose weights the drill begins with unless it is trained before."""
    edge: EdgeCases | EdgeSet = LowDensity()  # noqa: RUF009 - frozen
    """The edge cases that the attacker is after: a description, or tensors at hand."""
    honest_share: float = 0.0
    """Share of the attacker's edge cases that honest clients hold with their true label."""
    rare_share: float = 0.1
    """Share of the clients that hold those."""
    num_clients: int = 100
    """Clients in all."""
    clients_per_round: int = 10
    """Clients that take part in a round."""
    alpha: float = 0.5
    """Concentration of the Dirichlet distribution by which classes are dealt to clients."""
    rounds: int = 21
    """Rounds of the drill."""
    epochs: int = 1
    """Passes of a client over its samples in a round."""
    batch_size: int = 32
    """Samples of a local step."""
    lr: float = 0.02
    """Learning rate of the local steps."""
    momentum: float = 0.9
    """Momentum of the local steps."""
    pretraining: int = 500
    """Steps of 64 samples by which the model is trained before the drill; 0 for none."""
    num_clean: int = 100
    """Clean samples that the attacker holds beside its edge cases."""

    def __post_init__(self) -> None:
        require_between(0, 1, honest_share=self.honest_share, rare_share=self.rare_share)
        require_at_least(1, rounds=self.rounds, clients_per_round=self.clients_per_round)
        require_at_least(self.clients_per_round, num_clients=self.num_clients)
        require_at_least(0, pretraining=self.pretraining, num_clean=self.num_clean)
        self.algorithm()  # checks what it is given

    def algorithm(self, server: ServerStep = ServerMomentum(momentum=0.0)) -> FedAvg:  # noqa: B008
        """What an honest client does in a round: FedAvg, in which clients count alike."""
        return FedAvg(
            self.lr,
            self.batch_size,
            self.epochs,
            server=server,
            weighted=False,
            momentum=self.momentum,
        )

    def clients(self, edge: EdgeSet, seed: int) -> list[Subset[tuple[Tensor, ...]]]:
        """The data sets of the clients: the training set dealt out, and rare samples to few."""
        dataset = edge.honest(load(self.data), self.honest_share)
        number = len(dataset) - edge.num_honest(self.honest_share)
        common = TensorDataset(*(part[:number] for part in dataset.tensors))
        dealt = deal(common, DirichletPartitioner(self.alpha), self.num_clients, seed)
        held = [list(one.indices) for one in dealt]
        rare = self.rare_clients(len(held), seed)
        for place, sample in enumerate(range(number, len(dataset))):
            held[rare[place % len(rare)]].append(sample)
        return [Subset(dataset, own) for own in held]

    def rare_clients(self, num_clients: int, seed: int) -> list[int]:
        """Who holds the rare samples of honest clients, of those that hold anything."""
        number = max(1, round(self.rare_share * num_clients))
        drawn = torch.randperm(num_clients, generator=generator(seed, "rare clients"))
        return drawn[:number].tolist()


@dataclass(frozen=True)
class Attacker:
    """A backdoor attacker as a point of a search: what it does, how far, and how often."""

    radius: float | None = None
    """Radius of the ball of projected gradient descent, in units of the norm of an honest update
    as the attacker can measure it on its own clean samples; None for the black-box attack."""
    replacement: bool = False
    """Whether the message is scaled so that the mean would become the attacker's model."""
    every: int = 5
    """Rounds from one attack to the next, from the first round on."""
    attackers: int = 1
    """Clients of an attacked round that are malicious."""
    epochs: int = 2
    """Passes over the poisoned data."""

    def __post_init__(self) -> None:
        require_above(0, radius=self.radius)
        require_at_least(1, every=self.every, attackers=self.attackers, epochs=self.epochs)

    def __str__(self) -> str:
        kind = "black box" if self.radius is None else f"PGD {self.radius:g}"
        boosted = " + replacement" if self.replacement else ""
        many = f", {self.attackers} attackers" if self.attackers > 1 else ""
        longer = f", {self.epochs} epochs" if self.epochs != 2 else ""
        return f"{kind}{boosted}, every {self.every}{many}{longer}"


@dataclass(frozen=True)
class Defence:
    """A defence of the server: a rule, and noise on its aggregate."""

    rule: Aggregator = Mean()  # noqa: RUF009 - frozen
    """The rule, pre-aggregation such as clipping before it."""
    noise: float = 0.0
    """Standard deviation of noise on the aggregate; see `NoisyStep`: no guarantee of privacy."""

    def __post_init__(self) -> None:
        require_finite_at_least(0, noise=self.noise)

    def step(self, seed: int) -> ServerStep:
        """The server's step: the aggregate as it is, or with noise on it."""
        plain = ServerMomentum(momentum=0.0)
        return NoisyStep(plain, self.noise, seed) if self.noise else plain


def backdoor_run(
    federation: Federation, attacker: Attacker | None, defence: Defence, seed: int = 0
) -> dict[str, Any]:
    """A drill: rounds of a federation, and what the backdoor and the main task come to.

    Args:
        federation: data, clients and rounds.
        attacker: None for no attack.
        defence: of the server.
        seed: of everything random.

    Returns:
        `backdoor`: share of the held-out edge cases that the final model takes for the target.
        `backdoor_before`: the same before the drill; `backdoors`: after every round.
        `edge`: share of them that it takes for what they are; `main`, `main_before`: test accuracy.
        `honest_norm`: norm of an honest update before the drill, by the attacker's measure.
        `left_out`: share of the honest messages that the rule left out, or found far away.
    """
    splits, edge = load(federation.data), edge_set(federation)
    edge.require_fit(splits)
    model = pretrained(federation, seed)
    honest = edge.honest(splits, federation.honest_share)
    watch = _Watch(edge)
    found: dict[str, Any] = {
        "backdoor_before": hit(model, edge.test, edge.target),
        "main_before": _accuracy(model, splits.test, honest),
        "honest_norm": honest_norm(federation, model, edge, seed),
    }
    staged: Mapping[str, Any] = {}
    if attacker is not None:
        seats = list(range(attacker.attackers))
        staged = {
            "attack": staged_attack(federation, attacker, edge, found["honest_norm"], seed),
            "byzantine": PeriodicWorkers(attacker.every, workers=seats),
        }
    run = federate(
        lambda: model,
        federation.clients(edge, seed),
        federation.algorithm(defence.step(seed)),
        rounds=federation.rounds,
        clients_per_round=federation.clients_per_round,
        rule=defence.rule,
        seed=seed,
        evaluate_every=federation.rounds,
        callbacks=[watch],
        progress=False,
        **staged,
    )
    return found | {
        "backdoor": watch.found[-1],
        "backdoors": watch.found,
        "edge": hit(model, edge.test, edge.true_label),
        "main": _accuracy(model, splits.test, honest),
        "left_out": _left_out(run),
    }


def staged_attack(
    federation: Federation, attacker: Attacker, edge: EdgeSet, norm: float, seed: int
) -> Backdoor:
    """The attack of an attacker who measured that honest updates have this norm."""
    inputs, targets = edge.poisoned(load(federation.data), federation.num_clean, seed).tensors
    training = PoisonedSteps(
        inputs,
        targets,
        lr=federation.lr,
        epochs=attacker.epochs,
        batch_size=federation.batch_size,
        momentum=federation.momentum,
        radius=None if attacker.radius is None else attacker.radius * norm,
    )
    boost = float(federation.clients_per_round) if attacker.replacement else 1.0
    return Backdoor(training, boost)


def honest_norm(federation: Federation, model: nn.Module, edge: EdgeSet, seed: int) -> float:
    """Norm of an honest client's update on samples as the attacker has them: its yardstick."""
    splits = load(federation.data)
    number = max(federation.num_clean, 1)
    poison = edge.poisoned(splits, number, seed)
    inputs, targets = (part[:number] for part in poison.tensors)
    norm: float = update_of(federation, model, Samples(inputs, targets), seed).norm().item()
    return norm


def update_of(federation: Federation, model: nn.Module, samples: Samples, seed: int) -> Tensor:
    """What an honest client with these samples would send for a model."""
    objective = Objective(model, cross_entropy)
    broadcast = Broadcast(objective.layout.read(model))
    source, compute = generator(seed, "probe"), federation.algorithm().compute
    return compute.compute(objective, broadcast, samples, (), source).update


def edge_set(federation: Federation) -> EdgeSet:
    """The edge cases of a federation; a process that asks again does not read them again."""
    return _edge_set(federation.edge, federation.data)


@lru_cache(maxsize=4)
def _edge_set(edge: EdgeCases | EdgeSet, data: DataSource) -> EdgeSet:
    return edge if isinstance(edge, EdgeSet) else edge.load(data)


def pretrained(federation: Federation, seed: int) -> nn.Module:
    """The model that a drill begins with, trained on all samples but the edge cases."""
    splits = load(federation.data)
    model = build(federation.model, splits, seed)
    if federation.pretraining:
        model.load_state_dict(_trained(_before(federation), seed))
    return model


def _before(federation: Federation) -> Federation:
    """The federation as far as it matters before the drill, so that drills share the model."""
    usual = Federation()
    return replace(
        usual,
        data=federation.data,
        model=federation.model,
        edge=federation.edge,
        pretraining=federation.pretraining,
    )


@lru_cache(maxsize=4)
def _trained(federation: Federation, seed: int) -> dict[str, Tensor]:
    splits = load(federation.data)
    model = build(federation.model, splits, seed)
    train(
        model,
        edge_set(federation).honest(splits, 0.0),
        rule=Mean(),
        num_workers=1,
        batch_size=64,
        steps=federation.pretraining,
        optimizer=partial(SGD, lr=0.02, momentum=0.9),
        seed=seed,
        progress=False,
    )
    return model.state_dict()


def hit(model: nn.Module, inputs: Tensor, label: int) -> float:
    """Share of inputs that a model takes for a class."""
    with torch.no_grad():
        answers = model.eval()(inputs).argmax(dim=1)
    model.train()
    share: float = (answers == label).double().mean().item()
    return share


@dataclass
class _Watch(Callback):
    """Backdoor accuracy after every round."""

    edge: EdgeSet
    found: list[float] = field(default_factory=list)

    def on_round(self, run: Run, entry: Mapping[str, Any]) -> None:
        self.found.append(hit(run.model, self.edge.test, self.edge.target))


def _accuracy(model: nn.Module, test: Any, train_set: TensorDataset) -> float:
    found = evaluate(model, cross_entropy, test, train_set).accuracy
    assert found is not None
    return found


def _left_out(run: Run) -> float:
    """Share of honest messages that the rule left out or found far from the others."""
    honest = wronged = 0
    for entry in run.rounds:
        good = set(entry["clients"]) - set(entry["byzantine"])
        honest += len(good)
        wronged += len(good & set(entry["outliers"]))
    return wronged / honest
