"""One boundary, both sides in this process: what crosses, what is remembered, what is refused."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phalanx.compression import (
    QSGD,
    ErrorFeedback,
    HalfPrecision,
    SampleQuantization,
    TopK,
    UniformQuantization,
)
from phalanx.errors import DriftError, NotFiniteError, WireError
from phalanx.pipeline import ActivationBoundary, ActivationDifference
from phalanx.pipeline.buffers import DiskBuffer, buffer_bytes, make_buffer

SHAPE = (5, 6)
SAMPLES = 12
KINDS = ["memory", "disk", "low_bit"]


def activations(ids, step=0):
    """Of each sample the same at every visit, but for a small change."""
    rows = torch.randn(SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(0))
    change = torch.randn(SAMPLES, *SHAPE, generator=torch.Generator().manual_seed(step + 1))
    return (rows + 0.1 * change)[ids]


def sides(shape=SHAPE, num_samples=SAMPLES, **options):
    return tuple(ActivationBoundary(shape, num_samples, **options) for _ in range(2))


def cross(sender, receiver, values, ids):
    """A micro-batch over and back; what arrives, and the bytes of both ways."""
    plan, theirs = sender.plan(ids), receiver.plan(ids)
    data = sender.send_activations(values, plan)
    assert data.numel() == receiver.num_activation_bytes(theirs)
    received = receiver.receive_activations(data, theirs)
    back = receiver.send_gradients(received, theirs)
    assert back.numel() == sender.num_gradient_bytes(plan)
    returned = sender.receive_gradients(back, plan)
    return received, returned, (data.numel(), back.numel())


def same_memory(one, other):
    mine, theirs = one.state_dict()["buffer"], other.state_dict()["buffer"]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


compositions = st.lists(
    st.lists(st.integers(0, SAMPLES - 1), min_size=1, max_size=7, unique=True),
    min_size=1,
    max_size=6,
)


@settings(max_examples=20)
@given(
    batches=compositions,
    kind=st.sampled_from(KINDS),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    warmup=st.integers(0, 2),
)
def test_both_sides_remember_the_same_in_any_composition(batches, kind, rounding, dtype, warmup):
    """Every sample is sent in full as often as it should be, and arrives then as it is."""
    sender, receiver = sides(
        forward=ActivationDifference(3, rounding),
        buffer=kind,
        dtype=dtype,
        warmup_epochs=warmup,
        checksum=True,
    )
    visits, full = dict.fromkeys(range(SAMPLES), 0), 0
    for step, batch in enumerate(batches):
        ids = torch.tensor(batch)
        values = activations(ids, step).to(dtype)
        received, returned, _ = cross(sender, receiver, values, ids)
        assert received.dtype == returned.dtype == dtype
        for place, one in enumerate(batch):
            if visits[one] < max(1, warmup):
                full += 1
                assert received[place].equal(values[place])
            if visits[one] < warmup:
                assert returned[place].equal(received[place])
            visits[one] += 1
        same_memory(sender, receiver)
    assert sender.traffic == receiver.traffic
    assert sender.traffic.full_samples == full
    assert sender.traffic.coarse_samples == sum(visits.values()) - full


@settings(max_examples=15)
@given(batch=st.lists(st.integers(0, SAMPLES - 1), min_size=1, max_size=9, unique=True))
def test_bytes_are_those_of_the_arithmetic(batch):
    sender, receiver = sides(
        forward=ActivationDifference(3), backward=SampleQuantization(6), checksum=True
    )
    ids = torch.tensor(batch)
    count = len(batch) * 30
    *_, first = cross(sender, receiver, activations(ids), ids)
    assert first == (4 * count + 4, 4 * count)
    *_, later = cross(sender, receiver, activations(ids), ids)
    assert later == (
        -(-3 * count // 8) + 4 * len(batch) + 4,
        -(-6 * count // 8) + 4 * len(batch),
    )


def test_with_frozen_weights_memory_closes_in_to_numeric_zero(subtests):
    for bits in [2, 4]:
        for kind in ["memory", "disk"]:
            with subtests.test(f"{bits}, {kind}"):
                sender, receiver = sides(
                    forward=ActivationDifference(bits), buffer=kind, buffer_dtype=torch.float32
                )
                ids = torch.arange(SAMPLES)
                cross(sender, receiver, activations(ids), ids)
                exact = 10 * activations(ids, step=1)
                error = (exact - receiver.buffer.read(ids)).abs().amax(dim=(1, 2))
                for _ in range(40):
                    cross(sender, receiver, exact, ids)
                    now = (exact - receiver.buffer.read(ids)).abs().amax(dim=(1, 2))
                    assert (now <= error / (2**bits - 1) + 1e-5).all()
                    error = now
                assert error.max() < 1e-5


def test_a_resumed_side_goes_on_to_the_bit(subtests):
    for kind in KINDS:
        with subtests.test(f"{kind}"):
            options = {"forward": ActivationDifference(2, "stochastic"), "buffer": kind, "seed": 5}
            whole, ids = sides(**options), torch.arange(SAMPLES)
            for step in range(2):
                cross(*whole, activations(ids, step), ids)
            resumed = sides(**options)
            for one, saved in zip(resumed, whole, strict=True):
                file = io.BytesIO()
                torch.save(saved.state_dict(), file)
                file.seek(0)
                one.load_state_dict(torch.load(file, weights_only=True))
            for step in range(2, 4):
                expected = cross(*whole, activations(ids, step), ids)
                found = cross(*resumed, activations(ids, step), ids)
                assert found[0].equal(expected[0])
                assert found[1].equal(expected[1])
            assert resumed[0].traffic == whole[0].traffic
            same_memory(resumed[0], whole[1])


def test_32_bits_and_no_memory_leave_everything_as_it_is():
    sender, receiver = sides(
        forward=ActivationDifference(32), backward=SampleQuantization(32), warmup_epochs=0
    )
    ids = torch.arange(SAMPLES)
    for step in range(3):
        values = activations(ids, step)
        received, returned, _ = cross(sender, receiver, values, ids)
        assert received.equal(values)
        assert returned.equal(values)
    assert sender.buffer is receiver.buffer is None
    assert sender.traffic.full_samples == 3 * SAMPLES


def test_activations_may_also_be_compressed_themselves(subtests):
    for forward in [SampleQuantization(2), HalfPrecision(), TopK(0.1)]:
        with subtests.test(f"{forward}"):
            sender, receiver = sides(forward=forward, backward=UniformQuantization(8))
            ids = torch.arange(SAMPLES)
            values = activations(ids)
            received, returned, _ = cross(sender, receiver, values, ids)
            assert received.equal(values)
            received, returned, _ = cross(sender, receiver, values, ids)
            assert received.equal(forward.decode(forward.encode(values)))
            assert returned.equal(
                UniformQuantization(8).decode(UniformQuantization(8).encode(received))
            )
            assert sender.buffer is None


def test_one_side_for_both_carries_the_same(subtests):
    for forward in [None, SampleQuantization(3)]:
        with subtests.test(f"{forward}"):
            sender, receiver = sides(forward=forward, backward=SampleQuantization(4, "stochastic"))
            (both, _), ids = (
                sides(forward=forward, backward=SampleQuantization(4, "stochastic")),
                None,
            )
            for step, batch in enumerate([[0, 1, 2], [2, 3], [0, 3, 5]]):
                ids = torch.tensor(batch)
                values = activations(ids, step)
                received, returned, _ = cross(sender, receiver, values, ids)
                plan = both.plan(ids)
                carried = both.carry_activations(values, plan)
                assert carried.equal(received)
                assert both.carry_gradients(carried, plan).equal(returned)


def test_sides_that_drift_apart_are_found():
    sender, receiver = sides(checksum=True)
    ids = torch.arange(4)
    cross(sender, receiver, activations(ids), ids)
    receiver.buffer.rows[2, 0, 0] += 1
    plan = sender.plan(ids)
    data = sender.send_activations(activations(ids, 1), plan)
    with pytest.raises(DriftError, match=r"samples \[0, 1, 2, 3\], but their checksums differ"):
        receiver.receive_activations(data, plan)


def test_forged_bytes_are_refused_before_anything_is_remembered():
    sender, receiver = sides()
    ids = torch.arange(4)
    cross(sender, receiver, activations(ids), ids)
    plan = receiver.plan(ids)
    before = receiver.buffer.rows.clone()
    good = sender.send_activations(activations(ids, 1), sender.plan(ids))
    negative, infinite = good.clone(), good.clone()
    negative[:4] = torch.tensor([-1.0]).view(torch.uint8)
    infinite[:4] = torch.tensor([torch.inf]).view(torch.uint8)
    for forged in (good[:-1], good[:0], torch.cat([good, good[:1]]), negative, infinite):
        with pytest.raises(WireError):
            receiver.receive_activations(forged, plan)
        with pytest.raises(WireError):
            sender.receive_gradients(good[:3], plan)
    assert receiver.buffer.rows.equal(before)
    receiver.receive_activations(good, plan)
    same_memory(sender, receiver)


def test_what_is_not_finite_is_not_remembered():
    sender, receiver = sides()
    ids = torch.arange(3)
    cross(sender, receiver, activations(ids), ids)
    broken = activations(ids, 1)
    broken[1, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        sender.send_activations(broken, sender.plan(ids))
    with pytest.raises(NotFiniteError):
        receiver.send_gradients(broken, receiver.plan(ids))
    same_memory(sender, receiver)
    cross(sender, receiver, activations(ids, 2), ids)


def test_ids_that_are_none_are_refused(subtests):
    for ids, rule in [
        (torch.tensor([0.0]), "ids must be int64 of one axis, got torch.float32"),
        (torch.tensor([[0]]), "ids must be int64 of one axis"),
        (torch.tensor([0, SAMPLES]), "ids must be from 0 to 11, got 0 to 12"),
        (torch.tensor([-1]), "ids must be from 0 to 11, got -1 to -1"),
        (torch.tensor([3, 3]), r"ids of a micro-batch must differ, got \[3, 3\]"),
    ]:
        with subtests.test(f"{ids}, {rule}"), pytest.raises(ValueError, match=rule):
            sides()[0].plan(ids)


def test_what_cannot_work_is_refused(subtests):
    for options, rule in [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, got -1"),
        ({"buffer_dtype": torch.int8}, "buffer_dtype must be float16, float32 or float64, got"),
        ({"buffer_bits": 1}, "buffer_bits must be from 2 to 8, got 1"),
        ({"shape": (10**12,)}, "buffer must fit, got memory of"),
        ({"shape": (10**15,), "buffer": "disk"}, "buffer must fit, got disk of"),
        (
            {"forward": QSGD(coding="elias-sparse")},
            "forward must send messages of fixed size, got QSGD",
        ),
        ({"backward": ErrorFeedback(TopK())}, "backward must remember nothing, as each micro-b"),
    ]:
        with subtests.test(f"{options}, {rule}"), pytest.raises(ValueError, match=rule):
            sides(**options)


def test_activations_of_another_shape_or_dtype_are_refused():
    sender, _ = sides()
    plan = sender.plan(torch.arange(3))
    for wrong in (torch.zeros(2, *SHAPE), torch.zeros(3, 4), torch.zeros(3, *SHAPE).double()):
        with pytest.raises(ValueError, match=r"activations must be torch\.float32 of shape"):
            sender.send_activations(wrong, plan)


def test_a_state_of_another_boundary_is_refused():
    state = sides()[0].state_dict()
    with pytest.raises(ValueError, match="state must be that of 5 samples, got 12"):
        sides(num_samples=5)[0].load_state_dict(state)
    with pytest.raises(ValueError, match="state must be that of the same buffer"):
        sides(shape=(3,))[0].load_state_dict(state)
    with pytest.raises(ValueError, match="state must hold no buffer"):
        sides(forward=HalfPrecision())[0].load_state_dict(state)


def test_buffers_give_back_what_they_say_they_stored(subtests):
    for kind in KINDS:
        for shape in [(7,), (3, 9)]:
            with subtests.test(f"{kind}, {shape}"):
                buffer = make_buffer(kind, 6, shape)
                assert not buffer.read(torch.arange(6)).any()
                values = 1e3 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
                stored = buffer.write(torch.tensor([4, 0, 2]), values)
                assert buffer.read(torch.tensor([4, 0, 2])).equal(stored)
                assert not buffer.read(torch.tensor([1, 3, 5])).any()
                precision = 1 / 15 if kind == "low_bit" else 2**-11
                assert (stored - values).abs().max() <= precision * values.abs().max() * 1.001
                assert buffer.num_bytes == buffer_bytes(kind, 6, shape)
                buffer.prefetch(torch.tensor([1, 5]))


def test_half_buffers_hold_large_values_at_their_border():
    stored = make_buffer("memory", 1, (2,)).write(torch.tensor([0]), torch.tensor([[1e9, -1e9]]))
    assert stored.tolist() == [[65504.0, -65504.0]]


def resident_kib():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))


def test_a_buffer_on_disk_keeps_little_in_memory(tmp_path):
    """200 MiB are written and read; at most the 64 MiB that may stay, and some, are resident."""
    buffer = DiskBuffer(400, (1024, 256), folder=tmp_path, name="large")
    before = resident_kib()
    values = torch.ones(10, 1024, 256)
    for start in range(0, 400, 10):
        buffer.write(torch.arange(start, start + 10), values)
    assert buffer.read(torch.tensor([0, 399])).eq(1).all()
    assert resident_kib() - before < 110 * 1024
    assert (tmp_path / "large.rows").stat().st_size == buffer.num_bytes == 400 * 1024 * 256 * 2
