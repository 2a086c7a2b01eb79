"""Cells are run once, kept whole, gone on with; what fails is a record."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from troublemakers import measured, where

from phalanx.experiments import Record, Records, grid, mean, measure, pivot, spread
from phalanx.experiments.measure import load_records, run_cell

RULES = ["a", "b"]


def calls(folder):
    return [path for path in folder.iterdir() if path.is_file()]


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def test_a_cell_for_every_combination_the_last_axis_fastest():
    staged = {"no attack": {}, "silence": {"attack": "silence", "folder": ""}}
    cells = grid(measured, {"rule": RULES, "attack": staged, "seed": [0, 1]}, {"folder": "x"})
    assert len(cells) == 8
    assert [str(one) for one in cells[:3]] == [
        "a, no attack, seed 0",
        "a, no attack, seed 1",
        "a, silence, seed 0",
    ]
    assert cells[0].arguments == {"rule": "a", "seed": 0, "folder": "x"}
    assert cells[2].arguments == {"rule": "a", "seed": 0, "folder": "", "attack": "silence"}
    assert len({cell.identity for cell in cells}) == 8


@pytest.mark.parametrize("values", [[], [1, 1], [None, None], {}], ids=repr)
def test_an_axis_names_values_and_none_twice(values):
    with pytest.raises(ValueError, match="seed must name at least 1, and none twice"):
        grid(measured, {"seed": values})


def test_records_stand_in_the_order_of_the_cells_and_are_plain(tmp_path):
    cells = grid(measured, {"rule": RULES, "seed": [0, 1]})
    records = measure(cells, jobs=1)
    assert [one.labels for one in records] == [one.labels for one in cells]
    first = records[0]
    assert (first.status, first.reason) == ("finished", None)
    assert first.values == {"accuracy": 0.5, "loss": None, "curve": [1.0, None], "attack": None}
    assert (first["rule"], first["accuracy"], first["nothing"]) == ("a", 0.5, None)
    assert first.warnings == ["1 thread"]
    assert first.seconds > 0
    kept = measure(cells, tmp_path, jobs=1)
    again = measure(cells, tmp_path, jobs=1)
    assert again == kept
    assert isinstance(again, Records)


def test_threads_are_as_before():
    torch.set_num_threads(2)
    try:
        assert run_cell(grid(measured, {"rule": ["a"]})[0]).warnings == ["1 thread"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_only_what_is_new_is_run(tmp_path):
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    fixed = {"folder": str(marks)}
    cells = grid(measured, {"rule": RULES, "seed": [0]}, fixed)
    told = []
    measure(cells, out, jobs=1, watch=told.append)
    assert [(one.done, one.found, one.total, len(one.running)) for one in told] == [
        *((0, 0, 2, 0), (0, 0, 2, 1), (1, 0, 2, 0), (1, 0, 2, 1), (2, 0, 2, 0))
    ]
    before = stamps(out)
    assert sorted(before) == [f"{cell.labels['rule']}_seed0-{cell.identity}.json" for cell in cells]
    renamed = grid(measured, {"who": {"other": {"rule": "a"}}, "seed": [0]}, fixed)
    (found,) = measure(renamed, out, jobs=1, watch=told.append)
    assert found.labels == {"who": "other", "seed": 0}
    assert (stamps(out), len(told)) == (before, 5)
    more = [*cells, *renamed, *grid(measured, {"rule": ["c"], "seed": [0]}, fixed)]
    assert len(measure(more, out, jobs=1, watch=told.append)) == 4
    assert len(calls(marks)) == 3
    assert (told[-1].done, told[-1].found, told[-1].total) == (3, 2, 3)
    after = stamps(out)
    assert {name: after[name] for name in before} == before


def test_equal_cells_are_run_once(tmp_path):
    fixed = {"rule": "a", "folder": str(tmp_path)}
    cells = grid(measured, {"name": {"one": {}, "other": {"seed": 0}}}, fixed | {"seed": 0})
    records = measure(cells, jobs=1)
    assert [one["name"] for one in records] == ["one", "other"]
    assert len(calls(tmp_path)) == 1


def test_damaged_files_are_measured_anew(tmp_path, subtests):
    cells = grid(measured, {"rule": ["a"]})
    measure(cells, tmp_path, jobs=1)
    (file,) = (tmp_path / "cells").iterdir()
    whole = json.loads(file.read_text())
    assert whole["environment"]["torch"] == torch.__version__
    (tmp_path / "cells" / ".half.json.77.part").write_text("{")
    flipped = json.dumps(whole).replace("0.5", "0.7", 1)
    for broken in ("", "{", "[]", "{}", json.dumps({**whole, "record": {"values": {}}}), flipped):
        with subtests.test(broken):
            file.write_text(broken)
            measure(cells, tmp_path, jobs=1)
            again = json.loads(file.read_text())
            assert again["identity"] == whole["identity"]
            assert again["record"]["values"] == whole["record"]["values"]
            assert [path.name for path in (tmp_path / "cells").iterdir()] == [file.name]


def test_what_fails_or_stops_or_is_skipped_is_a_record(tmp_path):
    rules = ["broken", "no figures", "unusable", "half", "a", "skipped"]
    cells = grid(
        measured,
        {"rule": rules, "seed": [0]},
        {"folder": str(tmp_path)},
        skip=lambda rule, **_: "it has no rule" if rule == "skipped" else None,
    )
    found = {one["rule"]: one for one in measure(cells, tmp_path / "out", jobs=1)}
    assert {name: one.status for name, one in found.items()} == {
        **{"broken": "failed", "no figures": "failed"},
        **{"unusable": "stopped", "half": "stopped", "a": "finished"},
        "skipped": "not applicable",
    }
    assert re.fullmatch(
        r"ArithmeticError: seven is not eight \(measured, line \d+\)", found["broken"].reason
    )
    assert "in measured\n" in found["broken"].traceback
    assert (found["unusable"].reason, found["unusable"].values) == ("5 are not finite", {})
    assert (found["half"].reason, found["half"]["accuracy"]) == ("half way", 0.5)
    assert "stopped" not in found["half"].values
    assert found["skipped"].reason == "it has no rule"
    assert found["a"].values["accuracy"] == 0.5
    made = len(calls(tmp_path))
    told = []
    measure(cells, tmp_path / "out", jobs=1, watch=told.append)
    assert len(calls(tmp_path)) - made == 2  # failed ones are tried again
    assert {one.labels["rule"] for event in told for one in event.running} == set(rules[:2])


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, subtests):
    (tmp_path / "file").touch()
    good = grid(measured, {"rule": ["a"]})
    nameless = grid(measured, {"rule": ["a"], "model": {"mine": lambda: None}})
    for cells, options, problem in [
        (good, {"jobs": 0}, "jobs must be at least 1, got 0"),
        (good, {"out": tmp_path / "file"}, "which is a file"),
        (nameless, {"out": tmp_path / "out"}, "must be dataclasses, classes"),
    ]:
        with subtests.test(problem), pytest.raises(ValueError, match=problem):
            measure(cells, **{"jobs": 1, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def record(value, **labels):
    return Record(
        labels, values={} if value is None else {"accuracy": value, "curve": [value, 0.0]}
    )


def test_means_and_spreads_are_over_all_records_or_none():
    records = Records(
        [
            *(record(0.7 + 0.1 * seed, rule="a", seed=seed) for seed in (0, 1)),
            *(record(value, rule="b", seed=seed) for seed, value in enumerate((0.5, None))),
            record(0.2, graph="ring"),
        ]
    )
    assert records.labels("rule") == ["a", "b"]
    assert records.mean("accuracy", rule="a") == pytest.approx(0.75)
    assert records.spread("accuracy", rule="a") == pytest.approx(0.1 / math.sqrt(2))
    assert records.spread("accuracy", rule="a", seed=0) is None
    assert records.mean("accuracy", rule="b") is None
    assert records.mean("accuracy", rule=["a", "b"], seed=0) == pytest.approx(0.6)
    assert records.mean("curve", rule="a") == pytest.approx([0.75, 0.0])
    assert records.mean(lambda one: 2 * one["accuracy"], graph="ring") == 0.4
    assert records.reduce("accuracy", max, rule="a") == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"labels must be those of a record, got .'rule': 'c'."):
        records.mean("accuracy", rule="c")
    with pytest.raises(ValueError, match="value must be one of accuracy, curve, got 'acuracy'"):
        records.mean("acuracy", rule="a")


def test_a_pivot_table_has_the_figures_of_every_place():
    records = Records(
        record(value + seed, rule=rule, attack=attack, beta=beta, seed=seed)
        for rule, attack, beta, value in [
            *(("a", "x", 0.0, 0.1), ("a", "y", 0.0, 0.2), ("a", "x", 0.9, 0.3)),
            ("b", "x", 0.0, 0.4),
        ]
        for seed in (0, 1)
    )
    one = pivot(records.where(beta=0.0), "rule", "attack", "accuracy")
    assert (one.rows, one.columns) == (("a", "b"), ("x", "y"))
    assert one.row("a") == pytest.approx([0.6, 0.7])
    assert one.column("x") == pytest.approx([0.6, 0.9])
    assert one["b", "y"] is None
    both = pivot(records, "rule", ("attack", "beta"), "accuracy", spread)
    assert both.columns == (("x", 0.0), ("y", 0.0), ("x", 0.9))
    assert both["a", ("x", 0.9)] == pytest.approx(math.sqrt(0.5))
    table = one.table("Accuracy", "Higher is better.", "rule", lambda value: round(value, 2))
    assert (table.title, table.headers) == ("Accuracy", ("rule", "x", "y"))
    assert table.rows == (("a", 0.6, 0.7), ("b", 0.9, None))
    named = pivot(records, ("rule", "beta"), None, {"best": "accuracy", "seed": "seed"}, max)
    assert named.columns == ("best", "seed")
    assert named.row(("a", 0.9)) == [1.3, 1]
    assert named.table("", "").rows[1][0] == "a, 0.9"
    assert mean([1, 2]) == 1.5


@pytest.mark.slow
def test_processes_give_the_records_of_one_process(tmp_path):
    cells = grid(measured, {"rule": [*RULES, "broken", "half"], "seed": [0, 1]})
    many = measure(cells, tmp_path, jobs=2)
    assert [(one.status, one.values) for one in many] == [
        (one.status, one.values) for one in measure(cells, jobs=1)
    ]


@pytest.mark.slow
def test_a_cell_whose_process_is_killed_is_tried_again(tmp_path):
    cells = grid(measured, {"rule": ["deadly", "deadly once", "a"]}, {"folder": str(tmp_path)})
    always, once, other = measure(cells, tmp_path / "out", jobs=2)
    assert (always.status, always.values) == ("failed", {})
    assert "its process ended 2 times (signal SIGKILL)" in always.reason
    assert (once.status, other.status) == ("finished", "finished")
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 3
    assert len(load_records(tmp_path / "out")) == 2


@pytest.mark.slow
def test_processes_that_cannot_start_are_an_error_and_not_many_failures(monkeypatch):
    monkeypatch.setattr("phalanx.experiments.pool._serve", _gone)
    with pytest.raises(ChildProcessError, match="ended before it began"):
        measure(grid(measured, {"rule": RULES}), jobs=2)


def _gone(pipe, run):
    """A process that ends at once."""


SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also if started in the background
from troublemakers import measured
from phalanx.experiments import grid, measure
if __name__ == "__main__":
    rules = ["a", "b", "slow", "deadly"][:{number}]
    try:
        measure(grid(measured, {{"rule": rules}}, {{"folder": "marks"}}), "out", jobs={jobs})
    except KeyboardInterrupt as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_done_is_kept_when_it_is_interrupted_or_killed(tmp_path, jobs):
    (tmp_path / "marks").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT.format(number=3, jobs=jobs))
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    for stop, said in ((signal.SIGKILL, ""), (signal.SIGINT, "2 of 3 cells are done, which are")):
        process = subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        slow = len(list((tmp_path / "marks").glob("slow*")))
        end = time.monotonic() + 60
        while time.monotonic() < end:
            begun = len(list((tmp_path / "marks").glob("slow*"))) > slow
            if begun and len(list((tmp_path / "out" / "cells").glob("*.json"))) == 2:
                break
            time.sleep(0.02)
        process.send_signal(stop)
        assert said in process.communicate(timeout=30)[0]
        assert len(load_records(tmp_path / "out")) == 2
    assert len(list((tmp_path / "marks").glob("a-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_timed_runs_alone_in_the_end_and_in_this_process(jobs):
    timed = grid(where, {"number": [0, 1]}, alone=True)
    found = measure(timed + grid(where, {"number": [2, 3]}), jobs=jobs)
    alone, others = found[:2], found[2:]
    assert {one["process"] for one in alone} == {os.getpid()}
    assert (os.getpid() in {one["process"] for one in others}) == (jobs == 1)
    assert min(one["at"] for one in alone) > max(one["at"] for one in others)


def test_axes_of_a_pivot_table_may_have_a_column_each():
    found = Records(Record({"rule": "a", "n": n}, values={"loss": n / 2}) for n in (1, 2))
    table = pivot(found, ("rule", "n"), None, {"mean loss": "loss"})
    shown = table.table("Losses", "Means.", ["rule", "workers"])
    assert shown.headers == ("rule", "workers", "mean loss")
    assert shown.rows == (("a", 1, 0.5), ("a", 2, 1.0))
    assert table.table("Losses", "Means.").rows == (("a, 1", 0.5), ("a, 2", 1.0))
