"""Range checks of gossip algorithms' parameters."""


def require_diffusion(diffusion: float | str) -> None:
    """Raises a `ValueError` unless it is a number above 0, or "optimal"."""
    if diffusion != "optimal" and (isinstance(diffusion, str) or not diffusion > 0):
        raise ValueError(f'diffusion must be above 0, or "optimal", got {diffusion}')


def require_consensus_rate(rate: float) -> None:
    """Raises a `ValueError` unless it is above 0 and at most 1."""
    if not 0 < rate <= 1:
        raise ValueError(f"consensus_rate must be above 0 and at most 1, got {rate}")
