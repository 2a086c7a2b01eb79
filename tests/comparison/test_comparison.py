"""A cell is `phalanx.train` alone; a folder is gone on with; what fails is a result."""

import csv
import io
import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console
from troublemakers import Broken

import phalanx
from phalanx.aggregation import Bulyan, CoordinateMedian, Krum, Mean, NearestNeighborMixing
from phalanx.attacks import ALittleIsEnough, Mixed, NotFinite, ReverseGradient
from phalanx.coding import DracoRepetition
from phalanx.comparison import Grid, Outcome, Place, compare, compare_grid, terminal_tables
from phalanx.comparison.comparison import Comparison
from phalanx.comparison.export import to_csv, to_html, to_markdown
from phalanx.data import Digits, DirichletPartitioner, ShardPartitioner
from phalanx.models import MLP, Softmax
from phalanx.randomness import seeded
from phalanx.transforms import WorkerMomentum


def figures(outcome):
    """What does not depend on the clock."""
    return replace(outcome, round_seconds=None, decode_seconds=None, seconds=None)


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def test_the_mean_and_no_attack_are_always_among_the_cells(grid):
    assert grid.methods == ["Mean", "Krum", "DracoRepetition"]
    assert grid.columns == ["no attack", "ReverseGradient(30)"]
    assert grid.panels == ["shared data", "ShardPartitioner"]
    assert len(grid.cells) == 3 * 2 * 2 * 2
    doubled = Grid(rules=[Mean(), Mean(), Krum()], codes=[], attacks=[None, ALittleIsEnough()])
    assert doubled.methods == ["Mean", "Krum"]
    assert doubled.columns == ["no attack", "ALIE"]


def test_a_cell_is_training_alone_with_the_same_arguments(grid, done):
    comparison, _ = done
    splits = Digits().load()
    alone = {
        Place("shared data", "Krum", "ReverseGradient(30)", 1): {"rule": Krum(1)},
        Place("shared data", "DracoRepetition", "ReverseGradient(30)", 0): {
            "code": DracoRepetition(7, 1)
        },
        Place("ShardPartitioner", "Krum", "ReverseGradient(30)", 0): {
            "rule": Krum(1),
            "shards": ShardPartitioner(),
        },
    }
    for place, method in alone.items():
        with seeded(place.seed, "weights"):
            model = MLP(splits.input_shape, splits.num_classes)
        run = phalanx.train(
            model,
            splits.train,
            **method,
            num_workers=7,
            attack=ReverseGradient(scale=30.0),
            byzantine=phalanx.attacks.RandomWorkers(1),
            steps=4,
            seed=place.seed,
            test=splits.test,
            evaluate_every=2,
        )
        found = comparison.outcomes[place]
        assert found.test_accuracy == run.result["test_accuracy"]
        assert found.test_loss == run.result["test_loss"]
        assert [step for step, _ in found.accuracies] == [2, 4]


@pytest.mark.slow
def test_processes_give_the_figures_of_one_process(grid, done, tmp_path):
    other = compare_grid(grid, jobs=2, out=tmp_path)
    assert {place: figures(one) for place, one in other.outcomes.items()} == {
        place: figures(one) for place, one in done[0].outcomes.items()
    }


def test_threads_are_as_before_and_do_not_count(grid):
    cell = grid.cells[Place("shared data", "Krum", "no attack", 0)]
    splits = Digits().load()
    alone = figures(cell.measure(splits))
    torch.set_num_threads(2)
    try:
        assert figures(cell.measure(splits)) == alone
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_same_grid_again_runs_nothing_and_a_larger_one_what_is_new(grid, done, tmp_path):
    comparison, folder = done[0], shutil.copytree(done[1], tmp_path / "copy")
    before = stamps(folder)
    told = []
    again = compare_grid(grid, jobs=1, out=folder, watch=told.append)
    assert (stamps(folder), told) == (before, [])
    assert again.outcomes == comparison.outcomes
    larger = replace(grid, attacks=[*grid.attacks, ALittleIsEnough()], splits=[None])
    compare_grid(larger, jobs=1, out=folder, watch=told.append)
    after = stamps(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) - len(before) == 3 * 2
    assert (told[-1].done, told[-1].total, told[-1].found) == (18, 18, 12)


def test_files_that_are_none_of_ours_are_measured_anew(grid, tmp_path):
    small = replace(grid, rules=[], codes=[], attacks=[], splits=[None], seeds=[0])
    compare_grid(small, jobs=1, out=tmp_path)
    (file,) = (tmp_path / "cells").iterdir()
    whole = json.loads(file.read_text())
    (tmp_path / "cells" / ".half.json.77.part").write_text("{")
    for broken in ("", "{", "[]", "{}", json.dumps({**whole, "outcome": {"detection": {}}})):
        file.write_text(broken)
        compare_grid(small, jobs=1, out=tmp_path)
        assert json.loads(file.read_text())["identity"] == whole["identity"]
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [file.name]


def test_too_many_liars_stop_a_cell_and_its_weights_are_measured(grid):
    broken = replace(grid, attacks=[NotFinite()], splits=[None], seeds=[0])
    found = compare_grid(broken, jobs=1)
    outcome = found.outcomes[Place("shared data", "Mean", "NotFinite", 0)]
    assert (outcome.status, outcome.rounds) == ("stopped", 0)
    assert "not finite" in outcome.reason
    assert 0 <= outcome.test_accuracy <= 1
    text = to_markdown(found)
    assert "stopped after 0 rounds" in text
    assert "†" in text


def test_a_cell_that_fails_is_told_and_the_others_go_on(grid, tmp_path):
    broken = replace(grid, rules=[Broken(), Krum()], splits=[None], seeds=[0])
    found = compare_grid(broken, jobs=1, out=tmp_path)
    statuses = {place.method: one.status for place, one in found.outcomes.items()}
    assert statuses["Broken"] == "failed"
    assert statuses["Krum"] == statuses["Mean"] == "finished"
    assert "ArithmeticError: seven is not eight" in to_markdown(found)
    assert found.worst("shared data", "Broken") is None
    told = []
    compare_grid(broken, jobs=1, out=tmp_path, watch=told.append)
    assert {place.method for one in told for place in one.running} == {"Broken"}


def test_what_does_not_apply_says_why(done):
    comparison, folder = done
    outcomes = comparison.of("ShardPartitioner", "DracoRepetition", "no attack")
    assert {one.status for one in outcomes} == {"not applicable"}
    assert "the same samples" in outcomes[0].reason
    assert not list((folder / "cells").glob("draco*sorted*"))
    grid = Grid(
        rules=[Bulyan()], codes=[DracoRepetition(num_workers=9)], setting=comparison.grid.setting
    )
    whys = {cell.why_not() for cell in grid.cells.values()}
    assert any("num_workers must be that of the grid, 7, got 9" in why for why in whys if why)


def test_numbers_that_are_given_are_kept_and_others_told():
    setting = phalanx.comparison.Setting(num_workers=11, num_byzantine=2)
    mixed = NearestNeighborMixing() >> CoordinateMedian()
    given = NearestNeighborMixing(3) >> Krum(3)
    grid = Grid(rules=[mixed, given, Krum(4)], codes=[DracoRepetition()], setting=setting)
    assert grid.methods == [
        "Mean",
        "NNM » CoordinateMedian",
        "NNM(3) » Krum(3)",
        "Krum(4)",
        "DracoRepetition",
    ]
    methods = list(
        dict.fromkeys(
            cell.method for cell in grid.cells.values() if isinstance(cell.method, DracoRepetition)
        )
    )
    assert (methods[0].num_workers, methods[0].num_byzantine) == (11, 2)
    told = {repr(cell.method) for cell in grid.cells.values()}
    assert repr(mixed.with_num_byzantine(2)) in told


def test_worker_momentum_is_an_axis(grid):
    momenta = [None, WorkerMomentum(0.5)]
    small = replace(grid, rules=[], attacks=[], splits=[None], worker_momenta=momenta, seeds=[0])
    assert small.panels == ["shared data, gradients", "shared data, WorkerMomentum(0.5)"]
    found = compare_grid(small, jobs=1)
    losses = [one.test_loss for place, one in found.outcomes.items() if place.method == "Mean"]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"num_byzantine": 8}, "num_byzantine must be at least 0 and below num_workers / 2, got 8"),
        ({"batch_size": 16}, "batch_size must be a multiple of the 15 workers, got 16"),
        ({"batch_size": 150_000}, "data must fill one batch of 150000 samples, got 1438"),
        ({"seeds": []}, "seeds must name at least 1"),
        ({"seeds": [1, 1]}, "seeds must name at least 1, and none twice"),
        ({"splits": [None, None]}, "splits must name at least 1, and none twice"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
        ({"model": lambda shape, classes: MLP(shape, classes)}, "must be dataclasses, classes"),
        ({"byzantine": phalanx.attacks.FixedWorkers([99])}, "workers must be below num_workers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changed, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        compare(**{"jobs": 1, **changed}, out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_identities_depend_on_all_that_counts_and_nothing_else(grid):
    def identity(**changed):
        changed_grid = replace(
            grid, **{name: changed[name] for name in changed if name != "setting"}
        )
        setting = replace(grid.setting, **changed.get("setting", {}))
        cells = replace(changed_grid, setting=setting).cells
        return cells[Place("shared data", "Krum", "ReverseGradient(30)", 0)].identity

    base = identity()
    same = [
        identity(rules=[CoordinateMedian(), Krum()]),
        identity(splits=[None, DirichletPartitioner()], seeds=[5, 0]),
        identity(setting={"batch_size": 16 * 7}),
        identity(setting={"byzantine": phalanx.attacks.RandomWorkers(1)}),
    ]
    assert set(same) == {base}
    others = [
        identity(setting={"steps": 5}),
        identity(setting={"batch_size": 7}),
        identity(setting={"model": Softmax}),
        identity(setting={"model": partial(MLP, hidden=[3])}),
        identity(setting={"optimizer": partial(torch.optim.Adam, lr=0.01)}),
        identity(setting={"data": Digits(test_fraction=0.5)}),
        identity(setting={"byzantine": phalanx.attacks.FixedWorkers([2])}),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_means_spreads_and_worst_cases_are_what_they_say(grid):
    small = replace(grid, splits=[None])
    shares = {("Mean", 0): (0.9, 0.1), ("Krum", 0): (0.8, 0.7), ("DracoRepetition", 0): (0.9, 0.9)}

    def outcome(place):
        column = grid.columns.index(place.attack)
        share = shares[place.method, 0][column] + (0.02 if place.seed else 0.0)
        return Outcome("finished", test_accuracy=share)

    comparison = Comparison(small, {place: outcome(place) for place in small.cells})
    figure = comparison.accuracy("shared data", "Krum", "ReverseGradient(30)")
    assert figure.mean == pytest.approx(0.71)
    assert figure.spread == pytest.approx(0.02 / math.sqrt(2))
    assert comparison.worst("shared data", "Mean")[0] == "ReverseGradient(30)"
    assert comparison.best("shared data", "no attack") == ["Mean", "DracoRepetition"]
    assert comparison.best("shared data", None) == ["DracoRepetition"]
    (answer,) = comparison.answers
    assert answer == (
        "On shared data DracoRepetition had the best worst case, 91.0 % (the same under every "
        "attack); the plain mean did as well with no attack."
    )
    alike = {place: Outcome("finished", test_accuracy=0.5) for place in small.cells}
    assert "the plain mean itself had the best worst case" in Comparison(small, alike).answers[0]


def test_exports_parse_back(done):
    comparison, folder = done
    lines = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert (folder / "comparison.csv").read_text() == to_csv(comparison)
    assert len(lines) == len(comparison.outcomes)
    for line, (place, outcome) in zip(lines, comparison.outcomes.items(), strict=True):
        assert Place(line["split"], line["method"], line["attack"], int(line["seed"])) == place
        assert line["status"] == outcome.status
        assert line["identity"] == comparison.grid.cells[place].identity
        if outcome.status == "finished":
            assert float(line["test_accuracy"]) == outcome.test_accuracy
            assert json.loads(line["config.data"])["class"].endswith("Digits")
    for path in (folder / "cells").iterdir():
        content = json.loads(path.read_text())
        outcome = Outcome.from_json(content["outcome"])
        assert outcome == Outcome.from_json(json.loads(json.dumps(outcome.to_json())))
        assert content["environment"]["torch"] == torch.__version__
        assert path.name.endswith(f"-{content['identity']}.json")
    tables = re.findall(r"^\| method .*\n\|[-|]+\n((?:\|.*\n)+)", to_markdown(comparison), re.M)
    assert [len(table.splitlines()) for table in tables] == [3, 3, 3, 3]


def test_the_page_loads_nothing_and_says_what_its_pictures_show(done):
    page = to_html(done[0])
    assert (done[1] / "comparison.html").read_text() == page
    assert not re.search(r'(src|href)="(?!#)', re.sub(r"<svg.*?</svg>", "", page, flags=re.S))
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(labels) == 2
    assert all("Krum" in label and "worst case" in label for label in labels)
    assert "Blanchard" in page


def test_tables_fit_80_columns(done):
    wide = replace(done[0].grid, attacks=[ReverseGradient(scale=2.0**n) for n in range(1, 12)])
    outcomes = {place: Outcome("finished", test_accuracy=0.987) for place in wide.cells}
    console = Console(width=80, record=True, file=io.StringIO())
    for table in terminal_tables(Comparison(wide, outcomes)):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "98.7 ± 0.0*" in text
    assert "…" not in text


def test_mixed_attacks_and_fields_that_are_lists_have_a_place(grid):
    cells = replace(grid, attacks=[Mixed(), Mixed()], splits=[None]).cells
    assert len({cell.identity for cell in cells.values()}) == len(cells) == 3 * 2 * 2
