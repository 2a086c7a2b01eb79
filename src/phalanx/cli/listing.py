"""`phalanx list`: all algorithms by the names that the command line takes."""

import inspect
import re
from types import ModuleType
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from phalanx.cli.console import console
from phalanx.cli.parser import ROOMS
from phalanx.docstrings import source, summary
from phalanx.training import Callback

Room = Literal[
    "all",
    "coding",
    "aggregation",
    "ordering",
    "computations",
    "transforms",
    "compression",
    "attacks",
    "stragglers",
    "training",
    "data",
    "models",
    "privacy",
    "gossip",
    "pipeline",
]


def list_algorithms(room: Room = "all") -> None:
    """Shows every algorithm, with one line and its source.

    Example: phalanx list --room aggregation

    Args:
        room: Which family to show.
    """
    for module in ROOMS:
        name = module.__name__.rpartition(".")[2]
        if room in ("all", name):
            table = Table(title=name, title_justify="left", box=SIMPLE_HEAD)
            table.add_column("name", style="bold", no_wrap=True)
            table.add_column("what it does")
            table.add_column("source", style="dim")
            for found in algorithms(module):
                table.add_row(found.__name__, summary(found), _first_sentence(source(found) or ""))
            console.print(table)


def algorithms(module: ModuleType) -> list[type]:
    """The concrete classes of a room: what an option can name."""
    found = (getattr(module, name) for name in module.__all__)
    options = [cls for cls in found if inspect.isclass(cls) and not inspect.isabstract(cls)]
    return [cls for cls in options if _implements(cls)]


def _implements(cls: type) -> bool:
    """Whether it implements an abstract class, is a callback, or a module of torch."""
    return any(
        inspect.isabstract(base) or base is Callback or base.__module__.startswith("torch.nn")
        for base in cls.__mro__[1:]
    )


def _first_sentence(text: str) -> str:
    """The reference; what was done differently stands in the documentation."""
    return re.split(r"(?<=[^A-Z])\. (?=[A-Z])", text)[0].removesuffix(".")
