"""The examples run, and the notebooks are what their scripts say."""

import json
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
scripts = pytest.mark.parametrize(
    "script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.name
)


def cells(script):
    """Pairs of kind and text of the cells of a script in the percent format."""
    _, *parts = re.split(r"^# %%(.*)\n", script.read_text(), flags=re.M)
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        markdown = "markdown" in kind
        lines = [re.sub("^# ?", "", line) if markdown else line for line in text.split("\n")]
        yield "markdown" if markdown else "code", "\n".join(lines).strip("\n")


@scripts
def test_the_notebook_has_the_cells_of_its_script(script):
    """`make notebook` builds it; here nothing but JSON is needed to see that it was built."""
    notebook = json.loads(script.with_suffix(".ipynb").read_text())
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert found == list(cells(script))


@scripts
def test_the_script_runs(script, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
