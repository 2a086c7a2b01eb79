"""Where labelled data comes from: real loaders, one description each."""

from phalanx.data.base import DataSource, Splits
from phalanx.data.csv_file import CsvFile
from phalanx.data.digits import Digits
from phalanx.data.hugging_face_dataset import HuggingFaceDataset
from phalanx.data.jpeg_archive import JpegArchive
from phalanx.data.npz_file import NpzFile
from phalanx.data.torchvision_dataset import TorchvisionDataset

__all__ = [
    "CsvFile",
    "DataSource",
    "Digits",
    "HuggingFaceDataset",
    "JpegArchive",
    "NpzFile",
    "Splits",
    "TorchvisionDataset",
]
