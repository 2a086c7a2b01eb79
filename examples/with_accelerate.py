"""Accelerate: the hook goes onto the prepared model.

torchrun --nproc-per-node 3 examples/with_accelerate.py [compress]
"""

import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from phalanx.aggregation import GeometricMedian
from phalanx.compression import ErrorFeedback, PowerSGD
from phalanx.ddp import aggregate, compress


def main() -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    points = torch.randn(480, 64)
    data = TensorDataset(points, points @ torch.randn(64, 32) / 8)
    network = nn.Linear(64, 32)
    model, optimizer, loader = accelerator.prepare(
        network, torch.optim.SGD(network.parameters(), lr=0.5), DataLoader(data, batch_size=16)
    )
    if "compress" in sys.argv:
        handle = compress(model, ErrorFeedback(PowerSGD(rank=2)))
    else:
        handle = aggregate(model, GeometricMedian())

    for _ in range(3):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(inputs), targets)
                if accelerator.process_index == 1 and "compress" not in sys.argv:
                    loss = -9 * loss  # a broken machine
                accelerator.backward(loss)
                optimizer.step()

    off = nn.functional.mse_loss(network(points), data.tensors[1]).item()
    accelerator.print(f"loss {off:.4f}, {handle.last}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
