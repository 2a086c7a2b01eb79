"""Progress: a bar on terminals, lines without escape sequences elsewhere, silence on request."""

import io
import itertools

import pytest
from rich.console import Console
from rich.progress import Progress

import phalanx
from phalanx.training import progress
from phalanx.training.progress import ProgressBar
from training.drifting import a_model, some_data


def trained(**options):
    usual = {"steps": 6, "num_workers": 7, "batch_size": 28, "title": "a [red]run", "seed": 1}
    return phalanx.train(a_model(), some_data(), **{**usual, **options})


def on(file, **options):
    return ProgressBar(Console(file=file, width=100, highlight=False, **options))


def test_a_terminal_shows_a_bar_and_takes_it_away():
    file = io.StringIO()
    trained(callbacks=[on(file, force_terminal=True)])
    assert "a [red]run" in file.getvalue()
    assert "6/6" in file.getvalue()
    assert "loss" in file.getvalue()


def test_a_log_gets_plain_lines_at_pauses_and_at_the_end(monkeypatch):
    file = io.StringIO()
    trained(callbacks=[on(file)], test=some_data(), evaluate_every=6)
    (line,) = file.getvalue().splitlines()
    assert line.startswith("a [red]run: round 6 of 6  loss ")
    assert "test_accuracy" in line
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    file = io.StringIO()
    trained(callbacks=[on(file)], steps=40)
    rounds = [int(line.split("round ")[1].split()[0]) for line in file.getvalue().splitlines()]
    pauses = [later - earlier for earlier, later in itertools.pairwise(rounds)]
    assert 3 <= len(rounds) < 10
    assert pauses[:-1] == sorted(pauses[:-1])
    assert "\x1b" not in file.getvalue()


def test_it_goes_to_standard_error_unless_it_is_silenced(monkeypatch, capsys):
    monkeypatch.setenv("PHALANX_PROGRESS", "1")
    trained()
    out, err = capsys.readouterr()
    assert (out, err.count("round 6 of 6")) == ("", 1)
    for options, value in (({"progress": False}, "1"), ({}, "0"), ({}, "false")):
        monkeypatch.setenv("PHALANX_PROGRESS", value)
        trained(**options)
        assert capsys.readouterr() == ("", "")
    trained(progress=True)
    assert "round 6 of 6" in capsys.readouterr().err


def test_a_bar_of_somebody_else_s_is_no_error():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(console=console):
        trained(callbacks=[ProgressBar(console)])


def test_the_bar_is_gone_after_an_error():
    file = io.StringIO()
    bar = on(file, force_terminal=True)

    def fails(entry):
        raise ArithmeticError("seven is not eight")

    with pytest.raises(ArithmeticError):
        trained(callbacks=[bar], on_round=fails)
    assert bar._bar is None
