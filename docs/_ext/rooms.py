"""Directives: a room's public names, files by pattern, and the headlines of the reproductions.

A page says `.. room:: phalanx.coding` (inside `eval-rst` where the page is Markdown), so a name
that is added to `phalanx.coding.__all__` is documented by that alone.
"""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.docutils import SphinxDirective

from phalanx.reproduce.run import headlines

GOOGLE = Config(napoleon_use_ivar=True)
MARKUP = re.compile(
    r"(?P<kept>^ *>>> (?s:.*?)(?:\n\s*\n|\Z)|``.+?``)"  # doctests and literals stay as they are
    r"|(?<![:\w])`(?P<code>[^`]+)`(?=(?P<more>\w?))"
    r"|(?P<bar>\|)",
    re.MULTILINE,
)
SOURCE = re.compile(r"^Source: (.*?\b(?:19|20)\d\d\b)", re.MULTILINE | re.DOTALL)
FACT = re.compile(r"^((?:Guarantee|Scores|Cost|Source)(?:, [^:]+)?): (?=\S)")


def literal_code(text: str) -> str:
    """Single backticks to literals, also where a word goes on; a bar is just a bar."""

    def rewritten(found: re.Match[str]) -> str:
        if found["code"]:
            return f"``{found['code']}``" + ("\\ " if found["more"] else "")
        return found["kept"] or "\\|"

    return MARKUP.sub(rewritten, text)


def docstring_to_rst(
    app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    """Google docstring to fields; so are paragraphs such as `Cost: O(n d)`; `code` to literals."""
    out: list[str] = []
    inside = False
    for line in literal_code("\n".join(lines)).split("\n"):
        if FACT.match(line):
            if not inside:
                out.append("")
            inside = True
            out.append(FACT.sub(r":\1: ", line))
        elif inside and line.strip():
            out.append(f"    {line.strip()}")
        else:
            inside = False
            out.append(line)
    # As a "function", since napoleon takes `words: more` under a field or property for its type.
    kind = "function" if what in {"attribute", "data", "property"} else what
    lines[:] = GoogleDocstring(out, GOOGLE, app, kind, name, thing, options).lines()


def summary(thing: object) -> str:
    """The first paragraph of a class's or function's docstring; empty for constants."""
    if not callable(thing):
        return ""
    paragraph = (inspect.getdoc(thing) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def source(thing: object) -> str:
    """Authors, title, venue and year of the docstring's `Source:`; empty if it has none."""
    found = SOURCE.search(inspect.getdoc(thing) or "")
    return " ".join(found[1].split()) if found else ""


class Fragments(SphinxDirective):
    """Includes every Markdown file that matches a pattern, in order of its name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The files' contents, as if they stood in the page."""
        found = sorted(Path(self.env.srcdir).glob(self.arguments[0]))
        for path in found:
            self.env.note_dependency(str(path))
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in found)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class Headlines(SphinxDirective):
    """The table of all recipes' first claims, from the findings in a folder."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        folder = Path(self.env.srcdir) / self.arguments[0]
        for path in folder.glob("*.json"):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes(headlines(folder))


class Room(SphinxDirective):
    """Documents every name of a room's `__all__`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, then one entry a name."""
        room = importlib.import_module(self.arguments[0])
        public = sorted(getattr(room, "__all__", ()))
        rows = [*self._table(room, public), *self._entries(room, public)]
        return self.parse_text_to_nodes("\n".join(rows))

    def _table(self, room: ModuleType, public: list[str]) -> list[str]:
        rows = [f".. currentmodule:: {room.__name__}", ""]
        if not public:
            return rows
        rows += [".. list-table::", "   :header-rows: 1", "   :widths: 22 43 35", ""]
        cells = [("name", "what it is", "source")]
        cells += [
            (f":py:obj:`{name}`", literal_code(summary(thing)), literal_code(source(thing)))
            for name in public
            for thing in [getattr(room, name)]
        ]
        for first, *others in cells:
            rows.append(f"   * - {first}")
            rows += [f"     - {cell}" for cell in others]
        return [*rows, ""]

    def _entries(self, room: ModuleType, public: list[str]) -> list[str]:
        rows: list[str] = []
        for name in public:
            thing = getattr(room, name)
            full = f"{room.__name__}.{name}"
            if inspect.isclass(thing):
                rows += [f".. autoclass:: {full}", "   :members:"]
                if thing.__bases__ != (object,):
                    rows.append("   :show-inheritance:")
                if described := getattr(thing, "_fields", ()):  # of a NamedTuple, in its docstring
                    rows.append(f"   :exclude-members: {', '.join(described)}")
                    rows.append("   :class-doc-from: class")
                rows.append("")
            elif callable(thing):
                rows += [f".. autofunction:: {full}", ""]
            else:
                rows += [f".. autodata:: {full}", ""]
        return rows


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive and the docstring filter."""
    app.add_directive("room", Room)
    app.add_directive("fragments", Fragments)
    app.add_directive("headlines", Headlines)
    app.connect("autodoc-process-docstring", docstring_to_rst)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
