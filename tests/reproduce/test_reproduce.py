import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import phalanx.reproduce as room
from laws import concrete
from phalanx.errors import PhalanxError
from phalanx.experiments import Records, grid
from phalanx.reporting import Plot, Table
from phalanx.reproduce import Claim, Draco, Findings, Recipe, recipes, reproduce, reproduce_all
from phalanx.reproduce.base import SIZES, Scope
from phalanx.reproduce.run import Reproduction, grid_digest, headlines, settings

TINY = Draco(
    num_workers=5,
    num_byzantine=1,
    steps=3,
    samples_per_partition=2,
    timed_workers=(7,),
    timed_byzantine=(0, 1),
    timed_models=("LeNet",),
)


class Told(list):
    """What a recipe said while it ran."""

    def __call__(self, message: str) -> None:
        self.append(message)


@pytest.fixture(scope="module")
def told():
    return Told()


@pytest.fixture(scope="module")
def done(tmp_path_factory, told) -> Reproduction:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PHALANX_DATA", raising=False)
        return reproduce(TINY, tmp_path_factory.mktemp("out"), size="quick", progress=told, jobs=1)


def test_every_recipe_is_found_by_its_name():
    assert set(recipes().values()) == set(concrete(room, Recipe))
    assert recipes()["draco"] is Draco


@pytest.mark.parametrize("recipe", concrete(room, Recipe))
def test_recipes_are_described_and_build_without_arguments(recipe):
    assert recipe() == recipe()
    assert re.fullmatch(r"[a-z][a-z0-9-]*", recipe.name)
    assert re.search(r"\b(19|20)\d\d\b", recipe.paper)


def test_unknown_recipes_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"recipe must be one of .*draco.*, got 'dracula'"):
        reproduce("dracula", tmp_path)


def test_findings_are_never_overwritten(done):
    with pytest.raises(ValueError, match="holds findings"):
        reproduce(TINY, done.folder.parent)


def test_data_that_is_not_there_is_named_before_anything_runs(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        reproduce(TINY, tmp_path, data=tmp_path / "nowhere.npz")
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path / "elsewhere.npz"))
    with pytest.raises(FileNotFoundError, match=r"elsewhere\.npz"):
        reproduce(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_draco_keeps_the_model_and_names_byzantine_workers(done):
    verdicts = {one.text: one.same for one in done.findings.claims}
    kept = [same for claim, same in verdicts.items() if "identical to that" in claim]
    assert kept == ["yes", "yes"]
    assert next(same for claim, same in verdicts.items() if "not a bit depends" in claim) == "yes"
    table = next(one for one in done.findings.tables if one.title == "Training")
    rows = {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}
    assert len(rows) == 15
    for title, row in rows.items():
        if title.startswith("DRACO") and "no attack" not in title:
            assert (row["lies"], row["named"], row["false alarms"]) == (3, 3, 0), title
    assert float(rows["mean, constant"]["relative difference"]) > 1


def test_a_round_is_redundant_computation_and_decoding(done):
    table = next(one for one in done.findings.tables if one.title == "Seconds per round")
    rows = [dict(zip(table.headers, row, strict=True)) for row in table.rows]
    assert len(rows) == 2 * 7
    for row in rows:
        # Of seven workers in groups of three one group has four, who share as many partitions.
        most = {"DRACO cyclic": 3, "DRACO repetition": 4}.get(row["decoder"], 1)
        assert row["gradients per worker"] == (most if row["Byzantine"] else 1)
        assert row["compute (s)"] == row["gradients per worker"] * row["seconds per gradient"]
        assert row["total (s)"] == pytest.approx(row["compute (s)"] + row["decode (s)"])


def test_figures_that_are_not_certain_are_not_printed(done):
    quoted = {one.paper for one in done.findings.claims}
    assert quoted == {
        "identical",
        "(r - 1) / 2",
        "several times to orders of magnitude",
        "not quoted: not certain",
    }


def test_the_fallback_data_is_said(done):
    assert "scikit-learn's digits" in done.findings.notes[0]


def test_progress_names_every_run_and_decoder(told, done):
    table = next(one for one in done.findings.tables if one.title == "Training")
    for run, *_ in table.rows:
        assert any(message.endswith(f"measuring: {run}") for message in told), run
    assert any(
        message.endswith("measuring: DRACO cyclic, LeNet, workers 7, byzantine 1")
        for message in told
    )
    assert any(message.startswith("14 of 16 done") for message in told)


def test_results_are_written_for_programs_editors_and_readers(done):
    content = json.loads((done.folder / "findings.json").read_text())
    assert content["recipe"] == "draco"
    assert content["answer"] == done.findings.answer
    assert [row["same"] for row in content["findings"]] == [f.same for f in done.findings.claims]
    assert content["environment"]["torch"] == torch.__version__
    markdown = (done.folder / "findings.md").read_text()
    assert all(f"| {one.text} |" in markdown for one in done.findings.claims)
    page = (done.folder / "findings.html").read_text()
    assert page.count("<svg") == len(done.findings.plots) == 3
    assert not re.search(r"""(src|href)=["'](?!#)""", page)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_given_data_is_used(tmp_path, cluster):  # at size default workers are processes
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=np.arange(60) % 10)
    tiny = replace(TINY, steps=1, timed_byzantine=(1,))
    for number, data in enumerate([tmp_path, tmp_path / "mnist.npz"]):
        done = reproduce(tiny, tmp_path / str(number), data=data, jobs=1)
        assert "mnist.npz, 48 training images" in done.findings.notes[0]


def test_missing_data_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("PHALANX_DATA", raising=False)
    with pytest.raises(ValueError, match=r"folder with mnist\.npz at size default, got None; name"):
        reproduce(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_page_escapes_what_recipes_say(tmp_path):
    class Tagged(Draco):
        name = "tagged"

        def cells(self, scope):
            return []

        def measure(self, scope, run):
            return Records()

        def findings(self, found, scope):
            claim = Claim("<b>claim</b>", "1", "2", [False])
            table = Table("t", "c", ("a", "b"), (("<i>", None), ("x", 0.25)))
            plot = Plot("p", "c", 'a "quoted" text', lambda ax: ax.plot([0, 1]))
            return Findings("<answer>", (claim,), (table,), (plot,), ("a & b",))

    page = (reproduce(Tagged(), tmp_path, size="quick").folder / "findings.html").read_text()
    assert "&lt;b&gt;claim&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<td>—</td>" in page
    assert "<td>0.25</td>" in page


asked: list[int] = []


def halved(*, number: int) -> dict[str, float]:
    asked.append(number)
    return {"half": 1 / (number - 2) if asked.count(2) == 1 else number / 2}


class Halves(Draco):  # not a direct subclass, so that it is not found by its name
    name = "halves"

    def cells(self, scope):
        return grid(halved, {"number": [0, 2, 4]})

    def measure(self, scope, run):
        return run(self.cells(scope))

    def findings(self, found, scope):
        return Findings(f"{found.mean('half')}", [Claim("Halves are less.", "1", "1")])


def test_a_reproduction_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(PhalanxError, match=r"1 of 3 cells failed, first 2: ZeroDivisionError"):
        reproduce(Halves(), tmp_path, size="quick", jobs=1)
    assert not (tmp_path / "halves" / "findings.json").exists()
    done = reproduce(Halves(), tmp_path, size="quick", jobs=1)
    assert asked == [0, 2, 4, 2]
    assert done.findings.claims[0].same == "—"
    assert done.facts["settings"]["number"] == "0, 2, 4"


def test_recipes_have_three_sizes_and_keep_what_they_say_themselves(subtests):
    for name, kind in recipes().items():
        with subtests.test(name):
            for size in SIZES:
                whole = kind().at(size)
                assert whole.at("quick") == whole or None in vars(whole).values()
    assert [Draco().at(size).steps for size in SIZES] == [10, 200, 400]
    assert Draco(steps=3).at("full").steps == 3


class Pair(Halves):
    name = "pair"


def test_all_are_run_and_what_cannot_be_is_said(tmp_path, monkeypatch):
    class Fails(Halves):
        name = "fails"

        def cells(self, scope):
            raise ValueError("data must be there")

    kinds = {"fails": Fails, "pair": Pair}
    monkeypatch.setattr("phalanx.reproduce.run.recipes", lambda: kinds)
    told = Told()
    options = {"size": "quick", "jobs": 1, "publish": tmp_path / "docs", "progress": told}
    for _ in range(2):  # the second time nothing is left to do but what failed
        assert reproduce_all(tmp_path, **options) == ["fails: data must be there"]
    assert sum("measuring" in message for message in told) == 3
    overview = (tmp_path / "overview.md").read_text()
    assert "## pair" in overview
    assert "| Halves are less. | 1 | 1 | — |" in overview
    assert "- Not run: fails: data must be there" in overview
    published = json.loads((tmp_path / "docs" / "pair.json").read_text())
    assert (published["recipe"], published["size"]) == ("pair", "quick")
    assert headlines(tmp_path / "docs").splitlines()[2:] == [
        "| [pair](docs/pair.md) | Halves are less. | — |  |",
        "",
        "Not measured yet: fails.",
    ]


FINDINGS = sorted((Path(__file__).parents[2] / "docs" / "reproductions").glob("*.json"))


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_published_findings_are_those_of_the_recipes_settings(path):
    """Else the recipe has been changed since: `phalanx reproduce NAME --publish` runs it again."""
    content = json.loads(path.read_text())
    recipe = recipes()[content["recipe"]]().at(content["size"])
    assert json.loads(json.dumps(settings(recipe, []))) == content["fields"]
    assert [row["claim"] for row in content["findings"]]
    if data := os.environ.get("PHALANX_DATA"):
        assert grid_digest(recipe, Scope(content["size"], Path(data))) == content["grid"]
