"""Arguments of the wrong kind are refused by name, before any work, with what is meant."""

import json
import os
import re
import subprocess
import sys

from training import wrong_arguments


def test_what_is_of_another_kind_is_refused_by_name(subtests):
    done = subprocess.run(
        [sys.executable, wrong_arguments.__file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for (_, rule), (kind, message, left) in zip(wrong_arguments.CASES, answers, strict=True):
        with subtests.test(rule):
            assert (kind, left) == ("ValueError", False)
            assert re.search(rule, message), message
