"""JPEG images that share one header, in a NumPy archive."""

import io

import numpy as np
import pytest
from PIL import Image

from phalanx.data import JpegArchive

COLOURS = [(40 * i, 255 - 40 * i, 100) for i in range(6)]


def write(path, **changed):
    """Four training and two test images of one colour each, cut behind their common header."""
    files = []
    for colour in COLOURS:
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(stream, "JPEG", quality=95)
        files.append(stream.getvalue())
    start = files[0].index(b"\xff\xda")  # the start of the scan
    rest = [file[start:] for file in files]
    arrays = {
        "jpeg_header": np.frombuffer(files[0][:start], np.uint8),
        "jpeg_bytes": np.frombuffer(b"".join(rest), np.uint8),
        "offset": np.cumsum([0, *map(len, rest)]),
        "y_train": np.array([0, 1, 2, 1]),
        "y_test": np.array([2, 0]),
    }
    np.savez(path, **(arrays | changed))
    return arrays


def test_colours_come_back_in_order(tmp_path):
    write(tmp_path / "jpegs.npz")
    splits = JpegArchive(tmp_path / "jpegs.npz").load()
    assert splits.input_shape == (3, 8, 8)
    train, test = splits.train.tensors[0].numpy(), splits.test.tensors[0].numpy()
    colours = np.array(COLOURS, float)
    reds = np.concatenate([train, test])[:, 0].mean(axis=(1, 2))
    expected = (colours[:, 0] - colours[:4, 0].mean()) / colours[:4, 0].std()
    np.testing.assert_allclose(reds, expected, atol=0.05)  # JPEG is off by a grey level or two


def test_only_the_first_are_decoded(tmp_path):
    arrays = write(tmp_path / "whole.npz")
    body = arrays["jpeg_bytes"].copy()
    body[arrays["offset"][3] : arrays["offset"][4]] = 0  # the fourth training image is broken
    write(tmp_path / "jpegs.npz", jpeg_bytes=body, jpeg_header=arrays["jpeg_header"])
    splits = JpegArchive(tmp_path / "jpegs.npz", train_samples=3, test_samples=1).load()
    assert splits.train.tensors[1].tolist() == [0, 1, 2]
    assert splits.test.tensors[1].tolist() == [2]
    assert splits.num_classes == 3
    with pytest.raises(ValueError, match=r"jpegs\.npz: image 3 must be a whole image"):
        JpegArchive(tmp_path / "jpegs.npz").load()


def test_errors_name_file_key_and_rule(tmp_path, subtests):
    for changed, message in (
        ({"offset": np.arange(4)}, "offset must hold 7 integers, one more than labels"),
        ({"offset": np.arange(7) / 2}, "offset must hold 7 integers"),
        ({"offset": np.array([0, 9, 5, 10, 11, 12, 13])}, "offset must grow from 0 to at most"),
        ({"offset": np.arange(7) * 10**9}, "offset must grow from 0 to at most"),
        ({"offset": np.arange(7) - 3}, "offset must grow from 0 to at most"),
        ({"jpeg_header": np.zeros(9)}, "jpeg_header must be uint8, got float64"),
        ({"jpeg_header": np.zeros(9, np.uint8)}, "image 0 must be a whole image"),
    ):
        with subtests.test(message, changed=changed):
            write(tmp_path / "jpegs.npz", **changed)
            with pytest.raises(ValueError, match=message) as caught:
                JpegArchive(tmp_path / "jpegs.npz").load()
            assert "jpegs.npz" in str(caught.value)


def test_more_than_there_are_is_refused(tmp_path):
    write(tmp_path / "jpegs.npz")
    with pytest.raises(ValueError, match=r"train_samples must be at most 4 for .*, got 5"):
        JpegArchive(tmp_path / "jpegs.npz", train_samples=5).load()


def claiming(height, width):
    """The header of these images, which claims another size, and the place of its scan."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=95)
    header = bytearray(stream.getvalue()[: stream.getvalue().index(b"\xff\xda")])
    size = header.index(b"\xff\xc0") + 5
    header[size : size + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return np.frombuffer(header, np.uint8)


def test_sizes_that_images_claim_are_checked_before_decoding(tmp_path, subtests):
    for side, rule in (
        (65_000, "image 0 must have at most PIL.Image.MAX_IMAGE_PIXELS"),
        (12_288, "image 0 must have at most PIL.Image.MAX_IMAGE_PIXELS"),
        (9_000, "images must hold at most max_bytes=1000000000 bytes of pixels, got 1458000000"),
    ):
        with subtests.test(side=side):
            write(tmp_path / "jpegs.npz", jpeg_header=claiming(side, side))
            with pytest.raises(ValueError, match=rule) as caught:
                JpegArchive(tmp_path / "jpegs.npz", max_bytes=10**9).load()
            assert "jpegs.npz" in str(caught.value)


def test_the_arrays_count_towards_the_limit(tmp_path):
    write(tmp_path / "jpegs.npz")
    with pytest.raises(ValueError, match="must hold at most max_bytes=500 bytes in jpeg_header"):
        JpegArchive(tmp_path / "jpegs.npz", max_bytes=500).load()
