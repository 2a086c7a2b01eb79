"""`phalanx feasibility`: can these data reach a target accuracy?"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import phalanx
from phalanx.cli.console import console, progress_bar
from phalanx.cli.readiness_data import by_path, read_labelled
from phalanx.cli.train import default_out
from phalanx.files import whole


def feasibility(
    data: Path,
    target: float = 0.9,
    label: str = "label",
    text: list[str] = [],  # noqa: B006 - never changed
    image_size: int | None = None,
    test_fraction: float = 0.2,
    transformations: list[str] = [],  # noqa: B006 - never changed
    metric: Literal["euclidean", "cosine"] = "euclidean",
    strategy: Literal["halving", "all"] = "halving",
    budget_s: float | None = None,
    label_price: float = 0.02,
    failure_price: float = 100.0,
    seed: int = 0,
    max_bytes: int = 2**28,
    out: Path | None = None,
) -> None:
    """Says before any training whether labelled data can reach a target accuracy.

    The answer is REALISTIC or UNREALISTIC, with an interval, and which transformation said so; the
    report shows how it converged, and what more rows or cleaner labels would do. Ctrl-C ends with
    the best answer so far. Exit codes: 0 realistic, 3 unrealistic, 130 interrupted.

    Example: phalanx feasibility reviews.csv --text+ review --label stars --target 0.9

    Args:
        data: A .csv or .csv.gz file with a header, an .npz file with x_train and y_train, or a
            folder with a folder of images for each class. Test rows are theirs, or held out.
        target: The accuracy that is wanted, from 0 to 1.
        label: The column of a .csv file that holds the class.
        text: Columns of a .csv file that are one text together; all others are left out then.
        image_size: Height and width to which images of a folder are resized.
        test_fraction: Share of the rows that is held out where the data have no test rows.
        transformations: Import paths of transformations of yours, beside the default ones: of
            scikit-learn transformers, modules of torch, or functions of an array.
        metric: What a distance is.
        strategy: Whether all rows are looked at under the best transformation only, or under all.
        budget_s: Seconds after which the best answer so far is given.
        label_price: What it costs to look at one label.
        failure_price: What it costs to train and to miss the target.
        seed: Of the order in which rows are taken.
        max_bytes: Memory for embedded test rows, and again for distances.
        out: Folder for report.html, feasibility.json and study.npz, which Study.load goes on with;
            a new one under runs/ if not given.
    """
    # Imported where it is used: scikit-learn would make every command wait, `--help` too.
    from phalanx.readiness import Prices, Study, default_transformations
    from phalanx.reporting.feasibility import write_feasibility

    folder = out or default_out().with_name("feasibility-" + default_out().name)
    found = read_labelled(data, label, text, image_size, test_fraction)
    study = Study(
        found.train,
        found.train_labels,
        found.test,
        found.test_labels,
        target,
        default_transformations(found.train) | {one: by_path(one) for one in transformations},
        num_classes=found.num_classes,
        metric=metric,
        strategy=strategy,
        prices=Prices(label_price, failure_price),
        seed=seed,
        max_bytes=max_bytes,
    )
    with _progress() as watch:
        answer = study.run(budget_s, watch)
    folder.mkdir(parents=True, exist_ok=True)
    study.save(folder)
    with whole(folder / "feasibility.json") as beside:
        told = asdict(answer) | {"advice": answer.advice, "phalanx": phalanx.__version__}
        beside.write_text(json.dumps(told, indent=1), encoding="utf-8")
    rows = f"{data}: {len(found.train)} training and {len(found.test)} test rows"
    write_feasibility(folder / "report.html", answer, rows)
    console.print(answer.answer, markup=False)
    for line in (*answer.findings, *answer.advice):
        console.print(f"- {line}", markup=False)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, markup=False)
    if answer.stopped == "interrupted":
        sys.exit(130)
    if answer.verdict == "UNREALISTIC":
        sys.exit(3)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each transformation; none where there is no terminal."""
    with progress_bar() as bar:
        tasks = {}

        def watch(name: str, pulls: int, limit: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=limit, note="")
            bar.update(tasks[name], completed=pulls)

        yield watch
