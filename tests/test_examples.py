"""The scripts under `examples` run, each as its first lines say, where the library is installed."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from pages import ROOT

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def run(*command, timeout_s=100, **environment):
    """What a script prints; its output is shown if it fails."""
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    variables = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def needs(*modules):
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {missing}: pip install 'phalanx[integrations]'")


def test_draco():
    printed = run(sys.executable, *TORCHRUN, "5", str(EXAMPLES / "draco_under_ddp.py"))
    accuracy, named = re.search(r"accuracy ([\d.]+), times suspected (.*)", printed).groups()
    assert float(accuracy) > 0.75
    assert named == "[0, 0, 20, 0, 0]"


@pytest.mark.parametrize("what", ["aggregate", "compress"])
@pytest.mark.parametrize(
    ("script", "module", "by_torchrun"),
    [
        ("with_accelerate.py", "accelerate", True),
        ("with_hugging_face_trainer.py", "accelerate", True),
        ("with_lightning.py", "lightning", True),
        ("with_lightning.py", "lightning", False),
        ("with_ray_train.py", "ray", False),
    ],
)
def test_integrations(what, script, module, by_torchrun):
    needs(module, *(["transformers"] if "trainer" in script else []))
    if module == "ray":
        needs("pyarrow", "pydantic")  # what ray[train] brings beside ray[default]
    launcher = [*TORCHRUN, "3"] if by_torchrun else []
    printed = run(sys.executable, *launcher, str(EXAMPLES / script), what)
    loss, step = re.search(r"loss ([\d.]+), (\w+Step)", printed).groups()
    assert float(loss) < 2.5 if "trainer" in script else float(loss) < 0.9
    assert step == ("AggregatedStep" if what == "aggregate" else "CompressedStep")
    if what == "aggregate" and "trainer" not in script:
        assert "suspects=tensor([False,  True, False])" in printed


def test_slurm_starts_one_torchrun_on_each_node(tmp_path):
    """With commands that stand in for those of Slurm, on a cluster of one node."""
    for name, line in {
        "srun": 'exec "$@"',
        "scontrol": "echo localhost",
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }.items():
        command = tmp_path / name
        command.write_text(f"#!/bin/bash\n{line}\n")
        command.chmod(0o755)
    printed = run(
        "bash",
        str(EXAMPLES / "slurm.sbatch"),
        str(EXAMPLES / "draco_under_ddp.py"),
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        SLURM_JOB_ID="7",
        SLURM_JOB_NUM_NODES="1",
        SLURM_JOB_NODELIST="localhost",
        SLURM_GPUS_ON_NODE="3",
        SLURM_CPUS_PER_TASK="3",
    )
    assert "times suspected [0, 0, 20]" in printed
