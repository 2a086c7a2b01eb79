"""Mixtures of attacks."""

import pytest
import torch

from phalanx.attacks import (
    ALittleIsEnough,
    Constant,
    Delay,
    Mixed,
    ReverseGradient,
    SignFlip,
    Silence,
    WrongShape,
)

HONEST = torch.ones(4, 2)


def test_the_default_mixture_is_that_of_the_demo():
    assert [type(Mixed().member(rank)) for rank in range(4)] == [
        ReverseGradient,
        Constant,
        ALittleIsEnough,
        ReverseGradient,
    ]


def test_members_take_turns_and_keep_their_place():
    mixed = Mixed(attacks=[SignFlip(), Silence(), WrongShape()])
    sent = mixed.messages(HONEST, 5)
    assert [None if row is None else row.tolist() for row in sent] == [
        [-1.0, -1.0],
        None,
        [1.0, 1.0, 0.0],
        [-1.0, -1.0],
        None,
    ]


def test_stacking_leaves_the_silent_out():
    assert Mixed(attacks=[Silence(), SignFlip()])(HONEST, 3).tolist() == [[-1.0, -1.0]]
    assert Silence()(HONEST, 3).shape == (0, 2)


def test_stacking_refuses_odd_lengths_and_names_the_way_out():
    with pytest.raises(ValueError, match=r"got lengths \[2, 3\]; `messages` gives them one by one"):
        Mixed(attacks=[WrongShape(), SignFlip()])(HONEST, 2)


def test_a_mixture_of_mixtures_reaches_every_member():
    mixed = Mixed(attacks=[Mixed(attacks=[SignFlip(), Silence()]), Constant()])
    kinds = [type(mixed.member(rank)) for rank in range(4)]
    assert kinds == [SignFlip, Constant, Silence, Constant]


def test_alone_it_speaks_for_rank_0():
    mixed = Mixed(attacks=[Delay(delay_s=2.0), Silence()])
    assert (mixed.sends, mixed.delay_s, mixed.omniscient) == (True, 2.0, False)
    assert mixed.forge(HONEST[0], None, 1).tolist() == [1.0, 1.0]


def test_an_empty_mixture_is_refused():
    with pytest.raises(ValueError, match="attacks must name at least 1 attack"):
        Mixed(attacks=[])
