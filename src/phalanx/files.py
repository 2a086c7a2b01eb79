"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BESIDE = ".{name}.{process}.part"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which then takes the place of `path` at once, and on the disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "a.txt") as beside:
    ...         _ = beside.write_text("all of it", encoding="utf-8")
    ...     print([path.name for path in Path(folder).iterdir()])
    ['a.txt']
    """
    beside = path.with_name(_BESIDE.format(name=path.name, process=os.getpid()))
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def clear_halves(folder: Path) -> None:
    """Removes half files: what was being written when a kill came."""
    for stray in folder.glob(_BESIDE.format(name="*", process="*")):
        stray.unlink()
