"""Ray Train: the hook goes onto the model that `prepare_model` wraps, in every worker.

python examples/with_ray_train.py [compress]
"""

import sys
from typing import Any

import ray
import torch
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from phalanx.aggregation import GeometricMedian
from phalanx.compression import ErrorFeedback, PowerSGD
from phalanx.ddp import aggregate, compress


def train(config: dict[str, Any]) -> None:
    rank = get_context().get_world_rank()
    torch.manual_seed(0)
    truth, network = torch.randn(64, 32) / 8, nn.Linear(64, 32)
    model = prepare_model(network)
    if config["compress"]:
        handle = compress(model, ErrorFeedback(PowerSGD(rank=2)))
    else:
        handle = aggregate(model, GeometricMedian())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.manual_seed(rank)  # data of its own
    for _ in range(30):
        points = torch.randn(16, 64)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(points), points @ truth)
        if rank == 1 and not config["compress"]:
            loss = -9 * loss  # a broken machine
        loss.backward()
        optimizer.step()
    if rank == 0:
        points = torch.randn(480, 64)
        off = nn.functional.mse_loss(network(points), points @ truth).item()
        print(f"loss {off:.4f}, {handle.last}", flush=True)


def main() -> None:
    ray.init(num_cpus=4, include_dashboard=False)
    trainer = TorchTrainer(
        train,
        train_loop_config={"compress": "compress" in sys.argv},
        scaling_config=ScalingConfig(num_workers=3, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="phalanx"),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
