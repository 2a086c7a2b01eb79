"""HTML report: one self-contained file."""

import shlex
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from phalanx.files import whole
from phalanx.reporting.answer import answer
from phalanx.reporting.compare_runs import Row, compare_runs, with_reference
from phalanx.reporting.detection import detection
from phalanx.reporting.federated_plots import (
    participation,
    plot_client_accuracy,
    plot_participation,
    plot_partition,
    plot_traffic,
)
from phalanx.reporting.format import count, duration, listed, percent, size
from phalanx.reporting.page import Plot, drawn, render_page
from phalanx.reporting.plots import (
    plot_accuracy,
    plot_loss,
    plot_metric,
    plot_residual,
    plot_seconds,
    plot_suspicion,
    plot_workers,
)
from phalanx.reporting.record import (
    RunRecord,
    excluded,
    excluded_by_suspicion,
    missing,
    worker_ids,
)
from phalanx.reporting.table import MEANINGS, cells

_SIZE = (5.6, 3.0)  # inches


def write_report(
    records: Sequence[RunRecord],
    path: Path,
    reference: RunRecord | None = None,
    title: str | None = None,
) -> None:
    """Writes the report of one run, or of several side by side.

    The file holds its style and plots and loads nothing. The same runs give the same bytes. It is
    replaced whole or not at all.

    Args:
        records: the runs.
        path: the HTML file; its folder is made if need be.
        reference: the run that the others are held against; see `compare_runs`.
        title: the page's title; by default the run's, or how many runs there are.

    Raises:
        ValueError: if there are no runs, or the reference has no weights.
    """
    if not records:
        raise ValueError("records must hold at least one run, got none")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _render(records, reference, title)
    with whole(path) as beside:
        beside.write_text(page, encoding="utf-8")


def _render(records: Sequence[RunRecord], reference: RunRecord | None, title: str | None) -> str:
    rows = compare_runs(records, reference)
    records = with_reference(records, reference)
    headers, lines = cells(rows)
    default_title = records[0].title if len(records) == 1 else f"{len(records)} runs side by side"
    folders = "folder" if len(records) == 1 else "folders"
    return render_page(
        "phalanx.reporting",
        "report.html.j2",
        title=title or default_title,
        kind="Phalanx " + ("run report" if len(records) == 1 else "comparison"),
        answer=answer(records, rows),
        origin=f" from the run {folders} named above",
        rows=list(zip(rows, lines, strict=True)),
        headers=headers,
        meanings={name: MEANINGS[name] for name in headers if name in MEANINGS},
        plots=drawn(_plots(records, rows)),
        records=records,
        facts=_facts,
        repeat=_repeat,
        environments=_environments(records),
        methods=_methods(records),
    )


def _plots(records: Sequence[RunRecord], rows: Sequence[Row]) -> list[Plot]:
    """The plots for which there are figures."""
    plots = []
    if any(record.series("test_accuracy") for record in records):
        ends = listed([f"{row.title} {percent(row.test_accuracy)}" for row in rows])
        alt = f"Test accuracy over rounds. Last values: {ends}."
        caption = "On the whole test set. Higher is better."
        plots.append(Plot("Test accuracy", caption, alt, partial(plot_accuracy, records), _SIZE))
    else:
        plots += _metric_plots(records)
    if any(value > 0 for record in records for _, value in record.series("loss")):
        alt = f"Training loss over rounds. Last values: {_last(records, 'loss')}."
        caption = (
            "Lower is better. What is not finite is left out; where a run went far above the "
            "others it is cut off, and the legend says how high it went."
        )
        plots.append(Plot("Training loss", caption, alt, partial(plot_loss, records), _SIZE))
    if any(row.round_seconds is not None for row in rows):
        spent = listed([f"{row.title} {duration(row.round_seconds)}" for row in rows])
        alt = f"Median time per round, split into computing, decoding and the rest: {spent}."
        caption = "Medians. The rest is moving messages, staging attacks, the step and evaluation."
        size = (_SIZE[0], 1.1 + 0.32 * max(len(rows), 2))
        plots.append(Plot("Time per round", caption, alt, partial(plot_seconds, rows), size))
    if any(value > 0 for record in records for _, value in record.series("residual")):
        alt = f"Decoding residual over rounds. Last values: {_last(records, 'residual')}."
        caption = "The largest relative disagreement among the messages that the decoder trusted."
        draw = partial(plot_residual, records)
        plots.append(Plot("Decoding residual", caption, alt, draw, _SIZE))
    for record in records:
        if record.is_federated:
            plots += _federated_plots(record)
        if any(worker_ids(entry) for entry in record.rounds):
            plots.append(_worker_plot(record))
        if any(any(entry.get("suspicion") or ()) for entry in record.rounds):
            plots.append(_suspicion_plot(record))
    return plots


def _federated_plots(record: RunRecord) -> list[Plot]:
    """Who holds what, who took part, and how clients fare."""
    took, blamed = participation(record)
    plots = []
    if record.series("client_accuracy_median"):
        alt = (
            f"Accuracy over rounds of {record.title}: of the median client "
            f"{_last([record], 'client_accuracy_median')}, of the worst tenth "
            f"{_last([record], 'client_accuracy_worst_decile')} at the end."
        )
        caption = "Of the global model; clients' samples are those that they train on."
        draw = partial(plot_client_accuracy, record)
        plots.append(Plot(f"Accuracy over clients: {record.title}", caption, alt, draw, _SIZE))
    if record.series("broadcast_bytes"):
        up, down = (
            sum(value for _, value in record.series(name))
            for name in ("message_bytes", "broadcast_bytes")
        )
        alt = f"Megabytes so far of {record.title}: {size(up)} up, {size(down)} down at the end."
        caption = "Without what a transport adds; the broadcast counts once for each client."
        draw = partial(plot_traffic, record)
        plots.append(Plot(f"Traffic: {record.title}", caption, alt, draw, _SIZE))
    alt = (
        f"Rounds of each client of {record.title}: {count(len(took), 'client')} took part, "
        f"{count(len(blamed), 'client')} suspected at least once."
    )
    caption = "Suspected: named, left out by a rule or outvoted, as honest clients are at times."
    draw = partial(plot_participation, record)
    plots.append(Plot(f"Who took part: {record.title}", caption, alt, draw, _SIZE))
    if record.class_counts:
        sizes = [sum(own) for own in record.class_counts]
        alt = (
            f"Samples of each class at each client of {record.title}: {min(sizes)} to "
            f"{max(sizes)} samples at {len(sizes)} clients."
        )
        caption = "How the training data lie with the clients."
        draw = partial(plot_partition, record)
        plots.append(Plot(f"Partition: {record.title}", caption, alt, draw, _SIZE))
    return plots


def _metric_plots(records: Sequence[RunRecord]) -> list[Plot]:
    """The first metric of runs without an accuracy, over rounds: of regressions, say."""
    names = list(dict.fromkeys(name for record in records for name in record.evaluation))[:1]
    plots = []
    for name in names:
        if any(record.series(name) for record in records):
            title = name.replace("_", " ").capitalize()
            alt = f"{title} over rounds. Last values: {_last(records, name)}."
            draw = partial(plot_metric, records, name)
            plots.append(Plot(title, "As it was evaluated.", alt, draw, _SIZE))
    return plots


def _suspicion_plot(record: RunRecord) -> Plot:
    last = record.rounds[-1].get("suspicion") or [0.0]
    out = sorted(excluded(record))
    alt = (
        f"Suspicion of workers over rounds of {record.title}: highest at the end "
        f"{max(last):.2f}, of worker {last.index(max(last))}; excluded: "
        f"{', '.join(map(str, out)) or 'nobody'}."
    )
    caption = (
        "The share of the last rounds, about ten, in which a worker was named, or suspected "
        "without proof; a cross marks its exclusion."
    )
    draw = partial(plot_suspicion, record)
    return Plot(f"Suspicion: {record.title}", caption, alt, draw, _worker_size(record))


def _worker_size(record: RunRecord) -> tuple[float, float]:
    return _SIZE[0], 1.2 + 0.12 * min(max(record.num_workers, 6), 60)


_READING = (
    "One row per worker. Named: Byzantine for certain, within the bound. Suspected: left out by a "
    "rule or outvoted, as honest workers are now and then."
)


def _worker_plot(record: RunRecord) -> Plot:
    found = detection(record.rounds)
    alt = (
        f"Workers by rounds of {record.title}: {count(found.lies, 'Byzantine message')},"
        f" {found.caught} of them {found.verb}; honest workers {found.verb}"
        f" {count(found.false_alarms, 'time')}."
    )
    title = f"Who was Byzantine and who was named: {record.title}"
    draw = partial(plot_workers, record)
    return Plot(title, _READING, alt, draw, _worker_size(record))


def _last(records: Sequence[RunRecord], metric: str) -> str:
    """The last finite value of a metric in every run that has one."""
    series = [(record.title, record.series(metric)) for record in records]
    return listed([f"{title} {points[-1][1]:.3g}" for title, points in series if points])


def _facts(record: RunRecord) -> dict[str, str]:
    """What was run, as far as the run's result tells."""
    result = record.result or {}
    facts = {
        "folder": str(record.folder),
        "decoder": result.get("decoder"),
        "attack": result.get("attack") or ("none" if record.result else None),
        "order": result.get("order"),
        "computation": result.get("compute"),
        "transforms": result.get("transforms"),
        "server step": result.get("step"),
        "messages per round": _sent(record, "message_bytes"),
        "broadcasts per round": _sent(record, "broadcast_bytes") if record.is_federated else None,
        "clients": result.get("num_clients") if record.is_federated else None,
        "clients of a round" if record.is_federated else "workers": result.get("num_workers"),
        "partitions of a batch": result.get("num_partitions"),
        "gradients computed per partition": _number(result.get("redundancy")),
        "parameters": _number(result.get("num_parameters")),
        "evaluation": _evaluation(record),
        "stopped by": record.stopped_by,
        "messages that never entered decoding": _missing(record),
        "excluded": _excluded(record),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _evaluation(record: RunRecord) -> str | None:
    found = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in record.evaluation.items()]
    return ", ".join(found) or None


def _sent(record: RunRecord, name: str) -> str | None:
    """The bytes of the messages of all workers, or to them, if they were counted."""
    sent = [value for _, value in record.series(name)]
    return f"{size(median(sent))} (median), {size(sum(sent))} in all" if sent else None


def _number(value: float | int | None) -> str | None:
    return None if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _missing(record: RunRecord) -> str | None:
    reasons = Counter(
        (why, worker) for entry in record.rounds for worker, why in missing(entry).items()
    )
    parts = [
        f"{'client' if record.is_federated else 'worker'} {worker} {why} ({count(times, 'round')})"
        for (why, worker), times in sorted(reasons.items())
    ]
    return "; ".join(parts) or None


def _excluded(record: RunRecord) -> str | None:
    doubted = excluded_by_suspicion(record)
    parts = [
        f"worker {worker} (after {count(rounds, 'round')}"
        f"{', without proof' if worker in doubted else ''})"
        for worker, rounds in sorted(excluded(record).items())
    ]
    return "; ".join(parts) or None


def _repeat(record: RunRecord) -> str | None:
    """The command that runs it again, or goes on with it."""
    if record.config is None:
        return None
    command = "federate" if record.is_federated else "train"
    if record.status == "unfinished":
        return shlex.join(["phalanx", command, "--resume", str(record.folder)])
    config, out = str(record.folder / "config.yaml"), f"{record.folder}-again"
    return shlex.join(["phalanx", command, "--config", config, "--out", out])


def _environments(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """One line a name of `env.json`, one cell a run."""
    names = dict.fromkeys(name for record in records for name in record.environment)
    table = []
    for name in names:
        values = [record.environment.get(name) for record in records]
        table.append((name.replace("_", " "), ["—" if v is None else str(v) for v in values]))
    return table


def _methods(records: Sequence[RunRecord]) -> list[str]:
    """The sources of all methods used, each once."""
    cited = (
        str(source) for record in records for source in (record.result or {}).get("methods") or ()
    )
    return list(dict.fromkeys(cited))
