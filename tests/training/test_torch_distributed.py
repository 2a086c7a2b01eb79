"""Ranks of torch.distributed as workers: the bits of one process, and how a rank can fail."""

import subprocess
import sys

import pytest

from ddp.ranks import Ranks
from phalanx.training import TorchDistributed
from training.adders import Adders
from training.distributed_cases import faults, on_server, products, same_weights

SCRIPT = """
import torch, phalanx
from phalanx.coding import DracoRepetition
from phalanx.training import TorchDistributed

x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
data = torch.utils.data.TensorDataset(x, (x.sum(dim=1) > 0).long())
engine = TorchDistributed()
with engine.join() as is_server:
    if is_server:
        model, code = torch.nn.Linear(4, 2), DracoRepetition(3, 1)
        phalanx.train(model, data, code, engine=engine, steps=2)
        print("trained")
"""


@pytest.mark.slow
def test_weights_are_those_of_one_process_and_products_come_from_the_first(tmp_path):
    with Ranks(4, tmp_path) as ranks:
        assert ranks(on_server, same_weights) == [True, None, None, None]
        seconds, *_ = ranks(on_server, products)
        assert seconds < 10


@pytest.mark.slow
def test_what_is_missing_is_named_and_the_others_go_on(tmp_path):
    with Ranks(4, tmp_path) as ranks:
        ranks.start(on_server, faults, deadline_s=2.0)
        assert ranks.answer(0) == [
            ({0: "failed: ZeroDivisionError: by worker", 1: "late"}, [2]),
            ({}, [0, 1, 2]),
            ({1: "dead"}, [0, 2]),
            ({1: "dead"}, [0, 2]),
            (
                dict.fromkeys((0, 2), "failed: ZeroDivisionError: by worker"),
                "workers [0, 2] failed; worker 0:",
            ),
        ]


@pytest.mark.slow
def test_a_script_under_torchrun_ends_by_itself(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "4", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def test_without_a_group_or_with_senseless_seconds_it_is_refused():
    with pytest.raises(ValueError, match=r"a process group must be there: .*join"):
        TorchDistributed().start(Adders())
    with pytest.raises(ValueError, match="deadline_s must be finite and above 0, got 0"):
        TorchDistributed(deadline_s=0.0)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        TorchDistributed(chunk_size=0)
