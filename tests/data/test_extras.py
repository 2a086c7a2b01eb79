"""The sources that need an extra: the real library if it is there, a clear message if not."""

import importlib.util
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from phalanx.data import HuggingFaceDataset, TorchvisionDataset


def without(library):
    return pytest.mark.skipif(
        importlib.util.find_spec(library) is not None, reason=f"{library} is installed"
    )


def with_(library):
    return pytest.mark.skipif(
        importlib.util.find_spec(library) is None, reason=f"{library} is not installed"
    )


@without("torchvision")
def test_the_missing_vision_extra_is_named():
    with pytest.raises(ValueError, match=r"pip install 'phalanx\[vision\]'"):
        TorchvisionDataset().load()


@without("datasets")
def test_the_missing_hugging_face_extra_is_named():
    with pytest.raises(ValueError, match=r"pip install 'phalanx\[huggingface\]'"):
        HuggingFaceDataset().load()


def test_sizes_are_checked(subtests):
    for kind in (TorchvisionDataset, HuggingFaceDataset):
        with (
            subtests.test(kind.__name__),
            pytest.raises(ValueError, match="image_size must be at least 1, got 0"),
        ):
            kind(image_size=0)


@with_("torchvision")
def test_torchvision_reads_files_in_its_own_layout(tmp_path, subtests):
    for case in (("MNIST", "", {}), ("EMNIST", "emnist-letters-", {"split": "letters"})):
        with subtests.test(case[0]):
            require_read(tmp_path, *case)


def require_read(tmp_path, name, prefix, options):
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    test = "test" if prefix else "t10k"
    for part, num_rows in {"train": 6, test: 3}.items():
        labels = np.arange(num_rows, dtype=np.uint8) % 3
        images = np.broadcast_to(100 * labels[:, None, None], (num_rows, 5, 4)).astype(np.uint8)
        for content, kind, array in (("images-idx3", 3, images), ("labels-idx1", 1, labels)):
            header = struct.pack(f">HBB{kind}I", 0, 8, kind, *array.shape)
            (raw / f"{prefix}{part}-{content}-ubyte").write_bytes(header + array.tobytes())
    splits = TorchvisionDataset(name, root=tmp_path, download=False, options=options).load()
    assert (splits.input_shape, splits.num_classes) == ((1, 5, 4), 3)
    assert splits.train.tensors[1].tolist() == [0, 1, 2, 0, 1, 2]
    brightness = splits.test.tensors[0].mean(dim=(1, 2, 3))
    assert brightness.tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], abs=1e-5)


@with_("torchvision")
def test_torchvision_names_are_checked():
    with pytest.raises(ValueError, match=r"name must be a class of torchvision\.datasets"):
        TorchvisionDataset("NoSuchSet").load()
    with pytest.raises(ValueError, match="with a test part of its own, got Caltech101"):
        TorchvisionDataset("Caltech101").load()
    with pytest.raises(ValueError, match="Unknown value 'train' for argument split"):
        TorchvisionDataset("EMNIST").load()


@with_("datasets")
def test_text_from_csv_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("text,label\n" + "good film,yes\nbad film,no\n" * 4, encoding="utf-8")
    test.write_text("text,label\ngood,yes\n", encoding="utf-8")
    source = HuggingFaceDataset(
        "csv",
        data_files={"train": str(train), "test": str(test)},
        input="text",
        train_split="train[:6]",
        num_features=16,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = source.load()
    assert (splits.input_shape, splits.num_classes) == ((16,), 2)
    assert (len(splits.train), len(splits.test)) == (6, 1)
    assert splits.test.tensors[1].tolist() == [1]


@with_("datasets")
def test_images_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    for label, level in {"black": 0, "white": 255}.items():
        (tmp_path / "train" / label).mkdir(parents=True)
        for index in range(5):
            picture = Image.fromarray(np.full((4, 6), level, np.uint8))
            picture.save(tmp_path / "train" / label / f"{index}.png")
    source = HuggingFaceDataset(str(tmp_path), test_split=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = source.load()
    assert (splits.input_shape, splits.num_classes) == ((1, 4, 6), 2)
    inputs, targets = splits.train.tensors
    assert (inputs.mean(dim=(1, 2, 3)).sign() == 2 * targets - 1).all()
    assert splits.test.tensors[1].tolist() == [0, 1]


@with_("datasets")
def test_damaged_and_huge_images_of_a_folder_are_refused(tmp_path, monkeypatch, subtests):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder, other = tmp_path / "train" / "a", tmp_path / "train" / "b"
    folder.mkdir(parents=True)
    other.mkdir()
    whole = io.BytesIO()
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(whole, "PNG")
    (other / "1.png").write_bytes(whole.getvalue())
    header = b"IHDR" + struct.pack(">II", 65_000, 65_000) + whole.getvalue()[24:29]
    huge = whole.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header))
    for name, content, rule in (
        ("huge", huge + whole.getvalue()[33:], "must have at most PIL.Image.MAX_IMAGE_PIXELS"),
        ("cut", whole.getvalue()[:50], "must be a whole image"),
    ):
        (folder / "0.png").write_bytes(content)
        with subtests.test(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=f"column image {rule}"):
                HuggingFaceDataset(str(tmp_path), test_split=None).load()


@with_("torchvision")
def test_labels_of_torchvision_must_be_whole_numbers(tmp_path, monkeypatch):
    import torchvision

    class Halves:
        def __init__(self, root, train):
            pass

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return Image.new("L", (4, 4)), index / 2

    monkeypatch.setattr(torchvision.datasets, "Halves", Halves, raising=False)
    with pytest.raises(ValueError, match=r"Halves: labels must be one whole number each, got 0\.0"):
        TorchvisionDataset("Halves").load()
