"""Kills runs at every file operation, damages their folders, and resumes them.

    python benchmarks/fuzz_runs.py [--damages 600] [--every 1] [--seed 0]

A run ends with the bits of one that nobody touched, or says by name why it does not: there is no
third way. Every case is a process of its own, forked from this one, and killed by SIGKILL: before
each time that it opens, moves or removes a file, makes a folder or waits for the disk, and in the
middle of each write.
"""

import argparse
import builtins
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import phalanx
from measurement import write_measurement
from phalanx.attacks import Mixed
from phalanx.coding import DracoRepetition
from phalanx.errors import PhalanxError
from phalanx.training import Local
from phalanx.transforms import WorkerMomentum
from side_by_side import environment

CLAIM = "Runs that are killed or damaged end with the bits of an undisturbed run, or say why not"
COLUMNS = {
    "case": "what is done",
    "cases": "cases",
    "recovered": "same bits",
    "refused": "refused by name",
    "other_errors": "other errors",
    "silent_wrong": "other bits, silently",
}
REMARK = (
    "A run of 12 rounds with Adam and worker momentum, which writes a checkpoint every 4. Killed "
    "runs are resumed, or begun anew where no checkpoint was written yet. Damages are flipped "
    "bits, cut, overwritten, emptied, lengthened, removed and exchanged files, one to three at "
    "once; those of `metrics.jsonl` cost metrics, and no bit of the weights."
)
STEPS, STOP = 12, 9
FINISHED, REFUSED, BROKEN, NEW = 0, 10, 11, 12  # exit codes of a case
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def go(folder: Path, *, resume: bool, stop: int | None = None) -> None:
    """The run; it ends its process after a round, if told so."""

    def watch(entry: dict[str, Any]) -> None:
        if entry["step"] == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 8, generator=source)
    torch.manual_seed(0)
    phalanx.train(
        torch.nn.Linear(8, 2),
        torch.utils.data.TensorDataset(inputs, (inputs.sum(dim=1) > 0).long()),
        DracoRepetition(num_workers=6, num_byzantine=1),
        attack=Mixed(),
        transforms=[WorkerMomentum(0.5)],
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        engine=Local(chunk_size=1),
        steps=STEPS,
        checkpoint_every=4,
        seed=2,
        out=folder,
        resume=resume,
        on_round=watch,
    )


class Torn:
    """A file that counts what is written to it, and tears the write that is to be the last."""

    def __init__(self, file: Any, due: Callable[[], bool]) -> None:
        self._file, self._due = file, due

    def write(self, data: Any) -> int:
        """Writes, or half of it and no more."""
        if self._due():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Torn":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def kill_at(folder: Path, number: int | None) -> list[int]:
    """Has this process killed at its operation of this number in a folder; counts them."""
    done, root = [0], str(folder)
    opened, waited = io.open, os.fsync

    def due() -> bool:
        done[0] += 1
        return done[0] - 1 == number

    def before(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(root):
            return
        reads = event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not reads and due():
            os.kill(os.getpid(), signal.SIGKILL)

    def open_torn(file: Any, mode: str = "r", *options: Any, **named: Any) -> Any:
        found = opened(file, mode, *options, **named)
        writes = set(mode) & set("wax+") and str(file).startswith(root)
        return Torn(found, due) if writes else found

    def wait(file: int) -> None:
        if due():
            os.kill(os.getpid(), signal.SIGKILL)
        waited(file)

    io.open = builtins.open = open_torn  # type: ignore[assignment]
    os.fsync = wait  # type: ignore[assignment]
    sys.addaudithook(before)
    return done


def case(body: Callable[[], None]) -> int:
    """Runs in a process of its own; its exit code, or the signal that ended it, below 0."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            warnings.simplefilter("ignore")
            body()
            code = FINISHED
        except (ValueError, PhalanxError, OSError) as error:
            new = "no checkpoint in it" in str(error)
            code = NEW if new else REFUSED
        except BaseException:
            code = BROKEN
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder: Path, whole: bytes, *, new: bool) -> str:
    """What comes of a folder when its run is resumed."""
    code = case(lambda: go(folder, resume=True))
    if code == NEW and new:
        code = case(lambda: go(folder, resume=False))
    if code != FINISHED:
        return "refused" if code in (REFUSED, NEW) else "other_errors"
    same = (folder / "model.safetensors").read_bytes() == whole
    return "recovered" if same else "silent_wrong"


def count_operations(folder: Path, *, resume: bool) -> int:
    counted = folder.with_name("counted")

    def body() -> None:
        done = kill_at(folder, None)
        go(folder, resume=resume)
        counted.write_text(str(done[0]))

    assert case(body) == FINISHED
    return int(counted.read_text())


def kills(base: Path | None, place: Path, whole: bytes, every: int) -> Counter[str]:
    """Kills a run at every operation; one that is begun, or one that resumes from `base`."""

    def fresh() -> Path:
        shutil.rmtree(place / "run", ignore_errors=True)
        if base is not None:
            shutil.copytree(base, place / "run")
        return place / "run"

    number, found = count_operations(fresh(), resume=base is not None), Counter[str]()
    for operation in range(0, number, every):
        folder = fresh()

        def body(folder: Path = folder, operation: int = operation) -> None:
            kill_at(folder, operation)
            go(folder, resume=base is not None)

        code = case(body)
        if code != -signal.SIGKILL:
            found["not_killed"] += 1
        found[outcome(folder, whole, new=base is None)] += 1
    return found


def damage(folder: Path, source: random.Random) -> None:
    """Damages a file of a run."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checkpoints = [path for path in files if path.suffix == ".pt"]
    path = source.choice(checkpoints if checkpoints and source.random() < 0.6 else files)
    data = bytearray(path.read_bytes())
    kind = source.choice(["flip", "flip", "cut", "overwrite", "empty", "add", "remove", "exchange"])
    place = source.randrange(len(data)) if data else 0
    if kind == "flip" and data:
        data[place] ^= 1 << source.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "overwrite":
        data[place : place + 64] = source.randbytes(min(64, len(data) - place))
    elif kind == "empty":
        data.clear()
    elif kind == "add":
        data[place:place] = source.randbytes(1 + source.randrange(99))
    elif kind == "exchange":
        other = source.choice(files)
        theirs = other.read_bytes()
        other.write_bytes(data)
        data = bytearray(theirs)
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(data)


def damages(base: Path, place: Path, whole: bytes, number: int, seed: int) -> Counter[str]:
    """Resumes runs whose folders are damaged at random."""
    found = Counter[str]()
    for one in range(number):
        source = random.Random(f"{seed} {one}")
        shutil.rmtree(place / "run", ignore_errors=True)
        shutil.copytree(base, place / "run")
        for _ in range(source.randint(1, 3)):
            damage(place / "run", source)
        found[outcome(place / "run", whole, new=False)] += 1
    return found


def row(name: str, found: Counter[str]) -> dict[str, Any]:
    names = [key for key in COLUMNS if key not in ("case", "cases")]
    assert not found["not_killed"], f"{found['not_killed']} cases ended before they were killed"
    print(name, dict(found), flush=True)
    return {"case": name, "cases": sum(found.values()), **{key: found[key] for key in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=600)
    parser.add_argument("--every", type=int, default=1, help="kill at every so many operations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="fuzz-runs-"))
    try:
        go(place / "whole", resume=False)  # here, so that those forked need not import anything
        whole = (place / "whole" / "model.safetensors").read_bytes()
        killed = case(lambda: go(place / "base", resume=False, stop=STOP))
        assert killed == -signal.SIGKILL
        base = place / "base"
        rows = [
            row("a new run is killed", kills(None, place, whole, options.every)),
            row("a resumed run is killed", kills(base, place, whole, options.every)),
            row(
                "a killed run's folder is damaged",
                damages(base, place, whole, options.damages, options.seed),
            ),
        ]
    finally:
        shutil.rmtree(place)
    facts = {**environment("torch", "phalanx"), "threads": 1}
    write_measurement("fuzz_runs", CLAIM, facts, rows, COLUMNS, REMARK)
    if any(one["silent_wrong"] or one["other_errors"] for one in rows):
        raise SystemExit("a run ended in another way than with the same bits or an error by name")


if __name__ == "__main__":
    main()
