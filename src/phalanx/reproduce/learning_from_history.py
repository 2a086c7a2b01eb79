"""Learning from history: what rules without memory lose to small lies and noise, and regain."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch.optim import SGD

from phalanx.aggregation import Mean
from phalanx.attacks import ALittleIsEnough, FixedWorkers
from phalanx.data import LongTailedPartitioner
from phalanx.experiments import Cell, Records, grid, pivot, train_run
from phalanx.models import MLP, ResNet18
from phalanx.ordering import PerClient
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
from phalanx.reproduce.robust_training import (
    CIFAR,
    SmallConvNet,
    momentum,
    robust_rules,
    side_by_side,
)

_MEAN, _CLIPPING = "mean", "centred clipping"
_MEMORYLESS = ("median", "RFA")
_BETAS = (0.0, 0.9, 0.99)
_NONE, _LITTLE, _TAIL = "no attack", "a little is enough", "long tail"
_FAILS = 10.0  # points of accuracy below the run without attack that are called a failure
_RADIUS = 1.0  # of centred clipping, on averaged momenta
_RATE = 0.5  # without momentum on the server: as far as 0.05 goes with one of 0.9


@dataclass(frozen=True)
class LearningFromHistory(Recipe):
    """Rules with and without worker momentum under attack, and on long-tailed data without.

    Under "a little is enough" a small network of convolutions learns CIFAR-10; on a long tail of
    classes, where nobody is Byzantine, an MLP learns MNIST. In full ResNet-18 stands for the
    network of convolutions. At size quick both learn scikit-learn's digits.

    Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization",
    ICML 2021, sections 3 and 7.
    """

    name: ClassVar[str] = "learning-from-history"
    num_workers: int = 45
    """Workers (n)."""
    num_byzantine: int = 9
    """Byzantine workers, the same in every round."""
    z: float = 1.5
    """Standard deviations by which a lie is off the honest mean."""
    steps: int = sized(6, 300, 3000)
    """Rounds of a run under attack."""
    seeds: int = sized(1, 1, 2)
    """Runs under attack of which the mean counts."""
    tail_workers: int = 24
    """Workers of the runs on a long tail; all are honest."""
    keep: float = 0.5
    """What a class keeps of what the class before keeps, on a long tail."""
    tail_steps: int = sized(6, 300, 1000)
    """Rounds of a run on a long tail."""
    tail_seeds: int = sized(1, 3, 5)
    """Runs on a long tail of which the mean counts."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Rules under attack with each momentum, and on a long tail; the mean without attack."""
        images = scope.images(*CIFAR, sizes=("default", "full"))
        small: Any = SmallConvNet if images.published else MLP
        model = partial(ResNet18, width=64) if scope.full else small
        fixed = self._sized(images.source, model, self.num_workers, self.steps)
        fixed |= {"device": scope.device, "optimizer": partial(SGD, lr=_RATE)}
        lies = ALittleIsEnough(z=self.z)
        staged = {"attack": lies, "byzantine": FixedWorkers(list(range(self.num_byzantine)))}
        rules, cells = robust_rules(self.num_byzantine, _RADIUS, 1), list[Cell]()
        kept = {name: rules[name] for name in (_MEAN, "Krum", *_MEMORYLESS, _CLIPPING)}
        for beta in _BETAS:
            named = kept if beta == 0 else {k: v for k, v in kept.items() if k != "Krum"}
            axes: dict[str, Any] = {"attack": {_LITTLE: staged}, "rule": named}
            axes |= {"beta": {beta: momentum(beta)}, "seed": range(self.seeds)}
            cells += grid(train_run, axes, fixed)
        quiet: dict[str, Any] = {"attack": {_NONE: {}}, "rule": {_MEAN: Mean()}}
        quiet |= {"beta": {0.0: {}}, "seed": range(self.seeds)}
        return [*cells, *grid(train_run, quiet, fixed), *self._tails(scope)]

    def _tails(self, scope: Scope) -> list[Cell]:
        """All data and the long tail, dealt out alike, without attack."""
        data = scope.images(["mnist.npz"], "MNIST", sizes=("default", "full")).source
        fixed = self._sized(data, MLP, self.tail_workers, self.tail_steps)
        fixed["optimizer"] = partial(SGD, lr=0.1)
        rules = robust_rules(self.num_byzantine, _RADIUS, 1)
        rules = {
            k: rules[k].with_num_byzantine(0) for k in (_MEAN, "Krum", *_MEMORYLESS, _CLIPPING)
        }
        kinds = {"balanced": 1.0, _TAIL: self.keep}
        orders = {k: {"order": PerClient(LongTailedPartitioner(v))} for k, v in kinds.items()}
        return grid(
            train_run, {"classes": orders, "rule": rules, "seed": range(self.tail_seeds)}, fixed
        )

    def _sized(self, data: Any, model: Any, num_workers: int, steps: int) -> dict[str, Any]:
        return {
            "data": data,
            "model": model,
            "num_workers": num_workers,
            "batch_size": 8 * num_workers,
            "steps": steps,
            "evaluate_every": max(1, steps // 20),
        }

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Every rule with each momentum, beside the authors' logs; the long tail."""
        read = unless_stopped("last_accuracies")
        attacked, quiet = found.where(attack=_LITTLE), found.where(attack=_NONE)
        ours = pivot(attacked, "rule", "beta", read, to_points)
        clean = pivot(quiet, "rule", "beta", read, to_points)[_MEAN, 0.0]
        tailed = found.where(classes=found.labels("classes"))
        tails = pivot(tailed, "rule", "classes", read, to_points)
        logged = {
            (rule, float(beta)): accuracy
            for beta, by_rule in self.told["figures"][_LITTLE].items()
            for rule, accuracy in by_rule.items()
        }
        memoryless = {rule: ours[rule, 0.0] for rule in ("Krum", *_MEMORYLESS)}
        clipped = [ours[_CLIPPING, beta] for beta in _BETAS]
        regained = {rule: [ours[rule, beta] for beta in _BETAS] for rule in _MEMORYLESS}
        mean = [ours[_MEAN, beta] for beta in _BETAS]
        best, plain = max(one or 0.0 for one in clipped), max(one or 0.0 for one in mean)
        lost = {rule: [tails[rule, kind] for kind in tails.columns] for rule in tails.rows}
        images = scope.images(*CIFAR, sizes=("default", "full"))
        values = {
            "recipe": self,
            "data": images.origin,
            "clean": clean,
            "mean": mean,
            "memoryless": memoryless,
            "clipped": clipped,
            "regained": regained,
            "best": best,
            "plain": plain,
            "lost": lost,
            "betas": _BETAS,
            "paper": [logged[_CLIPPING, beta] for beta in _BETAS],
            "theirs": {rule: logged[rule, 0.0] for rule in memoryless},
            "later": {rule: [logged[rule, beta] for beta in _BETAS] for rule in _MEMORYLESS},
        }
        fall = [above(clean, one, _FAILS) for one in memoryless.values()]
        balanced, tail = ([lost[rule][kind] for rule in lost] for kind in (0, 1))
        gaps = dict(zip(lost, zip(balanced, tail, strict=True), strict=True))
        holds = {
            "fail": [*fall, above(clean, mean[0], _FAILS)],
            "momentum": [above(best, clipped[0], _FAILS), above(best, plain, _FAILS)],
            "given back": [
                above(max(x or 0 for x in one[1:]), one[0]) for one in regained.values()
            ],
            "near": [above(best, clean, -5.0)],
            "tail": [
                above(gaps[_MEAN][1], gaps[rule][1], _FAILS) for rule in ("Krum", *_MEMORYLESS)
            ],
            "tail clipped": [above(gaps[_CLIPPING][1], gaps[_MEAN][1], -2.0)],
        }
        answer = "mean suffices" if above(plain, best, -2.0) else "answer"
        parts = report(self.told, holds, values, {"tail": tails}, answer=answer)
        title, caption = self.told["under attack"]
        return parts + side_by_side(title, caption, ours, logged, "{who}, beta {column}")
