"""DRACO under DistributedDataParallel: one rank computes wrong gradients, and the run is exact.

torchrun --nproc-per-node 5 examples/draco_under_ddp.py
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from phalanx.coding import DracoCyclic
from phalanx.ddp import CodedSampler, aggregate


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    points, classes = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(points).float() / 16, torch.tensor(classes))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    # Every rank computes 2 s + 1 = 3 of the partitions of a batch, and sends one weighted sum.
    code = DracoCyclic(dist.get_world_size(), num_byzantine=1, tolerance=1e-5)
    sampler = CodedSampler(len(data), code, batch_size=300)
    handle = aggregate(model, code)

    for epoch in range(4):
        sampler.set_epoch(epoch)
        for inputs, targets in DataLoader(data, batch_sampler=sampler):
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
            loss = handle.loss(losses)  # weighted, partition by partition
            if dist.get_rank() == 2:
                loss = -5 * loss  # a broken machine
            loss.backward()
            optimizer.step()

    right = (model.module(data.tensors[0]).argmax(dim=1) == data.tensors[1]).float().mean()
    if dist.get_rank() == 0:
        print(f"accuracy {right:.3f}, times suspected {handle.times_suspected.tolist()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
