"""Fitting of a differentially private generator within a budget, in a folder that it goes on in."""

import json
import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from phalanx.checks import require_at_least
from phalanx.files import Sealing, clear_halves, owned, require_sealed, whole
from phalanx.identity import description
from phalanx.privacy.accountant import Accountant, Budget, describe
from phalanx.privacy.generation.datalens import DataLens
from phalanx.privacy.generation.domain import Domain
from phalanx.privacy.generation.private_data import PrivateData
from phalanx.privacy.generation.synthesizer import Fitting, Mechanism, Synthesizer
from phalanx.privacy.noise import noise_source
from phalanx.randomness import generator

Watch = Callable[[int, int, float], None]
"""Called with the steps done, those to do, and the epsilon that they have spent."""

_LOOKS = 10  # how often a checkpoint is written, and epsilon told
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError)


@dataclass(frozen=True)
class Generated:
    """Fitted generator, and what was spent on it."""

    fitting: Fitting
    """Makes records; with all its state it is as private as the data."""
    domain: Domain
    """Of the records."""
    steps: int
    """Steps that were made."""
    epsilon: float
    """What they spent."""
    statement: str
    """Epsilon with all that it depends on, as a sentence."""
    history: Sequence[tuple[int, float]]
    """Steps, and the epsilon that so many spend."""
    relation: str
    """Which data sets are neighbours."""
    seed: int
    """The secret that noise and all else was drawn from."""

    def sample(
        self, num_samples: int, class_shares: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Synthetic records `(n, d)` in [-1, 1] and their classes, in random order.

        Costs no privacy, however many are asked for.

        Args:
            num_samples: how many.
            class_shares: public shares of the classes; those that the releases tell if None, and
                where they tell none, equal ones.
        """
        num_classes = len(self.domain.classes)
        shares = self.fitting.class_shares()
        if class_shares is not None:
            require_at_least(0, **{f"class_shares[{i}]": s for i, s in enumerate(class_shares)})
            if len(class_shares) != num_classes or sum(class_shares) <= 0:
                raise ValueError(
                    f"class_shares must be {num_classes} numbers, not all 0, got {class_shares}"
                )
            shares = torch.tensor(class_shares, dtype=torch.float64)
        if shares is None:
            shares = torch.ones(num_classes, dtype=torch.float64)
        places = (torch.arange(num_samples) + 0.5) / num_samples * shares.sum()
        labels = torch.searchsorted(shares.cumsum(0), places).clamp(max=num_classes - 1)
        labels = labels[torch.randperm(num_samples, generator=generator(self.seed, "labels"))]
        return self.fitting.sample(labels, generator(self.seed, "samples")), labels


def generate(
    data: PrivateData,
    method: Synthesizer | None = None,
    budget: Budget | None = None,
    *,
    seed: int | None = None,
    folder: Path | str | None = None,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> Generated:
    """Fits a differentially private generator, and stops before the step that would overspend.

    With a folder the same call goes on where it was stopped or killed, and ends with the same bits:
    all noise follows from the seed and the number of the step, so that a step which is made anew is
    the same release, and is spent once. Other data or options are refused there, since the same
    noise on other data would tell the difference.

    Args:
        data: the private records.
        method: how; `DataLens()` if None.
        budget: epsilon and delta of all releases; epsilon 10 and delta 1e-5 if None.
        seed: of everything, the noise among it: whoever knows it can take the noise off again. One
            from the system's entropy, kept in the folder, if None.
        folder: for checkpoints, as private as the data themselves; nothing is written if None.
        watch: called about ten times with steps done, steps to do and epsilon spent.
        stop: asked before every step; a checkpoint is written if it is true.

    Raises:
        ValueError: if arguments do not fit, or the folder holds another run.
        FolderInUseError: if another process fits there.
        KeyboardInterrupt: if stopped; the same call goes on.
        ImportError: if the method samples records, and dp-accounting is not installed.

    Cost: a step of `DataLens` takes some `6 T n d H` operations for each of its teacher steps (n
    records of a batch, d numbers, H neurons), and a partial sort of `T B d` numbers for the vote.
    """
    method, budget = method or DataLens(), budget or Budget(10.0, 1e-5)
    mechanism = method.mechanism(len(data.x), data.domain, budget)
    accountant = method.accountant(data.domain)
    steps = _affordable(accountant, mechanism, budget)
    if steps == 0:
        raise ValueError(f"budget must last for at least one step, got {budget}")
    if folder is None:
        fit = method.start(
            data, mechanism, drawn := secrets.randbits(128) if seed is None else seed
        )
        return _run(fit, 0, drawn, mechanism, accountant, steps, budget, data, None, watch, stop)
    with owned(path := Path(folder)):
        clear_halves(path)
        made = {"method": method, "budget": budget, "data": [data.x, data.y], "torch": _VERSION}
        made["noise"] = noise_source()
        made["domain"] = asdict(data.domain)
        drawn = _drawn_seed(path, description(made), seed, budget)
        fit = method.start(data, mechanism, drawn)
        done = _load(path, fit)
        return _run(fit, done, drawn, mechanism, accountant, steps, budget, data, path, watch, stop)


_VERSION = str(torch.__version__)


def _run(
    fit: Fitting,
    done: int,
    seed: int,
    mechanism: Mechanism,
    accountant: Accountant,
    steps: int,
    budget: Budget,
    data: PrivateData,
    folder: Path | None,
    watch: Watch | None,
    stop: Callable[[], bool] | None,
) -> Generated:
    every = -(-steps // _LOOKS)
    for number in range(done, steps):
        if stop is not None and stop():
            if folder is not None:
                _save(folder, fit, number)
            raise KeyboardInterrupt(f"{number} of {steps} steps are made; the same call goes on")
        fit.step(number)
        if (number + 1) % every == 0 or number + 1 == steps:
            if folder is not None:
                _save(folder, fit, number + 1)
            if watch is not None:
                watch(number + 1, steps, _spent(accountant, mechanism, number + 1, budget.delta))
    looks = sorted({*range(every, steps + 1, every), steps})
    history = [(at, _spent(accountant, mechanism, at, budget.delta)) for at in looks]
    releases = mechanism.releases * steps
    accountant.compose(mechanism.noise_multiplier, mechanism.sampling_rate, releases)
    statement = describe(
        history[-1][1], budget.delta, accountant.unit, accountant.relation, accountant.not_counted
    )
    if folder is not None:
        with whole(folder / "ledger.json") as beside:
            told = {"statement": statement, "ledger": accountant.state_dict()}
            beside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    spent = history[-1][1]
    return Generated(fit, data.domain, steps, spent, statement, history, accountant.relation, seed)


def _spent(accountant: Accountant, mechanism: Mechanism, steps: int, delta: float) -> float:
    """Epsilon of so many steps alone."""
    ledger = Accountant(accountant.unit, accountant.relation, accountant.method)
    releases = mechanism.releases * steps
    ledger.compose(mechanism.noise_multiplier, mechanism.sampling_rate, releases)
    return ledger.epsilon(delta)


def _affordable(accountant: Accountant, mechanism: Mechanism, budget: Budget) -> int:
    """The most steps, up to those of the method, that the budget lasts for."""
    low, high = 0, mechanism.steps
    while low < high:
        middle = high if high == mechanism.steps and low == 0 else (low + high + 1) // 2
        if _spent(accountant, mechanism, middle, budget.delta) <= budget.epsilon:
            low = middle
        else:
            high = middle - 1
    return low


def _drawn_seed(folder: Path, made: Any, seed: int | None, budget: Budget) -> int:
    """The seed of the run that the folder holds, or a new one, which is written first of all."""
    path = folder / "run.json"
    if path.exists():
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            kept = int(told["seed"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged, and its seed lost: take a new folder") from error
        if told.get("run") != made or seed not in (None, kept):
            raise ValueError(
                f"folder must be new, or of this run: {folder} holds one of other data, options or "
                "versions, whose noise must not be used again"
            )
        return kept
    seed = secrets.randbits(128) if seed is None else seed
    told = {"run": made, "seed": seed, "reserved": asdict(budget)}
    with whole(path) as beside:
        beside.write_text(json.dumps(told) + "\n", encoding="utf-8")
    return seed


def _save(folder: Path, fit: Fitting, done: int) -> None:
    with whole(folder / "checkpoint.pt") as beside, beside.open("wb") as file:
        sealing = Sealing(file)
        try:
            torch.save({"done": done, "state": fit.state_dict()}, cast(BinaryIO, sealing))
        except RuntimeError as error:  # in which torch hides what the disk says
            raise sealing.error or error from error
        sealing.seal()


def _load(folder: Path, fit: Fitting) -> int:
    """Takes over what the folder holds; returns the steps that are made.

    A damaged checkpoint costs time, not privacy: the same steps are made again.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    try:
        require_sealed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        done = int(content["done"])
    except _BROKEN as error:
        warnings.warn(f"damaged checkpoint, the run begins anew: {path}: {error}", stacklevel=2)
        return 0
    fit.load_state_dict(content["state"])
    return done
