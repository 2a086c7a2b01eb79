"""`phalanx list`: everything that has a name on the command line."""

import inspect
from types import ModuleType
from typing import Literal

from rich.table import Table

from phalanx.cli.console import console
from phalanx.cli.parser import ROOMS
from phalanx.docstrings import source, summary

Room = Literal["all", "coding", "aggregation", "attacks", "data", "models", "training"]


def list_algorithms(room: Room = "all") -> None:
    """Shows every algorithm, with one line and its source.

    Example: phalanx list --room aggregation

    Args:
        room: Which family to show.
    """
    for module in ROOMS:
        name = module.__name__.rpartition(".")[2]
        if room in ("all", name):
            table = Table(title=name, title_justify="left", show_lines=False, expand=False)
            table.add_column("name", style="bold", no_wrap=True)
            table.add_column("what it does")
            table.add_column("source", style="dim")
            for found in algorithms(module):
                table.add_row(found.__name__, summary(found), source(found) or "")
            console.print(table)


def algorithms(module: ModuleType) -> list[type]:
    """The concrete classes of a room: what an option can name."""
    found = (getattr(module, name) for name in module.__all__)
    options = [cls for cls in found if inspect.isclass(cls) and not inspect.isabstract(cls)]
    bases = [base for base in map(_public_base, options) if base is not None]
    return [
        cls for cls, base in zip(options, map(_public_base, options), strict=True) if base in bases
    ]


def _public_base(cls: type) -> type | None:
    """The abstract class of phalanx that it implements, or torch's module."""
    for base in cls.__mro__[1:]:
        if inspect.isabstract(base) or base.__module__.startswith("torch.nn"):
            return base
    return None
