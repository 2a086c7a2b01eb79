"""An optimizer around an optimizer: what torch asks of one, and the bits of the wrapped one."""

import copy
import pickle

import pytest
import torch
from torch.optim import lr_scheduler

from phalanx.gossip import (
    DPSGD,
    ChocoSGD,
    ParameterGossip,
    PowerGossip,
    Replicas,
    SimulatedNetwork,
    Topology,
)
from phalanx.optimizers import GossipOptimizer
from phalanx.randomness import seeded

OPTIMIZERS = {
    "SGD": lambda x: torch.optim.SGD(x, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda x: torch.optim.AdamW(x, lr=0.01),
    "Adagrad": lambda x: torch.optim.Adagrad(x, lr=0.1),
    "RMSprop": lambda x: torch.optim.RMSprop(x, lr=0.01, centered=True),
    "LBFGS": lambda x: torch.optim.LBFGS(x, lr=0.1, max_iter=3),
}
SCHEDULES = {
    "StepLR": lambda one: lr_scheduler.StepLR(one, 2),
    "LambdaLR": lambda one: lr_scheduler.LambdaLR(one, lambda step: 1 / (1 + step)),
    "OneCycleLR": lambda one: lr_scheduler.OneCycleLR(one, max_lr=0.2, total_steps=6),
    "CyclicLR": lambda one: lr_scheduler.CyclicLR(one, 0.01, 0.1, step_size_up=2),
    "ReduceLROnPlateau": lambda one: lr_scheduler.ReduceLROnPlateau(one, patience=0),
    "SequentialLR": lambda one: lr_scheduler.SequentialLR(
        one, [lr_scheduler.LinearLR(one), lr_scheduler.CosineAnnealingLR(one, 3)], [3]
    ),
}


def replicas(num_nodes=4):
    with seeded(0, "weights"):
        return Replicas(
            torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)),
            num_nodes,
        )


def around(optimizer, model, algorithm=None, first="gossip"):
    nodes = len(next(model.parameters()))
    network = SimulatedNetwork(Topology.ring(nodes))
    gossip = ParameterGossip(model.by_name(), algorithm or DPSGD(), network)
    return GossipOptimizer(optimizer, gossip, first)


def loss_of(model, step):
    nodes = len(next(model.parameters()))
    inputs = torch.randn(nodes, 8, 6, generator=torch.Generator().manual_seed(step))
    return model(inputs).square().mean(dim=(1, 2)).sum()


def train(model, optimizer, schedule, steps):
    """With a closure and a schedule; the learning rates of all steps."""
    rates = []
    for step in steps:

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        metric = (loss.item() + step,) if "Plateau" in type(schedule).__name__ else ()
        schedule.step(*metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def equal(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gossip_of_one_node_gives_the_bits_of_the_wrapped_optimizer(name, subtests):
    for scheduled, make in SCHEDULES.items():
        if name in ("Adagrad", "LBFGS") and scheduled in ("OneCycleLR", "CyclicLR"):
            continue  # these two want a momentum
        for first in ("gossip", "step"):
            with subtests.test(f"{scheduled}, {first} first"):
                plain, wrapped = replicas(1), replicas(1)
                alone = OPTIMIZERS[name](plain.parameters())
                optimizer = around(
                    OPTIMIZERS[name](wrapped.parameters()), wrapped, PowerGossip(), first
                )
                assert isinstance(optimizer, torch.optim.Optimizer)
                expected = train(plain, alone, make(alone), range(5))
                assert train(wrapped, optimizer, make(optimizer), range(5)) == expected
                assert equal(plain, wrapped)
                assert optimizer.gossip.memory.step == 5


@pytest.mark.parametrize("algorithm", [DPSGD(), PowerGossip(), ChocoSGD()], ids=repr)
def test_training_goes_on_from_a_checkpoint_in_the_same_bits(algorithm, tmp_path, subtests):
    def loop(steps, name, first, load=None):
        model = replicas()
        optimizer = around(OPTIMIZERS[name](model.parameters()), model, algorithm, first)
        schedule = SCHEDULES["StepLR"](optimizer)
        if load:
            saved = torch.load(load, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
        rates = train(model, optimizer, schedule, steps)
        saved = {"model": model, "optimizer": optimizer, "schedule": schedule}
        return model, rates, {name: one.state_dict() for name, one in saved.items()}

    for name in ("SGD", "AdamW"):
        for first in ("gossip", "step"):
            with subtests.test(f"{name}, {first} first"):
                whole, rates, _ = loop(range(6), name, first)
                torch.save(loop(range(3), name, first)[2], tmp_path / "half.pt")
                resumed, rest, _ = loop(range(3, 6), name, first, tmp_path / "half.pt")
                assert equal(whole, resumed)
                assert rates[3:] == rest


def test_groups_state_and_defaults_are_those_of_the_wrapped_optimizer():
    model = replicas()
    inner = torch.optim.SGD([model.get_parameter("0-weight")], lr=0.1, momentum=0.9)
    optimizer = around(inner, model)
    optimizer.add_param_group({"params": [model.get_parameter("2-bias")], "lr": 0.5})
    assert [group["lr"] for group in inner.param_groups] == [0.1, 0.5]
    assert inner.param_groups[1]["momentum"] == 0.9
    loss_of(model, 0).backward()
    optimizer.step()
    assert len(optimizer.state) == 2
    optimizer.load_state_dict(optimizer.state_dict())
    for name in ("param_groups", "state", "defaults"):
        assert getattr(optimizer, name) is getattr(inner, name)
    optimizer.param_groups[0]["lr"] = 0.25
    assert inner.param_groups[0]["lr"] == 0.25
    optimizer.zero_grad()
    assert all(x.grad is None for group in inner.param_groups for x in group["params"])
    assert "lr: 0.25" in repr(optimizer)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [model.get_parameter("2-bias")]})


def test_hooks_are_called_once_each():
    model, calls = replicas(), []
    optimizer = around(OPTIMIZERS["SGD"](model.parameters()), model)

    def note(name):
        def hook(*_):
            calls.append(name)

        return hook

    optimizer.register_step_pre_hook(note("before step"))
    optimizer.register_step_post_hook(note("after step"))
    optimizer.register_state_dict_pre_hook(note("before saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: state | {"more": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {name: one for name, one in state.items() if name != "more"}
    )
    optimizer.register_load_state_dict_post_hook(note("after loading"))
    loss_of(model, 0).backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "gossip", "more"}
    optimizer.load_state_dict(state)
    assert calls == ["before step", "after step", "before saving", "after loading"]
    assert optimizer.gossip.memory.step == 1


def test_copies_share_what_the_original_shares():
    model = replicas()
    optimizer = around(OPTIMIZERS["AdamW"](model.parameters()), model)
    loss_of(model, 0).backward()
    optimizer.step()
    for made in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert made.param_groups is made.optimizer.param_groups
        assert made.state is made.optimizer.state
        assert (made.first, made.gossip.memory.step) == ("gossip", 1)


def test_a_step_that_the_gradient_scaler_leaves_out_is_a_round_all_the_same(subtests):
    for poison in (1.0, float("inf")):
        with subtests.test(str(poison)):
            plain, model = replicas(1), replicas(1)
            alone = OPTIMIZERS["SGD"](plain.parameters())
            optimizer = around(OPTIMIZERS["SGD"](model.parameters()), model)
            for one, steps in ((alone, plain), (optimizer, model)):
                scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
                for step in range(3):
                    one.zero_grad()
                    scaler.scale(loss_of(steps, step) * (poison if step == 1 else 1.0)).backward()
                    scaler.step(one)
                    scaler.update()
            assert equal(plain, model)
            assert optimizer.gossip.memory.step == 3
