"""DRACO: the same model whatever Byzantine workers send, and what that costs per round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar, Literal

from torch.optim import SGD

from phalanx.aggregation import CoordinateMedian, GeometricMedian, Krum, Mean
from phalanx.attacks import Constant, RandomWorkers, ReverseGradient
from phalanx.coding import DracoCyclic, DracoRepetition
from phalanx.experiments import Cell, Record, Records, grid, train_run
from phalanx.models import LeNet
from phalanx.reporting import SAME_WEIGHTS
from phalanx.reporting.format import count, listed, percent
from phalanx.reproduce.base import Findings, Images, Measure, Recipe, Scope, report, sized
from phalanx.reproduce.robust_training import (
    REFERENCE,
    OtherTest,
    accuracy_plot,
    by_run,
    gap,
    training_table,
)
from phalanx.reproduce.round_times import (
    all_gradients,
    decoders_of,
    median_by_passes,
    median_by_sorting,
    ratios_to_best,
    span_of,
    time_decoder,
    time_gradient,
    winners,
)
from phalanx.training import Local, Ray

_ATTACKS = {"reversed gradient": ReverseGradient(100.0), "constant": Constant(-100.0)}
_REFERENCE, _QUIET = "mean, no attack", "no attack"
_RULES, _CODES = ("mean", "geometric median", "Krum"), ("DRACO repetition", "DRACO cyclic")
_BITS = ("DRACO repetition", "DRACO cyclic over a field")  # compare bits, not floats
_PEERS = ("geometric median by passes", "median by torch")
_SMALL = 2**21  # numbers per message, up to which a median takes no seconds


@dataclass(frozen=True)
class Draco(Recipe):
    """DRACO against the mean, the geometric median and Krum: final weights, and seconds per round.

    First, LeNet is trained on images of digits with `num_byzantine` Byzantine workers, drawn afresh
    every round, under each attack and decoder, and final weights are compared; DRACO's workers are
    processes under Ray, but at size quick. Then rounds with `timed_workers` workers are timed:
    decoding on gradients of each model's size, and the gradient of one partition, which a worker of
    DRACO computes 2 s + 1 times; medians as this package has them, and as they are usually
    computed. Memory: twice the messages of the largest model, 4 GB for ResNet-18 with 45 workers.
    """

    name: ClassVar[str] = "draco"

    num_workers: int = 9
    """Workers of the training runs (n)."""
    num_byzantine: int = 1
    """Byzantine workers in every round of the training runs (s)."""
    steps: int = sized(10, 200, 400)
    """Rounds of the training runs."""
    samples_per_partition: int = 8
    """Samples in the gradient of one partition."""
    timed_workers: tuple[int, ...] = (15, 45)
    """Workers of the rounds that are timed."""
    timed_byzantine: tuple[int, ...] = (1, 5)
    """Byzantine workers in the rounds that are timed; the code is made to survive as many."""
    timed_models: tuple[Literal["LeNet", "ResNet-18"], ...] = sized(
        ("LeNet",), ("LeNet", "ResNet-18"), ("LeNet", "ResNet-18")
    )
    """Models whose gradients' sizes are timed."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Training under every attack and decoder, and without attack; a gradient's seconds."""
        n, s = self.num_workers, self.num_byzantine
        rules, codes = (
            (Mean(), GeometricMedian(s), Krum(s)),
            (DracoRepetition(n, s), DracoCyclic(n, s)),
        )
        methods: dict[str, dict[str, Any]] = {
            **{name: {"rule": one} for name, one in zip(_RULES, rules, strict=True)},
            **{name: {"code": one} for name, one in zip(_CODES, codes, strict=True)},
            _BITS[1]: {"code": DracoCyclic(n, s, arithmetic="field")},
        }
        quiet = {f"{name}, {_QUIET}": methods[name] for name in ("mean", *_BITS)}
        runs = quiet | {
            f"{name}, {label}": {**method, "attack": attack}
            for label, attack in _ATTACKS.items()
            for name, method in methods.items()
        }
        if scope.size != "quick":  # real processes, as far as that may make a difference
            for name in (*_CODES, _BITS[1]):
                runs[f"{name}, {next(iter(_ATTACKS))}"]["engine"] = Ray()
        data = self._data(scope).source
        fixed = {
            "data": OtherTest(data, first=1000) if scope.size == "default" else data,
            "model": LeNet,
            "num_workers": n,
            "byzantine": RandomWorkers(s),
            "optimizer": partial(SGD, lr=0.01, momentum=0.9),
            "batch_size": self.samples_per_partition * n,
            "steps": self.steps,
            "evaluate_every": max(1, self.steps // 5),
            "engine": Local(chunk_size=1),  # the bits of Ray
            "reference": REFERENCE | {"engine": Local(chunk_size=1)},
        }
        samples = {"samples": self.samples_per_partition}
        timed = grid(time_gradient, {"model": self.timed_models}, samples, alone=True)
        return [*grid(train_run, {"run": runs}, fixed), *timed]

    def measure(self, scope: Scope, run: Measure) -> Records:
        """Trains, then times, first gradients and then decoders."""
        first = run(self.cells(scope))
        gradients = [one for one in first if one["run"] is None]
        rounds = [
            cell
            for one, workers in product(gradients, self.timed_workers)
            for byzantine in self.timed_byzantine
            for cell in self._timed(scope, one, workers, byzantine)
        ]
        timed = run(rounds)
        all_gradients.cache_clear()
        return Records([*first.where(run=first.labels("run")), *timed])

    def _timed(self, scope: Scope, gradient: Record, n: int, byzantine: int) -> list[Cell]:
        """Rounds of a model with so many workers, so many of them Byzantine, by decoder."""
        decoders: dict[str, Any] = {
            "geometric median": GeometricMedian(byzantine),
            "coordinate median": CoordinateMedian(byzantine),
            "Krum": Krum(byzantine),
            **dict(zip(_PEERS, (median_by_passes, median_by_sorting), strict=True)),
            "DRACO repetition": DracoRepetition(n, byzantine),
            "DRACO cyclic": DracoCyclic(n, byzantine),
        }
        small = gradient["dim"] <= _SMALL
        fixed = {
            **{name: gradient[name] for name in ("dim", "gradient_s")},
            "num_workers": n,
            "repeats": 7 if scope.full else 5 if small else 1,
        }
        axes: dict[str, Any] = {"decoder": decoders, "model": {gradient["model"]: {}}}
        axes |= {"workers": {n: {}}, "byzantine": [byzantine]}
        return grid(time_decoder, axes, fixed, alone=True)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Final weights beside the reference's, and who is faster when."""
        runs = by_run(found.where(run=found.labels("run")))
        times = Records(one for one in found if one["run"] is None)
        attacked = {
            name: [runs[f"{name}, {attack}"] for attack in _ATTACKS]
            for name in (*_RULES, *_CODES, *_BITS)
        }
        coded = [one for name in dict.fromkeys((*_CODES, *_BITS)) for one in attacked[name]]
        clean = runs[_REFERENCE]
        lies, caught, wrong = (
            sum(one[name] for one in coded) for name in ("lies", "caught", "false_alarms")
        )
        same_bits = {
            name: all(
                one["weights"] == runs[f"{name}, {_QUIET}"]["weights"] for one in attacked[name]
            )
            for name in _BITS
        }
        every = {rule: ratios_to_best(times, rule) for rule in decoders_of(times, coded=False)}
        spans = {rule: ratios for rule, ratios in every.items() if ratios}
        speed = [
            f"{span_of(one)} as fast as one with {rule}"
            for rule, one in spans.items()
            if rule in ("coordinate median", *_PEERS)
        ]
        values: dict[str, Any] = {
            "recipe": self,
            "data": self._data(scope).origin,
            "apart": max(gap(one) for name in _CODES for one in attacked[name]),
            "clean": clean["test_accuracy"],
            "lost": " and ".join(percent(one["test_accuracy"]) for one in attacked["mean"]),
            "speed": listed(speed),
            "bits": {f"{name}:": _same_bits(same) for name, same in same_bits.items()},
            "field": _same_bits(same_bits[_BITS[1]]),
            "processes": "" if scope.size == "quick" else " in this process, under Ray too",
            "kept": {name: [one["test_accuracy"] for one in attacked[name]] for name in _RULES[1:]},
            "redundancy": 2 * self.num_byzantine + 1,
            "lies": lies,
            "caught": caught,
            "wrong": count(wrong, "false alarm"),
            "fallen": {
                one["run"]: one["test_accuracy"] for name in _RULES for one in attacked[name]
            },
        }
        parts = Findings("", [])
        for code in _CODES:
            parts += self._identical(code, attacked[code], clean["test_accuracy"])
        holds = {
            "bits": list(same_bits.values()),
            "survived": [caught == lies and not wrong],
            "others": None,
        }
        answer = "same" if values["apart"] <= SAME_WEIGHTS else "apart"
        parts += report(self.told, holds, values, answer=answer) + training_table(runs.values())
        for attack in _ATTACKS:
            caption = "Over rounds, on the test set. DRACO's lines lie on that of the reference."
            under = [one for title, one in runs.items() if title.endswith(f", {attack}")]
            parts += accuracy_plot(attack, caption, [clean, *under])
        return parts + self._timing(times, spans)

    def _timing(self, times: Records, spans: Mapping[str, Sequence[float]]) -> Findings:
        """Who is faster when; `spans` by rule are its seconds over DRACO's."""
        parts = report(self.told, {}, {}, {"times": times, "winners": winners(times)})
        for code in decoders_of(times, coded=True):
            span = span_of([one["decode_ratio"] for one in times.where(decoder=code)])
            parts += report(self.told, {"linear": None}, {"code": code, "span": span})
        for rule, ratios in spans.items():
            decoding = span_of(ratios_to_best(times, rule, "decode_s"))
            shown = {"rule": rule, "total": span_of(ratios), "decoding": decoding}
            parts += report(self.told, {"speed": [min(ratios) >= 2, max(ratios) >= 2]}, shown)
        for model, workers in product(self.timed_models, self.timed_workers):
            like = {"model": model, "workers": workers}
            lines = {
                name: (self.timed_byzantine, [one["total_s"] for one in each])
                for name in times.where(**like).labels("decoder")
                for each in [times.where(**like, decoder=name)]
            }
            words = {"recipe": self, **like}
            parts += report(self.told, {}, words, plots={"times": lines})
        return parts

    def _data(self, scope: Scope) -> Images:
        return scope.images(["mnist.npz"], "MNIST", sizes=("default", "full"))

    def _identical(self, code: str, attacked: Sequence[Record], clean: float) -> Findings:
        """Whether a code's runs under attack ended with the model of the reference."""
        apart, moved = max(map(gap, attacked)), max(one["share_moved"] for one in attacked)
        accuracies = [one["test_accuracy"] for one in attacked]
        close = max(abs(one - clean) for one in accuracies) <= 0.002
        values = {"code": code, "apart": apart, "moved": moved, "same": SAME_WEIGHTS}
        ended = " and ".join(dict.fromkeys(map(percent, accuracies)))
        holds = [True] if apart <= SAME_WEIGHTS else [False, close and moved < 0.01]
        return report(self.told, {"identical": holds}, values | {"ended": ended, "clean": clean})


def _same_bits(same: bool) -> str:
    return f"{'' if same else 'not '}bit for bit its run without attack"
