"""Networks whose neurons can be matched, for the tests of federated averaging."""

import torch
from torch import nn
from torch.nn import functional

from phalanx.models import MLP, LeNet, ResNet18
from phalanx.randomness import generator, seeded


class VGG9(nn.Sequential):
    def __init__(self, width=4):
        w = [width, 2 * width, 4 * width]
        layers, before = [], 3
        for number, after in enumerate([w[0], w[1], w[1], w[1], w[2], w[2]]):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number % 2 else []
            before = after
        layers += [nn.Dropout2d(0.05), nn.Flatten(), nn.Linear(16 * before, 24), nn.ReLU()]
        super().__init__(*layers, nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 10))


class Characters(nn.Module):
    def __init__(self, last_state=False):
        super().__init__()
        self.embedding = nn.Embedding(12, 5)
        self.lstm = nn.LSTM(5, 7, batch_first=True)
        self.decoder = nn.Linear(7, 12)
        self.last_state = last_state

    def forward(self, tokens):
        outputs, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.decoder(hidden[-1] if self.last_state else outputs[:, -1, :])


class Functional(nn.Module):
    """Functions and methods instead of modules, a normalised pixels, a sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm1d(4 * 16)
        self.third = nn.Linear(4 * 16, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        x = functional.relu(self.first(x))
        x = functional.max_pool2d(x + self.second(x), 8)
        x = self.norm(x.view(x.size(0), -1))
        x = torch.tanh(self.third(x)) + 1
        return functional.log_softmax(self.last(functional.dropout(x, 0.1, self.training)), 1)


class Normalised(nn.Sequential):
    """All normalisations but that of batches: of each channel, of all, and of all pixels."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 6, 3), nn.GroupNorm(6, 6), nn.ReLU(), nn.MaxPool2d(3)),
            *(nn.Conv2d(6, 5, 3), nn.GroupNorm(1, 5), nn.Tanh(), nn.MaxPool2d(4)),
            *(nn.Conv2d(5, 4, 1), nn.LayerNorm([4, 2, 2]), nn.ReLU(), nn.Flatten()),
            *(nn.LayerNorm(16), nn.Linear(16, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3)),
        )
        for name, one in self.named_parameters():
            if one.ndim == 1 or "9." in name:
                nn.init.normal_(one)


def networks():
    """Networks with inputs; running statistics tell channels apart."""
    with seeded("networks"):
        images, tokens = torch.randn(3, 3, 32, 32), torch.randint(12, (3, 9))
        found = [
            (MLP((3, 32, 32), 10, hidden=[9, 8]), images),
            (LeNet((3, 32, 32), 10), images),
            (VGG9(), images),
            (ResNet18((3, 32, 32), 10, norm="batch", width=4), images),
            (Characters(), tokens),
            (Characters(last_state=True), tokens),
            (Functional(), images),
            (Normalised(), images),
            (nn.Linear(4, 2), torch.randn(3, 4)),
        ]
        for model, _ in found:
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point():
                    buffer.copy_(torch.rand_like(buffer) + ("var" in name))
    return [(model.eval(), inputs) for model, inputs in found]


def orders(layout, state, *names):
    return {
        layer: torch.randperm(width, generator=generator(layer, *names))
        for layer, width in layout.widths(state).items()
    }
