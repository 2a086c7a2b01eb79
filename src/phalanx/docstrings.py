"""What an algorithm's docstring says of it: its one line, and its source."""

import inspect
import re


def summary(algorithm: type) -> str:
    """The first sentence of a class's docstring, on one line."""
    paragraph = (inspect.getdoc(algorithm) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def source(algorithm: type) -> str | None:
    """What stands after "Source:" up to the end of the paragraph: authors, title, year, section."""
    found = re.search(r"^Source: (.*?)(?=\n\n|\Z)", inspect.getdoc(algorithm) or "", re.S | re.M)
    return " ".join(found[1].split()) if found else None
