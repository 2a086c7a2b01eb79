import torch

from phalanx.aggregation import SignMajority


def test_ties_and_zeros_count_for_nothing():
    gradients = torch.tensor([[1.0, 1e30, 0.0, 0.0], [-2.0, 1e-30, 0.0, -5.0]])
    assert SignMajority()(gradients).tolist() == [0.0, 1.0, 0.0, -1.0]


def test_the_size_of_a_lie_does_not_matter():
    gradients = torch.randn(9, 200, generator=torch.Generator().manual_seed(0))
    exact = SignMajority()(gradients)
    gradients[2] *= 1e30
    assert torch.equal(SignMajority()(gradients), exact)


def test_names_who_votes_against_all_others():
    gradients = torch.ones(7, 20)
    gradients[4] = -1
    gradients[5, 3] = -1
    answer = SignMajority().explain(gradients)
    assert answer.scores.tolist() == [0, 0, 0, 0, 1, 0.05, 0]
    assert answer.suspects[4]
