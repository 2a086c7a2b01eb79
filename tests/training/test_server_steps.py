"""What every step of the server promises, and what each computes, by torch's optimizers."""

import io
import pickle
from collections.abc import Mapping

import pytest
import torch

from laws import concrete
from phalanx import training
from phalanx.training import ServerMomentum, ServerStep
from training.drifting import a_model, flat

every = pytest.mark.parametrize("kind", concrete(training, ServerStep))


def updates(number):
    source = torch.Generator().manual_seed(3)
    return torch.randn(number, len(flat(a_model())), generator=source)


def stepped(step, rounds):
    """A model, and what is remembered, after these updates."""
    model = a_model()
    state = step.init(model)
    for one in rounds:
        state = step.apply(model, one, state)
    return model, state


@every
def test_a_checkpoint_in_the_middle_changes_no_bit(kind, subtests):
    step, rounds = kind(), updates(6)
    whole = flat(stepped(step, rounds)[0])
    for middle in range(7):
        with subtests.test(middle=middle):
            model, state = stepped(step, rounds[:middle])
            file = io.BytesIO()
            torch.save(step.dump(state), file)
            file.seek(0)
            state = step.load(model, torch.load(file, weights_only=True))
            for one in rounds[middle:]:
                state = step.apply(model, one, state)
            assert flat(model).equal(whole)


@every
def test_updates_stay_as_they_are_and_what_workers_are_told_is_a_mapping(kind):
    step, rounds = kind(), updates(3)
    before = rounds.clone()
    model, state = stepped(step, rounds)
    assert rounds.equal(before)
    assert not flat(model).equal(flat(a_model()))
    extra = step.extra(state)
    assert isinstance(extra, Mapping)
    assert all(isinstance(one, torch.Tensor) for one in extra.values())


@every
def test_it_is_a_value(kind):
    assert pickle.loads(pickle.dumps(kind())) == kind()


def test_momentum_of_the_server_is_that_of_sgd(subtests):
    for momentum, lr in [(0.0, 1.0), (0.9, 0.1), (0.5, 1.0)]:
        with subtests.test(momentum=momentum, lr=lr):
            found, _ = stepped(ServerMomentum(momentum, lr), updates(8))
            model = a_model()
            sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
            for update in updates(8):
                parts = update.split([one.numel() for one in model.parameters()])
                for one, part in zip(model.parameters(), parts, strict=True):
                    one.grad = part.view_as(one)
                sgd.step()
            torch.testing.assert_close(flat(found), flat(model))


def test_what_is_out_of_range_is_refused(subtests):
    cases = [
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"momentum": -0.1}, "momentum must be at least 0"),
        ({"lr": 0.0}, "lr must be finite and above 0, got 0.0"),
    ]
    for arguments, rule in cases:
        with subtests.test(**arguments), pytest.raises(ValueError, match=rule):
            ServerMomentum(**arguments)
