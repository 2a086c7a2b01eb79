"""LeastVisible: what the checks of a linear code see of it."""

import pytest
import torch

from phalanx.attacks import AdversaryKnowledge, LeastVisible
from phalanx.coding import DracoCyclic, DracoRepetition


def lie_of(code, byzantine, **options):
    """The lie, a row per Byzantine worker, and honest messages."""
    messages = code.encode_all([torch.randn(code.num_partitions, 50, dtype=torch.float64)])
    honest = [worker for worker in range(code.num_workers) if worker not in byzantine]
    view = AdversaryKnowledge(
        messages[honest], tuple(honest), len(byzantine), encoding=code.encoding
    )
    attack = LeastVisible(**options)
    plans = [attack.member(rank).plan(view)[0] for rank in range(len(byzantine))]
    forged = [
        plan.forge(messages[worker], view.honest, len(byzantine))
        for worker, plan in zip(byzantine, plans, strict=True)
    ]
    return torch.stack(forged) - messages[byzantine], messages


def shown(code, byzantine, framed, lie):
    """What is left of the lie's syndrome beside the columns of the framed workers."""
    encoding = code.encoding
    rank = int(torch.linalg.matrix_rank(encoding))
    checks = torch.linalg.svd(encoding).U[:, rank:].T
    frame = torch.linalg.qr(checks[:, framed]).Q
    syndrome = checks[:, byzantine] @ lie
    return float((syndrome - frame @ (frame.T @ syndrome)).norm() / lie.norm())


def test_it_has_the_size_asked_for_and_hides_behind_neighbours():
    code = DracoCyclic(15, 3)
    torch.manual_seed(0)
    lie, messages = lie_of(code, [1, 2, 3], size=0.5)
    honest = [worker for worker in range(15) if worker not in (1, 2, 3)]
    assert float(lie.norm() / messages[honest].norm(dim=1).mean()) == pytest.approx(0.5, rel=1e-6)
    drawn = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = min(shown(code, [1, 2, 3], framed, lie) for framed in ([0, 4, 5], [0, 4, 14]))
    assert hidden <= 0.02 * shown(code, [1, 2, 3], [0, 4, 5], drawn)


def test_codes_of_many_workers_and_votes_are_lied_to_as_well():
    for code in (DracoCyclic(45, 5, group_length=45), DracoRepetition(9, 2)):
        lie, _ = lie_of(code, [0, 1], size=1e-3)
        assert lie.isfinite().all()
        assert lie.any()


def test_the_codes_matrix_is_read_off_the_code():
    code = DracoCyclic(7, 2)
    assert torch.allclose(code.encoding, code.weights)
    assert DracoCyclic(7, 2, band="published").encoding is None


def test_bad_fields():
    with pytest.raises(ValueError, match=r"size must be at least 0, got -1\.0"):
        LeastVisible(size=-1.0)
    with pytest.raises(ValueError, match="num_framed must be at least 0, got -1"):
        LeastVisible(num_framed=-1)
