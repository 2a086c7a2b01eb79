"""The loaders on real data, where a folder of it is at hand."""

import os
from pathlib import Path

import pytest
import torch

from phalanx.data import CsvFile, JpegArchive, LabelledTexts, NpzFile, TextFile

FOLDER = Path(os.environ.get("PHALANX_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no data in {FOLDER}; PHALANX_DATA names another folder"
)


def load(source):
    if not source.path.exists():
        pytest.skip(f"{source.path} is not there")
    return source.load()


EXPECTED = [
    (NpzFile(FOLDER / "usps.npz"), (1, 16, 16), 10, (7291, 2007)),
    (NpzFile(FOLDER / "mnist.npz", 2000, 500), (1, 28, 28), 10, (2000, 500)),
    (NpzFile(FOLDER / "emnist_letters_small.npz"), (1, 28, 28), 26, (5200, 1040)),
    (NpzFile(FOLDER / "gtsrb_small.npz"), (3, 32, 32), 43, (3920, 1579)),
    (JpegArchive(FOLDER / "cifar10_full_jpeg.npz", 500, 50), (3, 32, 32), 10, (500, 50)),
    (CsvFile(FOLDER / "covtype_15k.csv.gz", "Cover_Type"), (54,), 7, (12096, 3024)),
    (CsvFile(FOLDER / "adult.csv.gz", "income"), (108,), 2, (32561, 16281)),
    (CsvFile(FOLDER / "sst2.csv.gz", num_features=512), (512,), 2, (6920, 1821)),
    (CsvFile(FOLDER / "trec.csv.gz", ignore=["fine_label"]), (2048,), 6, (5452, 500)),
    (LabelledTexts(FOLDER / "trec.csv.gz"), (32,), 6, (5452, 500)),
    (LabelledTexts(FOLDER / "ag_news_7600.csv.gz", ["title"]), (32,), 4, (6080, 1520)),
    (TextFile(FOLDER / "tinyshakespeare.txt.gz", 128), (128,), 66, (7842, 871)),
]


@pytest.mark.slow
def test_shapes_are_those_of_the_set(subtests):
    for source, input_shape, num_classes, sizes in EXPECTED:
        with subtests.test(repr(source)):
            splits = load(source)
            assert (splits.input_shape, splits.num_classes) == (input_shape, num_classes)
            assert (len(splits.train), len(splits.test)) == sizes


@pytest.mark.slow
def test_mnist_is_standardised_to_its_published_statistics():
    inputs = load(NpzFile(FOLDER / "mnist.npz")).train.tensors[0]
    # Black is 0: it shows mean / standard deviation, 0.1307 / 0.3081.
    assert inputs.min().item() == pytest.approx(-0.1307 / 0.3081, abs=1e-3)
    assert inputs.max().item() == pytest.approx((1 - 0.1307) / 0.3081, abs=1e-3)


def test_the_jpeg_images_are_those_of_the_lossless_set():
    lossy = load(JpegArchive(FOLDER / "cifar10_full_jpeg.npz", 200, 50))
    exact = load(NpzFile(FOLDER / "cifar10_12k.npz", 200, 50))
    for part in ("train", "test"):
        (ours, labels), (theirs, same) = getattr(lossy, part).tensors, getattr(exact, part).tensors
        assert torch.equal(labels, same)
        # 30 dB of PSNR is an error of 8 grey levels in 255, where a channel's deviation is 64.
        assert (ours - theirs).pow(2).mean().sqrt() < 0.25
