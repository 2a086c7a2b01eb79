"""What does not fit is refused before the first round, by name; all else works as in torch."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import phalanx
from phalanx.aggregation import Mean
from phalanx.computations import Objective
from phalanx.losses import cross_entropy

SIZE = 48
torch.manual_seed(0)
X, Y = torch.randn(SIZE, 4), torch.randint(2, (SIZE,))


class Items(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return self.make(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))

    def __len__(self):
        return SIZE


def run(model, dataset, **options):
    options = {"batch_size": 12, "steps": 1, **options}
    return phalanx.train(model, dataset, rule=Mean(), num_workers=3, **options)


def broken(index):
    raise KeyError("label")


REFUSED = {
    "dicts": (Items(lambda i: {"x": X[i], "labels": Y[i]}), r"dict of \['x', 'labels'\]"),
    "triples": (Items(lambda i: (X[i], X[i], Y[i])), r"3 parts \(Tensor, Tensor, Tensor\)"),
    "three tensors": (TensorDataset(X, X, Y), "3 tensors"),
    "inputs alone": (Items(lambda i: X[i]), "one Tensor"),
    "dict of inputs": (Items(lambda i: ({"x": X[i]}, Y[i])), r"2 parts \(dict, Tensor\)"),
    "texts": (Items(lambda i: ("a text", Y[i])), r"2 parts \(str, Tensor\)"),
    "None": (Items(lambda i: (X[i], None)), "NoneType"),
    "unequal": (Items(lambda i: (X[i, : 3 + i % 2], Y[i])), r"one shape, got \(3,\) and \(4,\)"),
    "no items": (Items(broken), "dataset must give its items by number, got KeyError: 'label'"),
    "stream": (Stream(), "items by number, which Stream has not: collect the stream in a list"),
    "float64": (TensorDataset(X.double(), Y), "inputs of torch.float64.*must have the same dtype"),
    "labels from 1": (TensorDataset(X, Y + 1), r"targets must be classes from 0 to 1 .* got 2"),
    "negative": (TensorDataset(X, Y - 3), "targets must be classes from 0 to 1"),
    "32-bit labels": (TensorDataset(X, Y.int()), "targets of torch.int32"),
    "too wide": (TensorDataset(torch.randn(SIZE, 5), Y), r"shape \(4, 5\).*cannot be multiplied"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_do_not_fit_are_refused_by_name(name):
    dataset, rule = REFUSED[name]
    with pytest.raises(ValueError, match=rule):
        run(nn.Linear(4, 2), dataset, on_round=lambda entry: pytest.fail("a round was run"))


def test_a_label_that_is_met_later_is_named_as_well():
    wrong = Items(lambda i: (X[i], 5 if i == SIZE - 1 else int(Y[i])))
    with pytest.raises(ValueError, match="targets must be classes from 0 to 1"):
        run(nn.Linear(4, 2), wrong, batch_size=SIZE)


def test_test_data_are_looked_at_too():
    for test, rule in {
        Stream(): "test must have a length",
        TensorDataset(X, Y + 1): "test: targets must be classes",
        TensorDataset(X, X, Y): "test: items must be pairs",
    }.items():
        with pytest.raises(ValueError, match=rule):
            run(nn.Linear(4, 2), TensorDataset(X, Y), test=test)


def test_all_that_does_not_fit_is_said_at_once():
    net = nn.ParameterDict({"wave": torch.ones(2, dtype=torch.complex64), "plain": torch.ones(2)})
    rule = r"\['wave'\] are torch.complex64.*multiple of the 3 partitions, got 10.*items must be pa"
    with pytest.raises(ValueError, match=rule):
        run(net, TensorDataset(X, X, Y), batch_size=10)


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        (nn.LazyLinear(2), "parameters must have a shape: .*lazy layers"),
        (nn.Linear(4, 2, device="meta"), "parameters on the meta device"),
        (nn.Linear(4, 2, dtype=torch.complex64), r"must be real: \['weight', 'bias'\]"),
        (nn.Identity(), "model must have parameters that require gradients, got none"),
        (nn.Linear(4, 2).requires_grad_(requires_grad=False), "that require gradients, got none"),
        (nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2).double()), "of one dtype and device"),
        (nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(3)), "model, loss and dataset must fit"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_name(model, rule):
    with pytest.raises(ValueError, match=rule):
        run(model, TensorDataset(X, Y))


class Tied(nn.Module):
    """Two layers of one weight, a layer that nobody uses, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.two.weight = self.one.weight
        self.unused, self.empty = nn.Linear(3, 3), nn.Parameter(torch.empty(0, 3))
        self.head.bias.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.head(self.two(self.one(x).tanh()).tanh())


class Embedded(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)

    def forward(self, x):
        found = self.layer(x)
        return self.head(found if found.ndim == 2 else found.mean(dim=1))


TOKENS = torch.randint(9, (SIZE, 5))
IMAGES = torch.randn(SIZE, 3, 5, 5)


def image_model(memory_format):
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers).to(memory_format=memory_format)


TRAINED = {
    "tied": (Tied, X),
    "sparse": (lambda: Embedded(nn.Embedding(9, 4, sparse=True)), TOKENS),
    "sparse bag": (lambda: Embedded(nn.EmbeddingBag(9, 4, sparse=True)), TOKENS),
    "strided": (lambda: image_model(torch.channels_last), IMAGES),
    "bfloat16": (lambda: nn.Linear(4, 2).bfloat16(), X.bfloat16()),
    "float16": (lambda: nn.Linear(4, 2).half(), X.half()),
    "float64": (lambda: nn.Linear(4, 2).double(), X.double()),
}


@pytest.mark.parametrize("name", TRAINED)
def test_what_torch_trains_is_trained_to_the_same_weights(name):
    make, inputs = TRAINED[name]
    torch.manual_seed(3)
    ours = make()
    torch.manual_seed(3)
    theirs = make()
    dataset = TensorDataset(inputs, Y)
    found = Objective(ours, cross_entropy)
    gradient, _ = found.gradient(found.layout.read(ours), inputs[:8], Y[:8])
    cross_entropy(theirs(inputs[:8]), Y[:8]).backward()
    trained = [one for one in theirs.parameters() if one.requires_grad]
    grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
    wanted = torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in grads])
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-3)
    before = found.layout.read(ours)
    run(ours, dataset)
    assert not found.layout.read(ours).equal(before)
    if name == "tied":
        assert ours.two.weight is ours.one.weight
