"""Compares a wheel with the package's source: `python tests/check_wheel.py dist/*.whl`."""

import sys
import zipfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"


def missing(wheel: Path) -> list[str]:
    """The files of the package that a wheel lacks."""
    here = {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / "phalanx").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        return sorted(here - set(archive.namelist()))


if __name__ == "__main__":
    if lost := [name for wheel in sys.argv[1:] for name in missing(Path(wheel))]:
        sys.exit(f"the wheel lacks {', '.join(lost)}")
    print(f"{', '.join(sys.argv[1:])}: whole")
