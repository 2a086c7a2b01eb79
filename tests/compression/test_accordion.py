"""What Accordion promises beyond the laws: which level when, and that a change loses nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.communication import AllGather, simulate_collectives
from phalanx.compression import (
    QSGD,
    Accordion,
    CriticalRegimes,
    ErrorFeedback,
    HalfPrecision,
    PowerSGD,
    RandomK,
    Regime,
    ScaledSign,
    TensorStates,
    TopK,
    average,
    simulate,
)

LOW, HIGH = TopK(ratio=0.5), TopK(ratio=0.1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def script(regimes, norms, drops=()):
    """Whether each epoch was critical, given what was known at its beginning; and the one after."""
    regime, found = Regime(), [True]
    for epoch, norm in enumerate(norms):
        regime = regimes.update(regime, norm, drops=epoch + 1 in drops)
        found.append(regime.critical)
    return found


NAN = math.nan
SCHEDULES = {
    # name: (interval, norms of the epochs, epochs whose rate is lower, critical epochs of them all)
    "nothing to compare with": (1, [3.0], (), "CC"),
    "half is critical": (1, [4.0, 2.0], (), "CCC"),
    "just below half is not": (1, [4.0, 2.001], (), "CC."),
    "growth counts as well": (1, [4.0, 6.0, 8.9], (), "CCC."),
    "zero before": (1, [0.0, 0.0, 5.0, 5.0], (), "CCCC."),
    "to zero": (1, [5.0, 0.0], (), "CCC"),
    "only the interval's last epoch is looked at": (
        3,
        [NAN, NAN, 4.0, NAN, NAN, 3.0],
        (),
        "CCCCCC.",
    ),
    "one interval earlier, not the first": (1, [8.0, 5.0, 3.0, 1.6, 0.8], (), "CC...C"),
    "a drop between checks lasts until the next": (
        2,
        [NAN, 4.0, NAN, 4.0, NAN, 4.0, NAN, 4.0],
        (5,),
        "CCCC.C...",
    ),
    "a drop at a check outlasts it": (2, [NAN, 4.0, NAN, 4.0, NAN, 4.0], (4,), "CCCCCC."),
    "a sum that overflowed": (1, [4.0, math.inf, 4.0, 4.0], (), "CCCC."),
}


def test_scripted_norms_give_these_regimes(subtests):
    for name, (interval, norms, drops, expected) in SCHEDULES.items():
        with subtests.test(name):
            found = script(CriticalRegimes(0.5, interval), norms, drops)
            assert "".join("C" if critical else "." for critical in found) == expected


@given(norms=st.lists(st.floats(0.01, 100.0), min_size=3, max_size=12), drop=st.integers(1, 12))
def test_the_extremes_of_eta(norms, drop):
    assert all(script(CriticalRegimes(0.0, 1), norms))
    never = script(CriticalRegimes(math.inf, 1), norms, drops=(drop,))
    assert [epoch for epoch, critical in enumerate(never) if critical] == sorted(
        {0, 1, *([drop] if drop <= len(norms) else [])}
    )


def levels(compressor, norms, names=("weight",), workers=2):
    """Levels at the beginning of every round, as worker 0 has them, from gradients of these norms.

    The workers' gradients differ, and their mean has the norm.
    """
    memories, found = [TensorStates()] * workers, []
    for step, norm in enumerate(norms):
        rows = []
        for worker in range(workers):
            off = (worker - (workers - 1) / 2) * normal(4, 5, seed=step)
            rows.append({name: torch.full((4, 5), norm / 20**0.5) + off for name in names})
        _, memories = simulate(compressor, rows, memories)
        every = [compressor.levels(memory) for memory in memories]
        assert all(one == every[0] for one in every)
        found.append(every[0])
    return found


def shown(found, name="weight"):
    return "".join({"low": "l", "high": "h", "dense": "d"}[one[name]] for one in found)


def test_norms_of_sums_over_epochs_decide():
    """The sum counts, not the steps: two opposite halves of an epoch have no norm at all."""
    dense = Accordion(TopK(1.0), TopK(1.0), steps_per_epoch=2, interval=2, norm="aggregated")
    steady = [9.0, 9.0, 2.0, 2.0, 9.0, 9.0, 2.0, 2.0]  # epochs 1 and 3 are looked at
    assert shown(levels(dense, steady)) == "lllllllh"
    halved = [9.0, 9.0, 2.0, 2.0, 9.0, 9.0, 1.0, 1.0]
    assert shown(levels(dense, halved)) == "llllllll"
    cancelled = [9.0, 9.0, 2.0, 2.0, 9.0, 9.0, 2.0, -2.0]
    assert shown(levels(dense, cancelled)) == "llllllll"


def test_milestones_and_alerts_make_compression_low_until_the_next_check():
    options = {"steps_per_epoch": 1, "interval": 2, "eta": math.inf}
    assert shown(levels(Accordion(LOW, HIGH, **options), [1.0] * 8)) == "lllhhhhh"
    planned = Accordion(LOW, HIGH, milestones=(5,), **options)
    assert shown(levels(planned, [1.0] * 8)) == "lllhlhhh"
    compressor = Accordion(LOW, HIGH, **options)
    memory = TensorStates()
    found = []
    for step in range(8):
        _, (memory,) = simulate(compressor, [{"weight": torch.ones(4, 5)}], [memory])
        if step == 4:
            memory = compressor.alert(memory)
        found.append(compressor.levels(memory))
    assert shown(found) == "lllhlhhh"


def test_every_layer_has_its_own_level_or_all_have_one():
    """One layer's gradient halves, that of the other stays: by far the larger one."""
    found = {}
    for scope in ("layer", "model"):
        compressor = Accordion(TopK(1.0), TopK(1.0), steps_per_epoch=1, interval=1, scope=scope)
        memory = TensorStates()
        for scale in (1.0, 0.4):
            row = {"a": torch.full((2, 3), scale), "b": 9 * torch.ones(2, 3), "c": torch.ones(3)}
            _, (memory,) = simulate(compressor, [row], [memory])
        found[scope] = compressor.levels(memory)
    assert found["layer"] == {"a": "low", "b": "high", "c": "dense"}
    assert found["model"] == {"a": "high", "b": "high", "c": "dense"}


def test_whose_norm_it_is(subtests):
    """Worker 0's gradients and the mean stay; those of workers 1 and 2 grow, and cancel."""
    for norm, expected in [("aggregated", "lhh"), ("mean-local", "lhl"), ("rank0", "lhh")]:
        with subtests.test(f"{norm}"):
            compressor = Accordion(TopK(1.0), TopK(1.0), steps_per_epoch=1, interval=1, norm=norm)
            memories, found = [TensorStates()] * 3, []
            for size in (1.0, 1.0, 9.0):
                rows = [{"weight": torch.full((2, 2), one)} for one in (1.0, 1 + size, 1 - size)]
                _, memories = simulate(compressor, rows, memories)
                found.append(compressor.levels(memories[0]))
            assert shown(found) == expected


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), workers=st.integers(1, 4), data=st.data())
def test_workers_with_different_data_have_the_same_levels(seed, workers, data):
    norm = data.draw(st.sampled_from(["aggregated", "mean-local", "rank0"]))
    inner = data.draw(st.sampled_from([(LOW, HIGH), (QSGD(), RandomK(ratio=0.3))]))
    compressor = Accordion(*inner, 0.3, 2, 1, norm=norm, verify=True)
    memories = [TensorStates()] * workers
    for step in range(8):
        rows = [
            {"a": normal(4, 3, seed=seed + 10 * step + worker), "b": normal(5, 2, seed=seed)}
            for worker in range(workers)
        ]
        _, memories = simulate(compressor, rows, memories)
        assert len({str(compressor.levels(memory)) for memory in memories}) == 1


def test_without_error_feedback_the_norm_of_what_was_sent_is_misleading():
    """Gradients stay as they are, but less of them is let through: which looks like a change."""
    rows, found = [{"w": normal(8, 9)}], {}
    for norm in ("aggregated", "mean-local"):
        compressor, memories = Accordion(LOW, TopK(0.02), 0.5, 1, 1, norm=norm), [TensorStates()]
        found[norm] = []
        for _ in range(7):
            _, memories = simulate(compressor, rows, memories)
            found[norm].append(compressor.levels(memories[0]))
    assert shown(found["mean-local"], "w") == "lhhhhhh"
    assert shown(found["aggregated"], "w") == "lhllhll"


def test_workers_that_disagree_are_found_out():
    compressor = Accordion(LOW, HIGH, math.inf, 1, 1, verify=True)
    rows, memories = [{"w": normal(4, 5, seed=seed)} for seed in range(3)], [TensorStates()] * 3
    for _ in range(3):
        _, memories = simulate(compressor, rows, memories)
    memories[1] = compressor.alert(memories[1])
    with pytest.raises(RuntimeError, match=r"not so on \[1\]"):
        simulate(compressor, rows, memories)


def counted(worker, sent):
    """The worker itself, whose requests are written down by their bytes."""
    answer = None
    while True:
        try:
            request = worker.send(answer)
        except StopIteration as done:
            return done.value
        sent.append(request.tensor.nbytes)
        answer = yield request


def traffic(compressor, rounds):
    """Bytes that a lone worker asks to be sent in each round, and the memories after them."""
    memory, totals, memories = TensorStates(), [], []
    for tensors in rounds:
        worker = average(compressor, tensors, memory, seed=0, worker=0, num_workers=1)
        [(_, memory)] = simulate_collectives([counted(worker, sent := [])])
        totals.append(sum(sent))
        memories.append(memory)
    return totals, memories


def slowing(count=12):
    """Gradients that halve at first and then stay."""
    return [{"w": normal(8, 9, seed=step) + 9 * 0.5 ** min(step, 5)} for step in range(count)]


def test_bytes_are_those_of_the_level_and_the_memory_goes_on(subtests):
    for low, high in [
        (ErrorFeedback(TopK(ratio=0.4)), ErrorFeedback(TopK(ratio=0.1))),
        (ErrorFeedback(PowerSGD(2, 1.0)), ErrorFeedback(PowerSGD(1, 1.0))),
        (ErrorFeedback(TopK(ratio=0.9)), ErrorFeedback(ScaledSign())),
    ]:
        with subtests.test(f"{low}, {high}"):
            compressor = Accordion(low, high, steps_per_epoch=1, interval=1, norm="aggregated")
            sent, memories = traffic(compressor, slowing())
            most, _ = traffic(low, slowing())
            least, _ = traffic(high, slowing())
            used = ["low", *(compressor.levels(memory)["w"] for memory in memories[:-1])]
            assert {"low", "high"} == set(used)
            assert sent == [
                one if level == "low" else other
                for level, one, other in zip(used, most, least, strict=True)
            ]
            assert sum(least) < sum(sent) < sum(most)


def test_nothing_is_lost_when_levels_change(subtests):
    """What all rounds let through and what is in memory add up to all gradients, switches or not;
    and the memory changes by what the round left out, no more.
    """
    for outside in [False, True]:
        with subtests.test(f"{outside}"):
            feedback = (lambda one: one) if outside else ErrorFeedback
            compressor = Accordion(
                feedback(TopK(ratio=0.5)),
                feedback(PowerSGD(1, 1.0)),
                math.inf,
                1,
                2,
                milestones=(7, 8),
            )
            compressor = ErrorFeedback(compressor) if outside else compressor
            detector = compressor.inner if outside else compressor
            memories, used = [TensorStates()] * 2, set()
            total, passed = torch.zeros(8, 9), torch.zeros(8, 9)
            for step in range(12):
                rows = [{"w": normal(8, 9, seed=10 * step + worker)} for worker in range(2)]
                used.add(detector.levels(memories[0]).get("w", "low"))
                means, memories = simulate(compressor, rows, memories)
                total += torch.stack([row["w"] for row in rows]).mean(dim=0)
                passed += means[0]["w"]
                left = torch.stack([memory.states["w"][0] for memory in memories]).mean(dim=0)
                torch.testing.assert_close(passed + left, total, rtol=1e-5, atol=1e-5)
            assert used == {"low", "high"}


def test_warm_factors_keep_the_columns_that_both_levels_have():
    two, one = PowerSGD(rank=2, min_compression=1.0), PowerSGD(rank=1, min_compression=1.0)
    compressor = Accordion(two, one, math.inf, 1, 2)
    gradient = normal(8, 9)
    memory = TensorStates()
    for _ in range(4):
        before = memory
        _, (memory,) = simulate(compressor, [{"w": gradient}], [memory])
    assert compressor.levels(memory)["w"] == "high"
    wide = memory.states["w"][0]
    assert wide.shape == (9, 2)
    narrow = one.inherit(gradient, (wide,), two)[0]
    assert torch.equal(narrow, wide[:, :1])
    # Which is where the next round starts: as that of a rank of one with this memory.
    _, (after,) = simulate(compressor, [{"w": gradient}], [memory])
    alone = TensorStates(memory.step, {"w": (narrow,)})
    _, (expected,) = simulate(one, [{"w": gradient}], [alone])
    assert torch.equal(after.states["w"][0], expected.states["w"][0])
    grown = two.inherit(gradient, (narrow,), one, torch.Generator().manual_seed(0))[0]
    assert torch.equal(grown[:, :1], narrow)
    assert grown[:, 1].norm() == pytest.approx(1.0, abs=1e-5)
    assert abs(grown[:, 0] @ grown[:, 1]) < 1e-5 * narrow.norm()
    assert before.states["w"][0].shape == (9, 2)


def test_factors_that_do_not_fit_start_anew():
    gradient = normal(8, 9)
    dense = PowerSGD(rank=4)  # 4 (8 + 9) values are no fewer than 8 * 9 / 2: sent as it is
    one = PowerSGD(rank=1)
    assert dense.inherit(gradient, one.init(gradient), one) == ()
    assert not one.inherit(gradient, (), dense)[0].any()
    assert ErrorFeedback(one).inherit(gradient, (), one)[0].shape == (8, 9)
    undrawn = one.init(gradient)
    assert not PowerSGD(rank=2, min_compression=1.0).inherit(gradient, undrawn, one)[0].any()


@settings(max_examples=12)
@given(stop=st.integers(1, 11), norm=st.sampled_from(["aggregated", "mean-local", "rank0"]))
def test_a_run_resumes_to_the_bit_anywhere(stop, norm):
    compressor = Accordion(
        ErrorFeedback(PowerSGD(2, 1.0)),
        ErrorFeedback(PowerSGD(1, 1.0)),
        0.4,
        2,
        2,
        milestones=(4,),
        norm=norm,
    )
    rounds = [
        [{"w": normal(6, 7, seed=9 * step + worker)} for worker in (0, 1)] for step in range(12)
    ]
    straight = resumed = [TensorStates()] * 2
    for step, rows in enumerate(rounds):
        if step == stop:
            resumed = [TensorStates.from_state_dict(one.state_dict()) for one in resumed]
        one, straight = simulate(compressor, rows, straight)
        other, resumed = simulate(compressor, rows, resumed)
        assert torch.equal(one[0]["w"], other[0]["w"])
    assert compressor.levels(straight[0]) == compressor.levels(resumed[1])


def test_the_sum_is_held_in_the_epochs_that_are_looked_at_alone():
    compressor = Accordion(LOW, HIGH, steps_per_epoch=2, interval=3)
    _, memories = traffic(compressor, [{"w": normal(4, 5)}] * 7)
    assert [memory.states["w"][-2].numel() for memory in memories] == [0, 0, 0, 0, 20, 0, 0]


def test_single_messages_say_their_level():
    compressor = Accordion(LOW, ScaledSign(), math.inf, 1, 1)
    x = normal(8, 9)
    state, sizes = compressor.init(x), []
    for _ in range(3):
        message, state = compressor.update(x, state)
        received = compressor.from_bytes(message.to_bytes(), (8, 9), torch.float32)
        assert torch.equal(compressor.decode(received), compressor.decode(message))
        sizes.append(message.num_bytes)
    wanted = [LOW, LOW, ScaledSign()]
    assert sizes == [one.encode(x).num_bytes + 5 for one in wanted]
    vector, _ = compressor.update(normal(9), compressor.init(normal(9)))
    assert torch.equal(compressor.decode(vector), normal(9))


def test_vectors_are_sent_as_they_are_unless_they_are_to_be_compressed():
    row = {"bias": normal(20), "scalar": normal(1)[0], "weight": normal(4, 5)}
    means, _ = simulate(Accordion(HIGH, HIGH), [row], [TensorStates()])
    assert torch.equal(means[0]["bias"], row["bias"])
    assert torch.equal(means[0]["scalar"], row["scalar"])
    means, memories = simulate(Accordion(HIGH, HIGH, vectors=True), [row], [TensorStates()])
    assert means[0]["bias"].count_nonzero() == 2
    assert set(Accordion(vectors=True).levels(memories[0]).values()) == {"low"}


def test_nothing_but_the_level_s_collectives_travels():
    """No flags, no levels; but for the one byte of every round that says that all are finite."""
    compressor = Accordion(LOW, HIGH)
    tensors = {"w": normal(4, 5)}
    worker = average(compressor, tensors, TensorStates(), seed=0, worker=0, num_workers=1)
    first = next(worker)
    assert isinstance(first, AllGather)
    second = worker.send([first.tensor])
    assert second.tensor.numel() == LOW.encode(tensors["w"]).num_bytes
    with pytest.raises(StopIteration):
        worker.send([second.tensor])


def test_what_does_not_fit_is_refused(subtests):
    for options, message in [
        ({"eta": -0.1}, "eta must be at least 0, got -0.1"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"milestones": (0,)}, r"milestones must be at least 1, got \(0,\)"),
        ({"high": HalfPrecision()}, "low and high must be wrapped alike"),
    ]:
        with subtests.test(message), pytest.raises(ValueError, match=message):
            Accordion(**options)


def test_a_norm_below_zero_is_refused():
    with pytest.raises(ValueError, match="norm must be at least 0, got -1"):
        CriticalRegimes(interval=1).update(Regime(), -1.0)
