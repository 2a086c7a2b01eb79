"""Labelled data sets from files and libraries, and their partitions over workers."""

from phalanx.data.base import DataSource, Splits
from phalanx.data.csv_file import CsvFile
from phalanx.data.digits import Digits
from phalanx.data.dirichlet_partitioner import DirichletPartitioner
from phalanx.data.hugging_face_dataset import HuggingFaceDataset
from phalanx.data.iid_partitioner import IidPartitioner
from phalanx.data.image_folder import ImageFolder
from phalanx.data.jpeg_archive import JpegArchive
from phalanx.data.labelled_texts import LabelledTexts
from phalanx.data.long_tailed_partitioner import LongTailedPartitioner
from phalanx.data.natural_id_partitioner import NaturalIdPartitioner
from phalanx.data.npz_file import NpzFile
from phalanx.data.partitioner import Partitioner
from phalanx.data.pathological_partitioner import PathologicalPartitioner
from phalanx.data.shard_partitioner import ShardPartitioner
from phalanx.data.size_partitioner import SizePartitioner
from phalanx.data.text_file import TextFile
from phalanx.data.torchvision_dataset import TorchvisionDataset

__all__ = [
    "CsvFile",
    "DataSource",
    "Digits",
    "DirichletPartitioner",
    "HuggingFaceDataset",
    "IidPartitioner",
    "ImageFolder",
    "JpegArchive",
    "LabelledTexts",
    "LongTailedPartitioner",
    "NaturalIdPartitioner",
    "NpzFile",
    "Partitioner",
    "PathologicalPartitioner",
    "ShardPartitioner",
    "SizePartitioner",
    "Splits",
    "TextFile",
    "TorchvisionDataset",
]
