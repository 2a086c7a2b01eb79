"""What every transform of messages promises, and the statistics of noise."""

import io
import pickle

import pytest
import torch

from laws import concrete
from phalanx import transforms
from phalanx.coding import Detox, DracoCyclic, DracoRepetition, Uncoded
from phalanx.errors import WireError
from phalanx.parameters import ParameterLayout
from phalanx.transforms import GaussianNoise, MessageContext, MessageTransform

every = pytest.mark.parametrize("kind", concrete(transforms, MessageTransform))
LAYOUT = ParameterLayout(("weight", "bias"), ((8, 5), (8,)), torch.float32)


def context(step=0, worker=0, layout=LAYOUT):
    return MessageContext(layout, 0, step, worker, 4)


def message(seed=0):
    return torch.randn(LAYOUT.dim, generator=torch.Generator().manual_seed(seed))


def equal(state, other):
    return len(state) == len(other) and all(
        one.equal(two) for one, two in zip(state, other, strict=True)
    )


@every
def test_nothing_is_overwritten_and_the_state_is_explicit(kind):
    transform, state = kind(), kind().init(LAYOUT)
    for step in range(4):
        given = message(step)
        before, kept = given.clone(), tuple(one.clone() for one in state)
        first = transform.update(given, state, context(step))
        second = transform.update(given, state, context(step))
        assert first[0].equal(second[0])
        assert equal(first[1], second[1])
        assert given.equal(before)
        assert equal(state, kept)
        state = first[1]


@every
def test_a_state_survives_a_checkpoint(kind):
    transform, state = kind(), kind().init(LAYOUT)
    for step in range(3):
        _, state = transform.update(message(step), state, context(step))
    file = io.BytesIO()
    torch.save(list(state), file)
    file.seek(0)
    loaded = tuple(torch.load(file, weights_only=True))
    straight = transform.update(message(3), state, context(3))
    resumed = transform.update(message(3), loaded, context(3))
    assert straight[0].equal(resumed[0])
    assert equal(straight[1], resumed[1])


@every
def test_the_server_reads_what_was_sent(kind):
    transform = kind()
    sent, _ = transform.update(message(), transform.init(LAYOUT), context())
    read = transform.decode(sent, LAYOUT)
    assert read.shape == (LAYOUT.dim,)
    assert read.dtype == LAYOUT.dtype
    assert transform.encodes == (sent.dtype == torch.uint8)
    if not transform.encodes:
        assert read.equal(sent)
    forged = transform.forge(message(), context())
    assert transform.decode(forged, LAYOUT).shape == (LAYOUT.dim,)


@every
def test_what_is_no_message_is_refused(kind, subtests):
    sent, _ = kind().update(message(), kind().init(LAYOUT), context())
    worthless = {
        "short": sent[1:],
        "long": torch.cat([sent, sent]),
        "matrix": sent.unsqueeze(0),
        "float64": sent.double(),
        "int64": sent.long(),
        "empty": sent[:0],
    }
    for name, data in worthless.items():
        with subtests.test(name), pytest.raises(WireError):
            kind().decode(data, LAYOUT)


@every
def test_it_is_a_value(kind):
    assert pickle.loads(pickle.dumps(kind())) == kind()
    assert hash(kind()) == hash(kind())


def test_noise_has_its_standard_deviation_and_is_each_workers_own(subtests):
    layout = ParameterLayout(("w",), ((100_000,),), torch.float32)
    zeros = torch.zeros(layout.dim)
    for std in (0.01, 1.0, 30.0):
        with subtests.test(std=std):
            drawn = {
                (step, worker): GaussianNoise(std).update(zeros, (), context(step, worker, layout))[
                    0
                ]
                for step in range(2)
                for worker in range(2)
            }
            for noise in drawn.values():
                assert noise.std().item() == pytest.approx(std, rel=0.02)
                assert noise.mean().abs().item() < 5 * std / layout.dim**0.5
            table = torch.stack(list(drawn.values()))
            correlation = torch.corrcoef(table) - torch.eye(4)
            assert correlation.abs().max() < 0.02
    assert GaussianNoise(0.0).update(message(), (), context())[0].equal(message())


def test_noise_is_refused_where_replicas_are_compared(subtests):
    for code in (DracoRepetition(3, 1), DracoCyclic(5, 1), Detox(6, 1)):
        with subtests.test(f"{code}"):
            assert "GaussianNoise" in GaussianNoise().conflict(code, LAYOUT)
    assert GaussianNoise().conflict(Uncoded(5), LAYOUT) is None


def test_what_is_out_of_range_is_refused(subtests):
    for std in (-1.0, float("inf"), float("nan")):
        refused = pytest.raises(ValueError, match="std must be finite and at least 0, got")
        with subtests.test(std=std), refused:
            GaussianNoise(std)
