import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def make_run(tmp_path):
    """Writes a small but whole run folder, as training leaves it."""

    def make(
        name: str,
        *,
        title: str | None = None,
        rounds: int = 4,
        byzantine: tuple[int, ...] = (),
        suspects: tuple[int, ...] = (),
        outliers: tuple[int, ...] = (),
        missing: dict[str, str] | None = None,
        accuracy: float | None = 0.964,
        loss: float | None = 0.5,
        residual: float | None = None,
        suspicion: dict[int, float] | None = None,
        excluded: dict[int, int] | None = None,
        weights: dict[str, torch.Tensor] | None = None,
        attack: str | None = None,
        stopped: str | None = None,
        stopped_by: str | None = None,
        evaluation: dict[str, float] | None = None,
        finished: bool = True,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text("steps: 4\n")
        (folder / "env.json").write_text(json.dumps({"phalanx": "0.1.0", "seed": 3}))
        lines = [
            {
                "step": step,
                "loss": loss,
                "seconds": 0.02,
                "compute_seconds": 0.012,
                "decode_seconds": 0.004,
                "byzantine": list(byzantine),
                "suspects": list(suspects),
                "outliers": list(outliers),
                "missing": missing or {},
                "residual": residual,
                "suspicion": [(suspicion or {}).get(worker, 0.0) for worker in range(9)],
                "excluded": [worker for worker, at in (excluded or {}).items() if step + 1 >= at],
                "test_accuracy": accuracy if step == rounds - 1 else None,
                "test_loss": None,
                **(evaluation or {}),
            }
            for step in range(rounds)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        if finished:
            result = {
                "title": title or name,
                "rounds": rounds,
                "test_accuracy": accuracy,
                "test_loss": 0.1,
                "num_parameters": 3,
                "num_workers": 9,
                "num_partitions": 9,
                "redundancy": 5.0,
                "decoder": "DracoCyclic(num_workers=9)",
                "attack": attack or ("ReverseGradient()" if byzantine else None),
                "stopped": stopped,
                "stopped_by": stopped_by,
                "evaluation": evaluation or {},
                "methods": ["DRACO: Chen et al., ICML 2018, https://arxiv.org/abs/1803.09877"],
            }
            (folder / "result.json").write_text(json.dumps(result))
            if weights is None:
                weights = {"w": torch.tensor([1.0, -4.0, 2.0])}
            save_file(weights, folder / "model.safetensors")
        return folder

    return make
