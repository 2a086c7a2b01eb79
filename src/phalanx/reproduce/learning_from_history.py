"""Learning from history: what rules without memory lose to small lies, and momentum wins back."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

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
from phalanx.experiments import Cell, Pivot, Records, grid, load, pivot, train_run
from phalanx.models import ResNet18
from phalanx.reporting import Table
from phalanx.reproduce.base import (
    ACCURACY,
    NOT_QUOTED,
    Claim,
    Findings,
    Recipe,
    Scope,
    above,
    figures,
    points,
    published,
    to_points,
)
from phalanx.reproduce.robust_training import momentum, notes, robust_rules, side_by_side

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
_TOLD = published("learning-from-history")
_PAPER = _TOLD["figures"]
_IMAGES = ("cifar10.npz", "cifar10_full_jpeg.npz"), "CIFAR-10"
_FALL = 10.0  # points of accuracy that are called a fall


@dataclass(frozen=True)
class LearningFromHistory(Recipe):
    """Centred clipping and memoryless rules under four attacks, with and without worker momentum.

    In quick mode a small network on scikit-learn's digits; in full ResNet-18 of width 16 on
    CIFAR-10 for 100 epochs, if the data is there; that is meant for a GPU.

    Cost: in quick mode under two minutes on one core.
    Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization",
    ICML 2021, experiments.
    """

    name: ClassVar[str] = "learning-from-history"
    paper: ClassVar[str] = (
        "Karimireddy, He and Jaggi, Learning from History for Byzantine Robust Optimization, "
        "ICML 2021"
    )

    num_workers: int = 25
    """Workers (n)."""
    num_byzantine: int = 5
    """Byzantine workers, but for inner product manipulation."""
    num_manipulating: int = 11
    """Byzantine workers under inner product manipulation."""
    steps: int | None = None
    """Rounds of a run; by default 250, 1000 in full, or 100 epochs of CIFAR-10."""
    seeds: int | None = None
    """Runs of which the mean counts; by default 1, or 3 in full on digits."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Rules under attacks with each momentum, and the mean without attack."""
        fixed, is_published = self._fixed(scope)
        seeds = {"seed": range(self.seeds or (3 if scope.full and not is_published else 1))}
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
        data = scope.images(*_IMAGES)
        samples, steps = 8, self.steps or (1000 if scope.full else 250)
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
        images = scope.images(*_IMAGES)
        return Findings(
            answer=_answer(found),
            claims=_claims(found),
            tables=[_table(name, found) for name in (_NONE, *_ATTACKS)],
            notes=notes(images, _TOLD),
        )


class _Figures(NamedTuple):
    """Accuracies by attack and beta, then rule."""

    at: Pivot

    def ours(self, attack: str, beta: float, *rules: str) -> list[float | None]:
        return [self.at[(attack, beta), rule] for rule in rules]

    def paper(self, attack: str, beta: float, *rules: str) -> str:
        return figures([_PAPER[attack][str(beta)][rule] for rule in rules])


def _claims(found: Records) -> list[Claim]:
    at = _Figures(pivot(found, ("attack", "beta"), "rule", ACCURACY, to_points))
    without, memory = at.ours(_IPM, 0.0, *_MEMORYLESS), at.ours(_IPM, 0.9, *_MEMORYLESS)
    alie = [at.ours(_ALIE, beta, *_MEMORYLESS) for beta in _BETAS]
    mean = [at.ours(_ALIE, beta, "mean")[0] for beta in _BETAS]
    clipped = [at.ours(name, 0.9, _CLIPPING)[0] for name in _ATTACKS]
    [clean], [first] = at.ours(_NONE, 0.9, "mean"), at.ours(_IPM, 0.0, _CLIPPING)
    krum = [[at.ours(name, beta, "Krum")[0] for beta in _BETAS] for name in (_SIGNS, _LABELS)]
    return [
        Claim(
            f"Small lies that agree over time defeat rules without memory ({_IPM}, no momentum: "
            f"{', '.join(_MEMORYLESS)}), not centred clipping.",
            f"{at.paper(_IPM, 0.0, *_MEMORYLESS)}; {at.paper(_IPM, 0.0, _CLIPPING)}",
            f"{figures(without)}; {figures([first])}",
            [above(first, one, _FALL) for one in without],
        ),
        Claim(
            f"Momentum gives part of it back to them ({_IPM}, beta 0.9: "
            f"{', '.join(_MEMORYLESS[1:])}), Krum excepted.",
            at.paper(_IPM, 0.9, *_MEMORYLESS[1:]),
            figures(memory[1:]),
            [above(one, was, _FALL) for one, was in zip(memory[1:], without[1:], strict=True)],
        ),
        Claim(
            f"Momentum helps rules without memory against {_ALIE} "
            f"({', '.join(_MEMORYLESS)}; beta 0, then 0.9).",
            "; ".join(at.paper(_ALIE, beta, *_MEMORYLESS) for beta in _BETAS),
            f"{'; '.join(map(figures, alie))}; the plain mean {figures(mean)}",
            [above(one, was, 1.0) for was, one in zip(*alie, strict=True)],
        ),
        Claim(
            "Centred clipping with momentum 0.9 comes within 3 points of the mean without attack, "
            "whatever the attack.",
            f"{' / '.join(at.paper(name, 0.9, _CLIPPING) for name in _ATTACKS)}; without attack "
            f"{at.paper(_NONE, 0.9, 'mean')}",
            f"{figures(clipped)}; without attack {figures([clean])}",
            [above(one, clean, -3.0) for one in clipped],
        ),
        Claim(
            "Momentum makes Krum worse under flipped signs and flipped labels (beta 0, then 0.9).",
            "; ".join(
                " / ".join(at.paper(name, beta, "Krum") for beta in _BETAS)
                for name in (_SIGNS, _LABELS)
            ),
            "; ".join(map(figures, krum)),
            [above(was, one, 1.0) for was, one in krum],
        ),
        Claim(
            "The plain mean, for comparison, under the four attacks with beta 0.9.",
            NOT_QUOTED,
            figures([at.ours(name, 0.9, "mean")[0] for name in _ATTACKS]),
        ),
    ]


def _answer(found: Records) -> str:
    lowest = [
        min(points(found, attack=name, beta=0.9, rule=rule) or 0.0 for name in _ATTACKS)
        for rule in (_CLIPPING, "mean")
    ]
    clean = points(found, attack=_NONE, beta=0.9, rule="mean") or 0.0
    best = max(points(found, attack=_IPM, beta=0.0, rule=rule) or 0.0 for rule in _MEMORYLESS)
    return (
        f"With worker momentum, centred clipping kept at least {lowest[0]:.1f} % test accuracy "
        f"under every attack (without attack the mean has {clean:.1f} %); the plain mean kept "
        f"{lowest[1]:.1f} %, and without momentum no rule without memory had more than "
        f"{best:.1f} % under {_IPM}."
    )


def _table(attack: str, found: Records) -> Table:
    paper = {
        (rule, float(beta)): accuracy
        for beta, logged in _PAPER[attack].items()
        for rule, accuracy in logged.items()
    }
    ours = pivot(found.where(attack=attack), "rule", "beta", ACCURACY, to_points)
    caption = "Test accuracy in percent over the last five evaluations. Beta 0 is no momentum."
    title = "Without attack" if attack == _NONE else f"Under attack: {attack}"
    return side_by_side(title, caption, ours, paper, "{who}, beta {column}")
