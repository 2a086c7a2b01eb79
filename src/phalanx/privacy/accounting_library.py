"""Google's dp-accounting, an optional dependency of the privacy room."""

import logging
from types import ModuleType


def import_dp_accounting() -> ModuleType:
    """The library, with its accountants of Renyi divergences and privacy losses.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import dp_accounting
        import dp_accounting.pld.privacy_loss_distribution
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError(
            f"privacy accounting needs dp-accounting: pip install 'phalanx[private]' ({error})"
        ) from error
    # It warns of orders of the divergence that it leaves out, which makes no bound too small.
    logging.getLogger("absl").setLevel(logging.ERROR)
    module: ModuleType = dp_accounting
    return module
