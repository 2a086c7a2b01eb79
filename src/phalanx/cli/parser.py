"""The command line as the signatures of plain functions, with messages that help."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

import phalanx
from phalanx import aggregation, attacks, coding, data, models, training

ROOMS = (coding, aggregation, attacks, data, models, training)
"""Where the command line looks for names: what their `__all__` lists."""


class Parser(ArgumentParser):
    """Says what is wrong in one line, and suggests the name that was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.subcommands: dict[str, Parser] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line and exits with 2."""
        line = " ".join(_reason(message, ex).split())
        _, unknown, rest = line.partition("import path string: ")
        if unknown:
            wrong = rest.split()[0]
            names = [name for room in ROOMS for name in room.__all__]
            near = difflib.get_close_matches(wrong, names, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else "see `phalanx list`"
            line = f"nothing is called {wrong!r}; {hint}"
        self.exit(2, f"phalanx: {line}\n")


def build(commands: dict[str, Callable[..., Any]]) -> Parser:
    """A parser with one subcommand for each function; its help is the function's docstring."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(
        prog="phalanx",
        description="Train on machines, networks and peers that you cannot fully trust.",
        version=f"phalanx {phalanx.__version__}",
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, function in commands.items():
        text = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
        sub = Parser(description=text)
        sub.add_function_arguments(function, as_group=False)
        sub.add_argument("--config", action="config", help="Read options from a YAML file.")
        subcommands.add_subcommand(name, sub, help=text.split("\n")[0])
        parser.subcommands[name] = sub
    return parser


def _reason(message: str, error: BaseException | None) -> str:
    """The innermost ValueError of our own: what its dataclass said, without the parser's frame."""
    while error is not None:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        inside = frame is not None and "phalanx" in frame.tb_frame.f_globals.get("__name__", "")
        if isinstance(error, ValueError) and inside and "cli" not in str(frame.tb_frame.f_code):
            return str(error)
        error = error.__cause__ or error.__context__
    return message
