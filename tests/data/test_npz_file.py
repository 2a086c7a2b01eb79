"""Images and tables from NumPy archives."""

import itertools

import numpy as np
import pytest
import torch

from phalanx.data import NpzFile

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
        ({"y_test": np.arange(5)}, {}, "test labels must occur in the training set"),
        ({"y_test": np.zeros(5, int)}, {}, "test must have as many inputs as labels"),
        ({"y_test": np.full(6, 9)}, {}, r"test labels must occur in the training set, got \[9\]"),
        ({"y_train": np.linspace(0, 1, 12)}, {}, "labels must be whole numbers, got fractions"),
        ({"y_train": np.ones((12, 3))}, {}, r"labels must be one whole number .* shape \(12, 3\)"),
        ({"x_train": images(12, 5, 4, 7)}, {}, r"x_train must be images .* \(12, 5, 4, 7\)"),
        ({"x_test": images(6, 5, 5)}, {}, "x_train and x_test must hold inputs of one shape"),
        ({"x_train": np.full((12, 5, 4), np.nan)}, {}, "inputs must be finite"),
        ({"x_train": np.full((12, 5, 4), "a")}, {}, "x_train must hold real numbers"),
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
    with pytest.raises(ValueError, match=r"one\.npy must be an \.npz archive, got a single array"):
        NpzFile(tmp_path / "one.npy").load()
