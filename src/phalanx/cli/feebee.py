"""`phalanx feebee`: which estimator of the Bayes error can be trusted on these data?"""

import ast
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phalanx.cli.console import console, progress_bar
from phalanx.cli.readiness_data import by_path, read_labelled
from phalanx.cli.train import default_out
from phalanx.files import owned, whole
from phalanx.identity import description, digest

if TYPE_CHECKING:
    from phalanx.readiness import NoiseRun, Score

_FACTORS = (0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25)
_DEFAULT = ["NearestNeighborError", "NeighborhoodImpurity", "HenzePenrose"]


def feebee(
    data: Path,
    best_known_error: float,
    estimators: list[str] | None = None,
    transformations: list[str] = [],  # noqa: B006 - never changed
    label: str = "label",
    text: list[str] = [],  # noqa: B006 - never changed
    image_size: int | None = None,
    max_rows: int = 2000,
    runs: int = 5,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Judges estimators of the Bayes error by how they follow injected label noise.

    The Bayes error of data is not known, but how noise moves it is. Estimates outside the corridor
    between an error of 0 and the best known one are too high or too low. Every estimate is kept in
    the folder when it is done: the same command goes on where it was stopped.

    Example: phalanx feebee digits.npz 0.01 --estimators+ HenzePenrose --estimators+
    "NearestNeighborError(k=3)" --estimators+ mylab.MyEstimator

    Args:
        data: As for `phalanx feasibility`; training and test rows are taken together.
        best_known_error: An error that was reached on these data, such as the best published one.
        estimators: Names of estimators, with fields or without; the nearest neighbour, 1NN-kNN and
            GHP if not given. Of yours by import path: a class whose fit(X, y) leaves lower_ and
            upper_, or a function that returns both.
        transformations: Import paths of transformations that need no labels; the features as they
            are, or TF-IDF and hashed words of texts, if not given.
        label: The column of a .csv file that holds the class.
        text: Columns of a .csv file that are one text together; all others are left out then.
        image_size: Height and width to which images of a folder are resized.
        max_rows: So many rows at most, drawn at random.
        runs: Repetitions of each of eleven rates of noise.
        seed: Of the noise, and of the rows.
        out: Folder for runs.jsonl and report.html; a new one under runs/ if not given.
    """
    # Imported where it is used: scikit-learn would make every command wait, `--help` too.
    from phalanx.readiness import (
        NOISE_RATES,
        feebee_scores,
        inject_noise,
        plain_transformations,
    )
    from phalanx.reporting.feebee import write_feebee

    folder = out or default_out().with_name("feebee-" + default_out().name)
    chosen = {name: _estimator(name) for name in estimators or _DEFAULT}
    found = read_labelled(data, label, text, image_size, 0.2)
    rows = np.concatenate([found.train, found.test])
    labels = np.concatenate([found.train_labels, found.test_labels])
    if len(rows) > max_rows:
        kept = np.sort(np.random.default_rng(seed).choice(len(rows), max_rows, replace=False))
        rows, labels = rows[kept], labels[kept]
    embeddings = {name: by_path(name) for name in transformations} or plain_transformations(rows)
    with owned(folder), progress_bar() as bar:
        known = _known(folder / "runs.jsonl", digest(description([rows, labels, seed])))
        total = len(NOISE_RATES) * runs * len(chosen) * len(embeddings)
        task = bar.add_task("estimating", total=total, note="")
        noise = inject_noise(
            chosen,
            rows,
            labels,
            transformations=embeddings,
            num_classes=found.num_classes,
            runs=runs,
            seed=seed,
            known=known,
        )
        interrupted = False
        try:
            with (folder / "runs.jsonl").open("a", encoding="utf-8") as file:
                for one in noise:
                    file.write(json.dumps(asdict(one)) + "\n")
                    file.flush()
                    known.append(one)
                    bar.update(task, completed=len(known), note=one.estimator)
        except KeyboardInterrupt:
            if not known:
                raise
            interrupted = True
        asked = [
            one
            for one in known
            if one.estimator in chosen and one.transformation in embeddings and one.run < runs
        ]
        chance = 1 - 1 / found.num_classes
        by_factor = {
            factor: feebee_scores(asked, min(factor * best_known_error, chance), found.num_classes)
            for factor in _FACTORS
        }
        scores = by_factor[1.0]
        answer = _answer(scores)
        write_feebee(
            folder / "report.html",
            answer,
            asked,
            scores,
            by_factor,
            best_known_error,
            found.num_classes,
        )
    console.print(answer, markup=False)
    for (transformation, name), pair in scores.items():
        said = "failed" if pair is None else f"{pair[0].total:.3f}, {pair[1].total:.3f}"
        console.print(f"- {name} over {transformation}: {said}", markup=False)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, markup=False)
    if interrupted:
        sys.exit(130)


def _answer(scores: "Mapping[tuple[str, str], tuple[Score, Score] | None]") -> str:
    """Who follows the noise best, in a sentence."""
    known = {key: pair for key, pair in scores.items() if pair is not None}
    if not known:
        return "Every estimator failed."
    lower = min(known, key=lambda key: known[key][0].total)
    upper = min(known, key=lambda key: known[key][1].total)
    return (
        f"Of {len(scores)} estimators, {lower[1]} over {lower[0]} follows noise best from below "
        f"(score {known[lower][0].total:.3f}), {upper[1]} over {upper[0]} from above "
        f"({known[upper][1].total:.3f}); 0 is best, 1 what always saying 0 would score."
    )


def _estimator(said: str) -> Any:
    """An estimator by its name or import path, with fields such as `(k=3)` or without.

    Raises:
        ValueError: if there is none, or it has no such field.
    """
    from phalanx import readiness

    name, opened, rest = said.partition("(")
    known = getattr(readiness, name, None) if name in readiness.__all__ else None
    if known is None and "." not in name:
        near = [one for one in readiness.__all__ if _is_estimator(getattr(readiness, one))]
        raise ValueError(f"estimators must be {', '.join(near)} or import paths, got {name!r}")
    if not opened:
        return known() if known is not None else by_path(name)
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        fields = {one.arg: ast.literal_eval(one.value) for one in getattr(call, "keywords")}  # noqa: B009
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"estimators must be such as {name}(k=3), got {said!r}") from error
    made = known() if known is not None else by_path(name)
    return made.set_params(**fields)


def _is_estimator(thing: Any) -> bool:
    from phalanx.readiness import BayesErrorEstimator

    return isinstance(thing, type) and BayesErrorEstimator in thing.__mro__[1:]


def _known(path: Path, data: str) -> "list[NoiseRun]":
    """Results in a folder; a line torn by a kill is dropped. An empty file is begun.

    Raises:
        ValueError: if they are of other data or of another seed.
    """
    from phalanx.readiness import NoiseRun

    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if found and found[0] != {"data": data}:
        raise ValueError(f"out must be a new folder or one of these data and seed, got {path}")
    with whole(path) as beside:
        kept = found or [{"data": data}]
        beside.write_text("".join(json.dumps(one) + "\n" for one in kept), encoding="utf-8")
    return [NoiseRun(**one) for one in found[1:]]
