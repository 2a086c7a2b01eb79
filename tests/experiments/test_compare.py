"""A comparison is a user of the engine; its cells are `phalanx.train` alone."""

import csv
import io
import json
import math
import re
from functools import partial

import pytest
import torch
from rich.console import Console
from troublemakers import Broken, Deadly

import phalanx
from phalanx.aggregation import Bulyan, CoordinateMedian, Krum, Mean, NearestNeighborMixing
from phalanx.attacks import (
    ALittleIsEnough,
    FixedWorkers,
    Mixed,
    NotFinite,
    RandomWorkers,
    ReverseGradient,
)
from phalanx.coding import DracoRepetition
from phalanx.compression import QSGD, ErrorFeedback, TopK
from phalanx.computations import LocalSteps
from phalanx.data import Digits, DirichletPartitioner, ShardPartitioner
from phalanx.experiments import Comparison, Record, Records, compare, comparison_cells
from phalanx.experiments.measure import run_cell
from phalanx.models import MLP, Softmax
from phalanx.ordering import PerClient, ShuffleOnce
from phalanx.randomness import seeded
from phalanx.transforms import Compressed, WorkerMomentum

SETTING = {"num_workers": 7, "num_byzantine": 1, "steps": 4, "evaluate_every": 2}
GRID = {
    "rules": [Krum()],
    "codes": [DracoRepetition()],
    "attacks": [ReverseGradient(scale=30.0)],
    "splits": [None, ShardPartitioner()],
    **SETTING,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The grid, compared once: (comparison, folder)."""
    folder = tmp_path_factory.mktemp("done")
    return compare(**GRID, jobs=1, out=folder), folder


def axes(cells):
    """The labels of each axis."""
    records = Records(Record(cell.labels) for cell in cells)
    return {axis: records.labels(axis) for axis in ("method", "attack", "split", "seed")}


def one(found, **labels):
    (record,) = found.where(**labels)
    return record


def figures(record):
    """What does not depend on the clock."""
    return {name: value for name, value in record.values.items() if "seconds" not in name}


def test_the_mean_and_no_attack_are_always_among_the_cells():
    cells = comparison_cells(**GRID)
    assert axes(cells) == {
        "method": ["Mean", "Krum", "DracoRepetition"],
        "attack": ["no attack", "ReverseGradient(30)"],
        "split": ["shared data", "ShardPartitioner"],
        "seed": [0, 1],
    }
    assert len(cells) == 3 * 2 * 2 * 2
    doubled = axes(
        comparison_cells([Mean(), Mean(), Krum()], codes=[], attacks=[None, ALittleIsEnough()])
    )
    assert doubled["method"] == ["Mean", "Krum"]
    assert doubled["attack"] == ["no attack", "ALIE"]


def test_a_cell_is_training_alone_with_the_same_arguments(done):
    splits = Digits().load()
    shared, sorted_ = "shared data", "ShardPartitioner"
    for method, split, seed, chosen in [
        ("Krum", shared, 1, {"rule": Krum(1)}),
        ("DracoRepetition", shared, 0, {"code": DracoRepetition(7, 1)}),
        ("Krum", sorted_, 0, {"rule": Krum(1), "order": PerClient(ShardPartitioner())}),
    ]:
        with seeded(seed, "weights"):
            model = MLP(splits.input_shape, splits.num_classes)
        run = phalanx.train(
            model,
            splits.train,
            **chosen,
            num_workers=7,
            attack=ReverseGradient(scale=30.0),
            byzantine=RandomWorkers(1),
            steps=4,
            seed=seed,
            test=splits.test,
            evaluate_every=2,
        )
        attack = "ReverseGradient(30)"
        found = one(done[0].records, method=method, attack=attack, split=split, seed=seed)
        assert found["test_accuracy"] == run.result["test_accuracy"]
        assert found["test_loss"] == run.result["test_loss"]
        assert found["evaluated"] == [2, 4]


def test_threads_are_as_before_and_do_not_count():
    cell = comparison_cells(**GRID)[8]
    alone = figures(run_cell(cell))
    torch.set_num_threads(2)
    try:
        assert figures(run_cell(cell)) == alone
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_processes_give_the_figures_of_one_process(done, tmp_path):
    other = compare(**GRID, jobs=2, out=tmp_path)
    assert list(map(figures, other.records)) == list(map(figures, done[0].records))


@pytest.mark.slow
def test_a_cell_whose_process_is_killed_is_tried_again(tmp_path):
    rules = [Deadly(), Deadly(str(tmp_path / "once"))]
    small = {**GRID, "codes": [], "attacks": [], "splits": [None], "seeds": [0], "rules": rules}
    mean, always, once = compare(**small, jobs=2, out=tmp_path / "out").records
    assert (always.status, always.values) == ("failed", {})
    assert "its process ended 2 times (signal SIGKILL)" in always.reason
    assert once.status == "finished"
    assert once["test_loss"] == mean["test_loss"]
    kept = {path.name.partition("_")[0] for path in (tmp_path / "out" / "cells").iterdir()}
    assert len(kept) == 3


def test_the_same_grid_again_runs_nothing_and_a_larger_one_what_is_new(done):
    comparison, folder = done

    def stamps():
        return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}

    before, told = stamps(), []
    again = compare(**GRID, jobs=1, out=folder, watch=told.append)
    assert (stamps(), told) == (before, [])
    assert again.records == comparison.records
    larger = {**GRID, "attacks": [*GRID["attacks"], ALittleIsEnough()], "splits": [None]}
    compare(**larger, jobs=1, out=folder, watch=told.append)
    after = stamps()
    assert {name: after[name] for name in before} == before
    assert len(after) - len(before) == 3 * 2
    assert (told[-1].done, told[-1].total, told[-1].found) == (18, 18, 12)
    compare(**GRID, jobs=1, out=folder)  # the tables show the grid that was asked for last


def test_too_many_byzantine_workers_stop_a_cell_and_its_weights_are_measured():
    found = compare(**{**GRID, "attacks": [NotFinite()], "splits": [None]}, seeds=[0], jobs=1)
    record = one(found.records, method="Mean", attack="NotFinite")
    assert (record.status, record["rounds"]) == ("stopped", 0)
    assert "contain NaN or Inf" in record.reason
    assert 0 <= record["test_accuracy"] <= 1
    text = found.to_markdown()
    assert "stopped after 0 rounds" in text
    assert "†" in text


def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path):
    broken = {**GRID, "rules": [Broken(), Krum()], "splits": [None], "seeds": [0]}
    found = compare(**broken, jobs=1, out=tmp_path)
    statuses = {record["method"]: record.status for record in found.records}
    assert statuses["Broken"] == "failed"
    assert statuses["Krum"] == statuses["Mean"] == "finished"
    assert "ArithmeticError: seven is not eight" in found.to_markdown()
    assert found.panels[0].worst("Broken") is None
    told = []
    compare(**broken, jobs=1, out=tmp_path, watch=told.append)
    assert {cell.labels["method"] for event in told for cell in event.running} == {"Broken"}


def test_what_does_not_apply_says_why(done):
    comparison, folder = done
    found = comparison.records.where(
        split="ShardPartitioner", method="DracoRepetition", attack="no attack"
    )
    assert {record.status for record in found} == {"not applicable"}
    assert "the same samples" in found[0].reason
    assert not list((folder / "cells").glob("draco*shard*"))
    cells = comparison_cells([Bulyan()], [DracoRepetition(num_workers=9)], **SETTING)
    whys = {str(cell.skipped) for cell in cells}
    assert any("num_workers must be that of the comparison, 7, got 9" in why for why in whys)


def test_numbers_that_are_given_are_kept_and_others_told():
    mixed = NearestNeighborMixing() >> CoordinateMedian()
    given = NearestNeighborMixing(3) >> Krum(3)
    rules = [mixed, given, Krum(4)]
    cells = comparison_cells(rules, [DracoRepetition()], num_workers=11, num_byzantine=2)
    assert axes(cells)["method"] == [
        "Mean",
        "NNM » CoordinateMedian",
        "NNM(3) » Krum(3)",
        "Krum(4)",
        "DracoRepetition",
    ]
    code = next(cell.arguments["code"] for cell in cells if "code" in cell.arguments)
    assert (code.num_workers, code.num_byzantine) == (11, 2)
    told = {repr(cell.arguments.get("rule")) for cell in cells}
    assert repr(mixed.with_num_byzantine(2)) in told


def test_chains_of_transforms_are_an_axis():
    chains = [[], [WorkerMomentum(0.5)], [WorkerMomentum(0.5), Compressed(TopK(0.5))]]
    small = {**GRID, "rules": [], "attacks": [], "splits": [None], "chains": chains}
    found = compare(**small, seeds=[0], jobs=1)
    assert [panel.name for panel in found.panels] == [
        "shared data, gradients",
        "shared data, WorkerMomentum(0.5)",
        "shared data, WorkerMomentum(0.5) » Compressed(TopK(0.5))",
    ]
    losses = [record["test_loss"] for record in found.records.where(method="Mean")]
    assert len(set(losses)) == 3
    random = [[Compressed(QSGD())]]
    cells = comparison_cells([], [DracoRepetition()], attacks=[], chains=random, **SETTING)
    whys = {cell.labels["method"]: cell.skipped for cell in cells}
    assert whys["Mean"] is None
    assert "compressor must send the same for equal messages" in whys["DracoRepetition"]


def test_compressors_are_an_axis_beside_the_bytes_that_they_send(tmp_path):
    small = {**GRID, "attacks": [], "splits": [None], "seeds": [0]}
    compressors = [ErrorFeedback(TopK(0.5)), QSGD()]
    found = compare(**small, compressors=compressors, jobs=1, out=tmp_path)
    (panel,) = found.panels
    assert panel.methods[:3] == ["Mean", "Krum", "DracoRepetition"]
    assert panel.methods[3:6] == [
        f"{method}, ErrorFeedback(TopK(0.5))" for method in panel.methods[:3]
    ]
    weights = list(MLP((1, 8, 8), 10).parameters())
    dense = 7 * 4 * sum(weight.numel() for weight in weights)
    kept = 7 * sum(TopK(0.5).encode(weight).num_bytes for weight in weights)
    assert panel.message_bytes("Mean") == panel.message_bytes("Krum") == dense
    assert kept <= panel.message_bytes("Krum, ErrorFeedback(TopK(0.5))") <= kept + 7 * 200
    assert panel.message_bytes("Mean, QSGD") < dense / 4
    assert panel.message_bytes("DracoRepetition, QSGD") is None  # random: replicas would differ
    header, rows = panel.tables[1].headers, panel.tables[1].rows
    place = header.index("bytes")
    assert len({row[place] for row in rows}) >= 4
    assert "| bytes |" in (tmp_path / "comparison.md").read_text()
    assert "Sparsified SGD with Memory" in (tmp_path / "comparison.html").read_text()
    with pytest.raises(ValueError, match="compressors must name none twice"):
        comparison_cells(compressors=[TopK(), TopK()], **SETTING)


def test_all_else_that_training_takes_is_handed_on():
    shared = {"compute": LocalSteps(2), "order": ShuffleOnce(), "exclude_after": 3}
    cells = comparison_cells(**GRID, **shared)
    for cell in cells:
        assert {name: cell.arguments[name] for name in ("compute", "exclude_after")} == {
            "compute": LocalSteps(2),
            "exclude_after": 3,
        }
    orders = {cell.labels["split"]: cell.arguments["order"] for cell in cells}
    assert orders == {
        "shared data": ShuffleOnce(),
        "ShardPartitioner": PerClient(ShardPartitioner(), ShuffleOnce()),
    }


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, subtests):
    for changed, problem in [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"num_byzantine": 8}, "num_byzantine must be at least 0 and below num_workers / 2, got 8"),
        ({"batch_size": 16}, "batch_size must be a multiple of the 15 workers, got 16"),
        ({"batch_size": 150_000}, "data must fill one batch of 150000 samples, got 1438"),
        ({"seeds": []}, "seeds must name at least 1"),
        ({"seeds": [1, 1]}, "seeds must name at least 1, and none twice"),
        ({"splits": [None, None]}, "splits must name at least 1, and none twice"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"model": lambda shape, classes: MLP(shape, classes)}, "must be dataclasses, classes"),
        ({"byzantine": FixedWorkers([99])}, "workers must be below num_workers"),
    ]:
        with subtests.test(problem):
            with pytest.raises(ValueError, match=re.escape(problem)):
                compare(**{"jobs": 1, **changed}, out=tmp_path / "a")
            assert list(tmp_path.iterdir()) == []


def test_identities_depend_on_all_that_counts_and_nothing_else():
    def identity(**changed):
        wanted = ["Krum", "ReverseGradient(30)", "shared data", 0]
        cells = comparison_cells(**{**GRID, **changed})
        return next(cell.identity for cell in cells if list(cell.labels.values()) == wanted)

    base = identity()
    same = [
        identity(rules=[CoordinateMedian(), Krum()]),
        identity(splits=[None, DirichletPartitioner()], seeds=[5, 0]),
        identity(batch_size=16 * 7),
        identity(byzantine=RandomWorkers(1)),
    ]
    assert set(same) == {base}
    others = [
        identity(steps=5),
        identity(batch_size=7),
        identity(model=Softmax),
        identity(model=partial(MLP, hidden=[3])),
        identity(optimizer=partial(torch.optim.Adam, lr=0.01)),
        identity(data=Digits(test_fraction=0.5)),
        identity(byzantine=FixedWorkers([2])),
    ]
    assert len({base, *others}) == 1 + len(others)


def compared(share, **changed):
    """A comparison whose accuracies are made up."""
    cells = comparison_cells(**{**GRID, "splits": [None], **changed})
    records = Records(
        Record(cell.labels, values={"test_accuracy": share(**cell.labels)}) for cell in cells
    )
    return Comparison(records, cells)


def test_means_spreads_and_worst_cases_are_what_they_say():
    shares = {"Mean": (0.9, 0.1), "Krum": (0.8, 0.7), "DracoRepetition": (0.9, 0.9)}

    def share(method, attack, split, seed):
        return shares[method][attack != "no attack"] + (0.02 if seed else 0.0)

    comparison = compared(share)
    (panel,) = comparison.panels
    figure = panel.accuracy("Krum", "ReverseGradient(30)")
    assert figure.mean == pytest.approx(0.71)
    assert figure.spread == pytest.approx(0.02 / math.sqrt(2))
    assert panel.worst("Mean") == "ReverseGradient(30)"
    assert panel.best("no attack") == ["Mean", "DracoRepetition"]
    assert panel.best() == ["DracoRepetition"]
    (answer,) = comparison.answers
    assert answer == (
        "On shared data DracoRepetition had the best worst case, 91.0 % (the same under every "
        "attack); the plain mean did as well with no attack."
    )
    alike = compared(lambda **_: 0.5)
    assert "the plain mean itself had the best worst case" in alike.answers[0]


def test_exports_parse_back(done):
    comparison, folder = done
    lines = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert (folder / "comparison.csv").read_text() == comparison.to_csv()
    assert len(lines) == len(comparison.records)
    for line, record, cell in zip(lines, comparison.records, comparison.cells, strict=True):
        assert {axis: line[axis] for axis in record.labels} == {
            axis: str(label) for axis, label in record.labels.items()
        }
        assert line["status"] == record.status
        assert line["identity"] == cell.identity
        if record.status == "finished":
            assert float(line["test_accuracy"]) == record["test_accuracy"]
            assert json.loads(line["config.data"])["class"].endswith("Digits")
    for path in (folder / "cells").iterdir():
        content = json.loads(path.read_text())
        assert content["environment"]["torch"] == torch.__version__
        assert path.name.endswith(f"-{content['identity']}.json")
    tables = re.findall(r"^\| method .*\n\|[-|]+\n((?:\|.*\n)+)", comparison.to_markdown(), re.M)
    assert [len(table.splitlines()) for table in tables] == [3, 3, 3, 3]


def test_the_page_loads_nothing_and_says_what_its_pictures_show(done):
    page = done[0].to_html()
    assert (done[1] / "comparison.html").read_text() == page
    assert not re.search(r'(src|href)="(?!#)', re.sub(r"<svg.*?</svg>", "", page, flags=re.S))
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(labels) == 2
    assert all("Krum" in label and "worst case" in label for label in labels)
    assert "Blanchard" in page


def test_tables_fit_80_columns():
    attacks = [ReverseGradient(scale=2.0**n) for n in range(1, 12)]
    wide = compared(lambda **_: 0.987, attacks=attacks)
    console = Console(width=80, record=True, file=io.StringIO())
    for table in wide.panels[0].terminal_tables:
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "98.7 ± 0.0*" in text
    assert "…" not in text


def test_mixed_attacks_and_fields_that_are_lists_have_a_place():
    cells = comparison_cells(**{**GRID, "attacks": [Mixed(), Mixed()], "splits": [None]})
    assert len({cell.identity for cell in cells}) == len(cells) == 3 * 2 * 2


def test_the_page_tells_what_the_methods_were_told(done):
    text = done[0].to_markdown()
    assert f"| who is Byzantine | {RandomWorkers(1)!r} |" in text
    assert f"{Mean()!r}; {Krum(1)!r}; {DracoRepetition(7, 1)!r}" in text
