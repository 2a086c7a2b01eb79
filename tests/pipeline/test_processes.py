"""Real gloo processes, a stage each: against torch's own stages and against one process."""

import pytest
import torch

from ddp.ranks import Ranks
from phalanx.compression import SampleQuantization
from phalanx.errors import DisagreementError, RankLostError
from phalanx.pipeline import ActivationDifference
from pipeline import cases

pytestmark = pytest.mark.slow
STEPS = 8
EXACT = {
    "forward": ActivationDifference(32),
    "backward": SampleQuantization(32),
    "warmup_epochs": 0,
}
HOWS = [
    {"num_microbatches": 1},
    {"num_microbatches": 4},
    {"num_microbatches": 4, "schedule": "1f1b"},
]
hows = pytest.mark.parametrize("how", HOWS, ids=["whole", "gpipe", "1f1b"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with Ranks(2, tmp_path_factory.mktemp("two")) as started:
        yield started


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    with Ranks(4, tmp_path_factory.mktemp("four")) as started:
        yield started


@pytest.fixture(params=[2, 4])
def ranks(request, two, four):
    return two if request.param == 2 else four


def size(ranks):
    return len(ranks.processes)


@hows
def test_with_32_bits_it_is_torch_s_pipeline_to_the_bit(ranks, how):
    ours = ranks(cases.train, size(ranks), STEPS, **EXACT, **how)
    theirs = ranks(cases.train_by_torch, size(ranks), STEPS, **how)
    for (_, mine, *_), other in zip(ours, theirs, strict=True):
        assert mine.equal(other)


@pytest.mark.parametrize("how", HOWS[1:], ids=["gpipe", "1f1b"])
@pytest.mark.parametrize(
    "options",
    [
        {"forward": ActivationDifference(2), "backward": SampleQuantization(4)},
        {
            "forward": ActivationDifference(3, "stochastic"),
            "backward": SampleQuantization(6, "stochastic"),
            "buffer": "disk",
            "checksum": True,
        },
        {"forward": ActivationDifference(4, scale="token"), "buffer": "low_bit"},
        {"forward": SampleQuantization(4), "warmup_epochs": 0},
    ],
    ids=["nearest", "stochastic", "low_bit", "direct"],
)
def test_processes_do_what_one_process_simulates(ranks, how, options):
    found = ranks(cases.train, size(ranks), STEPS, **options, **how)
    parts = {"num_microbatches": how["num_microbatches"]}
    losses, [weights], [alone] = cases.train_alone(size(ranks), STEPS, **options, **parts)
    for place, (_, mine, *_) in enumerate(found):
        torch.testing.assert_close(mine, weights[place], rtol=1e-6, atol=1e-6)
    assert found[-1][0] == pytest.approx([one for (one,) in losses], abs=1e-6)
    inputs, _ = cases.data()
    torch.testing.assert_close(found[-1][4], alone.predict(inputs), rtol=1e-5, atol=1e-5)
    for place, side in enumerate(alone.senders):
        before, after = found[place + 1][2][0], found[place][2][1]
        assert before == after == side.traffic
        for left, right in zip(found[place][3], found[place + 1][3], strict=True):
            assert left[1] == right[0]  # digests of the buffers, after every step


def test_a_resumed_run_ends_in_the_same_bits(two):
    options = {"forward": ActivationDifference(2, "stochastic"), "num_microbatches": 2}
    whole = two(cases.train, 2, STEPS, **options)
    resumed = two(cases.train, 2, STEPS, stop_at=5, **options)
    for one, other in zip(whole, resumed, strict=True):
        assert one[1].equal(other[1])
        assert one[0] == other[0]
        assert one[2:4] == other[2:4]


def test_two_pipelines_beside_each_other_with_everything_compressed(four):
    options = {"forward": ActivationDifference(2), "backward": SampleQuantization(4)}
    found = four(cases.train, 2, STEPS, replicated=True, **options)
    _, weights, _ = cases.train_alone(2, STEPS, num_replicas=2, **options)
    for rank, (_, mine, *_) in enumerate(found):
        replica, place = divmod(rank, 2)
        torch.testing.assert_close(mine, weights[replica][place], rtol=1e-6, atol=1e-6)
    assert found[0][1].equal(found[2][1])
    assert found[1][1].equal(found[3][1])


def test_all_three_kinds_in_few_bits_train_as_without_compression(four):
    """Activations, their gradients, and momenta of Adam whose errors are remembered."""
    exact, coarse = (
        four(cases.train_end_to_end, compressed=compressed) for compressed in (False, True)
    )
    for found in (exact, coarse):
        for place in (0, 1):
            assert found[place][1].equal(found[place + 2][1])
    assert exact[1][0] > 0.8
    assert coarse[1][0] > exact[1][0] - 0.03
    assert coarse[0][2] < 0.3 * exact[0][2]  # the first of nine epochs is in full


def test_stages_that_are_told_other_samples_say_so(four):
    found = four.outcomes(cases.with_other_ids)
    assert [type(one) for one in found] == [DisagreementError] * 4
    assert [one.ranks for one in found] == [[3], [3], [3], [0, 1, 2]]


def test_a_stage_that_dies_stops_its_neighbour(tmp_path):
    with Ranks(2, tmp_path, timeout_s=8.0) as pair:
        pair.start(cases.train_until_killed, 2, 1)
        error = pair.answer(0, timeout_s=30.0)
        assert isinstance(error, RankLostError)
        assert "is gone" in str(error)
