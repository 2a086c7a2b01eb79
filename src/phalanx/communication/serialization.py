"""Tensors between processes of one machine, lent by shared memory without a copy.

For trusted processes alone: Ray pickles what is around the bytes. Others use `communication.wire`.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset


class SharedTensor(NamedTuple):
    """A tensor of any dtype and device as an array of bytes.

    A NumPy array is what Ray and pickle hand over without a copy; of bytes, since NumPy knows no
    bfloat16.

    >>> SharedTensor.pack(torch.tensor([1.0, 2.0], dtype=torch.bfloat16)).unpack()
    tensor([1., 2.], dtype=torch.bfloat16)

    Attributes:
        content: the bytes of the numbers, in order.
        dtype: their type.
        shape: the tensor's shape.
    """

    content: np.ndarray[Any, np.dtype[np.uint8]]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def pack(cls, tensor: Tensor) -> "SharedTensor":
        """A view of the tensor, if it is a contiguous one on the CPU; else a copy."""
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return cls(flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))

    def unpack(self) -> Tensor:
        """The tensor, on the CPU: a view of the shared bytes, never to be written to."""
        with warnings.catch_warnings():  # the memory is lent, hence read-only
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            content = torch.from_numpy(self.content)
        return content.view(self.dtype).reshape(self.shape)


class PackedDataset(Dataset[tuple[Tensor, ...]]):
    """A `TensorDataset` of which all workers of a machine read one copy of the tensors."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.tensors = [SharedTensor.pack(tensor) for tensor in dataset.tensors]

    def unpack(self) -> TensorDataset:
        """The data set, in memory that is shared."""
        return TensorDataset(*(tensor.unpack() for tensor in self.tensors))
