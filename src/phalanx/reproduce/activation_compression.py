"""AC-SGD: how few bits activations may cross in, as they are or as differences."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch.optim import SGD, Adam

from phalanx.compression import (
    QSGD,
    Compressor,
    ErrorFeedback,
    SampleQuantization,
    UniformQuantization,
)
from phalanx.data import DataSource, Digits, LabelledTexts
from phalanx.experiments import Cell, MakeModel, Records, grid, load, pivot
from phalanx.models import GPT, TextClassifier
from phalanx.pipeline import ActivationDifference
from phalanx.reproduce.base import Findings, Recipe, Scope, above, report, sized
from phalanx.reproduce.compression_theory import error_record, rate_record
from phalanx.reproduce.fine_tuning import AsciiText, pretrained
from phalanx.reproduce.pipeline_links import link_record
from phalanx.reproduce.staged_training import First, chain, staged_run
from phalanx.reproduce.text_findings import (
    ALL,
    BITS,
    CLASSIFIED,
    DIFFERENCES,
    DIRECT,
    NOTHING,
    link_findings,
    method_name,
    percentage,
    text_findings,
    theory_findings,
)

_SHAKESPEARE = "next characters of Shakespeare"
_NEWS, _PLAYS, _QUESTIONS = "ag_news_7600.csv.gz", "tinyshakespeare.txt.gz", "trec.csv.gz"
_ZERO = "direct, zero a level"
_ROUNDINGS = ("nearest", "stochastic")
_RATES = ("100mbit", "10mbit")


@dataclass(frozen=True)
class ActivationCompression(Recipe):
    """Networks in two and four stages, with activations in 2, 3 and 4 bits: digits, then texts.

    Source: Wang, Yuan, Rimanic, He, Dao, Chen, Re, Zhang, "Fine-tuning Language Models over Slow
    Networks using Activation Compression with Guarantees", NeurIPS 2022.
    """

    name: ClassVar[str] = "activation-compression"

    stages: tuple[int, ...] = (2, 4)
    """Numbers of stages; the last is where the figures of the answer come from."""
    width: int = 128
    """Of the hidden layers: two in two stages, else one fewer than stages."""
    epochs: int = sized(8, 8, 40)
    """Visits of each sample."""
    seeds: int = sized(1, 1, 5)
    """Runs of each method."""
    batch_size: int = 32
    """Samples a step."""
    learning_rate: float = 0.02
    """Of SGD with momentum 0.9."""
    texts: tuple[int, ...] = sized((), (512, 1024), (8000, 5000))
    """Sequences and questions to fine-tune on; empty leaves texts out."""
    text_epochs: tuple[int, int] = sized((8, 5), (8, 5), (12, 12))
    """Visits of each sequence and question."""
    text_length: int = sized(32, 32, 64)
    """Characters of a sequence."""
    text_seeds: int = sized(1, 2, 5)
    """Runs of each method on texts."""
    text_width: int = 32
    """Of both models of texts, each of four blocks."""
    learnt_steps: int = sized(0, 500, 8000)
    """Steps of batches of 64 that models of texts have learnt from news before."""
    rate_steps: tuple[int, ...] = sized((), (100, 400, 1600), (200, 800, 3200, 12800))
    """Steps of the runs whose gradients are measured (T), growing; empty leaves them out."""
    link_steps: int = sized(0, 4, 20)
    """Steps that are timed on slow links; 0 for none."""

    def cells(self, scope: Scope) -> list[Cell]:
        """Every method on digits and on texts."""
        exact = {"forward": SampleQuantization(32), "backward": SampleQuantization(32)}
        methods: dict[Any, Any] = {None: {NOTHING: exact}}
        for rounding in _ROUNDINGS:
            methods[rounding] = {
                method_name(method, *bits): _codecs(method, *bits, rounding, self.width)
                for bits in BITS
                for method in (DIRECT, _ZERO, DIFFERENCES)
                if method != _ZERO or bits == BITS[0]
            }
        fixed = {
            "data": Digits(),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": partial(SGD, lr=self.learning_rate, momentum=0.9),
        }
        found = []
        for number in self.stages:
            for rounding, codecs in methods.items():
                axes = {
                    "stages": {number: {"model": partial(chain, number=number, width=self.width)}},
                    "rounding": {rounding: {}},
                    "method": codecs,
                    "seed": {n: {"seed": n, "inspect": n == 0} for n in range(self.seeds)},
                }
                found += grid(staged_run, axes, fixed)
        return found + (self._on_texts(scope) if self.texts else []) + self._on_theory()

    def _on_texts(self, scope: Scope) -> list[Cell]:
        """Models that have learnt from news, fine-tuned on plays and on questions."""
        news, length = scope.file(_NEWS), self.text_length
        classifier = partial(TextClassifier, vocabulary=2048, depth=4, width=self.text_width)
        labelled = partial(LabelledTexts, length=16, vocabulary=2048, hashed=True)
        columns = ("title", "description")
        tuned: list[tuple[str, DataSource, DataSource, MakeModel]] = [
            (
                _SHAKESPEARE,
                AsciiText(scope.file(_PLAYS), length=length),
                AsciiText(news, columns, length),
                partial(GPT, width=self.text_width),
            ),
            (
                CLASSIFIED,
                labelled(scope.file(_QUESTIONS)),
                labelled(news, text=list(columns)),
                classifier,
            ),
        ]
        tasks = {
            name: {
                "data": First(source, samples),
                "model": partial(
                    pretrained, model=model, name=name, source=learnt, steps=self.learnt_steps
                ),
                "epochs": epochs,
            }
            for (name, source, learnt, model), samples, epochs in zip(
                tuned, self.texts, self.text_epochs, strict=True
            )
        }
        exact = {"forward": ActivationDifference(32), "backward": SampleQuantization(32)}
        replicas = {"replicas": 2, "gradients": ErrorFeedback(UniformQuantization(bits=4))}
        methods = {NOTHING: exact} | {
            method_name(method, *bits): _codecs(method, *bits)
            for bits in BITS
            for method in (DIRECT, DIFFERENCES)
        }
        methods[ALL] = _codecs(DIFFERENCES, 4, 8) | replicas
        fixed = {"optimizer": partial(Adam, lr=0.001), "batch_size": 32}
        axes: dict[str, Any] = {"task": tasks, "seed": range(self.text_seeds), "method": methods}
        return grid(staged_run, axes, fixed)

    def _on_theory(self) -> list[Cell]:
        """Gradients over runs of several lengths, errors of rounding, and steps on slow links."""
        bits = {NOTHING: (32, 32)}
        bits |= {method_name(DIFFERENCES, *pair): pair for pair in (BITS[0], BITS[-1])}
        coded = {name: {"bits": one, "back": back} for name, (one, back) in bits.items()}
        runs = {name: one | {"method": DIFFERENCES} for name, one in coded.items()}
        runs[method_name(DIRECT, *BITS[0])] = {"bits": 2, "back": 4, "method": DIRECT}
        curves: dict[str, Any] = {"part": {"rate": {}}, "method": {}, "steps": self.rate_steps}
        curves["method"] = runs
        errors: dict[str, Any] = {"part": {"errors": {}}, "bits": (2, 3, 4, 5, 6)}
        timed: dict[str, Any] = {"part": {"links": {}}, "rate": _RATES, "method": coded}
        return [
            *(grid(rate_record, curves, {"seed": 0}) if self.rate_steps else []),
            *(grid(error_record, errors, {"dim": 512}) if self.rate_steps else []),
            *(
                grid(link_record, timed, {"steps": self.link_steps}, alone=True)
                if self.link_steps
                else []
            ),
        ]

    def findings(self, found: Records, scope: Scope) -> Findings:
        """How training ended with every method."""
        deepest = found.where(stages=self.stages[-1])
        digits, coarse = found.where(stages=list(self.stages)), method_name(DIFFERENCES, 2, 4)
        exact: float | None = deepest.mean(percentage, method=NOTHING)
        ours, theirs, zeros = (
            [deepest.mean(percentage, rounding=r, method=method_name(m, 2, 4)) for r in _ROUNDINGS]
            for m in (DIFFERENCES, DIRECT, _ZERO)
        )
        first = deepest.where(seed=0)
        curves = [one["errors"] for one in first.where(method=coarse)]
        sent = [first.where(method=one)[0]["boundary_bytes"] for one in (NOTHING, coarse)]
        remembered = digits.where(method=[method_name(DIFFERENCES, *bits) for bits in BITS], seed=0)
        agreed = [bool(one["agreed"]) for one in remembered]
        samples = len(load(Digits()).train)  # type: ignore[arg-type]
        once = [one["full_samples"] == samples * (one["stages"] - 1) for one in remembered]
        falls = (f"{one[1]:.2f} to {one[-1]:.2f}" if one[1:] else "—" for one in curves)
        values = {
            "recipe": self,
            "stages": self.stages[-1],
            "exact": exact,
            "ours": ours,
            "theirs": theirs,
            "zeros": zeros,
            "falls": " / ".join(falls),
            "agreed": sum(agreed),
            "once": sum(once),
            "runs": len(once),
            "fewer": sent[0] / sent[1],
        }
        holds = {
            "differences": [above(one, exact, -1.0) for one in ours],
            "direct": [(a or 0) > (b or 0) for a, b in zip(ours, theirs, strict=True)],
            "error": [len(one) > 2 and one[-1] < 0.5 * one[1] for one in curves],
            "both sides": agreed,
            "once": once,
        }
        notes = ("notes", "notes on texts" if self.texts else "without texts")
        parts = report(self.told, holds, values, answer="answer", notes=notes)
        for rounding in _ROUNDINGS:
            some = pivot(digits.where(rounding=[None, rounding]), "stages", "method", percentage)
            parts += report(self.told, {}, {"rounding": rounding}, {"digits": some})
        for number in self.stages:
            lines = {
                str(one["method"]): (range(2, len(one["errors"]) + 1), one["errors"][1:])
                for one in digits.where(stages=number, rounding="nearest", seed=0)
                if not str(one["method"]).startswith(_ZERO)
            }
            parts += report(self.told, {}, {"number": number}, plots={"errors": lines})
        if self.texts:
            texts = text_findings(self.told, found.where(task=[_SHAKESPEARE, CLASSIFIED]))
            parts = texts + parts
        if self.link_steps:
            parts += link_findings(self.told, found.where(part="links"))
        if self.rate_steps:
            rates, errors = (found.where(part=one) for one in ("rate", "errors"))
            parts += theory_findings(self.told, rates, errors)
        return parts


def _codecs(
    method: str, bits: int, back: int, rounding: Any = "nearest", width: int = 0
) -> dict[str, Any]:
    """How activations and their gradients are rounded."""
    forward: ActivationDifference | Compressor
    if method == DIFFERENCES:
        forward = ActivationDifference(bits, rounding)
    elif method == DIRECT:
        forward = SampleQuantization(bits, rounding)
    elif rounding == "nearest":  # one bucket a sample
        forward = UniformQuantization(width, bits)
    else:
        forward = QSGD(width, levels=(1 << (bits - 1)) - 1, norm="max")
    return {"forward": forward, "backward": SampleQuantization(back, rounding)}
