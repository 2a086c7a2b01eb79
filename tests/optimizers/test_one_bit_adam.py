"""What Adam with compressed momenta promises."""

import copy
import io
import math

import pytest
import torch
import torch.distributed as dist

from phalanx.compression import ErrorFeedback, TensorStates, TwoStage, Uncompressed, simulate
from phalanx.errors import NotFiniteError
from phalanx.optimizers import OneBitAdam


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(step, shapes=((5, 3), (5,)), seed=0):
    source = torch.Generator().manual_seed(100 * step + seed)
    return [torch.randn(shape, generator=source) for shape in shapes]


def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Linear(3, 5)


def steps(optimizer, start, stop):
    for step in range(start, stop):
        parameters = optimizer.param_groups[0]["params"]
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()


def weights(net):
    return torch.nn.utils.parameters_to_vector(net.parameters()).detach()


def test_until_second_moments_stay_it_is_adam(alone):
    ours, theirs = model(), model()
    steps(OneBitAdam(ours.named_parameters(), 0.1, weight_decay=0.2, freeze_step=9), 0, 9)
    steps(torch.optim.AdamW(theirs.parameters(), 0.1, weight_decay=0.2), 0, 9)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-5, atol=1e-6)


def test_without_compression_it_is_adam_with_second_moments_that_stay(alone):
    net = model()
    optimizer = OneBitAdam(net.named_parameters(), 0.1, freeze_step=3, compressor=Uncompressed())
    weight, first, second = model().weight.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
    steps(optimizer, 0, 8)
    for step in range(8):
        gradient = gradients(step)[0]
        first = 0.9 * first + 0.1 * gradient
        if step < 3:
            second = 0.999 * second + 0.001 * gradient**2
        root = (second / (1 - 0.999 ** min(step + 1, 3))).sqrt() + 1e-8
        weight -= 0.1 * first / (1 - 0.9 ** (step + 1)) / root
    torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-5, atol=1e-6)


def test_what_travels_is_the_momentum(alone):
    """Against the rule written down with the simulation of one worker."""
    net, compressor = model(), ErrorFeedback(TwoStage())
    optimizer = OneBitAdam(net.named_parameters(), 0.1, freeze_step=2)
    steps(optimizer, 0, 2)
    first = optimizer.state[net.weight]["first"].clone()
    memory = TensorStates(2)
    for step in range(2, 6):
        own = torch.lerp(gradients(step)[0], first, 0.9)
        (means,), (memory,) = simulate(compressor, [{"weight": own}], [memory])
        first = means["weight"]
        steps(optimizer, step, step + 1)
        assert optimizer.state[net.weight]["first"].equal(first)
    assert first.abs().unique().numel() == 1


def test_a_run_that_is_resumed_ends_in_the_same_bits(alone):
    for stop in (2, 6):
        straight = model()
        optimizer = OneBitAdam(straight.named_parameters(), freeze_step=4)
        steps(optimizer, 0, stop)
        resumed, file = copy.deepcopy(straight), io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        steps(optimizer, stop, 9)
        file.seek(0)
        other = OneBitAdam(resumed.named_parameters(), freeze_step=4)
        other.load_state_dict(torch.load(file, weights_only=True))
        steps(other, stop, 9)
        assert weights(resumed).equal(weights(straight))


def test_nothing_changes_where_a_gradient_is_not_finite(alone):
    net = model()
    optimizer = OneBitAdam(net.named_parameters())
    before = weights(net)
    net.weight.grad = torch.full((5, 3), math.nan)
    with pytest.raises(NotFiniteError):
        optimizer.step()
    assert weights(net).equal(before)
    assert optimizer.memory.step == 0


def test_a_step_with_overflow_is_left_out_under_a_gradient_scaler(alone):
    for poison in (1.0, math.inf):
        plain, scaled = model(), model()
        ours, theirs = (
            OneBitAdam(one.named_parameters(), freeze_step=2) for one in (scaled, plain)
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        for step in range(4):
            inputs = torch.ones(2, 3) * (step + 1)
            factor = poison if step == 1 else 1.0
            for one, optimizer in ((scaled, ours), (plain, theirs)):
                optimizer.zero_grad()
                loss = one(inputs).square().mean()
                (scaler.scale(loss) * factor if one is scaled else loss).backward()
            before = weights(scaled)
            scaler.step(ours)
            scaler.update()
            if step == 1 and poison != 1.0:
                assert weights(scaled).equal(before)
            else:
                theirs.step()
        assert ours.memory.step == (4 if poison == 1.0 else 3)
        if poison == 1.0:
            assert weights(scaled).equal(weights(plain))


def test_parameters_that_do_not_fit_are_refused_and_sparse_gradients_are_not(alone):
    with pytest.raises(ValueError, match="parameters must be real"):
        OneBitAdam(torch.nn.Linear(2, 2, dtype=torch.complex64).named_parameters())
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = OneBitAdam(table.named_parameters(), lr=0.1)
    before = table.weight.detach().clone()
    table(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    assert (table.weight != before).any(dim=1).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"lr": -1.0}, "lr, eps and weight_decay must be at least 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, "betas must be at least 0 and below 1"),
        ({"freeze_step": 0}, "freeze_step must be at least 1, got 0"),
    ],
    ids=["lr", "betas", "freeze_step"],
)
def test_what_is_out_of_range_is_refused(fields, rule):
    with pytest.raises(ValueError, match=rule):
        OneBitAdam(model().named_parameters(), **fields)
