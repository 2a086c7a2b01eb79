"""Damaged and forged data files: every one is refused by name or read as another reader reads it.

    python benchmarks/fuzz_data.py [--quick]

Files of every kind that `phalanx.data` reads are changed at random (seed 0): bits flipped, ends cut
off, parts deleted, repeated, overwritten. Archives are also forged: what is changed is the content
of their members, under a check sum that fits. What loads is compared with a second, naive reader.
"""

import argparse
import csv
import gzip
import io
import itertools
import random
import re
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from measurement import cell, write_measurement
from phalanx.data import CsvFile, DataSource, JpegArchive, NpzFile, TextFile
from phalanx.data.tables import MISSING
from phalanx.data.text import hash_words, words
from side_by_side import environment

CLAIM = "Damaged and forged data files"
COLUMNS = {
    "kind": "files",
    "files": "changed",
    "refused": "refused with a typed error",
    "equal": "loaded, as the reference reads them",
    "silent_wrong": "loaded otherwise",
    "untyped": "untyped errors or warnings",
}
REMARK = (
    "A typed error is a ValueError that names the file. The reference of archives is "
    "`numpy.lib.format` without pickle and zipfile's check sums."
)
LIMIT = 10**6
TOKENS = [b",", b"\n", b"\r", b'"', b"\0", b"_", b" ", b"inf", b"nan", b"1e999", b"\xef\xbb\xbf"]
TOKENS += [b"", b"007", b"train", b"test", b"\xff", b"\xc3", b"9007199254740993", b"\n\n", b"-"]
Reference = Callable[[bytes], tuple[list[np.ndarray], list[np.ndarray]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few files; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, (files, *case) in CASES.items():
            files = files // 50 if options.quick else files
            row = {"kind": kind, "files": files} | fuzz(Path(folder), kind, files, *case)
            print(" ".join(cell(row[key]).ljust(12) for key in COLUMNS), flush=True)
            found.append(row)
    if not options.quick:
        facts = environment("phalanx", "torch", "numpy", "pillow") | {"threads": 1}
        write_measurement("fuzz_data", CLAIM, facts, found, COLUMNS, REMARK)
    raise SystemExit(any(row["silent_wrong"] or row["untyped"] for row in found))


def fuzz(
    folder: Path,
    kind: str,
    files: int,
    make: Callable[[], bytes],
    change: Callable[[random.Random, bytes], bytes],
    open_source: Callable[[Path], DataSource],
    reference: Reference,
) -> dict[str, int]:
    """Counts of what became of so many changed files of one kind."""
    chance, whole = random.Random(f"0 {kind}"), make()
    path = folder / kind.replace(" ", "-")
    counts = Counter(refused=0, equal=0, silent_wrong=0, untyped=0)
    for number in range(files):
        content = change(chance, whole) if number else whole
        path.write_bytes(content)
        outcome = judged(path, content, open_source(path), reference)
        if outcome not in ("refused", "equal"):
            print(f"{kind} {number}: {outcome}", flush=True)
        counts[outcome.partition(":")[0]] += 1
    return dict(counts)


def judged(path: Path, content: bytes, source: DataSource, reference: Reference) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            splits = source.load()
    except ValueError as error:
        return "refused" if str(path) in str(error) else f"untyped: {error!r}"
    except (Exception, Warning) as error:
        return f"untyped: {error!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = reference(content)
    except Exception as error:
        return f"silent_wrong: the reference refuses: {error!r}"
    for part, arrays in zip((splits.train, splits.test), expected, strict=True):
        for ours, theirs in zip(part.tensors, arrays, strict=True):
            if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
                return "silent_wrong: other numbers"
    return "equal"


# What is changed.


def damage(chance: random.Random, content: bytes) -> bytes:
    """One to three random changes of the bytes."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        here = chance.randrange(len(data) + 1)
        there = min(len(data), here + chance.choice([1, 1, 2, 4, 8, 30, 200]))
        how = chance.randrange(8)
        if how == 0:
            data = data[:here]
        elif how == 1:
            del data[here:there]
        elif how == 2:
            data[there:there] = data[here:there]
        elif how == 3:
            data[here:there] = chance.randbytes(there - here)
        elif how == 4:
            data[here:there] = bytes([chance.choice([0, 1, 127, 128, 255])]) * (there - here)
        elif how == 5:
            data[here:here] = chance.choice(TOKENS)
        elif here < len(data):
            data[here] ^= 1 << chance.randrange(8)
    return bytes(data)


def zipped_again(chance: random.Random, content: bytes) -> bytes:
    """Damage below the compression, which then holds again."""
    return gzip.compress(damage(chance, gzip.decompress(content)), mtime=0)


def forge(chance: random.Random, content: bytes) -> bytes:
    """An archive with another member: changed content or name, and a check sum that fits."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = chance.choice(list(members))
    how = chance.randrange(4)
    if how == 0:  # the header of the array, where a shape or a dtype may be
        members[name] = damage(chance, members[name][:100]) + members[name][100:]
    elif how == 1:
        array = np.lib.format.read_array(io.BytesIO(members[name]))
        members[name] = npy(other(chance, array))
    elif how == 2:
        members[chance.choice(["x_test.npy", "y_test", "../x_train.npy", "x.npy"])] = members.pop(
            name
        )
    else:
        members[name] = damage(chance, members[name])
    return packed(members, chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def other(chance: random.Random, array: np.ndarray) -> np.ndarray:
    """An array of another shape, kind or order; it may mean the same."""
    changes: list[Callable[[], np.ndarray]] = [
        lambda: array[: chance.randrange(len(array) + 1)],
        lambda: array.reshape(-1),
        lambda: array.astype(chance.choice([">f8", "<f2", ">u2", "?", "<U5", "S3", "c8", "O"])),
        lambda: np.asfortranarray(array),
        lambda: array[0],
        lambda: np.array(array.flat[0]),
        lambda: np.zeros(array.shape, "i4,f4"),
        lambda: np.full(array.shape, chance.choice([np.inf, np.nan, 1e308, -1e-320, 2**53 + 1.0])),
        lambda: array * chance.choice([1e300, 1e-300, 1e-5, -1.0]),
    ]
    with np.errstate(all="ignore"):
        return np.asarray(chance.choice(changes)())


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def packed(members: dict[str, bytes], method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


# What is there before.


def table() -> bytes:
    chance = random.Random("table")
    rows = [
        f"{'test' if i % 4 == 3 else 'train'},{chance.gauss(0, 9):.3f},{chance.choice(['', i])},"
        f'{chance.choice(["red", "blue"])},"word{i}, and {chance.choice("abc")}",{i % 3}'
        for i in range(36)
    ]
    return ("split,size,count,colour,note,label\n" + "\n".join(rows) + "\n").encode()


def archive(method: int) -> bytes:
    chance = np.random.default_rng(0)
    arrays = {
        "x_train.npy": chance.integers(0, 256, (12, 4, 3), dtype=np.uint8),
        "y_train.npy": np.arange(12) % 3,
        "x_test.npy": chance.integers(0, 256, (6, 4, 3), dtype=np.uint8),
        "y_test.npy": np.arange(6) % 3,
    }
    return packed({name: npy(array) for name, array in arrays.items()}, method)


def jpegs() -> bytes:
    chance, files = np.random.default_rng(0), []
    for _ in range(8):
        stream = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "JPEG")
        files.append(stream.getvalue())
    start = files[0].index(b"\xff\xda")
    rest = [file[start:] for file in files]
    arrays = {
        "jpeg_header.npy": np.frombuffer(files[0][:start], np.uint8),
        "jpeg_bytes.npy": np.frombuffer(b"".join(rest), np.uint8),
        "offset.npy": np.cumsum([0, *map(len, rest)]),
        "y_train.npy": np.arange(6) % 2,
        "y_test.npy": np.arange(2),
    }
    return packed({name: npy(array) for name, array in arrays.items()}, zipfile.ZIP_STORED)


# How another reader reads it.


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    train, test = train.astype(np.longdouble), test.astype(np.longdouble)
    axes = tuple(one for one in range(train.ndim) if one != 1)
    mean = train.mean(axis=axes, keepdims=True)
    scale = train.std(axis=axes, keepdims=True)
    scale[train.min(axis=axes, keepdims=True) == train.max(axis=axes, keepdims=True)] = 1
    return (train - mean) / scale, (test - mean) / scale


def numbered(train: list[Any], test: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    classes = sorted(set(train))
    return tuple(np.array([classes.index(one) for one in part]) for part in (train, test))


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        for name in opened.namelist():
            stream = io.BytesIO(opened.read(name))  # compares the check sum
            if name.removesuffix(".npy") in READ:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(
                    stream, allow_pickle=False
                )
                assert not stream.read(), "bytes are left over"
    return arrays


READ = ["x_train", "y_train", "x_test", "y_test", "jpeg_header", "jpeg_bytes", "offset"]


def as_npz(content: bytes) -> Any:
    arrays = read_arrays(content)
    assert "x_test" in arrays, "the split at random is not the reference's"
    x = [arrays["x_train"], arrays["x_test"]]
    if x[0].ndim == 3:
        x = [one[:, None] for one in x]
    elif x[0].ndim == 4:
        x = [np.moveaxis(one, 3, 1) for one in x]
    y = numbered(arrays["y_train"].tolist(), arrays["y_test"].tolist())
    return list(zip(standardised(*x), y, strict=True))


def as_jpegs(content: bytes) -> Any:
    arrays = read_arrays(content)
    header, body = arrays["jpeg_header"].tobytes(), arrays["jpeg_bytes"].tobytes()
    offset, pictures = arrays["offset"].tolist(), []
    for start, stop in itertools.pairwise(offset):
        picture = Image.open(io.BytesIO(header + body[start:stop]))
        picture.load()
        pictures.append(picture)
    grey = all(picture.mode == "L" for picture in pictures)
    x = np.stack([np.asarray(one if grey else one.convert("RGB")) for one in pictures])
    x = x[:, None] if grey else x.transpose(0, 3, 1, 2)
    cut = len(arrays["y_train"])
    y = numbered(arrays["y_train"].tolist(), arrays["y_test"].tolist())
    return list(zip(standardised(x[:cut], x[cut:]), y, strict=True))


def as_text(content: bytes) -> Any:
    text = content.decode("utf-8-sig")
    cut = round(0.75 * len(text))
    letters = {letter: number for number, letter in enumerate(sorted(set(text[:cut])), start=1)}
    parts = []
    for part in (text[:cut], text[cut:]):
        tokens = [letters.get(letter, 0) for letter in part]
        starts = range(0, len(tokens) - 5, 5)
        parts.append(
            (
                np.array([tokens[start : start + 5] for start in starts]),
                np.array([tokens[start + 1 : start + 6] for start in starts]),
            )
        )
    return parts


def as_table(content: bytes) -> Any:
    lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    header, *rows = [line for line in lines if line]
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test"]
    blocks, texts = [], []
    for name in header:
        if name in ("split", "label"):
            continue
        columns = [[row[name] for row in part] for part in (train, test)]
        try:
            assert not any("_" in one for one in itertools.chain(*columns))
            numbers = [
                np.array([np.nan if one.strip() in MISSING else float(one) for one in column])
                for column in columns
            ]
        except (ValueError, AssertionError):
            values = sorted(set(columns[0]))
            if len(values) > len(train) // 2:
                texts.append(name)
            else:
                blocks.append([[[one == v for v in values] for one in col] for col in columns])
        else:
            known = numbers[0][~np.isnan(numbers[0])].astype(np.longdouble)
            mean, scale = known.mean(), known.std() if known.min() < known.max() else 1
            blocks.append([np.nan_to_num((one - mean) / scale)[:, None] for one in numbers])
    if texts:
        bags = [
            hash_words([[f"{n}={w}" for n in texts for w in words(row[n])] for row in part], 16)
            for part in (train, test)
        ]
        blocks.append(bags)
    x = [np.concatenate([np.array(block[part], float) for block in blocks], 1) for part in (0, 1)]
    labels = [[row["label"] for row in part] for part in (train, test)]
    if all(re.fullmatch("0|-?[1-9][0-9]{,17}", label) for label in itertools.chain(*labels)):
        labels = [[int(label) for label in part] for part in labels]
    return list(zip(x, numbered(*labels), strict=True))


def unpacked(reference: Reference) -> Reference:
    return lambda content: reference(gzip.decompress(content))


def csv_source(path: Path) -> DataSource:
    return CsvFile(path, split="split", num_features=16, max_bytes=LIMIT)


def text_source(path: Path) -> DataSource:
    return TextFile(path, length=5, test_fraction=0.25, max_bytes=LIMIT)


def npz_source(path: Path) -> DataSource:
    return NpzFile(path, max_bytes=LIMIT)


def jpeg_source(path: Path) -> DataSource:
    return JpegArchive(path, max_bytes=LIMIT)


def text() -> bytes:
    return ("the quick brown fox jümps over the lazy dog\r\n" * 8).encode()


def deflated() -> bytes:
    return archive(zipfile.ZIP_DEFLATED)


def stored() -> bytes:
    return archive(zipfile.ZIP_STORED)


CASES: dict[str, tuple[Any, ...]] = {
    "csv": (3000, table, damage, csv_source, as_table),
    "csv.gz": (
        1000,
        lambda: gzip.compress(table(), mtime=0),
        damage,
        csv_source,
        unpacked(as_table),
    ),
    "text": (1500, text, damage, text_source, as_text),
    "text.gz": (
        1000,
        lambda: gzip.compress(text(), mtime=0),
        damage,
        text_source,
        unpacked(as_text),
    ),
    "forged text.gz": (
        1000,
        lambda: gzip.compress(text(), mtime=0),
        zipped_again,
        text_source,
        unpacked(as_text),
    ),
    "npz": (2000, stored, damage, npz_source, as_npz),
    "compressed npz": (2000, deflated, damage, npz_source, as_npz),
    "forged npz": (3000, stored, forge, npz_source, as_npz),
    "jpeg npz": (1000, jpegs, damage, jpeg_source, as_jpegs),
    "forged jpeg npz": (2000, jpegs, forge, jpeg_source, as_jpegs),
}

if __name__ == "__main__":
    main()
