"""Argument parser made from the signatures of plain functions."""

import difflib
import inspect
import re
import textwrap
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import docstring_parser
import torch
from jsonargparse import (
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_parsing_settings,
)

import phalanx
from phalanx import models
from phalanx.cli.rooms import ROOMS, algorithms
from phalanx.terminal import printable

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "collections.abc.Sequence": "a list such as [1,2]",
    "list": "a list such as [1,2]",
}


_METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
_CLASSES = (
    "Name one, of yours by import path; its fields follow as --OPTION.FIELD. What they are is told "
    "by --OPTION.help CLASS and by `phalanx list CLASS`."
)
_OF_TORCH = {"torch.optim": "AdamW", "torch.optim.lr_scheduler": "CosineAnnealingLR"}
"""A class of each of torch's rooms, as an example."""


class _Help(DefaultHelpFormatter):
    """Help formatter that keeps paragraphs apart, and examples as they are typed.

    Options that take a class list ours by name, and torch's by their room only.
    """

    def _get_help_string(self, action: Action) -> str:
        if not hasattr(action, "_typehint"):
            return super()._get_help_string(action)
        default = None if action.default == SUPPRESS else _said(action.default)
        text = (action.help or "").strip()
        sentences = [text[:1].upper() + text[1:], *_choices(action._typehint)]
        if words := _words(action._typehint):
            sentences.append(f"One of {', '.join(words)}.")
        if default is not None:
            sentences.append(f"(default: {default})")
        return " ".join(one for one in sentences if one)

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        found = list(_classes(getattr(action, "_typehint", None)))
        if not found or found == [bool]:
            return super()._get_default_metavar_for_optional(action)
        kinds = (_METAVARS.get(one, "CLASS") for one in found if one is not type(None))
        return "|".join(dict.fromkeys(kinds))

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


def _classes(hint: Any) -> Iterator[type]:
    """The classes that a type asks for; of a callable, what it returns."""
    if isinstance(hint, type):
        yield hint
    elif hint is not None:
        arguments = get_args(hint)
        for one in arguments[-1:] if get_origin(hint) is Callable else arguments:
            yield from _classes(one)


def _words(hint: Any) -> list[str]:
    """The words that a type takes."""
    if get_origin(hint) is Literal:
        return [str(one) for one in get_args(hint)]
    return [word for one in get_args(hint) for word in _words(one)]


def named(hint: Any) -> list[type]:
    """Our classes that a type takes by name."""
    found = dict.fromkeys(
        one
        for base in _classes(hint)
        for room in ((models,) if base is torch.nn.Module else ROOMS)
        for one in algorithms(room)
        if base in one.__mro__[:-1]
    )
    return list(found)


def _choices(hint: Any) -> list[str]:
    """Which classes can be named, in a sentence or two."""
    homes = [_home(base) for base in _classes(hint) if base.__module__.startswith("torch.")]
    ours = ", ".join(one.__name__ for one in named(hint))
    sentences = [
        f"Any class of {one}, such as {_OF_TORCH[one]}." for one in homes if one in _OF_TORCH
    ]
    if ours:
        sentences.append(f"One of {ours}{', or any other by import path' if homes else ''}.")
    return sentences


def _home(cls: type) -> str:
    """The shortest path that a class of torch can be imported from."""
    parts = cls.__module__.split(".")
    paths = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next(path for path in paths if hasattr(import_module(path), cls.__name__))


def _said(default: Any) -> str | None:
    """A default as it would be typed; None if there is none."""
    if default is None or default in ((), []):
        return None
    if isinstance(default, Namespace):
        default = default.as_dict()
    if isinstance(default, dict) and "class_path" in default:
        fields = ", ".join(f"{key}={value}" for key, value in default.get("init_args", {}).items())
        name = default["class_path"].rpartition(".")[2]
        return f"{name}({fields})" if fields else name
    return str(default).lower() if isinstance(default, bool) else str(default)


class Parser(ArgumentParser):
    """Argument parser that reports errors in one line and suggests the name meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.subcommands: dict[str, Parser] = {}
        self.more: Callable[[], str] | None = None
        """What the help ends with, if it takes work to tell."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help, and what it ends with."""
        text: str = super().format_help(formatter)
        return text if self.more is None else f"{text}\n{self.more()}\n"

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
        self.exit(2, f"phalanx: {printable(line)}\n")


def underscored(arguments: Sequence[str]) -> list[str]:
    """Arguments with dashes in the names of options as underscores.

    >>> underscored(["train", "--num-workers", "9", "--code.num-byzantine=2"])
    ['train', '--num_workers', '9', '--code.num_byzantine=2']
    """
    end = [*arguments, "--"].index("--")
    return [_underscored(one) for one in arguments[:end]] + [*arguments[end:]]


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    dashed = name.startswith("--")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if dashed else argument


def spelled(parser: Parser, arguments: Sequence[str]) -> list[str]:
    """Arguments with the names of our classes as they are spelled.

    Case does not matter, and the name of the family may be left out at the end: digits is `Digits`,
    and Dirichlet `DirichletPartitioner` where a partitioner is asked for.
    """
    found: list[str] = []
    for one in arguments:
        option, equals, value = one.partition("=")
        if equals:
            found.append(f"{option}={_spelled(parser, option, value)}")
        else:
            found.append(_spelled(parser, found[-1] if found else "", one))
    return found


def _spelled(parser: Parser, option: str, value: str) -> str:
    """The class that is meant by the value of an option; the value itself if there is not one."""
    action = parser._option_string_actions.get(option.removesuffix("+"))
    hint = getattr(action, "_typehint", None)
    if hint is None:  # a field of a class, whose type is not known yet
        family = option.rpartition(".")[2].title() if "." in option else ""
        known = {one.__name__ for room in ROOMS for one in algorithms(room)}
        return value + family if value + family in known else value
    endings = {"", *(base.__name__.lower() for base in _classes(hint))}
    meant = {
        one.__name__
        for one in named(hint)
        if one.__name__.lower() in {value.lower() + ending for ending in endings}
    }
    return meant.pop() if len(meant) == 1 else value


def build(commands: dict[str, Callable[..., Any]], only: str | None = None) -> Parser:
    """A parser with one subcommand for each function; its help is the function's docstring.

    Args:
        commands: the functions by name.
        only: the one subcommand that gets its options, which take a while to collect; all if it is
            none of them.
    """
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
        if only not in commands or name == only:
            _add_options(sub, function)
        subcommands.add_subcommand(name, sub, help=text.split("\n")[0])
        parser.subcommands[name] = sub
        _grouped(sub, f"phalanx {name} [options]")
    return parser


def _add_options(parser: Parser, function: Callable[..., Any]) -> None:
    """The options of a function, or of what it hands them on to."""
    parser.more = getattr(function, "more_help", None)
    words = _positional(function)
    params = docstring_parser.parse_from_object(function).params
    said = {one.arg_name: one.description for one in params}
    for parameter, (item, nargs) in words.items():
        parser.add_argument(parameter, nargs=nargs, type=item, help=said[parameter])
    parser.add_function_arguments(
        function,
        as_group=False,
        as_positional=True,
        fail_untyped=False,
        skip={*words, "options"},
    )
    if (whole := getattr(function, "options_of", None)) is not None:
        own = {*inspect.signature(function).parameters, *getattr(function, "given", ())}
        parser.add_function_arguments(whole, as_group=False, fail_untyped=False, skip=own)
    parser.add_argument("--config", action="config", help="Read options from a YAML file.")


def _grouped(parser: Parser, usage: str) -> None:
    """Puts the options that name classes first, and leaves out what the titles say."""
    groups: list[Any] = parser._action_groups  # type: ignore[assignment]
    words, plain = groups[:2]
    classes = []
    for action in plain._group_actions:
        if any(option.endswith(".help") for option in action.option_strings):
            action.help = SUPPRESS
        elif "--print_config" in action.option_strings:
            action.help = "Print the options as YAML, for --config, and exit."
        elif any(_choices(getattr(action, "_typehint", None))):
            classes.append(action)
    if classes:
        group = parser.add_argument_group("stages and other classes", _CLASSES)
        groups.insert(1, groups.pop())
        group._group_actions.extend(classes)
        plain._group_actions[:] = [one for one in plain._group_actions if one not in classes]
    shapes = {"+": "{0} [{0} ...]", "*": "[{0} ...]", "?": "[{0}]"}
    taken = [shapes.get(str(one.nargs), "{0}").format(one.dest) for one in words._group_actions]
    parser.usage = " ".join([usage, *taken])


def _positional(function: Callable[..., Any]) -> dict[str, tuple[Any, str]]:
    """Words on the command line that argparse has to be told of: their type, and how many.

    They are required parameters that are lists, and those that `function.words` names.
    """
    words, found = getattr(function, "words", ()), {}
    for one in inspect.signature(function).parameters.values():
        several = get_origin(one.annotation) is list
        if one.name in words:
            found[one.name] = get_args(one.annotation)[0], "*" if several else "?"
        elif several and one.default is inspect.Parameter.empty:
            found[one.name] = get_args(one.annotation)[0], "+"
    return found


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
