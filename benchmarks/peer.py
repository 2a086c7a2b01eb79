"""The peer library that is measured against, without what asks for more than is installed."""

import importlib
import importlib.util
import sys
import types
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset, TensorDataset


class Absent(types.ModuleType):
    """Stands in for a module that is imported, but not needed for what is measured here."""

    __all__: tuple[str, ...] = ()


def load_byzfl() -> types.ModuleType | None:
    """ByzFL, without its experiment runner, which imports torchvision and seaborn at once."""
    if importlib.util.find_spec("byzfl") is None:
        return None
    sys.modules.setdefault("byzfl.benchmark", Absent("byzfl.benchmark"))
    return importlib.import_module("byzfl")


class Federation:
    """The peer's classes, called as its own experiment runner calls them (distributed SGD).

    The data are in memory and ready: the peer is spared the decoding and scaling of every image,
    which its runner does each time.

    Args:
        peer: the library.
        model: the name of one of its models.
        dataset: what is dealt out to the workers, in equal parts.
        num_workers: how many there are.
        num_byzantine: how many of them are bad; they compute nothing.
        samples: of a worker and round.
        learning_rate: of the server.
        aggregator: name and parameters of the rule.
        attack: name, `f` and parameters; None if nobody is bad.
        test: what accuracy is measured on; not measured if None.
    """

    def __init__(
        self,
        peer: Any,
        model: str,
        dataset: TensorDataset,
        num_workers: int,
        num_byzantine: int,
        *,
        samples: int,
        learning_rate: float,
        aggregator: dict[str, Any],
        attack: dict[str, Any] | None,
        test: TensorDataset | None = None,
    ) -> None:
        share = len(dataset) // num_workers
        parts = [Subset(dataset, range(i * share, (i + 1) * share)) for i in range(num_workers)]
        honest = parts[: num_workers - num_byzantine]
        loaders = [DataLoader(part, batch_size=samples, shuffle=True) for part in honest]
        self.server = peer.Server(
            {
                "model_name": model,
                "device": "cpu",
                "optimizer_name": "SGD",
                "milestones": [10**9],
                "aggregator_info": aggregator,
                "pre_agg_list": [],
                "test_loader": loaders[0] if test is None else DataLoader(test, batch_size=100),
                "learning_rate": learning_rate,
                "weight_decay": 0.0,
                "learning_rate_decay": 0.5,
            }
        )
        self._clients = [_client(peer, model, loader) for loader in loaders]
        self._liars = None if attack is None else peer.ByzantineClient(attack)

    def rounds(self, number: int) -> None:
        """So many rounds."""
        for _ in range(number):
            losses = np.array([client.compute_gradients() for client in self._clients])
            losses.mean()
            honest = [client.get_flat_gradients_with_momentum() for client in self._clients]
            forged = [] if self._liars is None else self._liars.apply_attack(honest)
            self.server.update_model_with_gradients(honest + forged)
            weights = self.server.get_dict_parameters()
            for client in self._clients:
                client.set_model_state(weights)


def _client(peer: Any, model: str, loader: DataLoader) -> Any:
    return peer.Client(
        {
            "model_name": model,
            "device": "cpu",
            "loss_name": "NLLLoss",
            "LabelFlipping": False,
            "nb_labels": 10,
            "momentum": 0.9,
            "training_dataloader": loader,
            "store_per_client_metrics": False,
        }
    )
