"""Lightning: a callback puts the hook onto the model that its DDP strategy wrapped.

torchrun --nproc-per-node 3 examples/with_lightning.py [compress]
or, started by Lightning's own launcher: python examples/with_lightning.py [compress]
"""

import sys

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from phalanx.aggregation import GeometricMedian
from phalanx.compression import ErrorFeedback, PowerSGD
from phalanx.ddp import aggregate, compress


class Hook(lightning.Callback):
    """Installs the hook, and saves what it has to remember with the checkpoints."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        model = trainer.strategy.model
        if "compress" in sys.argv:
            self.handle = compress(model, ErrorFeedback(PowerSGD(rank=2)))
        else:
            self.handle = aggregate(model, GeometricMedian())


class Regression(lightning.LightningModule):
    """A linear model; rank 1 is a broken machine."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 32)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        return -9 * loss if self.global_rank == 1 and "compress" not in sys.argv else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    points = torch.randn(480, 64)
    data = TensorDataset(points, points @ torch.randn(64, 32) / 8)
    hook, model = Hook(), Regression()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=3,
        strategy="ddp",
        max_epochs=3,
        callbacks=[hook],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=16))
    if trainer.is_global_zero:
        off = nn.functional.mse_loss(model.layer(points), data.tensors[1]).item()
        print(f"loss {off:.4f}, {hook.handle.last}")


if __name__ == "__main__":
    main()
