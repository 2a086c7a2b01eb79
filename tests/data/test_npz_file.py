"""Images and tables from NumPy archives."""

import io
import itertools
import pickle
import zipfile

import numpy as np
import pytest
import torch

from phalanx.data import NpzFile
from phalanx.data.npz_members import parse_npy

RANDOM = np.random.default_rng(0)


def images(num_rows, *shape, dtype=np.uint8):
    return RANDOM.integers(0, 256, (num_rows, *shape)).astype(dtype)


def load(tmp_path, options=None, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return NpzFile(path, **(options or {})).load()


LABELS = {"y_train": np.arange(12) % 3, "y_test": np.arange(6) % 3}


def test_channels_come_first_and_are_standardised_by_the_training_set(tmp_path, subtests):
    shapes = {
        (5, 4): (1, 5, 4),
        (5, 4, 3): (3, 5, 4),
        (5, 4, 1): (1, 5, 4),
        (3, 5, 6): (3, 5, 6),
        (7,): (7,),
    }
    for (shape, input_shape), dtype in itertools.product(shapes.items(), (np.uint8, np.float64)):
        with subtests.test(shape=shape, dtype=dtype.__name__):
            require_standardised(tmp_path, shape, input_shape, dtype)


def require_standardised(tmp_path, shape, input_shape, dtype):
    x_train, x_test = images(12, *shape, dtype=dtype), images(6, *shape, dtype=dtype)
    splits = load(tmp_path, x_train=x_train, x_test=x_test, **LABELS)
    assert splits.input_shape == input_shape
    train = splits.train.tensors[0].double().transpose(0, 1).flatten(start_dim=1)
    torch.testing.assert_close(
        train.mean(dim=1), torch.zeros(len(train)).double(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        train.std(dim=1, correction=0), torch.ones(len(train)).double(), atol=1e-6, rtol=0
    )
    # One pixel by hand: the same channel of a training and a test image, shifted and scaled alike.
    last = shape[-1] in (1, 3) and len(shape) == 3
    axes = (0,) if len(shape) == 1 else (0, 1, 2) if last or len(shape) == 2 else (0, 2, 3)
    mean, scale = x_train.mean(axis=axes), x_train.std(axis=axes)
    first = (slice(None),) + (0,) * len(shape)
    ours = splits.test.tensors[0][(slice(None),) + (0,) * len(input_shape)]
    expected = (x_test[first] - np.ravel(mean)[0]) / np.ravel(scale)[0]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)


def test_a_constant_column_becomes_zero(tmp_path):
    table = np.full((12, 2), 0.1)
    table[:, 1] = np.arange(12)
    splits = load(tmp_path, x_train=table, y_train=LABELS["y_train"])
    assert splits.train.tensors[0][:, 0].abs().max() < 1e-6


def test_labels_are_numbered_in_sorted_order_before_rows_are_left_out(tmp_path):
    splits = load(
        tmp_path,
        {"train_samples": 2, "test_samples": 1},
        x_train=images(4, 5),
        y_train=np.array(["cat", "ant", "dog", "cat"]),
        x_test=images(2, 5),
        y_test=np.array(["dog", "ant"]),
    )
    assert splits.num_classes == 3
    assert splits.train.tensors[1].tolist() == [1, 0]
    assert splits.test.tensors[1].tolist() == [2]


def test_without_test_arrays_a_stratified_share_is_held_out(tmp_path):
    table = np.arange(90, dtype=np.float64).reshape(90, 1)
    splits = load(
        tmp_path,
        {"test_fraction": 0.3},
        x_train=table,
        y_train=np.repeat([0, 1, 2], [60, 20, 10]),
    )
    assert splits.test.tensors[1].bincount().tolist() == [18, 6, 3]
    assert splits.train.tensors[1].bincount().tolist() == [42, 14, 7]
    seen = torch.cat([splits.train.tensors[0], splits.test.tensors[0]]).flatten()
    assert len(seen.unique()) == 90


def test_errors_name_file_key_and_rule(tmp_path, subtests):
    for changed, options, message in (
        ({"x_train": None}, {}, "must hold x_train, got only"),
        ({"y_test": None}, {}, "must hold both x_test and y_test, or neither"),
        ({"y_train": np.arange(5)}, {}, "x_train and y_train must be equally long, got 12 and 5"),
        ({"y_test": np.arange(6)}, {}, "test labels must occur in the training set"),
        ({"y_test": np.zeros(5, int)}, {}, "x_test and y_test must be equally long, got 6 and 5"),
        ({"x_test": images(4, 5, 4)}, {}, "x_test and y_test must be equally long, got 4 and 6"),
        ({"y_test": np.full(6, 9)}, {}, r"test labels must occur in the training set, got \[9\]"),
        (
            {"y_train": np.linspace(0, 1, 12)},
            {},
            "labels must be whole numbers, got 0.09.* in row 1",
        ),
        ({"y_train": np.ones((12, 3))}, {}, r"labels must be one whole number .* shape \(12, 3\)"),
        ({"x_train": images(12, 5, 4, 7)}, {}, r"x_train must be images .* \(12, 5, 4, 7\)"),
        ({"x_test": images(6, 5, 5)}, {}, "x_train and x_test must hold inputs of one shape"),
        ({"x_train": np.full((12, 5, 4), np.nan)}, {}, "inputs must be finite"),
        ({"x_train": np.full((12, 5, 4), "a")}, {}, "x_train must hold real numbers"),
        ({"y_train": np.full(12, np.inf)}, {}, "labels must be whole numbers, got inf in row 0"),
        (
            {"y_train": np.zeros(12), "y_test": np.zeros(6)},
            {},
            r"labels must be of at least 2 classes, got only \[0.0\]",
        ),
        ({"y_train": np.array(["a"] * 12)}, {}, r"test labels must occur .* got \[0, 1, 2\]"),
        ({"y_train": np.array(3)}, {}, "y_train must be a plain array: .* at least one axis"),
        ({"x_train": np.zeros((0, 5, 4))}, {}, "x_train must be a plain array: .* and one number"),
        ({"x_train": np.array([None] * 12)}, {}, r"x_train must be a plain array: .* dtype '\|O'"),
        (
            {"x_train": np.zeros(12, "i4,f8")},
            {},
            "x_train must be a plain array: .* numbers or text",
        ),
        (
            {"x_train": np.zeros((12, 5, 4), complex)},
            {},
            "x_train must be a plain array: .* '<c16'",
        ),
        ({}, {"max_bytes": 100}, "must hold at most max_bytes=100 bytes in x_train, .* got"),
        ({}, {"train_samples": 13}, "train_samples must be at most 12 for .*, got 13"),
        ({}, {"test_samples": 7}, "test_samples must be at most 6 for .*, got 7"),
    ):
        with subtests.test(message, options=options):
            arrays = {"x_train": images(12, 5, 4), "x_test": images(6, 5, 4), **LABELS} | changed
            kept = {key: array for key, array in arrays.items() if array is not None}
            with pytest.raises(ValueError, match=message) as caught:
                load(tmp_path, options, **kept)
            assert "data.npz" in str(caught.value)


def test_arguments_are_checked_at_construction(subtests):
    for options, message in (
        ({"train_samples": 0}, "train_samples must be at least 1, got 0"),
        ({"test_samples": -1}, "test_samples must be at least 1, got -1"),
        ({"test_fraction": 1.0}, "test_fraction must be above 0 and below 1, got 1.0"),
    ):
        with subtests.test(message), pytest.raises(ValueError, match=message):
            NpzFile(**options)


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(
        ValueError, match=r"one\.npy must be an \.npz archive: File is not a zip file"
    ):
        NpzFile(tmp_path / "one.npy").load()


def test_labels_are_checked_before_rows_are_held_out(tmp_path, subtests):
    for labels, rule in (
        (np.ones((12, 3)), "labels must be one whole number or text each"),
        (np.full(12, np.nan), "labels must be whole numbers, got nan in row 0"),
    ):
        with subtests.test(rule), pytest.raises(ValueError, match=rf"data\.npz: {rule}"):
            load(tmp_path, x_train=images(12, 5), y_train=labels)
    with pytest.raises(ValueError, match=r"data\.npz: test_fraction must leave rows on both sides"):
        load(tmp_path, x_train=images(2, 5), y_train=np.arange(2))


def npy(header, numbers=b"", magic=b"\x93NUMPY\x01\x00"):
    header = header.encode().ljust(118)
    return magic + len(header).to_bytes(2, "little") + header + numbers


def test_headers_are_not_trusted(subtests):
    shape = "{'descr': '<f8', 'fortran_order': False, 'shape': %s}"
    for content, rule in (
        (npy(shape % "(65000, 65000)", bytes(64)), "takes 33800000000 bytes, but 64 follow"),
        (npy(shape % "(7,)", bytes(64)), "takes 56 bytes, but 64 follow"),
        (npy(shape % "(9999999999999, 0)"), "at least one axis and one number"),
        (npy(shape % "(-1, -8)", bytes(64)), "shape must be a tuple of sizes"),
        (npy(shape % "(True, 8)", bytes(64)), "shape must be a tuple of sizes"),
        (npy(shape % "[8]", bytes(64)), "shape must be a tuple of sizes"),
        (npy(shape.replace("False", "2") % "(8,)", bytes(64)), "fortran_order must be True or Fal"),
        (npy(shape.replace("<f8", "|O") % "(8,)", pickle.dumps(8)), "real numbers or text"),
        (npy(shape.replace("<f8", "<i3") % "(8,)", bytes(24)), "real numbers or text"),
        (npy(shape.replace("<f8", "<U1") % "(2,)", b"\xff" * 8), "characters of Unicode"),
        (npy("{'descr': '<f8'}"), "must state descr, fortran_order and shape"),
        (npy("__import__('os')"), "header is no dictionary"),
        (npy("(" * 100), "header is no dictionary"),
        (npy("", magic=b"\x93NUMPY\x03\x00"), "must begin with the magic string"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "at most 4096 bytes, got 4294967295"),
        (b"\x93NUMPY\x02\x00\xff", "its header is cut off"),
        (b"", "must begin with the magic string"),
    ):
        with subtests.test(rule), pytest.raises(ValueError, match=rule):
            parse_npy(content)


def test_order_in_memory_and_of_bytes_change_nothing(tmp_path, subtests):
    rows = images(12, 5, 4, dtype=np.float32)
    expected = load(tmp_path, x_train=rows, y_train=LABELS["y_train"])
    for x_train in (np.asfortranarray(rows), rows.astype(">f4"), rows.astype(">f8", order="F")):
        with subtests.test(dtype=x_train.dtype.str):
            labels = LABELS["y_train"].astype(">i2")
            splits = load(tmp_path, x_train=x_train, y_train=labels)
            for ours, theirs in zip(splits.train.tensors, expected.train.tensors, strict=True):
                assert ours.equal(theirs)


def test_labels_of_two_kinds_are_compared_exactly(tmp_path):
    with pytest.raises(ValueError, match=r"test labels must occur .* got \[9007199254740992"):
        load(
            tmp_path,
            x_train=images(2, 5),
            y_train=np.array([2**53 + 1, 3]),
            x_test=images(2, 5),
            y_test=np.array([2.0**53, 3]),
        )


def test_archives_that_are_not_as_savez_writes_them(tmp_path, subtests):
    path = tmp_path / "data.npz"
    arrays = {"x_train": images(12, 5, 4), "y_train": LABELS["y_train"]}
    for name, method, rule in (
        ("x_train.npy", zipfile.ZIP_BZIP2, "x_train must be a plain array: it is neither stored"),
        ("x_train.npy", zipfile.ZIP_LZMA, "x_train must be a plain array: it is neither stored"),
        ("x_train", zipfile.ZIP_STORED, "must hold x_train, got only y_train"),
        ("../x_train.npy", zipfile.ZIP_STORED, "must hold x_train, got only ../x_train, y_train"),
        ("y_train.npy", zipfile.ZIP_STORED, "must hold x_train, got only y_train"),
    ):
        with subtests.test(name=name, method=method):
            with zipfile.ZipFile(path, "w", method) as archive:
                for key, array in arrays.items():
                    stream = io.BytesIO()
                    np.save(stream, array)
                    if name != "y_train.npy" or key == "y_train":
                        archive.writestr(
                            name if key == "x_train" else f"{key}.npy", stream.getvalue()
                        )
            with pytest.raises(ValueError, match=rule):
                NpzFile(path).load()


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x_train=images(12, 5, 4), y_train=LABELS["y_train"])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x_train.npy", archive.read("x_train.npy"))
    with pytest.raises(ValueError, match="must hold every array once, got x_train twice"):
        NpzFile(path).load()


def test_a_directory_that_lost_members_is_not_one_without_test_arrays(tmp_path, subtests):
    path = tmp_path / "data.npz"
    np.savez(path, x_train=images(12, 5), x_test=images(6, 5), **LABELS)
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    renamed = whole[:start] + whole[start:].replace(b"_test", b"_tent")
    place = whole.index(b"x_test", start)  # its entry swallows the next, whose name is as long
    gap = whole.index(b"PK\x01\x02", place) - place + 46
    swallowed = bytearray(whole)
    swallowed[place - 18 : place - 16] = (len("x_test.npy") + gap - 10 + 11).to_bytes(2, "little")
    for name, content, rule in (
        ("renamed", renamed, "must be an .npz archive: File name in directory"),
        ("swallowed", bytes(swallowed), "must be an .npz archive: 4 members are stated, 3 found"),
    ):
        path.write_bytes(content)
        with subtests.test(name), pytest.raises(ValueError, match=rule):
            NpzFile(path).load()


def test_what_is_not_asked_for_is_not_read(tmp_path):
    extra = np.array([None])
    splits = load(tmp_path, x_train=images(12, 5), y_train=LABELS["y_train"], extra=extra)
    assert splits.num_classes == 3


def test_a_bomb_is_refused_before_it_is_decompressed(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(
        path, x_train=np.zeros((1000, 10000), np.uint8), y_train=np.arange(1000) % 2
    )
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"at most max_bytes=1000000 bytes .* got 10008"):
        NpzFile(path, max_bytes=10**6).load()


def test_a_damaged_archive_is_refused_by_name(tmp_path):
    """A bit of every third byte, and every ninth length; more in `benchmarks/fuzz_data.py`."""
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x_train=images(12, 2), y_train=LABELS["y_train"])
    whole, expected = path.read_bytes(), NpzFile(path).load()
    damaged = [whole[:length] for length in range(0, len(whole), 9)]
    damaged += [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        for place in range(0, len(whole), 3)
    ]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        error, splits = loaded_or_refused(NpzFile(path, max_bytes=10**6))
        if error:
            assert "data.npz" in error
            refused += 1
        else:
            assert splits.train.tensors[0].equal(expected.train.tensors[0])
    assert refused > len(damaged) // 2


def loaded_or_refused(source):
    try:
        return None, source.load()
    except ValueError as error:
        return str(error), None
