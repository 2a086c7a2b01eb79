"""Terminal output: consoles that no text can command, and tables that fit."""

import time
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.status import Status
from rich.table import Table

_PAUSE_S = 10.0  # between two lines of progress where there is no terminal


def printable(text: str) -> str:
    r"""A text without what commands a terminal: control characters and changes of direction.

    Lines and tabs are kept. What no encoding has, such as half of a file name that is no UTF-8,
    becomes a question mark.

    >>> printable("\x1b]0;mine\x07 a\n\x9b31mb\u202e\udcff")
    ']0;mine a\n31mb?'
    """
    return text.translate(_HIDDEN)


_HIDDEN: dict[int, str | None] = {
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), None),
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), None),
    **dict.fromkeys(range(0xD800, 0xE000), "?"),
}
for _kept in "\n\t":
    del _HIDDEN[ord(_kept)]


class SafeConsole(Console):
    """Rich console on which text cannot command the terminal: titles, file names, errors.

    Everything that the commands print goes through one of these. Where there is no terminal, the
    progress of `status` is told in lines on standard error.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Rich's segments, of `printable` text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A spinner with a text; lines where there is no terminal."""
        return super().status(status, **options) if self.is_terminal else Lines(status)

    def show(self, table: Table) -> None:
        """Prints a table; one that is too wide in parts, each with the first column."""
        for part in _parts(table, self):
            self.print(part)


class Lines(Status):
    """Progress in lines on standard error, for logs: the first after ten seconds."""

    def __init__(self, status: RenderableType = "") -> None:
        super().__init__(status, console=SafeConsole(stderr=True, highlight=False))
        self._last = time.monotonic()

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        """Tells what is being done, unless the last line is too young."""
        if status is not None and time.monotonic() >= self._last + _PAUSE_S:
            self._last = time.monotonic()
            self.console.print(status, markup=False, soft_wrap=True)


def _parts(table: Table, console: Console) -> list[Table]:
    """The table, or several of as many columns as fit beside the first."""
    rest, parts = list(range(1, len(table.columns))), list[Table]()
    while rest or not parts:
        taken = len(rest)
        while taken > 1 and not _fits(_columns(table, [0, *rest[:taken]]), console):
            taken -= 1
        part = _columns(table, [0, *rest[:taken]]) if table.columns else table
        part.title = None if parts else table.title
        parts.append(part)
        rest = rest[taken:]
    return parts


def _fits(table: Table, console: Console) -> bool:
    unbound = console.options.update(max_width=10_000)
    return Measurement.get(console, unbound, table).minimum <= console.width


def _columns(table: Table, chosen: list[int]) -> Table:
    part = copy(table)
    part.columns = [replace(table.columns[i], _index=new) for new, i in enumerate(chosen)]
    return part
