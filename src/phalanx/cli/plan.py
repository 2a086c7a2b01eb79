"""`phalanx plan`: which code against stragglers, or which compressor on a slow link."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from phalanx.cli import plan_delays, plan_link
from phalanx.cli.console import console
from phalanx.cli.train import MakeModel, default_out
from phalanx.communication import Link, bits_per_second, seconds
from phalanx.compression import Compressor
from phalanx.data import DataSource, Digits
from phalanx.models import MLP
from phalanx.planning import CodePlanner, CompressorPlanner
from phalanx.planning.compressor_planner import CANDIDATES
from phalanx.randomness import seeded
from phalanx.stragglers import DelayModel, RecordedTrace
from phalanx.training.arguments import usable

_SIZE = (8.0, 4.5)  # inches, of a plot
_OF_DELAYS = ("seconds_per_partition", "max_redundancy", "target_error", "noise", "num_rounds")
_OF_LINK = ("latency", "model", "data", "batch_size", "compressors", "device")


def plan(
    delays: DelayModel | Path | None = None,
    link: str | None = None,
    num_workers: int | None = None,
    seconds_per_partition: float = 0.0,
    max_redundancy: int = 5,
    target_error: float = 0.05,
    noise: float = 1.0,
    num_rounds: int = 300,
    latency: str = "0.1ms",
    model: MakeModel | None = None,
    data: DataSource = Digits(),  # noqa: B008 - frozen
    batch_size: int = 32,
    compressors: list[Compressor] | None = None,
    device: str = "cpu",
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Recommends a code and how long to wait, given delays; or a compressor, given a link.

    Example: phalanx plan --delays trace.csv --num_workers 50 --seconds_per_partition 0.2

    Example: phalanx plan --link 100mbit --num_workers 8 --model ResNet18

    With --delays rounds are played on a virtual clock. With --link the gradient and every
    compressor are timed here, on the model, and what they come to on the link is predicted.

    Args:
        delays: How long workers take: a CSV file with one line per round and one column per
            worker, or a model by name.
        link: Bandwidth of each worker's link, such as 100mbit or 2.5gbit;
            `phalanx.communication.probe_link` measures it in a script under torchrun.
        num_workers: Workers, and partitions; if not given 50 with delays, 4 with a link.
        seconds_per_partition: Seconds that a worker computes on one partition, on top of its delay.
        max_redundancy: Most partitions that a worker is to compute.
        target_error: Largest bias of the gradient that is accepted, relative to the partitions'.
        noise: Share of the rounds that are due to noise: 0 for none, 1 if twice the variance takes
            twice the rounds; more if partitions differ by more than chance.
        num_rounds: Rounds that are played on the virtual clock.
        latency: Time from one worker to the next on the link, such as 1ms.
        model: What is trained over the link: a class that is called with the shape of an input and
            the number of classes; MLP if not given.
        data: What the model is trained on over the link.
        batch_size: Samples of a worker's batch, over a link.
        compressors: What is compared on the link; the usual ones if not given.
        device: Where the gradient is computed and compressed: cpu, cuda, cuda:1, ...
        seed: Of the delays that are drawn, and of the model's weights.
        out: Folder for report.html, plan.csv and plan.svg; a new one under runs/ if not given.
    """
    if (delays is None) == (link is None):
        raise ValueError(
            "delays or link must be given, for a code or for a compressor, got "
            + ("neither" if link is None else "both")
        )
    given = dict(locals())
    _refuse(_OF_LINK if link is None else _OF_DELAYS, given, "link" if link is None else "delays")
    folder = out or default_out().with_name("plan-" + default_out().name)
    if link is not None:
        planner = CompressorPlanner(
            Link(bits_per_second(link), seconds(latency)),
            4 if num_workers is None else num_workers,
            CANDIDATES if compressors is None else compressors,
        )
        _plan_link(planner, model or MLP, data, batch_size, device, seed, folder)
        return
    assert delays is not None
    if isinstance(delays, Path) and not delays.is_file():
        raise ValueError(f"delays must be a file or the name of a model, got {delays}")
    codes = CodePlanner(
        delays if isinstance(delays, DelayModel) else RecordedTrace(delays),
        50 if num_workers is None else num_workers,
        seconds_per_partition,
        max_redundancy,
        target_error,
        noise,
        num_rounds,
        seed,
    )
    _plan_delays(codes, folder)


def _refuse(names: tuple[str, ...], given: dict[str, Any], use: str) -> None:
    """Raises a ValueError if an option of the other use was given."""
    usual = {name: one.default for name, one in inspect.signature(plan).parameters.items()}
    if idle := [name for name in names if given[name] != usual[name]]:
        raise ValueError(f"{' and '.join(idle)} must go with {use}, got the other")


def _plan_delays(planner: CodePlanner, folder: Path) -> None:
    # Imported where it is used: matplotlib would make every command wait, `--help` too.
    from phalanx.reporting import Plot, Table, plot_frontier, write_frontier, write_plan

    with console.status("playing rounds"):
        outlooks = planner.plan()
    folder.mkdir(parents=True, exist_ok=True)
    outlooks.write(folder / "plan.csv")
    write_frontier(outlooks, folder / "plan.svg")
    answer = plan_delays.answer(outlooks, planner.target_error)
    table = Table(
        "Candidates",
        "The best of each code and redundancy, the quickest first; an exclamation mark stands "
        "where the bias is beyond the target.",
        plan_delays.HEADERS,
        tuple(map(plan_delays.cells, plan_delays.shown(outlooks))),
    )
    alt = "Error of the gradient against the mean time per round, one mark per candidate."
    caption = "One mark a candidate; the line joins those that no other beats in both respects."
    draw = partial(plot_frontier, outlooks)
    plot = Plot("Error against time", caption, alt, draw, _SIZE)
    write_plan(folder / "report.html", "Codes against stragglers", answer, table, plot)
    console.show(plan_delays.table(plan_delays.shown(outlooks)))
    console.print(answer, markup=False)
    console.print(f"All {len(outlooks)} candidates: {folder / 'plan.csv'}", soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)


def _plan_link(
    planner: CompressorPlanner,
    model: MakeModel,
    data: DataSource,
    batch_size: int,
    device: str,
    seed: int,
    folder: Path,
) -> None:
    # Imported where it is used: see `_plan_delays`.
    from phalanx.reporting import Plot, Table, plot_link_plan, write_link_plan, write_plan

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    home = usable(device)
    splits = data.load()
    with seeded(seed, "weights"):
        module = model(splits.input_shape, splits.num_classes).to(home)
    with seeded(seed, "samples"):  # the data set may crop or flip at random
        inputs, targets = next(iter(DataLoader(splits.train, batch_size)))
    with console.status("measuring") as status:
        outlooks = planner.plan(
            module,
            inputs.to(home),
            targets.to(home),
            progress=lambda what: status.update(f"measuring {what}"),
        )
    folder.mkdir(parents=True, exist_ok=True)
    outlooks.write(folder / "plan.csv")
    write_link_plan(outlooks, planner.link, folder / "plan.svg")
    where = planner.link, planner.num_workers
    answer, about = plan_link.answer(outlooks, *where), plan_link.about(outlooks, *where)
    rows = tuple(map(plan_link.cells, outlooks))
    table = Table("Compressors", f"{about} The quickest first.", plan_link.HEADERS, rows)
    alt = "Predicted time per step over the bandwidth of the link, one line per compressor."
    draw = partial(plot_link_plan, outlooks, planner.link)
    plot = Plot("Time over bandwidth", "The dotted line is the link.", alt, draw, _SIZE)
    write_plan(folder / "report.html", "Compressors on a link", answer, table, plot)
    console.print(about, markup=False)
    console.show(plan_link.table(outlooks))
    console.print(answer, markup=False)
    console.print(f"All figures: {folder / 'plan.csv'}", soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
