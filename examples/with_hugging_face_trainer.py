"""Hugging Face Trainer: a callback puts the hook onto the wrapped model when training begins.

torchrun --nproc-per-node 3 examples/with_hugging_face_trainer.py [compress]
"""

import sys
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from phalanx.aggregation import GeometricMedian
from phalanx.compression import ErrorFeedback, PowerSGD
from phalanx.ddp import aggregate, compress


class Hook(TrainerCallback):
    """Installs the hook; `Trainer` wraps the model anew in each call of `train`."""

    trainer: Trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        model = self.trainer.model_wrapped
        if "compress" in sys.argv:
            self.handle = compress(model, ErrorFeedback(PowerSGD(rank=2)))
        else:
            self.handle = aggregate(model, GeometricMedian())


class Counting(Dataset):
    """Sequences that count upwards."""

    def __len__(self) -> int:
        return 240

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        numbers = (index + torch.arange(8)) % 32
        return {"input_ids": numbers, "labels": numbers}


def main() -> None:
    hook = Hook()
    config = GPT2Config(vocab_size=32, n_positions=8, n_embd=32, n_layer=1, n_head=2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            GPT2LMHeadModel(config),
            TrainingArguments(
                folder,
                per_device_train_batch_size=8,
                max_steps=60,
                learning_rate=1e-2,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                ddp_find_unused_parameters=False,
            ),
            train_dataset=Counting(),
            callbacks=[hook],
        )
        hook.trainer = trainer
        result = trainer.train()
    if trainer.is_world_process_zero():
        print(f"loss {result.training_loss:.4f}, {hook.handle.last}")


if __name__ == "__main__":
    main()
