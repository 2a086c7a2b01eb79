"""What users get wrong is refused under `python -O`, too, which leaves out `assert`."""

import subprocess
import sys

import pytest

REFUSED = {
    "bandwidth": ("from phalanx.communication import bits_per_second as call", "call('0mbit')"),
    "no bandwidth": ("from phalanx.communication import bits_per_second as call", "call('fast')"),
    "latency": ("from phalanx.communication import seconds as call", "call('1m')"),
    "generator": (
        "import torch; from phalanx.compression import PowerSGD; x = torch.ones(90, 90)",
        "PowerSGD().update(x, PowerSGD().init(x))",
    ),
}


@pytest.mark.slow
def test_bad_arguments_are_refused_without_asserts(subtests):
    for name, (setup, call) in REFUSED.items():
        code = (
            f"assert False\n{setup}\ntry:\n    {call}\n"
            "except ValueError as error:\n    print(error)\n"
        )
        with subtests.test(name):
            ran = subprocess.run(
                [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True
            )
            assert " must be " in ran.stdout


def test_bad_arguments_are_refused(subtests):
    """The same calls in this process."""
    for name, (setup, call) in REFUSED.items():
        space = {}
        exec(setup, space)
        with subtests.test(name), pytest.raises(ValueError, match=" must be "):
            exec(call, space)
