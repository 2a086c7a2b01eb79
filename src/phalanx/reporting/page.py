"""Pages of HTML and Markdown: the frame and parts that all reports share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from phalanx import __version__
from phalanx.reporting.svg import inline_svg

_HERE = "phalanx.reporting"


@dataclass(frozen=True)
class Table:
    """Table of a page."""

    title: str
    """What it shows, as a heading."""
    caption: str
    """How to read it."""
    headers: tuple[str, ...]
    """Names of the columns; the first column names the row."""
    rows: tuple[tuple[str | float | int | None, ...], ...]
    """One tuple per row, as long as `headers`; None where nothing was measured."""


@dataclass(frozen=True)
class Plot:
    """Plot of a page."""

    title: str
    """What it shows, as a heading."""
    caption: str
    """How to read it."""
    alt: str
    """The text that stands for the picture where it cannot be seen."""
    draw: Callable[[Axes], None]
    """Draws it on the axes."""
    size: tuple[float, float] = (5.6, 3.2)
    """Width and height in inches."""


def cell(value: str | float | int | None) -> str:
    """A table's value as text: four digits, a dash for what was not measured."""
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_table(
    headers: Sequence[str], rows: Sequence[Sequence[str | float | int | None]]
) -> list[str]:
    r"""The lines of a Markdown table, and an empty one after it.

    >>> print(*markdown_table(("rule", "accuracy"), [("Mean | all", 0.98765)]), sep="\n")
    | rule | accuracy |
    |---|---|
    | Mean \| all | 0.9877 |
    <BLANKLINE>
    """
    lines = [[cell(value).replace("|", "\\|") for value in line] for line in (headers, *rows)]
    written = ["| " + " | ".join(line) + " |" for line in lines]
    return [written[0], "|" + "---|" * len(headers), *written[1:], ""]


def page_style() -> Markup:
    """The style sheet of every page that the package writes."""
    return Markup(_text(_HERE, "style.css"))


def render_page(package: str, template: str, **values: Any) -> str:
    """Fills a template that extends `page.html.j2`.

    Args:
        package: where the template is.
        template: its name there.
        values: what it asks for; `title`, `kind`, `answer` and `origin` among it.
    """
    engine = Environment(
        loader=ChoiceLoader([_loader(package), _loader(_HERE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters["cell"] = cell
    page = engine.get_template(template)
    return page.render(style=page_style(), version=__version__, **values)


def drawn(plots: Sequence[Plot]) -> list[tuple[Plot, Markup]]:
    """Every plot with its `<svg>` element."""
    return [
        (plot, inline_svg(plot.draw, name=f"plot{index}", alt=plot.alt, size=plot.size))
        for index, plot in enumerate(plots)
    ]


def _loader(package: str) -> FunctionLoader:
    return FunctionLoader(lambda name: _text(package, name) if _has(package, name) else None)


def _has(package: str, name: str) -> bool:
    return files(package).joinpath(name).is_file()


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
