"""Critical learning regimes, detected by changes of the gradient's norm."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from phalanx.checks import require_at_least


class Regime(NamedTuple):
    """What is known of one layer, or of the whole model, at the end of an epoch.

    Attributes:
        epoch: how many epochs have ended.
        norm: at the last check; None before the first.
        critical: whether the next epoch is in a critical regime.
    """

    epoch: int = 0
    norm: float | None = None
    critical: bool = True


@dataclass(frozen=True)
class CriticalRegimes:
    """Compares the norm of an epoch's gradient with that of an epoch some time earlier.

    Checks are at the end of every `interval`-th epoch. The norm is that of the *sum* of the
    gradients over the epoch's steps, not a sum of norms. A regime is critical until two checks have
    been made, where the norm has changed by at least the share `eta`, or has been zero; and from a
    drop of the learning rate to the next check. A rate that grows is no reason.

    Source: Agarwal, Wang, Lee, Venkataraman, Papailiopoulos, "Adaptive Gradient Communication via
    Critical Learning Regime Identification", MLSys 2021, section 4. With checks at the end of
    epochs 10, 20, ... the first switch can come after 20, which is when it comes in the logs that
    the authors published of growing batches.

    >>> regimes, regime = CriticalRegimes(interval=1), Regime()
    >>> found = []
    >>> for norm in (8.0, 4.0, 3.0):
    ...     regime = regimes.update(regime, norm)
    ...     found.append(regime.critical)
    >>> found  # nothing to compare with, a change of a half, of a quarter
    [True, True, False]
    """

    eta: float = 0.5
    """Share by which a norm must change to be critical; that share itself is."""
    interval: int = 10
    """Epochs from one check to the next."""

    def __post_init__(self) -> None:
        require_at_least(0, eta=self.eta)
        require_at_least(1, interval=self.interval)

    def checks(self, epoch: int) -> bool:
        """Whether the norm of this epoch, counted from 0, is looked at."""
        return (epoch + 1) % self.interval == 0

    def is_critical(self, before: float | None, now: float) -> bool:
        """Whether the norm changed by so much from one check to the next."""
        return not before or abs(before - now) >= self.eta * before

    def update(self, regime: Regime, norm: float, *, drops: bool = False) -> Regime:
        """What is known at the end of the next epoch.

        Args:
            regime: what was known before it.
            norm: of the sum of its gradients; anything where `checks` is false.
            drops: whether the learning rate of the epoch after it is lower.

        Raises:
            ValueError: if the norm is looked at, and is below 0.
        """
        ended = regime.epoch + 1
        if not self.checks(regime.epoch):
            return Regime(ended, regime.norm, regime.critical or drops)
        require_at_least(0, norm=norm)
        if not math.isfinite(norm):  # a sum that overflowed: nothing to compare the next one with
            return Regime(ended, None, True)
        return Regime(ended, norm, drops or self.is_critical(regime.norm, norm))
