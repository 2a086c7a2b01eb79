"""DRACO: the same model whatever Byzantine workers send, and what that costs per round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from matplotlib.axes import Axes
from torch.optim import SGD

from phalanx.aggregation import GeometricMedian, Krum, Mean
from phalanx.attacks import Constant, RandomWorkers, ReverseGradient
from phalanx.coding import DracoCyclic, DracoRepetition
from phalanx.data import DataSource, Digits, NpzFile
from phalanx.experiments import Cell, Record, Records, grid, load, train_run
from phalanx.models import LeNet
from phalanx.reporting import SAME_WEIGHTS, Plot, Table
from phalanx.reporting.format import count, difference, listed, percent
from phalanx.reporting.plots import COLOURS
from phalanx.reproduce.base import NOT_QUOTED, Claim, Findings, Measure, Recipe, Scope, published
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
    median_by_passes,
    time_decoder,
    time_gradient,
)

Timed = Literal["LeNet", "ResNet-18"]
_ATTACKS = {"reversed gradient": ReverseGradient(100.0), "constant": Constant(-100.0)}
_REFERENCE, _QUIET = "mean, no attack", "DRACO repetition, no attack"
_TOLD = published("draco")
_PAPER = _TOLD["figures"]
_SMALL = 2**21  # numbers per message, up to which iterating over the messages takes no minutes


@dataclass(frozen=True)
class Draco(Recipe):
    """DRACO against the mean, the geometric median and Krum: final weights, and seconds per round.

    First, LeNet is trained on images of digits with `num_byzantine` Byzantine workers, drawn afresh
    every round, under each attack and decoder, and final weights are compared. Then rounds with
    `timed_workers` workers are timed: decoding on gradients of each model's size, and the gradient
    of one partition, which a worker of DRACO computes 2 s + 1 times.

    Cost: in quick mode under three minutes on two cores. Memory: twice the messages of the largest
    model, 4 GB for ResNet-18 with 45 workers.
    """

    name: ClassVar[str] = "draco"
    paper: ClassVar[str] = (
        "Chen, Wang, Charles and Papailiopoulos, DRACO: Byzantine-resilient Distributed Training "
        "via Redundant Gradients, ICML 2018"
    )

    num_workers: int = 15
    """Workers of the training runs (n)."""
    num_byzantine: int = 3
    """Byzantine workers in every round of the training runs (s)."""
    steps: int | None = None
    """Rounds of the training runs; by default 30, or 400 in full."""
    samples_per_partition: int = 8
    """Samples in the gradient of one partition."""
    timed_workers: int = 45
    """Workers of the rounds that are timed."""
    timed_byzantine: tuple[int, ...] = (0, 1, 3, 5)
    """Byzantine workers in the rounds that are timed; the code is made to survive as many."""
    timed_models: tuple[Timed, ...] = ("LeNet", "ResNet-18")
    """Models whose gradients' sizes are timed."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Training under every attack and decoder, and without attack."""
        n, s, steps = (
            self.num_workers,
            self.num_byzantine,
            self.steps or (400 if scope.full else 30),
        )
        methods: dict[str, dict[str, Any]] = {
            "mean": {"rule": Mean()},
            "geometric median": {"rule": GeometricMedian(s)},
            "Krum": {"rule": Krum(s)},
            "DRACO repetition": {"code": DracoRepetition(n, s)},
            "DRACO cyclic": {"code": DracoCyclic(n, s)},
        }
        runs = {_REFERENCE: methods["mean"], _QUIET: methods["DRACO repetition"]} | {
            f"{name}, {label}": {**method, "attack": attack}
            for label, attack in _ATTACKS.items()
            for name, method in methods.items()
        }
        fixed = {
            "data": _data(scope)[0],
            "model": LeNet,
            "num_workers": n,
            "byzantine": RandomWorkers(s),
            "optimizer": partial(SGD, lr=0.01, momentum=0.9),
            "batch_size": self.samples_per_partition * n,
            "steps": steps,
            "evaluate_every": max(1, steps // 5),
            "reference": REFERENCE,
        }
        return grid(train_run, {"run": runs}, fixed)

    def measure(self, scope: Scope, run: Measure) -> Records:
        """Trains, then times, first gradients and then decoders."""
        trained = run(self.cells(scope))
        fixed = {"threads": torch.get_num_threads(), "samples": self.samples_per_partition}
        gradients = run(grid(time_gradient, {"model": self.timed_models}, fixed), jobs=1)
        rounds = [
            cell
            for one, byzantine in product(gradients, self.timed_byzantine)
            for cell in self._timed(scope, one, byzantine)
        ]
        timed = run(rounds, jobs=1)
        all_gradients.cache_clear()
        return Records([*trained, *timed])

    def _timed(self, scope: Scope, gradient: Record, byzantine: int) -> list[Cell]:
        """Rounds of a model with so many Byzantine workers, by decoder."""
        n, small = self.timed_workers, gradient["dim"] <= _SMALL
        decoders: dict[str, Any] = {
            "geometric median": GeometricMedian(byzantine),
            "Krum": Krum(byzantine),
            "geometric median by passes": median_by_passes,
            "DRACO repetition": DracoRepetition(n, byzantine),
            "DRACO cyclic": DracoCyclic(n, byzantine),
        }
        if not (small or scope.full):
            del decoders["geometric median by passes"]
        fixed = {
            **{name: gradient[name] for name in ("dim", "gradient_s")},
            "num_workers": n,
            "repeats": (9 if scope.full else 5) if small else (7 if scope.full else 2),
            "threads": torch.get_num_threads(),
        }
        axes: dict[str, Any] = {"decoder": decoders, "model": {gradient["model"]: {}}}
        return grid(time_decoder, {**axes, "byzantine": [byzantine]}, fixed)

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Final weights beside the reference's, and who is faster when."""
        runs = by_run(Records(one for one in found if one["run"] is not None))
        times = Records(one for one in found if one["run"] is None)
        return Findings(
            answer=self._answer(runs, times),
            claims=[*self._training_claims(runs), *_time_claims(times)],
            tables=[training_table(runs.values()), _time_table(times), _winners(times)],
            plots=[
                *(_accuracy_plot(attack, runs) for attack in _ATTACKS),
                *(self._time_plot(model, times) for model in self.timed_models),
            ],
            notes=(f"Data: {_data(scope)[1]}.", *_TOLD["notes"]),
        )

    def _training_claims(self, runs: Mapping[str, Record]) -> list[Claim]:
        coded = _attacked(runs, "DRACO")
        lies, caught, wrong = (
            sum(one[name] for one in coded) for name in ("lies", "caught", "false_alarms")
        )
        fallen = ", ".join(
            f"{one['run']} {percent(one['test_accuracy'])}"
            for name in ("mean", "geometric median", "Krum")
            for one in _attacked(runs, name)
        )
        repeated = [one["weights"] for title, one in runs.items() if "repetition" in title]
        return [
            *(_identical(code, runs) for code in ("DRACO repetition", "DRACO cyclic")),
            Claim(
                "With the repetition code, not a bit depends on the Byzantine workers.",
                _PAPER["weights"],
                f"{'' if len(set(repeated)) == 1 else 'not '}bit for bit its run without attack",
                [len(set(repeated)) == 1],
            ),
            Claim(
                "Computing a gradient r times survives (r - 1) / 2 Byzantine workers; no code "
                "survives more.",
                _PAPER["Byzantine workers survived"],
                f"r = {2 * self.num_byzantine + 1} with {self.num_byzantine} Byzantine in every "
                f"round: {caught} of {lies} lies named, {count(wrong, 'false alarm')}",
                [caught == lies and not wrong],
            ),
            Claim(
                "Under these attacks the mean is lost, and robust rules learn more slowly.",
                NOT_QUOTED,
                f"without attack {percent(runs[_REFERENCE]['test_accuracy'])}; {fallen}",
            ),
        ]

    def _answer(self, runs: Mapping[str, Record], times: Records) -> str:
        apart = max(map(gap, _attacked(runs, "DRACO")))
        kept = (
            f" (largest relative difference {difference(apart)})"
            if apart <= SAME_WEIGHTS
            else f" but for a largest relative difference of {difference(apart)}"
        )
        lost = " and ".join(percent(one["test_accuracy"]) for one in _attacked(runs, "mean"))
        spans = {rule: _ratios(times, rule) for rule in _rules(times)}
        speed = [f"{_span(one)} as fast as one with {rule}" for rule, one in spans.items() if one]
        return (
            f"With {self.num_byzantine} Byzantine among {self.num_workers} workers DRACO ended "
            f"with the weights of the run without attack{kept}, where the mean fell from "
            f"{percent(runs[_REFERENCE]['test_accuracy'])} to {lost} test accuracy; DRACO's round, "
            f"computation included, is {listed(speed)}."
        )

    def _time_plot(self, model: str, times: Records) -> Plot:
        shown = times.where(model=model, byzantine=max(self.timed_byzantine))
        alt = "; ".join(f"{one['decoder']} {one['total_s']:.3g} s" for one in shown)
        title = (
            f"A round with {self.timed_workers} workers, {max(self.timed_byzantine)} of them "
            f"Byzantine: {model}"
        )
        caption = "Seconds, if every worker had a machine like this one."
        return Plot(title, caption, f"{title}. {alt}.", partial(_draw_rounds, shown))


def _data(scope: Scope) -> tuple[DataSource, str]:
    """The data, in quick runs with 1000 test images at most, and what they are."""
    path = scope.file(("mnist.npz",))
    if path is None:
        return Digits(), (
            "scikit-learn's digits, 8 x 8 pixels, since no data was given (name an .npz file of "
            "the MNIST family, or set PHALANX_DATA)"
        )
    source = NpzFile(path) if scope.full else OtherTest(NpzFile(path), first=1000)
    splits = load(source)
    sizes = [len(split) for split in (splits.train, splits.test)]  # type: ignore[arg-type]
    return source, f"{path.name}, {sizes[0]} training and {sizes[1]} test images"


def _attacked(runs: Mapping[str, Record], name: str) -> list[Record]:
    titles = [title for title in runs if title.startswith(name)]
    return [runs[title] for title in titles if title.partition(", ")[2] in _ATTACKS]


def _identical(code: str, runs: Mapping[str, Record]) -> Claim:
    """Whether a code's runs under attack ended with the model of the run without adversaries."""
    attacked, clean = _attacked(runs, code), runs[_REFERENCE]["test_accuracy"]
    apart, moved = max(map(gap, attacked)), max(one["share_moved"] for one in attacked)
    accuracies = [one["test_accuracy"] for one in attacked]
    close = max(abs(one - clean) for one in accuracies) <= 0.002
    return Claim(
        f"The trained model is identical to that of the run without adversaries ({code}).",
        _PAPER["weights"],
        f"largest relative weight difference {difference(apart)}; {percent(moved)} of the weights "
        f"differ by more than {difference(SAME_WEIGHTS)}; test accuracy "
        f"{' and '.join(dict.fromkeys(map(percent, accuracies)))}, without attack {percent(clean)}",
        [True] if apart <= SAME_WEIGHTS else [False, close and moved < 0.01],
    )


def _rules(times: Records) -> list[str]:
    return list(dict.fromkeys(one["decoder"] for one in times if not one["coded"]))


def _best(times: Records, like: Record) -> list[Record]:
    """DRACO's rounds with this one's model and Byzantine workers, the fastest first."""
    alike = times.where(model=like["model"], byzantine=like["byzantine"])
    return sorted((one for one in alike if one["coded"]), key=lambda one: one["total_s"])


def _ratios(times: Records, rule: str, seconds: str = "total_s") -> list[float]:
    """Seconds of a rule's round over those of the faster DRACO, wherever somebody attacks."""
    return [
        one[seconds] / min(draco[seconds] for draco in _best(times, one))
        for one in times.where(decoder=rule)
        if one["byzantine"] > 0
    ]


def _span(ratios: Sequence[float]) -> str:
    """From the least to the largest.

    >>> _span([0.501, 2.0]), _span([3.04, 3.01])
    ('0.5 to 2 times', '3 times')
    """
    ends = [f"{value:.2g}" for value in (min(ratios), max(ratios))]
    return " to ".join(dict.fromkeys(ends)) + " times"


def _time_claims(times: Records) -> list[Claim]:
    linear = [
        Claim(
            f"Decoding is linear in the size of the messages ({decoder}).",
            NOT_QUOTED,
            f"{_span([one['decode_ratio'] for one in times.where(decoder=decoder)])} the plain "
            "mean of the same messages",
        )
        for decoder in dict.fromkeys(one["decoder"] for one in times if one["coded"])
    ]
    spans = {rule: _ratios(times, rule) for rule in _rules(times)}
    return linear + [
        Claim(
            f"A round is faster than one with a median-based rule ({rule}).",
            _PAPER["speed"],
            f"{_span(ratios)} as fast, computation included; "
            f"{_span(_ratios(times, rule, 'decode_s'))} for decoding alone",
            [min(ratios) >= 2, max(ratios) >= 2],
        )
        for rule, ratios in spans.items()
        if ratios
    ]


def _time_table(times: Records) -> Table:
    columns = {
        "decoder": "decoder",
        "model": "model",
        "Byzantine": "byzantine",
        "gradients per worker": "gradients",
        "seconds per gradient": "gradient_s",
        "compute (s)": "compute_s",
        "decode (s)": "decode_s",
        "decode / mean": "decode_ratio",
        "total (s)": "total_s",
    }
    rows = tuple(tuple(one[name] for name in columns.values()) for one in times)
    caption = "Medians. Total = gradients that a worker computes x seconds per gradient + decoding."
    return Table("Seconds per round", caption, tuple(columns), rows)


def _winners(times: Records) -> Table:
    """Where DRACO's cheap decoding pays for its redundant gradients."""
    rows = []
    for rule in (one for one in times if not one["coded"]):
        draco, spare = _best(times, rule)[0], 2 * rule["byzantine"]
        limit = max(rule["decode_s"] - draco["decode_s"], 0.0) / spare if spare else None
        faster = min(rule, draco, key=lambda one: one["total_s"])["decoder"]
        named = (rule["decoder"], rule["model"], rule["byzantine"], draco["decoder"])
        rows.append((*named, rule["total_s"] / draco["total_s"], faster, limit))
    return Table(
        "Who wins when",
        "DRACO's round is the faster one where a partition's gradient takes less than the last "
        "column, in seconds; without Byzantine workers only decoding differs.",
        ("rule", "model", "Byzantine", "best DRACO", "rule / DRACO", "faster", "wins below (s)"),
        tuple(rows),
    )


def _accuracy_plot(attack: str, runs: Mapping[str, Record]) -> Plot:
    shown = [runs[title] for title in runs if title == _REFERENCE or title.endswith(f", {attack}")]
    caption = "Over rounds, on the test set. DRACO's lines lie on that of the reference."
    return accuracy_plot(attack, caption, shown)


def _draw_rounds(times: Sequence[Record], axes: Axes) -> None:
    """One bar per decoder, split into computing and decoding."""
    names, compute = ([one[name] for one in times] for name in ("decoder", "compute_s"))
    decode = [one["decode_s"] for one in times]
    axes.barh(names, compute, color=COLOURS[0], height=0.6, label="compute")
    axes.barh(names, decode, left=compute, color=COLOURS[1], height=0.6, label="decode")
    axes.invert_yaxis()
    axes.set_xlabel("seconds per round")
    axes.grid(False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
