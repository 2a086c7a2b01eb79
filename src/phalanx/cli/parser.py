"""Argument parser made from the signatures of plain functions."""

import difflib
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn, get_args, get_origin

import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

import phalanx
from phalanx import (
    aggregation,
    attacks,
    coding,
    compression,
    computations,
    data,
    gossip,
    models,
    ordering,
    pipeline,
    privacy,
    stragglers,
    training,
    transforms,
)

ROOMS = (
    coding,
    aggregation,
    ordering,
    computations,
    transforms,
    compression,
    attacks,
    stragglers,
    training,
    data,
    models,
    privacy,
    gossip,
    pipeline,
)
"""Where the command line looks for names: what their `__all__` lists."""

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "collections.abc.Sequence": "a list such as [1,2]",
    "list": "a list such as [1,2]",
}


class _Help(DefaultHelpFormatter):
    """Help formatter that keeps paragraphs apart, and examples as they are typed."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            _example(paragraph, width)
            if paragraph.startswith("Example: ")
            else textwrap.fill(" ".join(paragraph.split()), width)
            for paragraph in text.split("\n\n")
        )


def _example(paragraph: str, width: int) -> str:
    command = " ".join(paragraph.removeprefix("Example: ").split())
    lines = textwrap.wrap(command, width - 6, break_on_hyphens=False)
    return "Example:\n  " + " \\\n    ".join(lines)


class Parser(ArgumentParser):
    """Argument parser that reports errors in one line and suggests the name meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.subcommands: dict[str, Parser] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line and exits with 2."""
        line = " ".join(_reason(message).split())
        _, unknown, rest = line.partition("import path string: ")
        if unknown:
            wrong = rest.split()[0]
            names = [name for room in (*ROOMS, torch.optim) for name in room.__all__]
            near = difflib.get_close_matches(wrong, names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see `phalanx list`"
            line = f"nothing is called {wrong!r}; {hint}"
        self.exit(2, f"phalanx: {line}\n")


def build(commands: dict[str, Callable[..., Any]]) -> Parser:
    """A parser with one subcommand for each function; its help is the function's docstring."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(
        prog="phalanx",
        description="Train on machines, networks and peers that you cannot fully trust.",
        version=phalanx.__version__,
        formatter_class=_Help,  # the subcommands take it over
    )
    subcommands = parser.add_subcommands(required=True, dest="command")
    for name, function in commands.items():
        text = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
        sub = Parser(description=text)
        several = _positional_lists(function)
        for parameter, item in several.items():
            sub.add_argument(parameter, nargs="+", type=item, help=f"One or more {parameter}.")
        sub.add_function_arguments(
            function, as_group=False, as_positional=True, skip={*several, "options"}
        )
        if (whole := getattr(function, "options_of", None)) is not None:
            own = {*inspect.signature(function).parameters, *getattr(function, "given", ())}
            sub.add_function_arguments(whole, as_group=False, skip=own)
        sub.add_argument("--config", action="config", help="Read options from a YAML file.")
        subcommands.add_subcommand(name, sub, help=text.split("\n")[0])
        parser.subcommands[name] = sub
    return parser


def _positional_lists(function: Callable[..., Any]) -> dict[str, Any]:
    """Required parameters that are lists: one or more words on the command line, of this type."""
    parameters = inspect.signature(function).parameters.values()
    required = [found for found in parameters if found.default is inspect.Parameter.empty]
    return {
        found.name: get_args(found.annotation)[0]
        for found in required
        if get_origin(found.annotation) is list
    }


def _reason(message: str) -> str:
    """What is wrong, without the list of types that an optional argument was tried as."""
    key = re.match(r'Parser key "([^"]+)":\s*', message)
    if key is None:
        return message
    given = re.search(r"(?:Given|Got) value: (.*)", message)
    # A reason starts with a dash and goes on in lines that are further in.
    tried = re.findall(r"^ *- (.*(?:\n {8}.*)*)", message, re.M)
    reasons = [reason for reason in tried if "'NoneType'" not in reason]
    reason = " ".join((reasons[0] if reasons else message[key.end() :]).split())
    if "instantiatable" in reason:
        return f"{key[1]} must name a class before its fields are given; see `phalanx list`"
    pattern = r"Expected an? (?:<class '(?P<name>[\w.]+)'>|typing.Literal\[(?P<one>.*?)\])"
    kind = re.match(pattern, reason)
    if kind is None or given is None:
        return f"{key[1]}: {reason}"
    rule = f"one of {kind['one']}" if kind["one"] else _KINDS.get(kind["name"], kind["name"])
    hint = f" (write .{given[1].lstrip('+-')})" if given[1].lstrip("+-") in ("nan", "inf") else ""
    return f"{key[1]} must be {rule}, got {given[1]}{hint}"
