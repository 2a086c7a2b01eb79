"""The recipe on small networks: all ways and methods, and words for both outcomes."""

import numpy as np
import pytest

from phalanx.experiments import Records
from phalanx.experiments.records import Record
from phalanx.federated import ClientTraining
from phalanx.reproduce import FedMARecipe, Scope, reproduce
from phalanx.reproduce.matched_networks import RoleClients, rounds_run

TINY = FedMARecipe(
    samples=300,
    hidden=12,
    seeds=2,
    deep_samples=120,
    pixels=8,
    deep_width=1,
    deep_clients=2,
    deep_seeds=1,
    rounds=(2, 1),
    epochs=1,
)


def test_roles_are_clients_and_their_last_lines_are_for_testing(tmp_path):
    """The longest roles, wherever their lines stand; FedMA and the baselines run on them."""
    blocks = [f"{name}:\n{letter * 50}" for name, letter in (("ANN", "a"), ("BO", "b")) * 3]
    (tmp_path / "plays.txt").write_text("\n\n".join([*blocks, "CID:\nccc"]))
    federation = RoleClients(tmp_path / "plays.txt", 2, 150, length=10, hidden=3)
    found = federation.load(seed=0)
    assert [len(one) for one in found.clients] == [12, 12]
    assert len(found.test) == 6
    inputs, targets = found.clients[0][:]
    assert inputs[:, 1:].equal(targets[:, :-1])
    training = ClientTraining(1, lr=0.25, batch_size=5)
    for method in ("FedMA", "FedProx", "ensemble"):
        done = rounds_run(federation, 1, method, training, training, 1e-3, seed=0)
        assert 0 <= done["accuracies"][-1] <= 1
        assert done["bytes"] > 0


def records(recipe, scope, ours):
    found = []
    for cell in recipe.cells(scope):
        told = dict(cell.labels)
        if told["part"] == "one shot":
            ways = ("local", "averaged", "averaged, same start", "FedMA", "FedMA, retrained")
            values = dict.fromkeys((*ways, "ensemble"), 0.5) | {"width": 12}
        else:
            better = ours if told["method"] == "FedMA" else 0.4
            growth = 1.1 if told["method"] == "FedMA" else 1.0
            values = {"accuracies": [0.1, better], "growth": growth, "bytes": 100.0}
        found.append(Record(cell.labels, values=values))
    return Records(found)


def test_claims_are_of_both_networks(tmp_path):
    """At size default; files that nobody reads are enough to build the cells."""
    recipe = FedMARecipe().at("default")
    (tmp_path / "tinyshakespeare.txt.gz").touch()
    for name in ("mnist.npz", "cifar10_12k.npz"):
        images = np.zeros((20, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / name, x_train=images, y_train=np.arange(20) % 10)
    scope = Scope("default", tmp_path)
    for ours, expected in ((0.41, "yes"), (0.3, "no")):
        found = recipe.findings(records(recipe, scope, ours), scope)
        told = {one.text: one.same for one in found.claims}
        assert len(told) == 8
        ensembles = [same for text, same in told.items() if "the ensemble of the clients'" in text]
        assert ensembles == [expected] * 2
        assert ("did not beat" in found.answer) == (ours < 0.4)
        assert len(found.tables) == 3


@pytest.mark.slow
def test_the_recipe_runs_whole(tmp_path):
    done = reproduce(TINY, tmp_path, size="quick", jobs=1)
    shot, deep = done.findings.tables
    assert [row[0] for row in shot.rows][-1] == "width"
    assert shot.rows[-1][1] >= 12
    assert [row[0] for row in deep.rows] == [
        *("FedMA", "FedAvg", "FedAvg, longer", "FedProx", "ensemble"),
    ]
    assert len(done.findings.claims) == 5
    assert "matched averaging" in done.findings.answer
