"""Files of a feasibility study, and the arms that it starts with."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch

from phalanx.data.arrays import Array
from phalanx.files import storing, whole
from phalanx.identity import by_content, digest
from phalanx.randomness import generator
from phalanx.readiness.arm import Arm, Pulls
from phalanx.readiness.feasibility import Prices
from phalanx.readiness.transformations import Transformation, named_transformations

if TYPE_CHECKING:
    from phalanx.readiness.study import Study

_FILE = "study.npz"
_ARRAYS = ("train", "test", "train_labels", "test_labels", "alive")
_SETTINGS = (
    *("classes", "num_classes", "target_accuracy", "metric", "strategy", "seed"),
    *("max_bytes", "chunk", "num_fitted"),
)


def start_arms(
    train: Array, transformations: Mapping[str, Transformation] | None, seed: int, chunk: int
) -> dict[str, Arm]:
    """Arms without pulls, by the name of their transformation; rows are in a random order.

    Where a transformation needs labels, it is fitted to half of the rows, and the others are the
    references.

    Raises:
        ValueError: if there are too few rows for that.
    """
    rows = torch.randperm(len(train), generator=generator(seed, "study")).numpy()
    arms = {}
    for name, embedding in named_transformations(transformations, train).items():
        seen, references = rows, rows
        if embedding.supervised:
            if len(rows) < 4:
                raise ValueError(
                    f"transformation {name} is fitted to labels and must have at least 4 training "
                    f"rows, got {len(rows)}"
                )
            seen, references = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        arms[name] = Arm(embedding, references, seen, chunk)
    return arms


def write_study(study: "Study", folder: Path) -> Path:
    """Writes `study.npz`, whole or not at all; see `Study.save`."""
    arrays = {name: getattr(study, name) for name in _ARRAYS}
    held = []
    for number, (name, arm) in enumerate(study.arms.items()):
        history = np.stack(arm.done.history) if arm.done.history else np.empty((0, 0), np.int64)
        arrays |= {
            f"rows{number}": arm.rows,
            f"history{number}": history,
            f"distances{number}": arm.done.distances,
            f"ends{number}": np.array(arm.done.ends, dtype=np.int64),
            f"sizes{number}": np.array(arm.done.sizes, dtype=np.int64),
        }
        print_of = digest(by_content(arm.embedding.transformation))
        held.append(
            {
                "name": name,
                "print": print_of,
                "dimension": arm.dimension,
                "seconds": arm.seconds,
            }
        )
    settings = {name: getattr(study, name) for name in _SETTINGS}
    settings |= {"prices": asdict(study.prices), "arms": held}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FILE
    with whole(path) as beside, storing(path), beside.open("wb") as file:
        np.savez(file, settings=np.array(json.dumps(settings)), **arrays)
    return path


def read_study(
    study: "Study", folder: Path, transformations: Mapping[str, Transformation] | None
) -> None:
    """Fills a study from `study.npz`, in which nothing is unpickled; see `Study.load`."""
    path = folder / _FILE
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        settings: dict[str, Any] = json.loads(str(arrays["settings"]))
        for name in _ARRAYS:
            setattr(study, name, arrays[name])
        for name in _SETTINGS:
            setattr(study, name, settings[name])
        study.prices = Prices(**settings["prices"])
        pulls = [
            Pulls(
                tuple(arrays[f"ends{number}"].tolist()),
                tuple(arrays[f"sizes{number}"].tolist()),
                tuple(arrays[f"history{number}"]),
                arrays[f"distances{number}"],
            )
            for number in range(len(settings["arms"]))
        ]
    except (KeyError, BadZipFile, EOFError, ValueError, TypeError) as error:
        raise ValueError(f"{path} must be a saved study: {error}") from error
    study.arms = start_arms(
        study.train[: study.num_fitted], transformations, study.seed, study.chunk
    )
    held = {one["name"]: one["print"] for one in settings["arms"]}
    given = {
        name: digest(by_content(arm.embedding.transformation)) for name, arm in study.arms.items()
    }
    if held != given:
        other = sorted(name for name in {*held, *given} if held.get(name) != given.get(name))
        raise ValueError(
            f"transformations must be those of {path}, got others for {', '.join(other)}"
        )
    for number, (arm, one) in enumerate(zip(study.arms.values(), settings["arms"], strict=True)):
        arm.rows, arm.done = arrays[f"rows{number}"], pulls[number]
        arm.dimension, arm.seconds = one["dimension"], one["seconds"]
    study.reset()
