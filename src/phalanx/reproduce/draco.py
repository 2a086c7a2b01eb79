"""DRACO: the same model whatever the liars send, and what that costs a round."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from phalanx.aggregation import Aggregator, GeometricMedian, Krum, Mean
from phalanx.attacks import Constant, ReverseGradient
from phalanx.coding import Code, DracoCyclic, DracoRepetition
from phalanx.data import Digits, NpzFile, Splits
from phalanx.models import LeNet
from phalanx.reporting import (
    SAME_WEIGHTS,
    Plot,
    Row,
    RunRecord,
    Table,
    compare_runs,
    plot_accuracy,
)
from phalanx.reporting.detection import total
from phalanx.reporting.format import count, difference, listed, percent
from phalanx.reproduce.base import NOT_QUOTED, Finding, Findings, Progress, Recipe
from phalanx.reproduce.draco_rounds import RoundTime, Timed, plot_rounds, time_rounds
from phalanx.reproduce.training_runs import Case, Experiment, fresh, training_table

_ATTACKS = {"reversed gradient": ReverseGradient(100.0), "constant": Constant(-100.0)}
_REFERENCE = "mean, no attack"
_WEIGHTS = "model.safetensors"
_QUIET_REPETITION = "DRACO repetition, no attack"
_NOTES = (
    "The mean over the partitions without liars is the reference; all runs see the same samples in "
    "the same partitions.",
    "The cyclic code uses the centred band with real weights and circles of at most 21 workers; "
    "the published band loses precision with 45 workers.",
    "Rounds are timed as if each worker had a machine like this one: (2 s + 1) x the gradient of "
    "one partition for DRACO, one gradient for the rules, then decoding. Moving messages takes "
    "equally long for all, and is left out.",
    "Geometric median and Krum are this package's, which make few passes over the messages however "
    "many steps they iterate; “by passes” is Weiszfeld's iteration on the messages themselves, "
    "from the mean until it moves by less than 1e-6; for large models in full runs only.",
    "DRACO decodes the gradient exactly, up to the rounding of sums. Where rounding flips a ReLU "
    "or a pooled maximum that stands at a tie, the few weights behind it drift apart by more.",
    "The attack of the rounds that are timed is the reversed gradient.",
)


@dataclass(frozen=True)
class Draco(Recipe):
    """DRACO against the mean, the geometric median and Krum: final weights, and seconds a round.

    First, LeNet is trained on images of digits with `num_byzantine` liars, drawn afresh every
    round, under each attack and decoder, and final weights are compared. Then rounds with
    `timed_workers` workers are timed: decoding on gradients of each model's size, and the gradient
    of one partition, which a worker of DRACO computes 2 s + 1 times.

    Cost: in quick mode under three minutes on two cores. Memory: twice the messages of the largest
    model, 4 GB for ResNet-18 with 45 workers.
    Source: Chen, Wang, Charles and Papailiopoulos, "DRACO: Byzantine-resilient Distributed Training
    via Redundant Gradients", ICML 2018, experiments.
    """

    name: ClassVar[str] = "draco"
    paper: ClassVar[str] = (
        "Chen, Wang, Charles and Papailiopoulos, DRACO: Byzantine-resilient Distributed Training "
        "via Redundant Gradients, ICML 2018"
    )

    num_workers: int = 15
    """Workers of the training runs (n)."""

    num_byzantine: int = 3
    """Liars in every round of the training runs (s)."""

    steps: int | None = None
    """Rounds of the training runs; by default 30, or 400 in full."""

    samples_per_partition: int = 8
    """Samples in the gradient of one partition."""

    timed_workers: int = 45
    """Workers of the rounds that are timed."""

    timed_liars: tuple[int, ...] = (0, 1, 3, 5)
    """Liars in the rounds that are timed; each is also what the code is made to survive."""

    timed_models: tuple[Timed, ...] = ("LeNet", "ResNet-18")
    """Models whose gradients' sizes are timed."""

    def measure(self, out: Path, *, full: bool, data: Path | None, progress: Progress) -> Findings:
        """Trains, then times; `data` is an `.npz` file, or a folder that holds `mnist.npz`."""
        splits, origin = _load(data, full)
        steps = self.steps or (400 if full else 30)
        records = self._train_all(out / "runs", splits, steps, progress)
        rows = {row.title: row for row in compare_runs(list(records.values()), records[_REFERENCE])}
        times = [
            time
            for model in self.timed_models
            for time in time_rounds(
                model,
                self.timed_workers,
                self.timed_liars,
                self.samples_per_partition,
                full,
                progress,
            )
        ]
        return Findings(
            answer=self._answer(rows, times),
            findings=(*self._training_findings(records), *_time_findings(times)),
            tables=(training_table(rows), _time_table(times), _winners(times)),
            plots=(*_accuracy_plots(records), *self._time_plots(times)),
            notes=(f"Data: {origin}.", *_NOTES),
            settings={
                "training_workers": self.num_workers,
                "training_liars": self.num_byzantine,
                "training_rounds": steps,
                "samples_per_partition": self.samples_per_partition,
                "timed_workers": self.timed_workers,
                "full": full,
            },
        )

    def _train_all(
        self, out: Path, splits: Splits, steps: int, progress: Progress
    ) -> dict[str, RunRecord]:
        """Run folders of all runs, read back, by title."""
        repetition = DracoRepetition(self.num_workers, self.num_byzantine)
        methods: dict[str, Code | Aggregator] = {
            "mean": Mean(),
            "geometric median": GeometricMedian(self.num_byzantine),
            "Krum": Krum(self.num_byzantine),
            "DRACO repetition": repetition,
            "DRACO cyclic": DracoCyclic(self.num_workers, self.num_byzantine),
        }
        cases = [Case(_REFERENCE, Mean()), Case(_QUIET_REPETITION, repetition)]
        for attack_name, attack in _ATTACKS.items():
            cases += [
                Case(f"{name}, {attack_name}", one, attack, self.num_byzantine)
                for name, one in methods.items()
            ]
        experiment = Experiment(
            splits,
            fresh(LeNet, splits),
            partial(torch.optim.SGD, lr=0.01, momentum=0.9),
            self.num_workers,
            self.samples_per_partition * self.num_workers,
            steps,
        )
        return experiment.run(cases, out, progress)

    def _training_findings(self, records: dict[str, RunRecord]) -> tuple[Finding, ...]:
        rows = {row.title: row for row in compare_runs(list(records.values()), records[_REFERENCE])}
        coded = _attacked(rows, "DRACO")
        caught = total(row.detection for row in coded)
        reference = rows[_REFERENCE]
        fallen = ", ".join(
            f"{row.title} {percent(row.test_accuracy)}"
            for name in ("mean", "geometric median", "Krum")
            for row in _attacked(rows, name)
        )
        bitwise = _is_bitwise(records)
        return (
            *(_identical(code, records, rows) for code in ("DRACO repetition", "DRACO cyclic")),
            Finding(
                "With the repetition code, not a bit depends on the liars.",
                "identical",
                f"{'' if bitwise else 'not '}bit for bit its run without attack",
                "yes" if bitwise else "no",
            ),
            Finding(
                "Computing a gradient r times survives (r - 1) / 2 liars; no code survives more.",
                "(r - 1) / 2",
                f"r = {2 * self.num_byzantine + 1} with {self.num_byzantine} liars in every round: "
                f"{caught.caught} of {caught.lies} lies named, "
                f"{count(caught.false_alarms, 'false alarm')}",
                "yes" if caught.caught == caught.lies and not caught.false_alarms else "no",
            ),
            Finding(
                "Under these attacks the mean is lost, and robust rules learn more slowly.",
                NOT_QUOTED,
                f"without liars {percent(reference.test_accuracy)}; {fallen}",
                "—",
            ),
        )

    def _answer(self, rows: dict[str, Row], times: list[RoundTime]) -> str:
        gap = _gap(_attacked(rows, "DRACO"))
        kept = (
            "ended with the weights of the run without liars (largest relative difference "
            f"{difference(gap)})"
            if gap <= SAME_WEIGHTS
            else "ended with the weights of the run without liars but for a largest relative "
            f"difference of {difference(gap)}"
        )
        lost = " and ".join(percent(row.test_accuracy) for row in _attacked(rows, "mean"))
        return (
            f"With {count(self.num_byzantine, 'liar')} among {self.num_workers} workers DRACO "
            f"{kept}, where the mean fell from {percent(rows[_REFERENCE].test_accuracy)} to {lost} "
            f"test accuracy; DRACO's round, computation included, is {_speed(times)}."
        )

    def _time_plots(self, times: list[RoundTime]) -> list[Plot]:
        plots = []
        for model in self.timed_models:
            shown = [
                one for one in times if one.model == model and one.liars == max(self.timed_liars)
            ]
            alt = "; ".join(f"{one.decoder} {one.total_s:.3g} s" for one in shown)
            title = (
                f"A round with {self.timed_workers} workers, {max(self.timed_liars)} of them lying"
                f": {model}"
            )
            caption = "Seconds, if every worker had a machine like this one."
            plots.append(Plot(title, caption, f"{title}. {alt}.", partial(plot_rounds, shown)))
        return plots


def _load(data: Path | None, full: bool) -> tuple[Splits, str]:
    if data is None:
        return Digits().load(), (
            "scikit-learn's digits, 8 x 8 pixels, since no data was given (name an .npz file of "
            "the MNIST family, or set PHALANX_DATA)"
        )
    path = data / "mnist.npz" if data.is_dir() else data
    splits = NpzFile(path).load()
    if not full:
        splits = replace(splits, test=TensorDataset(*splits.test[:1000]))
    sizes = [len(split) for split in (splits.train, splits.test)]  # type: ignore[arg-type]
    return splits, f"{path.name}, {sizes[0]} training and {sizes[1]} test images"


def _attacked(rows: dict[str, Row], name: str) -> list[Row]:
    return [
        row
        for title, row in rows.items()
        if title.startswith(name) and title.partition(", ")[2] in _ATTACKS
    ]


def _identical(code: str, records: dict[str, RunRecord], rows: dict[str, Row]) -> Finding:
    """Whether a code's runs under attack ended with the model of the run without adversaries."""
    attacked, reference = _attacked(rows, code), rows[_REFERENCE]
    gap = _gap(attacked)
    moved = max(_share_moved(records[row.title], records[_REFERENCE]) for row in attacked)
    accuracies = [row.test_accuracy or 0.0 for row in attacked]
    close = max(abs(one - (reference.test_accuracy or 0.0)) for one in accuracies) <= 0.002
    return Finding(
        f"The trained model is identical to that of the run without adversaries ({code}).",
        "identical",
        f"largest relative weight difference {difference(gap)}; {percent(moved)} of the weights "
        f"differ by more than {difference(SAME_WEIGHTS)}; test accuracy "
        f"{' and '.join(dict.fromkeys(map(percent, accuracies)))}, without liars "
        f"{percent(reference.test_accuracy)}",
        "yes" if gap <= SAME_WEIGHTS else "partly" if close and moved < 0.01 else "no",
    )


def _share_moved(record: RunRecord, reference: RunRecord) -> float:
    """Share of the weights that differ by more than `SAME_WEIGHTS` of the largest weight."""
    ours, theirs = (
        torch.cat([value.flatten() for value in load_file(one.folder / _WEIGHTS).values()])
        for one in (record, reference)
    )
    near = (ours - theirs).abs() <= SAME_WEIGHTS * theirs.abs().max()
    return 1 - near.double().mean().item()


def _gap(rows: list[Row]) -> float:
    """The largest relative weight difference; infinite if a run has no weights to compare."""
    gaps = [row.relative_difference for row in rows]
    return max((float("inf") if gap is None else gap for gap in gaps), default=float("inf"))


def _is_bitwise(records: dict[str, RunRecord]) -> bool:
    """Whether repetition's runs under attack ended with the very numbers of its run without."""
    runs = [record for title, record in records.items() if title.startswith("DRACO repetition")]
    return all(row.weight_difference == 0 for row in compare_runs(runs, records[_QUIET_REPETITION]))


def _speed(times: list[RoundTime]) -> str:
    """How much faster DRACO's rounds are than those of each rule."""
    rules = dict.fromkeys(one.decoder for one in times if not one.coded)
    spans = [(rule, _ratios(times, rule)) for rule in rules]
    return listed([f"{_span(found)} as fast as one with {rule}" for rule, found in spans if found])


def _span(ratios: list[float]) -> str:
    """From the least to the largest.

    >>> _span([0.501, 2.0]), _span([3.04, 3.01])
    ('0.5 to 2 times', '3 times')
    """
    ends = [f"{value:.2g}" for value in (min(ratios), max(ratios))]
    return " to ".join(dict.fromkeys(ends)) + " times"


def _ratios(times: list[RoundTime], rule: str) -> list[float]:
    """Total time of a rule's round over that of the faster DRACO, wherever somebody lies."""
    found = []
    for one in times:
        if one.decoder == rule and one.liars > 0:
            draco = min(t.total_s for t in _of(times, one) if t.coded)
            found.append(one.total_s / draco)
    return found


def _of(times: list[RoundTime], like: RoundTime) -> list[RoundTime]:
    return [one for one in times if (one.model, one.liars) == (like.model, like.liars)]


def _time_findings(times: list[RoundTime]) -> tuple[Finding, ...]:
    found = []
    for decoder in dict.fromkeys(one.decoder for one in times if one.coded):
        ratios = [one.decode_ratio for one in times if one.decoder == decoder]
        found.append(
            Finding(
                f"Decoding is linear in the size of the messages ({decoder}).",
                NOT_QUOTED,
                f"{_span(ratios)} the plain mean of the same messages",
                "—",
            )
        )
    for rule in dict.fromkeys(one.decoder for one in times if not one.coded):
        ratios = _ratios(times, rule)
        if ratios:
            found.append(
                Finding(
                    f"A round is faster than one with a median-based rule ({rule}).",
                    "several times to orders of magnitude",
                    f"{_span(ratios)} as fast, computation included; "
                    f"{_decoding(times, rule)} for decoding alone",
                    "yes" if min(ratios) >= 2 else "partly" if max(ratios) >= 2 else "no",
                )
            )
    return tuple(found)


def _decoding(times: list[RoundTime], rule: str) -> str:
    ratios = [
        one.decode_s / min(t.decode_s for t in _of(times, one) if t.coded)
        for one in times
        if one.decoder == rule and one.liars > 0
    ]
    return _span(ratios)


def _time_table(times: list[RoundTime]) -> Table:
    return Table(
        "Seconds a round",
        "Medians. Total = gradients that a worker computes x seconds a gradient + decoding.",
        (
            "decoder",
            "model",
            "liars",
            "gradients a worker",
            "seconds a gradient",
            "compute (s)",
            "decode (s)",
            "decode / mean",
            "total (s)",
        ),
        tuple(
            (
                one.decoder,
                one.model,
                one.liars,
                one.gradients,
                one.gradient_s,
                one.gradients * one.gradient_s,
                one.decode_s,
                one.decode_ratio,
                one.total_s,
            )
            for one in times
        ),
    )


def _winners(times: list[RoundTime]) -> Table:
    """Where DRACO's cheap decoding pays for its redundant gradients."""
    rows = []
    for rule in (one for one in times if not one.coded):
        draco = min((one for one in _of(times, rule) if one.coded), key=lambda one: one.total_s)
        spare = draco.gradients - 1
        limit = max(rule.decode_s - draco.decode_s, 0.0) / spare if spare else None
        faster = draco if draco.total_s < rule.total_s else rule
        rows.append(
            (
                rule.decoder,
                rule.model,
                rule.liars,
                draco.decoder,
                rule.total_s / draco.total_s,
                faster.decoder,
                limit,
            )
        )
    return Table(
        "Who wins when",
        "DRACO's round is the faster one where a partition's gradient takes less than the last "
        "column, in seconds; without liars only decoding differs.",
        ("rule", "model", "liars", "best DRACO", "rule / DRACO", "faster", "DRACO wins below (s)"),
        tuple(rows),
    )


def _accuracy_plots(records: dict[str, RunRecord]) -> list[Plot]:
    plots = []
    for attack in _ATTACKS:
        shown = [
            record
            for title, record in records.items()
            if title == _REFERENCE or title.endswith(f", {attack}")
        ]
        ends = "; ".join(f"{record.title} {percent(record.test_accuracy)}" for record in shown)
        title = f"Test accuracy under attack: {attack}"
        caption = "Over rounds, on the test set. DRACO's lines lie on that of the reference."
        plots.append(Plot(title, caption, f"{title}. {ends}.", partial(plot_accuracy, shown)))
    return plots
