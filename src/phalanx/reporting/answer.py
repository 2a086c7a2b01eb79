"""Summary sentence of a report, computed from the figures."""

import math
from collections.abc import Mapping, Sequence

from phalanx.reporting.compare_runs import SAME_WEIGHTS, Row, is_honest
from phalanx.reporting.detection import Detection, byzantine_senders, detection, total
from phalanx.reporting.format import count, difference, excerpt, listed, percent, score
from phalanx.reporting.record import (
    RunRecord,
    byzantine,
    excluded,
    excluded_by_suspicion,
    suspected,
)

NOTABLE_FALL = 0.01
"""Test accuracy lost against the reference, as a share, that is called a fall."""


def answer(records: Sequence[RunRecord], rows: Sequence[Row]) -> str:
    """One sentence on one run, or on several; `rows` are `compare_runs(records)`, in that order.

    Raises:
        ValueError: if there is no run, or not one row per run.
    """
    if not records or len(records) != len(rows):
        raise ValueError(f"rows must be one per run, got {len(rows)} rows for {len(records)} runs")
    return _one(records[0]) if len(records) == 1 else _several(records, rows)


def _one(record: RunRecord) -> str:
    rounds = count(len(record.rounds), "round")
    at = _at(record.test_accuracy, record.evaluation)
    if record.status == "finished":
        by = "" if record.stopped_by is None else f"was stopped by {record.stopped_by} and "
        outcome = f"The run {by}ended after {rounds} {at or 'and was not evaluated'}"
    else:
        error = record.error and f" by an error (“{excerpt(record.error)}”)"
        how = f"was stopped{error}" if error else "is not finished"
        outcome = f"The run {how} after {rounds}{at and f', last measured {at}'}"
    clauses = [outcome, _fairness(record), _loss(record), _byzantine(record), _excluded(record)]
    return "; ".join(clause for clause in clauses if clause) + "."


def _at(accuracy: float | None, evaluation: Mapping[str, float]) -> str:
    """For example "at 97.5 % test accuracy", or "at test mae 0.12"; empty if nothing is known."""
    if accuracy is not None:
        return f"at {percent(accuracy)} test accuracy"
    first = next(iter(evaluation), None)
    return "" if first is None else f"at {first.replace('_', ' ')} {evaluation[first]:.4g}"


def _fairness(record: RunRecord) -> str:
    """How clients fare on their own samples, where that was measured."""
    names = ("client_accuracy_median", "client_accuracy_worst_decile")
    found = [record.series(name) for name in names]
    if not all(found):
        return ""
    median, worst = (percent(points[-1][1]) for points in found)
    return f"on their own samples the median client is at {median}, the worst tenth at {worst}"


def _kind(record: RunRecord) -> str:
    return "client" if record.is_federated else "worker"


def _loss(record: RunRecord) -> str:
    """Says so if the last round's loss was not finite."""
    lost = bool(record.rounds) and record.rounds[-1].get("loss", 0.0) is None
    return "its last loss is not finite" if lost else ""


def _byzantine(record: RunRecord) -> str:
    if not record.rounds:
        return ""
    attacked = [byzantine(entry) for entry in record.rounds if byzantine(entry)]
    named = set().union(*(suspected(entry) for entry in record.rounds))
    found = detection(record.rounds)
    if not attacked:
        who = count(len(named), _kind(record))
        verdict = f", yet the decoder {found.verb} {who}" if named else None
        return f"no Byzantine {_kind(record)} was simulated" + (verdict or " and nobody was named")
    if not found.lies:
        return f"{_who(record, attacked)}, and none of their messages entered decoding"
    heard = [byzantine_senders(entry) for entry in record.rounds if byzantine_senders(entry)]
    verdict = _verdict(found)
    scores = [f"recall {score(found.recall)}"]
    if found.precision is not None:
        scores.insert(0, f"precision {score(found.precision)}")
    return f"{_who(record, heard)} and {verdict} ({', '.join(scores)})"


def _excluded(record: RunRecord) -> str:
    """For example "workers 3 (after 10 rounds) and 7 (after 12) were excluded"."""
    since = sorted(excluded(record).items(), key=lambda pair: (pair[1], pair[0]))
    if not since:
        return ""
    doubted = excluded_by_suspicion(record)
    (first, rounds), *others = since
    whens = [(first, count(rounds, "round")), *((worker, str(later)) for worker, later in others)]
    parts = [
        f"{worker} (after {when}{', without proof' if worker in doubted else ''})"
        for worker, when in whens
    ]
    noun, verb = (f"{_kind(record)}s", "were") if others else (_kind(record), "was")
    return f"{noun} {listed(parts)} {verb} excluded"


def _who(record: RunRecord, groups: list[set[int]]) -> str:
    """For example "up to 2 of 9 workers were Byzantine in 30 of 60 rounds"."""
    most = max(len(group) for group in groups)
    # while a run is unfinished, the ids that it mentions need not be all its workers
    size = "" if record.result is None else f" of {record.num_workers}"
    steady = all(len(group) == most for group in groups)
    rounds = len(record.rounds)
    when = "every round" if len(groups) == rounds else f"{len(groups)} of {count(rounds, 'round')}"
    noun = _kind(record) + ("" if most == 1 and not size else "s")
    if record.is_federated and size:
        noun += " of a round"
    who = f"{'' if steady else 'up to '}{most}{size} {noun}"
    was = "was" if most == 1 else "were"
    return f"{who} {was} Byzantine in {when}"


def _verdict(found: Detection) -> str:
    wrong = count(found.false_alarms, "time")
    alarms = f", along with honest ones {wrong}" if found.false_alarms else ""
    if found.caught == found.lies:
        return f"all were {found.verb}" + alarms
    if found.caught:
        return f"were {found.verb} for {found.caught} of {found.lies} Byzantine messages" + alarms
    return f"none was {found.verb}" + (f", but honest ones {wrong}" if alarms else "")


def _several(records: Sequence[RunRecord], rows: Sequence[Row]) -> str:
    done = [row for row in rows if row.status == "finished"]
    if not done:
        return f"None of the {len(rows)} runs has finished: {_halted(rows)}."
    index = next((i for i, row in enumerate(rows) if row.is_reference), None)
    if index is None:
        opening = f"There is no run to compare the weights with: {_outcomes(done, None)}"
    else:
        all_honest = all(is_honest(record) for record in records)
        honest = is_honest(records[index]) and not all_honest
        title = rows[index].title
        name = "the run without Byzantine workers" if honest else f"the reference run “{title}”"
        opening = _against(rows[index], name, [row for row in done if not row.is_reference])
        if all_honest:
            opening = f"No Byzantine worker was simulated: {opening}"
    halted = [row for row in rows if row.status != "finished"]
    return opening + (f"; {_halted(halted)}" if halted else "") + "."


def _against(reference: Row, name: str, others: list[Row]) -> str:
    """The finished runs, held against the reference."""
    if not others:
        return f"No run but {name} has finished"
    if reference.weight_difference == math.inf:
        return f"{_capital(name)} ended with weights that are not finite: {_outcomes(others, None)}"
    same = [row for row in others if _gap(row) <= SAME_WEIGHTS]
    other = [row for row in others if _gap(row) > SAME_WEIGHTS]
    if not same:
        return f"No other run ended with the weights of {name}: {_outcomes(other, reference)}"
    gap = max(_gap(row) for row in same)
    how = f"largest relative difference {difference(gap)}" if gap else "bit for bit"
    kept = f"{listed([row.title for row in same])} ended with the weights of {name} ({how})"
    kept += _naming(same)
    return kept + (f", while {_outcomes(other, reference)}" if other else "")


def _gap(row: Row) -> float:
    return math.inf if row.relative_difference is None else row.relative_difference


def _naming(rows: list[Row]) -> str:
    """What the decoders of these runs made of Byzantine workers."""
    found = total(row.detection for row in rows)
    if not found.lies:
        return ""
    alarms = (
        f", and honest workers {count(found.false_alarms, 'time')}" if found.false_alarms else ""
    )
    part = f"{found.caught} of {found.lies} Byzantine messages"
    named = "every Byzantine worker" if found.caught == found.lies else part
    return f" and {found.verb} {named}{alarms}"


def _outcomes(rows: list[Row], reference: Row | None) -> str:
    """How runs ended that did not end with the reference's weights."""
    fell = [row for row in rows if _fell(row, reference)]
    parts = [_outcome(row, reference) for row in rows if row not in fell]
    if len(fell) > 3:
        reached = sorted(row.test_accuracy or 0.0 for row in fell)
        span = f"between {percent(reached[0])} and {percent(reached[-1])}"
        parts.insert(0, f"{len(fell)} others fell to {span} test accuracy")
    elif fell:
        first, *more = [(row.title, percent(row.test_accuracy)) for row in fell]
        falls = [f"{first[0]} fell to {first[1]}", *(f"{title} to {to}" for title, to in more)]
        parts.insert(0, f"{listed(falls)} test accuracy")
    if fell and reference is not None:
        parts[0] += f" (from {percent(reference.test_accuracy)})"
    return listed(parts)


def _fell(row: Row, reference: Row | None) -> bool:
    if reference is None or row.test_accuracy is None or reference.test_accuracy is None:
        return False
    attacked = row.detection.lies + row.detection.unheard > 0
    return attacked and row.test_accuracy < reference.test_accuracy - NOTABLE_FALL


def _outcome(row: Row, reference: Row | None) -> str:
    at = _at(row.test_accuracy, row.evaluation)
    at = f" {at}" if at else ""
    if reference is None:
        return f"{row.title} ended{at or ' and was not evaluated'}"
    if row.weight_difference is None:
        return f"{row.title} ended{at} with weights that cannot be compared"
    finite = math.isfinite(row.weight_difference)
    return (
        f"{row.title} ended{at} with {'other weights' if finite else 'weights that are not finite'}"
    )


def _halted(rows: Sequence[Row]) -> str:
    how = {"stopped": "was stopped by an error", "unfinished": "is not finished"}
    return listed(
        [f"{row.title} {how[row.status]} after {count(row.rounds, 'round')}" for row in rows]
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
