"""Where labelled data comes from: real loaders, one description each; and who holds which of it."""

from phalanx.data.base import DataSource, Splits
from phalanx.data.csv_file import CsvFile
from phalanx.data.digits import Digits
from phalanx.data.dirichlet_shards import DirichletShards
from phalanx.data.hugging_face_dataset import HuggingFaceDataset
from phalanx.data.iid_shards import IidShards
from phalanx.data.jpeg_archive import JpegArchive
from phalanx.data.labelled_texts import LabelledTexts
from phalanx.data.long_tailed_shards import LongTailedShards
from phalanx.data.npz_file import NpzFile
from phalanx.data.shards import Shards
from phalanx.data.sorted_shards import SortedShards
from phalanx.data.text_file import TextFile
from phalanx.data.torchvision_dataset import TorchvisionDataset

__all__ = [
    "CsvFile",
    "DataSource",
    "Digits",
    "DirichletShards",
    "HuggingFaceDataset",
    "IidShards",
    "JpegArchive",
    "LabelledTexts",
    "LongTailedShards",
    "NpzFile",
    "Shards",
    "SortedShards",
    "Splits",
    "TextFile",
    "TorchvisionDataset",
]
