"""Comparison of rules, codes and compressors under attacks, on splits of data, over seeds."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from phalanx.aggregation import (
    Aggregator,
    CenteredClipping,
    CoordinateMedian,
    Krum,
    Mean,
    NearestNeighborMixing,
    TrimmedMean,
)
from phalanx.attacks import (
    ALittleIsEnough,
    Attack,
    InnerProductManipulation,
    RandomWorkers,
    ReverseGradient,
    Schedule,
    SignFlip,
)
from phalanx.coding import Code, DracoRepetition
from phalanx.compression import Compressor
from phalanx.data import DataSource, Digits, Partitioner
from phalanx.experiments.comparison import NO_ATTACK, Comparison
from phalanx.experiments.grid import Cell, grid
from phalanx.experiments.labels import labels
from phalanx.experiments.measure import Watch, load_records, measure
from phalanx.experiments.runs import MakeModel, build, load, train_run
from phalanx.files import owned
from phalanx.identity import description, digest
from phalanx.models import MLP
from phalanx.ordering import Order, PerClient, RandomReshuffling
from phalanx.parameters import ParameterLayout
from phalanx.training.server_step import MakeOptimizer, default_optimizer
from phalanx.transforms import Compressed, MessageTransform
from phalanx.transforms.chain import Chain

_Method = Aggregator | Code
_SHARED_DATA, _GRADIENTS = "shared data", "gradients"
_SAMPLES = 16  # per worker and round, unless the batch size is given


def default_rules() -> list[Aggregator]:
    """Rules of every kind: one by one coordinate, by distances, mixed first, with a memory."""
    mixed = NearestNeighborMixing() >> TrimmedMean()
    return [Krum(), CoordinateMedian(), mixed, CenteredClipping()]


def default_codes() -> list[Code]:
    """The code that is exact bit for bit."""
    return [DracoRepetition()]


def default_attacks() -> list[Attack]:
    """A plain one, a large one, and two that hide."""
    return [SignFlip(), ReverseGradient(), ALittleIsEnough(), InnerProductManipulation()]


def comparison_cells(
    rules: Sequence[Aggregator] | None = None,
    codes: Sequence[Code] | None = None,
    attacks: Sequence[Attack | None] | None = None,
    splits: Sequence[Partitioner | None] = (None,),
    chains: Sequence[Sequence[MessageTransform]] = ((),),
    seeds: Sequence[int] = (0, 1),
    *,
    compressors: Sequence[Compressor] = (),
    num_workers: int = 15,
    num_byzantine: int = 3,
    byzantine: Schedule | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> list[Cell]:
    """The cells of a comparison; its axes are `method`, `attack`, `split` and `seed`.

    The plain mean and "no attack" are always among them, and come first.

    >>> cells = comparison_cells([Krum()], attacks=[SignFlip()], num_workers=9, num_byzantine=2)
    >>> len(cells), str(cells[4]), cells[4].arguments["rule"]
    (8, 'Krum, no attack, shared data, seed 0', Krum(num_byzantine=2, neighbours='paper'))

    Args:
        rules: robust rules, pipelines among them; a choice of four if neither rules nor codes are
            given.
        codes: gradient codes; repetition if neither rules nor codes are given.
        attacks: what Byzantine workers do; a choice of four if not given.
        splits: who holds which samples; None in it stands for workers that all draw from the whole
            data set. Codes do not apply to any other.
        chains: what workers do to their messages, one chain of transforms after the other; an
            empty one stands for messages as they are.
        seeds: a run each, of which mean and spread are shown.
        compressors: what messages are encoded by, after the chain: each method has a row without,
            and one with each of them.
        num_workers: of every run.
        num_byzantine: how many workers are Byzantine per round. Rules and codes whose own numbers
            are at the default are told it.
        byzantine: who is Byzantine when; `num_byzantine` workers drawn afresh every round if not
            given.
        batch_size: samples per round over all workers; 16 per worker if not given.
        options: what else `train_run` takes, such as `model`; by default 100 rounds on digits,
            evaluated every 20 rounds.

    Raises:
        ValueError: if arguments do not fit.
    """
    usual = {"data": Digits(), "model": MLP, "optimizer": default_optimizer}
    options = {**usual, "steps": 100, "evaluate_every": 20, **options}
    options["batch_size"] = _SAMPLES * num_workers if batch_size is None else batch_size
    _check(num_workers, num_byzantine, **options)
    if any(list(compressors).count(one) > 1 for one in compressors):
        raise ValueError(f"compressors must name none twice, got {list(compressors)}")
    for name, given in (("splits", splits), ("chains", chains), ("seeds", seeds)):
        if not given or any(list(given).count(one) > 1 for one in given):
            raise ValueError(f"{name} must name at least 1, and none twice, got {list(given)}")
    schedule = byzantine or RandomWorkers(num_byzantine)
    schedule.byzantine(0, num_workers, 0)  # it must fit the number of workers
    if rules is None and codes is None:
        rules, codes = default_rules(), default_codes()
    if attacks is None:
        attacks = default_attacks()
    told = {"num_workers": num_workers, "num_byzantine": num_byzantine}
    everything: list[_Method] = [Mean(), *(rules or ()), *(codes or ())]
    methods = [_told(one, told) for one in everything]
    unfit = {_key(method): why for method, why in methods}

    def skip(**arguments: Any) -> str | None:
        method = arguments.get("code", arguments.get("rule"))
        return unfit[_key(method)] or _why_not(**arguments)

    plain = {
        label: {"code": one} if isinstance(one, Code) else _rule(one, num_workers)
        for label, one in _labelled([method for method, _ in methods], told)
    }
    axes: dict[str, Any] = {
        "method": plain
        | {
            f"{label}, {name}": {**method, "compressor": compressor}
            for name, compressor in _labelled(compressors)
            for label, method in plain.items()
        },
        "attack": {NO_ATTACK: {}}
        | {
            label: {"attack": attack, "byzantine": schedule}
            for label, attack in _labelled([one for one in attacks if one is not None])
        },
        "split": _panels(splits, chains, options),
        "seed": seeds,
    }
    return grid(train_run, axes, options, skip)


def compare(
    *,
    jobs: int | None = None,
    out: Path | str | None = None,
    config: str | None = None,
    watch: Watch | None = None,
    **compared: Any,
) -> Comparison:
    """Runs every method under every attack, on every split, with every seed.

    Each run is `phalanx.train` with the same arguments, on one thread; its weights are what that
    call would give alone. With `out` runs are kept and gone on with.

    Args:
        jobs: processes, see `measure`.
        out: a folder for the runs, `comparison.csv`, `comparison.md` and `comparison.html`; nothing
            is written if None.
        config: text that is kept in the folder as `config.yaml`: how to repeat the comparison.
        watch: is told how far the comparison is.
        compared: what is compared, and on what: see `comparison_cells`.

    Returns:
        The records, and tables of them.

    Raises:
        ValueError: if arguments do not fit, before anything runs or is written.
        FolderInUseError: if another process writes to `out`.
        KeyboardInterrupt: after Ctrl-C; finished runs stay in `out`.
        ChildProcessError: if processes cannot be started.
    """
    cells = comparison_cells(**compared)
    known = load_records(Path(out)) if out is not None else {}
    if any(cell.identity not in known for cell in cells if not cell.skipped):
        _check_data(**cells[0].arguments)  # what cannot be read or built is an error now
    with owned(Path(out)) if out is not None else nullcontext():
        comparison = Comparison(measure(cells, out, jobs=jobs, watch=watch, config=config), cells)
        if out is not None:
            comparison.write(Path(out))
    return comparison


def _key(thing: Any) -> str:
    """Things that are described alike are the same."""
    return digest(description(thing))


def _labelled(things: Sequence[Any], usual: dict[str, int] | None = None) -> list[tuple[str, Any]]:
    """Each thing once, after its label."""
    once = list({_key(thing): thing for thing in things}.values())
    return list(zip(labels(once, usual), once, strict=True))


def _check(
    num_workers: int, num_byzantine: int, batch_size: int, steps: int, evaluate_every: int, **_: Any
) -> None:
    counts = {"num_workers": num_workers, "steps": steps, "evaluate_every": evaluate_every}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= 2 * num_byzantine < num_workers:
        raise ValueError(
            "num_byzantine must be at least 0 and below num_workers / 2, "
            f"got {num_byzantine} of {num_workers}"
        )
    if batch_size < 1 or batch_size % num_workers:
        raise ValueError(
            f"batch_size must be a multiple of the {num_workers} workers, got {batch_size}"
        )


def _check_data(
    *,
    data: DataSource,
    model: MakeModel,
    optimizer: MakeOptimizer,
    batch_size: int,
    seed: int,
    **_: Any,
) -> None:
    """Raises ValueError if no cell could run: the model, the optimizer or the data do not fit."""
    splits = load(data)
    optimizer(build(model, splits, seed).parameters())
    size = len(splits.train)  # type: ignore[arg-type]
    if size < batch_size:
        raise ValueError(
            f"data must fill one batch of {batch_size} samples, got {size} to train on"
        )


def _panels(
    splits: Sequence[Partitioner | None],
    chains: Sequence[Sequence[MessageTransform]],
    options: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Each of the splits with each of the chains: a table each."""
    within = options.get("order", RandomReshuffling())
    dealt: dict[str, dict[str, Any]] = {_SHARED_DATA: {}} if None in splits else {}
    for label, split in _labelled([one for one in splits if one is not None]):
        dealt[label] = {"order": PerClient(split, within)}
    if not any(chains):
        return dealt
    sent = {" » ".join(labels(chain)) or _GRADIENTS: {"transforms": chain} for chain in chains}
    return {
        split if len(chains) == 1 else f"{split}, {chain}": order | transforms
        for split, order in dealt.items()
        for chain, transforms in sent.items()
    }


def _told(method: _Method, numbers: dict[str, int]) -> tuple[_Method, str | None]:
    """The method with these numbers where it leaves them at the default; else why it cannot."""
    try:
        if isinstance(method, Code):
            return _told_code(method, numbers), None
        usual = getattr(type(method)(), "num_byzantine", None)
        if getattr(method, "num_byzantine", usual) == usual:
            method = method.with_num_byzantine(numbers["num_byzantine"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is warned again when the cell runs
            method.num_tolerated(numbers["num_workers"])
    except ValueError as error:  # a row of its own says so
        return method, str(error)
    return method, None


def _told_code(code: Code, numbers: dict[str, int]) -> Code:
    left = {
        one.name: numbers[one.name]
        for one in fields(code)
        if one.name in numbers and getattr(code, one.name) == one.default
    }
    told = replace(code, **left)
    if told.num_workers != numbers["num_workers"]:
        raise ValueError(
            f"num_workers must be that of the comparison, {numbers['num_workers']}, "
            f"got {told.num_workers}"
        )
    return told


def _rule(rule: Aggregator, num_workers: int) -> dict[str, Any]:
    return {"rule": rule, "num_workers": num_workers}


def _why_not(
    *,
    batch_size: int,
    code: Code | None = None,
    order: Order = RandomReshuffling(),  # noqa: B008 - frozen
    transforms: Sequence[MessageTransform] = (),
    compressor: Compressor | None = None,
    **_: Any,
) -> str | None:
    """Why a code does not go with the others; None if it does, and for a rule."""
    if code is None:
        return None
    if not order.shared:
        return "a code has several workers compute the same samples, a split gives each its own"
    if batch_size % code.num_partitions:
        return (
            f"batch_size must be a multiple of the {code.num_partitions} partitions, "
            f"got {batch_size}"
        )
    if compressor is not None:
        transforms = [*transforms, Compressed(compressor)]
    any_layout = ParameterLayout.of(nn.Linear(2, 2))
    chain = Chain(tuple(transforms), any_layout, 0, code.num_workers)
    return "; ".join(chain.problems(code)) or None
