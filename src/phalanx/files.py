"""Files that appear whole or not at all, with a digest where they need one, and folder locks."""

import errno
import hashlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, Timeout

from phalanx.errors import FolderInUseError, StorageError

_BESIDE = ".{name}.{process}.part"
_LOCK, _OWNER = ".lock", ".owner"
_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_MARK = b"phalanx blake2b:"  # between what was written and its digest
_SIZE = 32  # bytes of the digest
_TRIES = 100  # to make a folder that others remove


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which then takes the place of `path` at once, and on the disk.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "a.txt") as beside:
    ...         _ = beside.write_text("all of it", encoding="utf-8")
    ...     print([path.name for path in Path(folder).iterdir()])
    ['a.txt']

    Raises:
        StorageError: if it cannot be written; `path` is as it was.
    """
    beside = path.with_name(_BESIDE.format(name=path.name, process=os.getpid()))
    try:
        with storing(path):
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns a failure of the disk into an error that names the file.

    Raises:
        StorageError: if the disk is full, or broken; what else is wrong with a path stays an
            `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FAILURES:
            raise
        raise StorageError(f"{path} could not be written: {error.strerror or error}") from error


def clear_halves(folder: Path) -> None:
    """Removes half files: what was being written when a kill came."""
    for stray in folder.glob(_BESIDE.format(name="*", process="*")):
        stray.unlink()


class Sealing:
    """Binary file to be written in one go, with a digest of its bytes at the end.

    Readers of formats that are found from their beginning or their directory, as archives are, read
    it as if there were none.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.blake2b(digest_size=_SIZE)
        self.error: OSError | None = None
        """What the disk had against it: the writer's caller may be told something else."""

    def write(self, data: Any) -> int:
        """Writes bytes."""
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """See `io.BufferedWriter`."""
        self._file.flush()

    def seal(self) -> None:
        """Writes the digest."""
        self._file.write(_MARK + self._digest.digest())


def require_sealed(path: Path) -> None:
    """Checks a file against the digest at its end.

    Raises:
        ValueError: if it has none, or another one than its bytes.
    """
    found, left = hashlib.blake2b(digest_size=_SIZE), path.stat().st_size - len(_MARK) - _SIZE
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 2**20))):
            found.update(block)
            left -= len(block)
        end = file.read()
    if not end.startswith(_MARK):
        raise ValueError("it has no digest: it is cut off, or something else")
    if end[len(_MARK) :] != found.digest():
        raise ValueError("its bytes are not those that were written")


def require_folder(path: Path) -> None:
    """Checks that a path is a folder, or free, by one look at it: others may be removing it.

    Raises:
        ValueError: if it is a file.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(mode):
        raise ValueError(f"out must be a folder, got {path}, which is a file")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Makes a folder, if there is none, and keeps it for this process alone.

    The lock ends with the process, however it ends. Beside it a file names the owner (process,
    host and time). One that a dead process of this host left is taken over; one of another host is
    not, since file systems that are shared do not always share locks. What was made is removed if
    nothing was put into it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as path, owned(Path(path)):
    ...     try:
    ...         with owned(Path(path)):
    ...             pass
    ...     except FolderInUseError as error:
    ...         print(str(error).partition(" belongs to process ")[2].startswith(str(os.getpid())))
    True

    Raises:
        FolderInUseError: if the folder has an owner.
        ValueError: if it is a file.
    """
    require_folder(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock, owner = FileLock(folder / _LOCK), folder / _OWNER
    try:
        try:
            _claim(folder, lock)
        except Timeout:
            raise FolderInUseError(_in_use(folder, owner)) from None
        left = _owner(owner)
        if left is not None and left.get("host") != socket.gethostname():
            raise FolderInUseError(
                f"{_in_use(folder, owner)}; if that process is gone, remove {owner}"
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
        with storing(owner):
            owner.write_text(json.dumps(who) + "\n", encoding="utf-8")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
            with suppress(OSError):  # Windows keeps open files
                (folder / _LOCK).unlink()  # whoever waits for it sees that, and makes a new one
    finally:
        lock.release()
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _claim(folder: Path, lock: BaseFileLock) -> None:
    """Makes the folder and locks it, while others may be removing what they made of it."""
    for left in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except (FileExistsError, FileNotFoundError):
            if not left:
                raise
        else:
            return


def _owner(path: Path) -> dict[str, Any] | None:
    """What the file of an owner says; None if there is none, or nothing to be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _in_use(folder: Path, owner: Path) -> str:
    who = _owner(owner) or {}
    process, host = who.get("process", "unknown"), who.get("host", "an unknown host")
    return (
        f"{folder} belongs to process {process} on {host}, which has written to it since "
        f"{who.get('since', 'a moment ago')}: two processes cannot share it"
    )
