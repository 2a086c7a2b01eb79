"""`phalanx list`: all algorithms by the names that the command line takes."""

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from docstring_parser import parse_from_object
from rich.table import Table

from phalanx.cli.console import console
from phalanx.cli.rooms import ROOMS, algorithms
from phalanx.docstrings import summary


def list_algorithms(names: list[str] = []) -> None:  # noqa: B006 - never changed
    """Shows every algorithm in one line; or all that is known of one.

    Example: phalanx list Krum

    Args:
        names: Families, such as aggregation, or algorithms; all families if not given.
    """
    families = {module.__name__.rpartition(".")[2]: algorithms(module) for module in ROOMS}
    known = {one.__name__.lower(): one for found in families.values() for one in found}
    for name in names:
        if name.lower() not in (*families, *known):
            spelled = [*families, *(one.__name__ for one in known.values())]
            near = difflib.get_close_matches(name, spelled) or list(families)
            raise ValueError(
                f"names must be families or algorithms, got {name!r}; did you mean "
                f"{' or '.join(near)}?"
            )
    for name in names or families:
        if name.lower() in families:
            _show_family(name.lower(), families[name.lower()])
        else:
            _show(known[name.lower()])


# Words of their own, not options.
list_algorithms.words = ("names",)  # type: ignore[attr-defined]


def _show_family(name: str, found: Sequence[type]) -> None:
    longest = max(len(one.__name__) for one in found)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True, min_width=2 + longest)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for one in found:
        table.add_row(f"  {one.__name__}", summary(one))
    console.print(f"[bold]{name}[/]")
    console.print(table)


def _show(algorithm: type) -> None:
    """Import path, docstring and fields of one algorithm."""
    path = f"{algorithm.__module__.rpartition('.')[0]}.{algorithm.__name__}"
    console.print(f"[bold]{path}[/]\n")
    for paragraph in (inspect.getdoc(algorithm) or "").split("\n\n"):
        console.print(_joined(paragraph) + "\n", markup=False)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    said = {
        one.arg_name: one.description
        for base in reversed(algorithm.__mro__)
        if base.__module__.startswith("phalanx.")
        for one in parse_from_object(base).params
    }
    for name, default in _defaults(algorithm).items():
        table.add_row(f"  {name}{default}", said.get(name) or "")
    if table.row_count:
        console.print("[bold]Fields[/]")
        console.print(table)


def _joined(paragraph: str) -> str:
    """A paragraph without its line breaks but those before a heading or an item, or an example."""
    if paragraph.startswith((">>>", " ")):
        return paragraph
    return re.sub(r"\n(?!(?:- |\* |>>>|[A-Z]\w*: ))", " ", paragraph)


def _defaults(algorithm: type) -> dict[str, str]:
    """What its constructor takes, each with " = " and the default if there is one."""
    if is_dataclass(algorithm):
        defaults: dict[str, Any] = {
            one.name: one.default_factory() if one.default_factory is not MISSING else one.default
            for one in fields(algorithm)
            if one.init
        }
    else:
        parameters = inspect.signature(algorithm).parameters.values()
        empty = inspect.Parameter.empty
        defaults = {
            one.name: MISSING if one.default is empty else one.default for one in parameters
        }
    return {name: "" if one is MISSING else f" = {one!r}" for name, one in defaults.items()}
