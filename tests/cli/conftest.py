import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from phalanx.cli import main

HERE = Path(__file__).parent


@pytest.fixture
def phalanx(tmp_path, monkeypatch, capsys):
    """The command in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments):
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def start(tmp_path):
    """Starts the command as a process of its own, in an empty folder; ends what is left of it."""
    processes = []

    def begin(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "phalanx", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hear_ctrl_c,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def _hear_ctrl_c():
    """Those started by a shell in the background, as tests may be, do not hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
