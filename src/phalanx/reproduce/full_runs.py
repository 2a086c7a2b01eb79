"""What full runs have and quick ones do without: the papers' images, and a GPU."""

from collections.abc import Sequence
from pathlib import Path

import torch

from phalanx.data import Digits, JpegArchive, NpzFile, Splits


def images(data: Path | None, names: Sequence[str], family: str) -> tuple[Splits, str, bool]:
    """The data of a full run, what it is, and whether it is what the paper used.

    Args:
        data: an `.npz` file, or a folder in which the first of `names` that is there is taken.
        names: files by the name of what they hold.
        family: what the data are, for the note.
    """
    found = [data] if data is not None and data.is_file() else []
    if data is not None and data.is_dir():
        found = [data / name for name in names if (data / name).is_file()]
    if not found:
        origin = f"scikit-learn's digits, 8 x 8 pixels; full runs take {family} where it is given"
        return Digits().load(), origin, False
    kind = JpegArchive if "jpeg" in found[0].name else NpzFile
    splits = kind(found[0]).load()
    return splits, f"{found[0].name}, {len(splits.train)} training images", True  # type: ignore[arg-type]


def device_for(full: bool) -> str:
    """Where a recipe computes: full runs on a GPU, if there is one."""
    return "cuda" if full and torch.cuda.is_available() else "cpu"
