"""Compressed gradients under DDP: real gloo processes against the simulation."""

import io

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp import compression_cases as cases
from ddp.ranks import Ranks
from phalanx.aggregation import Bulyan, CenteredClipping, CoordinateMedian
from phalanx.compression import (
    QSGD,
    Accordion,
    ErrorFeedback,
    HalfPrecision,
    MomentumCorrection,
    PowerSGD,
    RandomBlock,
    ScaledSign,
    SignSGD,
    Signum,
    TernGrad,
    TopK,
    TwoStage,
    Uncompressed,
)
from phalanx.ddp import compress
from phalanx.errors import NotFiniteError, RankLostError, TooManyByzantineError

TOP_K = ErrorFeedback(TopK(ratio=0.1))
POWER_SGD = ErrorFeedback(PowerSGD(rank=2, min_compression=1.0))
ACCORDION = Accordion(  # low for two steps, high from the third on
    POWER_SGD, ErrorFeedback(PowerSGD(rank=1)), 9.0, 1, 1, verify=True
)
COMPRESSORS = [
    ACCORDION,
    TOP_K,
    POWER_SGD,
    ErrorFeedback(ScaledSign()),
    ErrorFeedback(RandomBlock(ratio=0.2, rescale=False)),
    HalfPrecision("bfloat16"),
    QSGD(coding="elias-sparse"),
    SignSGD(),
    TernGrad(),
    Uncompressed(),
    ErrorFeedback(TwoStage()),
    MomentumCorrection(TopK(ratio=0.1)),
    Signum(),
    *(
        Accordion(POWER_SGD, TOP_K, steps_per_epoch=1, interval=1, vectors=True, norm=norm)
        for norm in ("aggregated", "mean-local")
    ),
]
some = pytest.mark.parametrize("compressor", [TOP_K, POWER_SGD], ids=["TopK", "PowerSGD"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Ranks(2, tmp_path_factory.mktemp("two")) as started:
        yield started


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with Ranks(4, tmp_path_factory.mktemp("four")) as started:
        yield started


def close(ours, theirs, tolerance=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def trains_as_simulated(ranks, compressor, net=None, ddp=None, tolerance=1e-6, **how):
    """All ranks have the same gradients and weights to the bit, and these are the simulation's."""
    ddp = ddp or {}
    found = ranks(cases.train, compressor, net or {}, ddp, **how)
    gradients, _, weights, _ = cases.train_alone(
        compressor,
        len(found),
        net or {},
        unused=ddp.get("find_unused_parameters", False),
        **how,
    )
    for ours, _, ended, _ in found:
        assert all(one.equal(first) for one, first in zip(ours, found[0][0], strict=True))
        assert ended.equal(found[0][2])
    for ours, expected in zip(found[0][0], gradients, strict=True):
        close(ours, expected, tolerance)
    close(found[0][2], weights, tolerance)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_two_ranks_train_as_simulated(pair, compressor):
    trains_as_simulated(pair, compressor, steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("compressor", [POWER_SGD, QSGD(), TernGrad()], ids=repr)
def test_four_ranks_train_as_simulated(ranks, compressor):
    found = trains_as_simulated(ranks, compressor, steps=4)
    for step, (last, verdict) in enumerate(found[0][1]):
        assert last.step == step
        assert last.not_finite == ()
        assert verdict is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "ddp",
    [{"bucket_cap_mb": 25}, {"gradient_as_bucket_view": True}, {"static_graph": True}],
    ids=str,
)
def test_options_of_ddp(ranks, ddp):
    trains_as_simulated(ranks, POWER_SGD, ddp=ddp, steps=4)


@pytest.mark.slow
@some
def test_gradient_accumulation(ranks, compressor):
    trains_as_simulated(ranks, compressor, micro=3)


@pytest.mark.slow
@some
@pytest.mark.parametrize("use", ["even", "none"])
def test_unused_parameters(ranks, compressor, use):
    options = {"find_unused_parameters": True}
    trains_as_simulated(ranks, compressor, ddp=options, use=use, steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("net", [{"frozen": True}, {"second": torch.float64}], ids=str)
def test_frozen_parameters_and_several_dtypes(ranks, net):
    trains_as_simulated(ranks, POWER_SGD, net=net)


@pytest.mark.slow
@pytest.mark.parametrize("compressor", [TOP_K, POWER_SGD, SignSGD()], ids=repr)
def test_narrow_gradients(pair, compressor):
    """Two addends have one sum: nothing depends on the order in which ranks add."""
    trains_as_simulated(pair, compressor, net={"dtype": torch.bfloat16}, tolerance=0)


@pytest.mark.slow
@pytest.mark.parametrize("compressor", [POWER_SGD, SignSGD(), ACCORDION], ids=repr)
def test_all_ranks_hold_the_same_parameters_after_many_steps(ranks, compressor):
    found = ranks(cases.train, compressor, {}, {}, steps=30, tail=1)
    assert all(one[2].equal(found[0][2]) for one in found)


@pytest.mark.slow
@some
def test_what_was_sent_and_what_is_remembered_add_up(ranks, compressor):
    found = ranks(cases.train, compressor, {}, {}, steps=6, micro=2)
    _, exact, _, _ = cases.train_alone(compressor, 4, {}, steps=6, micro=2)
    states = [torch.load(io.BytesIO(one[3]), weights_only=True)["handle"] for one in found]
    names = [name for name, _ in cases.Net().named_parameters()]
    left = torch.cat(
        [
            torch.stack([state["tensors"][f"{name}.0"] for state in states]).mean(0).flatten()
            for name in names
        ]
    )
    total = torch.cat([sum(step[name] for step in exact).flatten() for name in names])
    close(sum(found[0][0]) + left, total, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("compressor", [POWER_SGD, QSGD()], ids=repr)
def test_a_run_that_is_resumed_ends_in_the_same_bits(ranks, compressor):
    """Also in warm-up, and where buckets are the first ones again."""
    hook = {"start_step": 2}
    straight = ranks(cases.train, compressor, {}, {}, steps=6, **hook)
    for stop in (1, 4):
        saved = [one[3] for one in ranks(cases.train, compressor, {}, {}, steps=stop, **hook)]
        resumed = ranks(cases.train, compressor, {}, {}, steps=6 - stop, saved=saved, **hook)
        for one, other in zip(resumed, straight, strict=True):
            assert one[2].equal(other[2])
            assert all(a.equal(b) for a, b in zip(one[0], other[0][stop:], strict=True))


@pytest.mark.slow
@some
def test_the_first_steps_may_go_uncompressed(ranks, compressor):
    plain = ranks(cases.train, Uncompressed(), {}, {}, steps=2)[0]
    found = ranks(cases.train, compressor, {}, {}, steps=3, start_step=2)[0]
    assert all(one.equal(other) for one, other in zip(found[0], plain[0], strict=False))
    last = [step for step, _ in found[1]]
    assert last[0].payload_bytes == last[1].payload_bytes == last[0].dense_bytes + 1
    assert last[2].payload_bytes < last[2].dense_bytes / 2


@pytest.mark.slow
def test_bytes_are_those_of_the_messages(ranks):
    """Scale and bits of every tensor; one byte says that all is finite."""
    found = ranks(cases.train, ErrorFeedback(ScaledSign()), {}, {}, steps=2)
    sizes = [parameter.numel() for parameter in cases.Net().parameters()]
    payload = 1 + sum(4 + (size + 7) // 8 for size in sizes)
    for _, seen, _, _ in found:
        for last, _ in seen:
            assert (last.payload_bytes, last.wire_bytes) == (payload, 3 * payload)
            assert last.dense_bytes == 4 * sum(sizes)


@pytest.mark.slow
@some
def test_ranks_that_are_not_finite_are_named(ranks, compressor):
    for one in ranks.outcomes(cases.train, compressor, {}, {}, bad=[1, 3]):
        assert isinstance(one, NotFiniteError)
        assert one.workers == [1, 3]
    found = ranks(cases.train, compressor, {}, {}, bad=[1, 3], raise_not_finite=False)
    for gradients, seen, _, _ in found:
        assert [last.not_finite for last, _ in seen] == [(), (1, 3), ()]
        assert gradients[1].isnan().all()
        assert gradients[2].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("rule", [CoordinateMedian(), CenteredClipping(radius=0.5)], ids=repr)
@pytest.mark.parametrize("compressor", [POWER_SGD, TernGrad()], ids=repr)
def test_a_rule_over_what_all_ranks_sent(ranks, compressor, rule):
    found = trains_as_simulated(ranks, compressor, rule=rule, bad=[2])
    for _, seen, _, _ in found:
        assert [last.not_finite for last, _ in seen] == [(), (2,), ()]
        assert [verdict.dropped.tolist()[2] for _, verdict in seen] == [False, True, False]
        assert seen[1][1].suspects[2]
    saved = [one[3] for one in ranks(cases.train, compressor, {}, {}, steps=1, rule=rule)]
    resumed = ranks(cases.train, compressor, {}, {}, steps=2, rule=rule, bad=[2], saved=saved)
    assert all(one[2].equal(found[0][2]) for one in resumed)


@pytest.mark.slow
def test_a_rule_says_so_if_too_many_ranks_are_not_finite(ranks):
    for one in ranks.outcomes(cases.train, QSGD(), {}, {}, rule=CoordinateMedian(), bad=[0, 2]):
        assert isinstance(one, TooManyByzantineError)
        assert one.workers == [0, 2]


@pytest.mark.slow
def test_a_run_that_lost_a_rank_goes_on_from_its_checkpoint(tmp_path, ranks):
    straight = ranks(cases.train, POWER_SGD, {}, {}, steps=6)
    with Ranks(4, tmp_path, timeout_s=4.0) as doomed:
        doomed.start(cases.train, POWER_SGD, {}, {}, steps=6, at=(3, 3))
        left = [doomed.answer(rank, timeout_s=30.0) for rank in range(3)]
    for kind, message, _ in left:
        assert kind is RankLostError
        assert "is gone, or silent" in message
    saved = [kept for _, _, kept in left]
    # The rank that died had saved at the same step.
    saved.append(ranks(cases.train, POWER_SGD, {}, {}, steps=3)[3][3])
    resumed = ranks(cases.train, POWER_SGD, {}, {}, steps=3, saved=saved)
    assert all(one[2].equal(straight[0][2]) for one in resumed)


@pytest.mark.slow
def test_adam_with_compressed_momenta_is_what_is_written(pair):
    found = pair(cases.adam, 8, 4)
    assert found[0].equal(found[1])
    close(found[0], cases.adam_alone(2, 8, 4), 1e-5)


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_model_by_itself(alone):
    model = DistributedDataParallel(nn.Linear(6, 4))
    handle = compress(model, ErrorFeedback(TopK(ratio=0.25)))
    model(torch.ones(2, 6)).sum().backward()
    kept = handle.state_dict()["tensors"]
    assert kept.keys() == {"weight.0", "bias.0"}
    assert (kept["weight.0"] != 0).sum() == 24 - 6
    close(model.module.weight.grad + kept["weight.0"], torch.full((4, 6), 2.0))


def test_a_learning_rate_that_drops_is_told_to_accordion(alone):
    model = DistributedDataParallel(nn.Linear(8, 8, bias=False))
    levels = Accordion(TopK(ratio=0.5), TopK(ratio=0.1), steps_per_epoch=1, interval=1)
    handle = compress(model, levels)
    sent = []
    for step in range(6):
        if step == 4:
            handle.alert()
        model(torch.ones(2, 8)).sum().backward()
        model.zero_grad()
        sent.append(handle.last.payload_bytes)
    low, high = sent[0], sent[3]
    assert high < low / 2
    assert sent[4] == low
    with pytest.raises(ValueError, match=r"compressor must be Accordion to be alerted, got TopK"):
        compress(DistributedDataParallel(nn.Linear(3, 2)), TopK()).alert()


def test_what_does_not_fit_is_refused(alone):
    model = DistributedDataParallel(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="start_step must be at least 0, got -1"):
        compress(model, TopK(), start_step=-1)
    with pytest.raises(ValueError, match="num_byzantine must be"):
        compress(model, QSGD(), rule=Bulyan(1))
    handle = compress(model, ErrorFeedback(TopK()))
    state = handle.state_dict()
    with pytest.raises(ValueError, match="state must be that of rank 0 of 1, got 2 of 4"):
        handle.load_state_dict(state | {"rank": 2, "num_ranks": 4})
    with pytest.raises(
        ValueError, match=r"state must be that of the model's parameters, got \['w'"
    ):
        handle.load_state_dict(state | {"tensors": {"w.0": torch.zeros(2)}})
    with pytest.raises(ValueError, match="state must be that of a run with a rule"):
        handle.load_state_dict(state | {"robust": {"rule": []}})


def test_memory_in_a_checkpoint_is_a_copy(alone):
    """The hook changes its own in place."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    handle = compress(model, ErrorFeedback(TopK(ratio=0.2)))
    model(torch.ones(2, 3)).sum().backward()
    state = handle.state_dict()
    before = {name: tensor.clone() for name, tensor in state["tensors"].items()}
    handle.load_state_dict(state)
    model(torch.ones(2, 3)).sum().backward()
    assert all(state["tensors"][name].equal(tensor) for name, tensor in before.items())
