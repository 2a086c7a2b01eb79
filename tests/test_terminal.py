"""What is printed commands no terminal, and fits it."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from phalanx.terminal import SafeConsole, printable

BAD = "\x1b]0;mine\x07\x1b[2J\x9b31m\u202e"


@given(st.text())
def test_what_is_printable_stays_and_is_printable(text):
    clean = printable(text)
    assert printable(clean) == clean
    assert all(one.isprintable() or one in "\n\t" for one in clean if one < "\xa0")
    if text.isprintable():
        assert clean == text
    clean.encode()


def console(width, **options):
    return SafeConsole(file=io.StringIO(), width=width, **options)


def test_nothing_that_is_rendered_reaches_the_terminal_as_a_command():
    """Rich's own colours and cursor movements do, so the text is looked for between them."""
    shown = console(80, force_terminal=True, color_system="truecolor")
    shown.print(Text(f"{BAD}one", style="bold red"))
    shown.print(f"{BAD}two")
    with Progress(TextColumn("{task.description}"), console=shown) as bar:
        bar.add_task(f"{BAD}three")
    with shown.status(f"{BAD}four"):
        pass
    written = shown.file.getvalue()
    assert "\x1b[1;31m" in written
    assert all(word in written for word in ("one", "two", "three", "four"))
    for command in ("\x1b]", "\x07", "\x1b[2J", "\x9b", "\u202e"):
        assert command not in written


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_that_is_too_wide_comes_in_parts_of_all_rows(width):
    table = Table(title="figures")
    table.add_column("run", overflow="fold", min_width=10)
    headers = [f"measure{i}" for i in range(9)]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for run in ("mean", "median"):
        table.add_row(run, *(f"{run}{i}" for i in range(9)))
    shown = console(width)
    shown.show(table)
    written = shown.file.getvalue()
    lines = written.splitlines()
    assert max(map(len, lines)) <= width
    for word in (*headers, *(f"{run}{i}" for run in ("mean", "median") for i in range(9))):
        assert written.count(word) == 1
    parts = written.count(" run ")
    assert (parts == 1) == (width == 120)
    assert written.count("figures") == 1
    assert written.count(" median ") == parts


def test_a_table_without_columns_is_shown():
    shown = console(80)
    shown.show(Table())
    assert shown.file.getvalue().strip() == ""
