"""Learning from history: what rules without memory lose to small lies, and momentum wins back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch.optim import SGD

from phalanx.aggregation import Mean
from phalanx.attacks import (
    ALittleIsEnough,
    Attack,
    FixedWorkers,
    InnerProductManipulation,
    LabelFlip,
    SignFlip,
)
from phalanx.experiments import Cell, Records, grid, load, pivot, train_run
from phalanx.models import ResNet18
from phalanx.reproduce.base import (
    Findings,
    Recipe,
    Scope,
    above,
    report,
    sized,
    to_points,
    unless_stopped,
)
from phalanx.reproduce.robust_training import momentum, robust_rules, side_by_side

_RULES = ("mean", "Krum", "median", "RFA", "trimmed mean", "centred clipping")
_MEMORYLESS, _CLIPPING = _RULES[1:-1], _RULES[-1]
_ATTACKS: dict[str, Attack] = {
    "inner product manipulation": InnerProductManipulation(0.1),
    "a little is enough": ALittleIsEnough(),
    "flipped signs": SignFlip(),
    "flipped labels": LabelFlip(),
}
_IPM, _ALIE, _SIGNS, _LABELS = _ATTACKS
_NONE, _BETAS = "no attack", (0.0, 0.9)
_IMAGES = ("cifar10.npz", "cifar10_full_jpeg.npz"), "CIFAR-10"
_FALL = 10.0  # points of accuracy that are called a fall


@dataclass(frozen=True)
class LearningFromHistory(Recipe):
    """Centred clipping and memoryless rules under four attacks, with and without worker momentum.

    A small network on scikit-learn's digits; in full ResNet-18 of width 16 on CIFAR-10.

    Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization",
    ICML 2021, experiments.
    """

    name: ClassVar[str] = "learning-from-history"
    num_workers: int = 25
    """Workers (n)."""
    num_byzantine: int = 5
    """Byzantine workers, but for inner product manipulation."""
    num_manipulating: int = 11
    """Byzantine workers under inner product manipulation."""
    steps: int | None = sized(60, 250, None)
    """Rounds of a run; 100 epochs if None."""
    seeds: int = 1
    """Runs of which the mean counts."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Rules under attacks with each momentum, and the mean without attack."""
        fixed, is_published = self._fixed(scope)
        seeds = {"seed": range(self.seeds)}
        cells = []
        for beta in (*_BETAS, 0.99) if scope.full else _BETAS:
            # A sum of messages is 1 / (1 - beta) times as long, and so is the radius.
            radius = 100 / (1 - beta) if is_published else 1.0
            axes: dict[str, Any] = {"beta": {beta: momentum(beta, published=is_published)}, **seeds}
            quiet = {"attack": {_NONE: {}}, "rule": {"mean": Mean()}, **axes}
            cells += grid(train_run, quiet, fixed)
            for name, attack in _ATTACKS.items():
                # Milder attacks than this one do not show on digits; the paper's z on CIFAR-10.
                used = ALittleIsEnough(1.5) if name == _ALIE and not is_published else attack
                number = self.num_manipulating if name == _IPM else self.num_byzantine
                staged = {"attack": used, "byzantine": FixedWorkers(list(range(number)))}
                rules = robust_rules(number, radius, 1)
                cells += grid(train_run, {"attack": {name: staged}, "rule": rules, **axes}, fixed)
        return cells

    def _fixed(self, scope: Scope) -> tuple[dict[str, Any], bool]:
        """What all runs have in common, and whether that is what the paper did."""
        data, samples, steps = scope.images(*_IMAGES), 8, self.steps or 0
        extra: dict[str, Any] = {}
        if data.published:
            samples = 32
            epoch = len(load(data.source).train) // (samples * self.num_workers)  # type: ignore[arg-type]
            steps = self.steps or 100 * epoch
            model = partial(ResNet18, width=16)
            extra = {"model": model, "milestones": (75 * epoch,), "device": scope.device}
        return {
            "data": data.source,
            "num_workers": self.num_workers,
            "batch_size": samples * self.num_workers,
            "steps": steps,
            "evaluate_every": max(1, steps // 20),
            "optimizer": partial(SGD, lr=0.1),
            **extra,
        }, data.published

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Every rule under every attack, beside the authors' logs."""
        images, figures = scope.images(*_IMAGES), self.told["figures"]
        read = unless_stopped("last_accuracies")
        at = pivot(found, ("attack", "beta"), "rule", read, to_points)
        ours = _figures(lambda attack, beta, rule: at[(attack, beta), rule])
        paper = _figures(lambda attack, beta, rule: figures[attack][str(beta)].get(rule))
        without, later, alie, krum = (ours[key] for key in ("without", "later", "alie", "krum"))
        values = {
            "data": images.origin,
            "rules": ", ".join(_MEMORYLESS),
            "others": ", ".join(_MEMORYLESS[1:]),
            "ours": ours,
            "paper": paper,
            "lowest": [min(one or 0.0 for one in ours[key]) for key in ("clipped", "mean")],
            "clean": ours["clean"],
            "best": max(one or 0.0 for one in without),
        }
        holds = {
            "small lies": [above(ours["first"][0], one, _FALL) for one in without],
            "given back": [above(*pair, _FALL) for pair in zip(later, without[1:], strict=True)],
            "a little": [above(one, was, 1.0) for was, one in zip(*alie, strict=True)],
            "near the mean": [above(one, ours["clean"][0], -3.0) for one in ours["clipped"]],
            "Krum": [above(was, one, 1.0) for was, one in krum],
            "mean": None,
        }
        notes = ("notes", "full" if images.published else "quick")
        parts = report(self.told, holds, values, answer="answer", notes=notes)
        for attack in (_NONE, *_ATTACKS):
            logged = {
                (rule, float(beta)): accuracy
                for beta, by_rule in figures[attack].items()
                for rule, accuracy in by_rule.items()
            }
            shown = pivot(found.where(attack=attack), "rule", "beta", read, to_points)
            title = "Without attack" if attack == _NONE else f"Under attack: {attack}"
            caption = self.told["caption"]
            parts += side_by_side(title, caption, shown, logged, "{who}, beta {column}")
        return parts


def _figures(of: Callable[[str, float, str], float | None]) -> dict[str, list[Any]]:
    """The accuracies that claims are about, by attack, beta and rule."""
    return {
        "without": [of(_IPM, 0.0, rule) for rule in _MEMORYLESS],
        "first": [of(_IPM, 0.0, _CLIPPING)],
        "later": [of(_IPM, 0.9, rule) for rule in _MEMORYLESS[1:]],
        "alie": [[of(_ALIE, beta, rule) for rule in _MEMORYLESS] for beta in _BETAS],
        "alie_mean": [of(_ALIE, beta, "mean") for beta in _BETAS],
        "clipped": [of(name, 0.9, _CLIPPING) for name in _ATTACKS],
        "clean": [of(_NONE, 0.9, "mean")],
        "krum": [[of(name, beta, "Krum") for beta in _BETAS] for name in (_SIGNS, _LABELS)],
        "mean": [of(name, 0.9, "mean") for name in _ATTACKS],
    }
