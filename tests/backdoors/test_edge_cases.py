"""Edge cases: where they come from, who holds them, and how far out in the tail they lie."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.backdoors import EdgeSet, LowDensity, NpzEdgeCases, TailDensity
from phalanx.data import Digits, NpzFile


@pytest.fixture
def files(tmp_path):
    """Ten classes of images, and other images on the same scale, larger ones among them."""
    draws = np.random.default_rng(0)
    y = np.arange(200) % 10
    x = draws.integers(0, 256, (200, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    rare = draws.integers(0, 256, (12, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "rare.npz", x=rare)
    np.savez(tmp_path / "split.npz", x_train=rare[:8], x_test=rare[8:])
    large = draws.integers(0, 256, (40, 9, 9), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", x_train=large, y_train=np.arange(40) % 4)
    return tmp_path


def test_a_collection_is_put_on_the_scale_of_the_data_and_divided(files):
    data = NpzFile(files / "data.npz")
    edge = NpzEdgeCases(files / "rare.npz", test_fraction=0.25).load(data)
    assert edge.train.shape == (9, 1, 6, 6)
    assert edge.test.shape == (3, 1, 6, 6)
    x, raw = (
        np.load(files / name)[key] for name, key in (("data.npz", "x_train"), ("rare.npz", "x"))
    )
    wanted = torch.from_numpy((raw - x.mean()) / x.std()).float()
    both = torch.cat([edge.train, edge.test]).squeeze(1)
    assert both.sum().item() == pytest.approx(wanted.sum().item(), rel=1e-4)
    assert len({tuple(one.flatten().tolist()) for one in both}) == 12
    split = NpzEdgeCases(files / "split.npz", num_train=5).load(data)
    assert split.train.squeeze(1).allclose(wanted[:5])
    assert split.test.squeeze(1).allclose(wanted[8:])


def test_a_class_of_another_data_set_is_resized(files):
    edge = NpzEdgeCases(files / "other.npz", only_label=3).load(NpzFile(files / "data.npz"))
    assert edge.train.shape[1:] == edge.test.shape[1:] == (1, 6, 6)
    assert len(edge.train) + len(edge.test) == 10
    assert edge.origin == "other.npz, class 3"


def test_what_does_not_fit_is_named(files):
    data = NpzFile(files / "data.npz")
    for cases, message in (
        (NpzEdgeCases(files / "rare.npz", only_label=1), "must hold a label y"),
        (NpzEdgeCases(files / "other.npz", only_label=9), "must have class 9, got none"),
        (NpzEdgeCases(files / "rare.npz", test_fraction=0.01), "leave inputs on both sides"),
        (NpzEdgeCases(files / "rare.npz", true_label=1), "target must differ from true_label"),
        (LowDensity(true_label=11, target=2), "must hold inputs of class 11"),
    ):
        with pytest.raises(ValueError, match=message):
            cases.load(data)
    with pytest.raises(ValueError, match="data must be an NpzFile"):
        NpzEdgeCases(files / "rare.npz").load(Digits())
    (files / "no.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"must be an \.npz archive"):
        NpzEdgeCases(files / "no.npz").load(data)
    for wrong, message in (
        ({"target": 10}, "target must be below the 10 classes"),
        ({"shape": (2, 2)}, "edge cases must have the shape"),
    ):
        shape = wrong.get("shape", (1, 8, 8))
        edge = EdgeSet(torch.zeros(2, *shape), torch.zeros(1, *shape), 7, wrong.get("target", 1))
        with pytest.raises(ValueError, match=message):
            edge.require_fit(Digits().load())


@settings(max_examples=20)
@given(share=st.floats(0, 1), num_clean=st.integers(0, 50), seed=st.integers(0, 99))
def test_who_holds_what_is_counted_exactly(share, num_clean, seed):
    splits = Digits().load()
    edge = LowDensity(true_label=7, target=1, tail=0.2, density=FAST).load(Digits())
    targets = splits.train[:][1]
    honest, poisoned = edge.honest(splits, share), edge.poisoned(splits, num_clean, seed)
    given_back = round(share * len(edge.train))
    assert len(honest) == len(targets) - len(edge.taken) + given_back
    assert (honest.tensors[1][len(honest) - given_back :] == 7).all()
    assert len(poisoned) == num_clean + len(edge.train)
    assert (poisoned.tensors[1][num_clean:] == 1).all()
    held = {tuple(one.flatten().tolist()) for one in honest.tensors[0]}
    rare = [tuple(one.flatten().tolist()) for one in edge.train]
    assert sum(one in held for one in rare) >= given_back
    if share == 0:
        assert not any(one in held for one in rare)
    assert not any(tuple(one.flatten().tolist()) in held for one in edge.test)


FAST = TailDensity(num_components=2, num_dimensions=8)


def test_tails_are_rarer_than_what_is_typical():
    """Rotated digits are out of distribution; low-density ones lie in the tail by construction."""
    splits = Digits().load()
    train, test = splits.train[:][0], splits.test[:][0]
    for density in (TailDensity(), FAST, TailDensity(estimate="kernel", num_dimensions=8)):
        usual = density.quantiles(train, test, test).mean()
        rare = density.quantiles(train, test, test.rot90(1, (2, 3))).mean()
        assert 0.4 < usual < 0.6
        assert rare < 0.35
        cases = LowDensity(7, 1, tail=0.1, density=density)
        members = (splits.train[:][1] == 7).nonzero().flatten()
        chosen = cases.indices(Digits())
        assert set(chosen.tolist()) < set(members.tolist())
        of_chosen, of_all = density.log_density(train, train[chosen], train[members])
        assert of_chosen.max() <= np.sort(of_all)[len(chosen) - 1] + 1e-9


def test_wrong_densities_are_named():
    for wrong in ({"num_components": 0}, {"num_dimensions": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TailDensity(**wrong)
    for wrong in ({"tail": 0.0}, {"test_fraction": 1.0}, {"target": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LowDensity(**wrong)
