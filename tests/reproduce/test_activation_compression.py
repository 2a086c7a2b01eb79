"""The recipe on a narrow network and few epochs."""

import pytest
import torch

from phalanx.reproduce import ActivationCompression, reproduce
from phalanx.reproduce.activation_compression import chain


def test_the_recipe_measures_what_it_says(tmp_path):
    tiny = ActivationCompression(stages=(2,), width=16, epochs=2, seeds=1, batch_size=256)
    done = reproduce(tiny, tmp_path)
    assert "In 2 stages" in done.findings.answer
    by_claim = {one.claim.split(" ")[0]: one for one in done.findings.findings}
    assert by_claim["Both"].same == by_claim["Every"].same == "yes"
    assert by_claim["Every"].ours == "in 6 of 6 runs"
    for table in done.findings.tables:
        assert table.rows[0][0] == 2
        assert all(0 <= one <= 100 for one in table.rows[0][1:])
    assert (done.folder / "findings.html").exists()


@pytest.mark.parametrize(("number", "linear"), [(2, 3), (3, 3), (4, 4)])
def test_stages_have_a_hidden_layer_each(number, linear):
    stages = chain(number, 8)
    assert len(stages) == number
    passed = torch.zeros(5, 1, 8, 8)
    for stage in stages:
        passed = stage(passed)
    assert passed.shape == (5, 10)
    layers = [layer for stage in stages for layer in stage]
    assert sum(isinstance(layer, torch.nn.Linear) for layer in layers) == linear
