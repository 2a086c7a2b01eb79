"""The peer library that is measured against, without what asks for more than is installed."""

import importlib
import importlib.util
import sys
import types


class Absent(types.ModuleType):
    """Stands in for a module that is imported, but not needed for what is measured here."""

    __all__: tuple[str, ...] = ()


def load_byzfl() -> types.ModuleType | None:
    """ByzFL, without its experiment runner, which imports torchvision and seaborn at once."""
    if importlib.util.find_spec("byzfl") is None:
        return None
    sys.modules.setdefault("byzfl.benchmark", Absent("byzfl.benchmark"))
    return importlib.import_module("byzfl")
