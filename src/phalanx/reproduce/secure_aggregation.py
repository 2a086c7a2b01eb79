"""Secure aggregation: the clear rule's answer, from servers that see no message."""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD

from phalanx.aggregation import (
    Aggregator,
    GeometricMedian,
    Krum,
    Mean,
    MinimumDiameterAveraging,
    MultiKrum,
    NearestNeighborMixing,
    weigh_distances,
)
from phalanx.attacks import ReverseGradient
from phalanx.computations import ClippedGradient
from phalanx.data import Digits
from phalanx.errors import DecodeError
from phalanx.experiments import Cell, Record, Records, grid, train_run
from phalanx.privacy import (
    Accountant,
    ModelServerView,
    SecureAggregation,
    SecureClient,
    SecureSetup,
    WorkerServerView,
    communication_cost,
    run_round,
    seeded_entropy,
)
from phalanx.privacy.secure_aggregation.fixed_point import (
    decode_squares,
    encode,
    inner_products,
    pair_distances,
    symmetric,
)
from phalanx.randomness import generator
from phalanx.reporting.format import difference, percent
from phalanx.reproduce.base import Findings, Recipe, Scope, published, report, sized, words
from phalanx.reproduce.secure_processes import processes_record
from phalanx.stragglers import ShiftedExponential, WaitFor
from phalanx.training.engines.local import Local
from phalanx.transforms import GaussianNoise

_UNIT = SecureSetup().unit
_TRAINED = ("Krum", "Multi-Krum", "mean")
_CLIP_NORM, _DELTA = 1.0, 1e-5
_NOISES = (0.0, 0.003, 0.01, 0.03, 0.1, 10.0)  # the last hides a message, the others hardly
_TESTED = 450  # digits that accuracies are measured on
_SECRETS = {"squared_distances", "verdict", "aggregate"}
_TOLD = published("secure-aggregation")


@dataclass(frozen=True)
class SecureAggregationRecipe(Recipe):
    """Secure two-server aggregation against the same rules in the clear.

    First aggregates of random messages, Byzantine ones among them, then with workers that drop out,
    then what each server sees, then training under attack, also with workers that drop out and with
    noise on messages, then time and bytes against the number of workers and the length of messages.
    Cost: in quick mode half a minute.
    """

    name: ClassVar[str] = "secure-aggregation"
    paper: ClassVar[str] = _TOLD["paper"]

    num_workers: int = 10
    """Workers (n)."""
    num_byzantine: int = 2
    """Byzantine workers among them (f)."""
    draws: int | None = None
    """Random draws per rule; by default 20, or 100 in full."""
    steps: int | None = None
    """Rounds of the training runs; by default 60, or 400 in full."""
    processes: bool = sized(False, True, True)
    """Whether rounds are also run with a process for each party; they need gRPC."""
    sizes: tuple[tuple[int, int], ...] | None = None
    """Workers and numbers in a message of the rounds that are timed."""

    @property
    def fewest(self) -> int:
        """Messages for which Krum's guarantee holds; with 2 f or fewer there is no aggregate."""
        return 2 * self.num_byzantine + 3

    def cells(self, scope: Scope) -> list[Cell]:
        """Rules on random messages, what servers see, and training on scikit-learn's digits."""
        bound = self.num_byzantine
        rules = {
            "Krum": Krum(bound),
            "Multi-Krum": MultiKrum(bound),
            "MDA": MinimumDiameterAveraging(bound),
            "mixing, then Krum": NearestNeighborMixing(bound) >> Krum(bound),
            "geometric median": GeometricMedian(bound),
        }
        draws = {"recipe": self, "draws": self.draws or (100 if scope.full else 20)}
        steps = self.steps or (400 if scope.full else 60)
        training = {
            "data": Digits(),
            "num_workers": self.num_workers,
            "optimizer": partial(SGD, lr=0.1),
            "steps": steps,
            "evaluate_every": steps,
        }
        runs: dict[str, dict[str, Any]] = {}
        for name, rule in (*list(rules.items())[:2], ("mean", Mean())):
            shared: dict[str, Any] = {"reference": {"rule": rule}}
            shared |= {} if name == "mean" else {"attack": ReverseGradient(10.0)}
            runs |= {name: {"rule": rule, **shared}}
            runs |= {f"secure {name}": {"rule": SecureAggregation(rule), **shared}}
            if name != "mean":  # who is not among the fastest has dropped out of the round
                engine = Local(delays=ShiftedExponential(), policy=WaitFor(self.fewest))
                for told in (name, f"secure {name}"):
                    runs |= {f"{told}, drop-outs": runs[told] | {"engine": engine}}
        noises = {noise: {"transforms": [GaussianNoise(noise * _CLIP_NORM)]} for noise in _NOISES}
        noisy = training | {
            "rule": SecureAggregation(rules["Multi-Krum"], fraction_bits=12),
            "attack": ReverseGradient(10.0),
            "compute": ClippedGradient(_CLIP_NORM),
        }
        spare = self.num_workers - self.fewest
        lost = [*range(spare + 1), self.num_workers - 2 * self.num_byzantine]
        quick = ((10, 10_000), (10, 100_000), (20, 100_000))
        sizes = self.sizes or ((*quick, (10, 1_000_000), (50, 100_000)) if scope.full else quick)
        axis = {f"{n} x {dim}": {"num_workers": n, "dim": dim} for n, dim in sizes}
        rounds = {
            "nobody lost": {"num_lost": 0, "noise_std": 0.0},
            f"{spare} die while they send": {"num_lost": spare, "noise_std": 0.0},
            "noise": {"num_lost": 0, "noise_std": _CLIP_NORM / 10},
        }
        apart = grid(_apart, {"part": {"processes": {}}, "round": rounds}, {"recipe": self})
        return [
            *grid(_time, {"part": {"time": {}}, "size": axis}, alone=True),
            *(apart if self.processes else []),
            *grid(_drop, {"part": {"drop-outs": {}}, "lost": lost}, draws),
            *grid(train_run, {"part": {"noise": {}}, "noise / clip norm": noises}, noisy),
            *grid(_compare, {"part": {"aggregates": {}}, "rule": rules}, draws),
            *grid(_look, {"part": {"views": {}}}, {"recipe": self}),
            *grid(_lie, {"part": {"lie": {}}}, {"recipe": self}),
            *grid(train_run, {"part": {"training": {}}, "run": runs}, training),
        ]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """Whether rules choose alike, what servers learn, what it costs, and how training ends."""
        exact, timed, runs = (found.where(part=one) for one in ("aggregates", "time", "training"))
        (view,), (lie,) = found.where(part="views"), found.where(part="lie")
        same, draws = exact.reduce("same workers", sum), exact.reduce("draws", sum)
        accuracy = {str(one["run"]): one["test_accuracy"] for one in runs}
        pairs = {name: (accuracy[name], accuracy[f"secure {name}"]) for name in _TRAINED}
        lasting = {
            name: (accuracy[f"{name}, drop-outs"], accuracy[f"secure {name}, drop-outs"])
            for name in _TRAINED[:2]
        }
        apart = found.where(part="processes") if "processes" in found.labels("part") else []
        exactly = [one["largest error"] for one in apart if not one["noise"]]
        noised = [one for one in apart if one["noise"]]
        noises = Records(map(_noisy, found.where(part="noise")))
        drops = found.where(part="drop-outs")
        enough = [one for one in drops if self.num_workers - one["lost"] >= self.fewest]
        fewer = [one for one in drops if one not in enough]
        private = next(one for one in noises if (one["epsilon"] or 2) <= 1)
        uploads = {one["workers"]: one["upload / message"] for one in timed}
        values = {
            **view.values,
            "same": same,
            "draws": draws,
            "kept": "always" if same == draws else f"in {same} of {draws} draws",
            "error": exact.reduce("largest error", max),
            "pairs": math.comb(self.num_workers, 2),
            "caught": "left it out" if lie["caught"] else "did not see it",
            "alone": "survives it" if lie["survived"] else "falls for it",
            "gone": enough[-1]["lost"],
            "fewer": fewer[0]["lost"],
            "refused": sum(one["refused"] for one in fewer),
            "too few": sum(one["draws"] for one in fewer),
            "left": sum(one["as in the clear"] for one in enough),
            "asked": sum(one["draws"] for one in enough),
            "lasting": "; ".join(
                f"{name} {percent(clear)}, secure {percent(one)} (all there: "
                f"{percent(pairs[name][1])})"
                for name, (clear, one) in lasting.items()
            ),
            "epsilon": f"{private['epsilon']:.2f}",
            "delta": _DELTA,
            "private": percent(private["test_accuracy"]),
            "quiet": percent(noises[0]["test_accuracy"]),
            "least": timed.reduce("times the clear rule", min),
            "most": timed.reduce("times the clear rule", max),
            "uploads": {f"{number} workers": one for number, one in uploads.items()},
            "apart": self._processes(apart),
            "noised": self._noised(noised),
            "clear": percent(accuracy["Multi-Krum"]),
            "secure": percent(accuracy["secure Multi-Krum"]),
            "ended": "; ".join(
                f"{name} {percent(clear)}, secure {percent(secure)}"
                for name, (clear, secure) in pairs.items()
            ),
        }
        holds = {
            "choice": [same == draws],
            "aggregate": [values["error"] <= 2],
            "uniform": [view["uneven"] < 5],
            "views": [view["apart"]],
            "range": [lie["survived"], lie["caught"]],
            "drop-outs": [
                values["left"] == values["asked"],
                values["refused"] == values["too few"],
            ],
            "processes": [one <= 2 for one in exactly] or None,
            "lasting": [_alike(*both) for both in lasting.values()],
            "noise": [
                abs(one["root mean square error"] / one["expected of the noise"] - 1)
                <= 3 / math.sqrt(2 * one["numbers"])
                for one in noised
            ]
            or None,
            "private": None,
            "communication": [len(set(uploads.values())) == 1],
            "cost": None,
            "training": [_alike(*both) for both in pairs.values()],
        }
        tables: dict[str, Any] = {
            "exact": exact,
            "drop-outs": drops,
            "noise": noises,
            "time": timed,
            "training": Records(map(_trained, runs)),
        }
        if apart:
            tables["processes"] = apart
        return report(_TOLD, holds, values, tables, answer="answer")

    def _processes(self, apart: Sequence[Record]) -> str:
        """What came of rounds with a process for each party, in a sentence."""
        if not apart:
            return str(_TOLD["no processes"])
        return "; ".join(
            f"{one['round']}: {one['largest error']:.2f} units off, {one['seconds']:.2g} s"
            for one in apart
            if not one["noise"]
        )

    def _noised(self, noised: Sequence[Record]) -> str:
        if not noised:
            return str(_TOLD["no processes"])
        one = noised[0]
        return words(_TOLD["noised"], {"one": one})


def _alike(clear: float, secure: float) -> bool:
    """Whether two accuracies are the same but for two standard errors of a test set's."""
    return secure >= clear - 2 * math.sqrt(max(clear * (1 - clear), 1e-4) / _TESTED)


def _apart(recipe: SecureAggregationRecipe, num_lost: int, noise_std: float) -> dict[str, Any]:
    """A round with a process for each party; Byzantine workers send reversed messages."""
    rows = _messages(recipe, 0, 10_000)
    # Honest messages are nearly alike, so that noise does not decide who is chosen.
    rows[recipe.num_byzantine :] = rows[-1] + 0.01 * rows[recipe.num_byzantine :]
    rows[: recipe.num_byzantine] = -50 * rows[-1]
    clip_norm = 100.0 if noise_std else None
    return processes_record(rows, recipe.num_byzantine, num_lost, noise_std, clip_norm)


def _trained(run: Record) -> Record:
    told = (percent(run["test_accuracy"]), difference(run["relative_difference"]))
    columns = ("test accuracy", "relative difference to the clear rule's weights")
    return replace(run, values=dict(zip(columns, told, strict=True)))


def _noisy(run: Record) -> Record:
    """Epsilon of one message with this noise, and how training ended."""
    noise, accuracy = float(run["noise / clip norm"]), run["test_accuracy"]
    accountant = Accountant("message", "replace", not_counted=())
    accountant.compose(noise / 2)  # of one message by another, at twice the norm
    epsilon = accountant.epsilon(_DELTA) if noise else None
    told = {"test accuracy": percent(accuracy), "of a message": epsilon or "no statement"}
    return replace(run, values={"epsilon": epsilon, "test_accuracy": accuracy, **told})


def _drop(recipe: SecureAggregationRecipe, lost: int, draws: int) -> dict[str, Any]:
    """Draws of workers that die before they send, or have reached one of the servers only.

    Counts those in which the aggregate is the rule's on the messages of the others, and those that
    end in an error since the others are too few.
    """
    rule, same, refused, error = MultiKrum(recipe.num_byzantine), 0, 0, 0.0
    for draw in range(draws):
        rows, entropy = _messages(recipe, draw), seeded_entropy("secure", "drop-outs", draw)
        order = torch.randperm(len(rows), generator=generator("secure", "drop-outs", draw))
        gone, left = order[:lost].tolist(), order[lost:].sort().values
        setup = SecureSetup(*rows.shape)
        one, other = ModelServerView(setup, 0), WorkerServerView(setup, 0)
        for worker, row in enumerate(rows):
            shares = SecureClient(setup, worker).share(row, 0, entropy)
            sent = ("nothing", "seed", "vector")[gone.index(worker) % 3] if worker in gone else ""
            one = one if sent in ("nothing", "vector") else one.receive(shares.for_model_server)
            other = (
                other if sent in ("nothing", "seed") else other.receive(shares.for_worker_server)
            )
        try:
            answer = run_round(one, other, rule, (), entropy).aggregate()
        except DecodeError:
            refused += 1
            continue
        clear = rule.explain(rows[left])
        assert answer.weights is not None
        assert clear.weights is not None
        off = (answer.value - clear.value).abs().max().item() / _UNIT
        same += torch.equal(answer.weights[left] != 0, clear.weights != 0) and off <= 2
        error = max(error, off)
    counts = {"draws": draws, "as in the clear": same, "refused": refused}
    return {"lost": lost, **counts, "largest error": error if refused < draws else None}


def _messages(recipe: SecureAggregationRecipe, draw: int, dim: int = 1000) -> Tensor:
    source = generator("secure", draw)
    rows = torch.randn(recipe.num_workers, dim, generator=source) / math.sqrt(dim)
    rows[: recipe.num_byzantine] *= -1 - draw % 5
    return rows


def _compare(recipe: SecureAggregationRecipe, rule: Aggregator, draws: int) -> dict[str, Any]:
    """Draws in which both rules gave weight to the same workers, and the largest difference."""
    same, error = 0, 0.0
    for draw in range(draws):
        rows = _messages(recipe, draw)
        ours, clear = SecureAggregation(rule).explain(rows), rule.explain(rows)
        if ours.weights is not None and clear.weights is not None:
            same += torch.equal(ours.weights != 0, clear.weights != 0)
        error = max(error, (ours.value - clear.value).abs().max().item() / _UNIT)
    return {"draws": draws, "same workers": same, "largest error": error}


def _look(recipe: SecureAggregationRecipe) -> dict[str, Any]:
    """What is in the servers' hands, looked at as bytes."""
    rule = SecureAggregation(MultiKrum(recipe.num_byzantine))
    seen = rule.run(_messages(recipe, 0), rule.init(0))
    one, other = seen.model_server, seen.worker_server
    assert one.masked is not None
    worst = max(map(_uneven, (one.shares(), other.shares(), one.masked)))
    fields = [{one.name for one in dataclasses.fields(kind)} for kind in (type(one), type(other))]
    held, theirs = ({name for name in each if name in _SECRETS} for each in fields)
    return {"uneven": worst, "dim": one.setup.dim, "apart": not held & theirs}


def _uneven(words: Tensor) -> float:
    """Chi-square of the bytes against uniform ones, in standard deviations from its mean."""
    counts = torch.bincount(words.contiguous().view(torch.uint8).flatten().long(), minlength=256)
    expected = counts.sum() / 256
    square = ((counts - expected).square().sum() / expected).item()
    return abs(square - 255) / math.sqrt(2 * 255)


def _lie(recipe: SecureAggregationRecipe) -> dict[str, Any]:
    """A lie that is 2^61 away in one coordinate, where all others are 0."""
    rows = _messages(recipe, 1).double()
    rows[:, 0] = 0
    rows[0] = rows[-1]  # and at the same distances modulo 2^64 as this one
    rows[0, 0] = 2.0**61 * _UNIT
    rule, setup = MultiKrum(recipe.num_byzantine), SecureSetup(*rows.shape)
    answer = SecureAggregation(rule).explain(rows)
    words = encode(rows, setup)
    pairs = decode_squares(pair_distances(inner_products(words, words)), setup)
    unchecked, _ = weigh_distances(rule, symmetric(pairs, len(rows)), recipe.num_byzantine, ())
    assert unchecked.weights is not None
    return {"caught": bool(answer.dropped[0]), "survived": bool(unchecked.weights[0] == 0)}


def _time(num_workers: int, dim: int) -> dict[str, Any]:
    """What a round costs: seconds, and bytes against the messages as float32."""
    rows = torch.randn(num_workers, dim, generator=generator("secure", "time")) / math.sqrt(dim)
    clear = MultiKrum(num_workers // 5)
    ratios, seconds = [], []
    for _ in range(4):
        clear_s, secure_s = _seconds(clear, rows), _seconds(SecureAggregation(clear), rows)
        ratios.append(secure_s / clear_s)
        seconds.append(secure_s)
    upload, between, dealt = communication_cost(SecureSetup(num_workers, dim))
    return {
        "workers": num_workers,
        "numbers": dim,
        "seconds": median(seconds[1:]),
        "times the clear rule": median(ratios[1:]),
        "upload / message": upload / (4 * dim),
        "between servers / all messages": between / (4 * dim * num_workers),
        "from the dealer / message": dealt / (4 * dim),
    }


def _seconds(rule: Aggregator, rows: Tensor) -> float:
    start = time.perf_counter()
    rule(rows)
    return time.perf_counter() - start
