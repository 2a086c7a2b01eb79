"""Laws of all data sources, over tiny files made here: one case per source."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from laws import concrete
from phalanx import data
from phalanx.data import (
    CsvFile,
    DataSource,
    Digits,
    JpegArchive,
    LabelledTexts,
    NpzFile,
    Splits,
    TextFile,
)


def write_csv(path):
    rows = [f"{i},{'red' if i % 3 else 'blue'},{'yes' if i % 2 else 'no'}" for i in range(20)]
    path.write_text("size,colour,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return CsvFile(path)


def write_npz(path):
    random = np.random.default_rng(0)
    np.savez(
        path,
        x_train=random.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8),
        y_train=np.arange(30) % 3,
        x_test=random.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8),
        y_test=np.arange(9) % 3,
    )
    return NpzFile(path)


def write_jpegs(path):
    """Images of one colour each, cut behind the header that they share."""
    files = []
    for index in range(16):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (15 * index, 100, 200)).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    start = files[0].index(b"\xff\xda")  # the start of the scan
    rest = [file[start:] for file in files]
    arrays = {
        "jpeg_header": np.frombuffer(files[0][:start], np.uint8),
        "jpeg_bytes": np.frombuffer(b"".join(rest), np.uint8),
        "offset": np.cumsum([0, *map(len, rest)]),
        "y_train": np.arange(12) % 2,
        "y_test": np.arange(4) % 2,
    }
    np.savez(path, **arrays)
    return JpegArchive(path)


def write_texts(path):
    rows = [f"{i},{'a red fox ' * (i % 4)}is,{'yes' if i % 2 else 'no'}" for i in range(20)]
    path.write_text("id,text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_text(path):
    path.write_text("the quick brown fox jumps\n" * 20 + "over the lazy dög\n" * 6, "utf-8")
    return TextFile(path, length=7, test_fraction=0.2)


MAKERS = {
    "Digits": lambda folder: Digits(),
    "CsvFile": lambda folder: write_csv(folder / "tiny.csv"),
    "NpzFile": lambda folder: write_npz(folder / "tiny.npz"),
    "JpegArchive": lambda folder: write_jpegs(folder / "jpegs.npz"),
    "LabelledTexts": lambda folder: LabelledTexts(write_texts(folder / "texts.csv"), length=6),
    "LabelledTexts-hashed": lambda folder: LabelledTexts(
        write_texts(folder / "texts.csv"), length=6, vocabulary=9, hashed=True
    ),
    "TextFile": lambda folder: write_text(folder / "text.txt"),
}


def splits_are_what_they_say(source):
    splits = source.load()
    assert isinstance(splits, Splits)
    for part in (splits.train, splits.test):
        assert isinstance(part, TensorDataset)
        inputs, targets = part.tensors
        assert inputs.shape == (len(part), *splits.input_shape)
        tokens = not inputs.is_floating_point()
        assert inputs.dtype == (torch.int64 if tokens else torch.float32)
        assert inputs.is_contiguous()
        assert inputs.isfinite().all()
        assert targets.dtype == torch.int64
        every_place = isinstance(source, TextFile)
        assert targets.shape == (inputs.shape if every_place else (len(part),))
        assert not tokens or inputs.min() >= 0
    first = 1 if every_place else 0  # 0: what only the test set has
    assert splits.train.tensors[1].unique().tolist() == list(range(first, splits.num_classes))
    assert splits.test.tensors[1].max() < splits.num_classes


def every_load_gives_the_same_bits(source):
    one, other = source.load(), source.load()
    for part in ("train", "test"):
        pairs = zip(getattr(one, part).tensors, getattr(other, part).tensors, strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def the_bits_do_not_depend_on_the_number_of_threads(source):
    threads = torch.get_num_threads()
    one = source.load()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other = source.load()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.train.tensors[0], other.train.tensors[0])


LAWS = (
    splits_are_what_they_say,
    every_load_gives_the_same_bits,
    the_bits_do_not_depend_on_the_number_of_threads,
)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_laws(make, tmp_path, subtests):
    source = make(tmp_path)
    for law in LAWS:
        with subtests.test(law.__name__):
            law(source)


def test_a_description_needs_nothing_and_reads_nothing(subtests):
    for kind in concrete(data, DataSource):
        with subtests.test(kind.__name__):
            assert pickle.loads(pickle.dumps(kind())) == kind()


def test_a_missing_file_is_named(tmp_path, subtests):
    for kind in (CsvFile, JpegArchive, LabelledTexts, NpzFile, TextFile):
        with (
            subtests.test(kind.__name__),
            pytest.raises(FileNotFoundError, match=r"nowhere\.file"),
        ):
            kind(tmp_path / "nowhere.file").load()


def test_a_broken_archive_is_named_and_nothing_is_unpickled(tmp_path, subtests):
    broken, objects = tmp_path / "broken.npz", tmp_path / "objects.npz"
    keys = ["x_train", "y_train", "y_test", "jpeg_header", "jpeg_bytes", "offset"]
    np.savez(objects, **{key: np.array([print, 1], dtype=object) for key in keys})
    for kind in (JpegArchive, NpzFile):
        for content in (b"", b"not an archive", b"PK\x03\x04 broken"):
            with subtests.test(kind.__name__, content=content):
                broken.write_bytes(content)
                with pytest.raises(ValueError, match=r"broken\.npz must be an \.npz archive"):
                    kind(broken).load()
        with (
            subtests.test(kind.__name__, content="objects"),
            pytest.raises(ValueError, match=r"objects\.npz: \w+ must be a plain array"),
        ):
            kind(objects).load()
