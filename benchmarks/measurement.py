"""Writes a benchmark's figures where the site shows them: a JSON file and a Markdown table."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "measurements"


def write_measurement(
    name: str,
    claim: str,
    environment: dict[str, Any],
    rows: list[dict[str, Any]],
    columns: dict[str, str],
    remark: str = "",
) -> None:
    """Writes `<name>.json` and `<name>.md`.

    Args:
        name: of the benchmark.
        claim: what it measures or tests; the fragment's heading.
        environment: versions, machine, commit, and `threads` that torch used.
        rows: one object a case.
        columns: what stands in the fragment's table: the rows' keys, with their headings.
        remark: what one must know to read the table.
    """
    FOLDER.mkdir(exist_ok=True)
    content = {"name": name, "claim": claim, "seed": 0, **environment, "rows": rows}
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    table = [list(columns.values()), ["---"] * len(columns)]
    table += [[cell(row[key]) for key in columns] for row in rows]
    lines = [f"### {claim}", "", *("| " + " | ".join(line) + " |" for line in table), ""]
    lines += [remark, ""] if remark else []
    lines += [_where(environment)]
    (FOLDER / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def cell(value: Any) -> str:
    """A value as a table shows it: three digits, yes or no, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else "—" if value is None else str(value)


def _where(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {one}" for name, one in environment["versions"].items())
    processor = environment["machine"]["processor"]
    return f"{versions}; {processor}, torch threads: {environment['threads']}."
