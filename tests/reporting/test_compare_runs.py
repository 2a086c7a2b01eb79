import math
from io import StringIO

import pytest
import torch
from rich.console import Console
from rich.text import Text

from phalanx.reporting import answer, compare_runs, load_run, terminal_table
from phalanx.reporting.table import cells
from phalanx.terminal import SafeConsole

W = torch.tensor([1.0, -4.0, 2.0])


def shown(rows, width=200):
    console = Console(width=width, record=True, file=StringIO())
    console.print(terminal_table(rows))
    return console.export_text()


def test_differences_are_those_computed_by_hand(make_run):
    honest = load_run(make_run("honest", weights={"w": W, "seen": torch.tensor(7)}))
    moved = {"w": W + torch.tensor([0.0, 0.5, -1.0]), "seen": torch.tensor(9)}
    bad = load_run(make_run("bad", byzantine=(1,), suspects=(1,), weights=moved))
    first, second = compare_runs([honest, bad])
    assert (first.is_reference, first.weight_difference, first.relative_difference) == (True, 0, 0)
    assert (second.weight_difference, second.relative_difference) == (1.0, 0.25)
    assert (second.round_seconds, second.compute_seconds, second.decode_seconds) == (
        0.02,
        0.012,
        0.004,
    )
    assert second.detection.recall == 1.0


def test_medians_are_not_moved_by_a_slow_first_round(make_run):
    folder = make_run("a")
    lines = (folder / "metrics.jsonl").read_text().replace('"seconds": 0.02', '"seconds": 9.0', 1)
    (folder / "metrics.jsonl").write_text(lines)
    assert compare_runs([load_run(folder)])[0].round_seconds == 0.02


def test_bytes_are_shown_where_some_run_sends_less(make_run):
    folders = [make_run(name) for name in ("dense", "sparse")]
    for folder, num_bytes in zip(folders, (5_200_000, 830), strict=True):
        metrics = folder / "metrics.jsonl"
        text = metrics.read_text().replace('"seconds"', f'"message_bytes": {num_bytes}, "seconds"')
        metrics.write_text(text)
    rows = compare_runs([load_run(folder) for folder in folders])
    assert [row.round_bytes for row in rows] == [5_200_000, 830]
    assert "sent" in shown(rows)
    assert "5.2 MB" in shown(rows)
    assert "830 B" in shown(rows)
    assert "sent" not in shown(rows[:1])


def test_a_given_reference_leads_and_is_compared_with(make_run):
    other = load_run(make_run("other", byzantine=(1,), weights={"w": 2 * W}))
    rows = compare_runs([load_run(make_run("a"))], reference=other)
    assert [(row.title, row.is_reference) for row in rows] == [("other", True), ("a", False)]
    assert rows[1].weight_difference == 4.0
    assert rows[1].relative_difference == 0.5


def test_no_reference_without_an_honest_finished_run(make_run):
    runs = [
        make_run("a", byzantine=(1,)),
        make_run("b", finished=False),
        make_run("c", stopped="x"),
    ]
    rows = compare_runs([load_run(run) for run in runs])
    assert all(row.weight_difference is None and not row.is_reference for row in rows)


def test_other_models_are_not_compared(make_run):
    runs = [
        make_run("a"),
        make_run("names", weights={"v": W}),
        make_run("shapes", weights={"w": W[:2].clone()}),
    ]
    assert [row.weight_difference for row in compare_runs([load_run(run) for run in runs])] == [
        0,
        None,
        None,
    ]


def test_weights_that_are_not_finite_are_infinitely_far(make_run):
    runs = [
        make_run("a"),
        make_run("b", weights={"w": W / 0.0}),
        make_run("c", weights={"w": W * math.nan}),
    ]
    rows = compare_runs([load_run(run) for run in runs])
    assert [row.relative_difference for row in rows] == [0, math.inf, math.inf]
    assert shown(rows).count("not finite") == 4


def test_a_reference_of_zeros(make_run):
    runs = [make_run("a", weights={"w": 0 * W}), make_run("b"), make_run("c", weights={"w": 0 * W})]
    rows = compare_runs([load_run(run) for run in runs])
    assert [row.relative_difference for row in rows] == [0, math.inf, 0]


def test_a_reference_without_weights_is_an_error(make_run):
    unfinished = load_run(make_run("u", finished=False))
    with pytest.raises(
        ValueError, match=r"u cannot be the reference: model.safetensors is missing"
    ):
        compare_runs([unfinished], reference=unfinished)


def test_the_terminal_shows_markup_in_titles_as_it_is(make_run):
    rows = compare_runs([load_run(make_run("a", title="[red]x[/red] [/]"))])
    assert "[red]x[/red] [/]" in shown(rows)
    assert "relative" not in shown(rows)
    assert isinstance(next(iter(terminal_table(rows).columns[0].cells)), Text)


def test_no_rows_make_an_empty_table():
    assert terminal_table([]).row_count == 0


def test_a_comparison_fits_a_terminal_of_80_columns(make_run):
    runs = [make_run("a", title="Mean, no attack"), make_run("b", title="DRACO cyclic", rounds=4)]
    runs.append(make_run("c", title="Krum", byzantine=(1, 2), suspects=(1,), outliers=(2,)))
    text = shown(compare_runs([load_run(run) for run in runs]), width=80)
    assert "…" not in text
    assert "status" not in text
    assert "96.4 %" in text
    assert "20.0 ms" in text
    headers, lines = cells(compare_runs([load_run(run) for run in runs]))
    assert [line[headers.index("proof")] for line in lines] == ["—", "—", "0.50"]


def test_a_comparison_is_readable_on_60_columns(make_run):
    """The names stay, whole words apart, and every figure is shown."""
    runs = [make_run("a", title="mean, no attack"), make_run("b", title="mean", rounds=4)]
    console = SafeConsole(file=StringIO(), width=60)
    console.show(terminal_table(compare_runs([load_run(run) for run in runs])))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 60
    for word in ("(reference)", "96.4 %", "20.0 ms", "4.0 ms", "recall"):
        assert word in text


def test_regressions_are_compared_by_their_loss(make_run):
    measured = {"accuracy": None, "evaluation": {"test_loss": 0.1}}
    runs = [load_run(make_run(name, **measured)) for name in "ab"]
    rows = compare_runs(runs)
    assert "0.1" in shown(rows)
    assert "loss" in shown(rows)
    assert "accuracy" not in shown(rows)
    assert answer(runs[:1], rows[:1]).startswith("The run ended after 4 rounds at test loss 0.1;")
