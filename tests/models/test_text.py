"""Models of text: attention, shapes, and stages."""

import pytest
import torch

from phalanx.models import GPT, TextClassifier
from phalanx.pipeline import split

TOKENS = torch.randint(20, (3, 8), generator=torch.Generator().manual_seed(0))


def made(kind, **options):
    torch.manual_seed(0)
    vocabulary = {"vocabulary": 20} if kind is TextClassifier else {}
    return kind((8,), 20, width=16, num_heads=2, **vocabulary, **options)


def test_no_place_sees_what_comes_after():
    model, changed = made(GPT), TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 20
    one, other = model(TOKENS), model(changed)
    assert one.shape == (3, 8, 20)
    torch.testing.assert_close(one[:, :5], other[:, :5])
    assert not torch.isclose(one[:, 5:], other[:, 5:]).all(dim=-1).any()


def test_attention_is_what_a_loop_computes():
    block = made(GPT).layers[1]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    queries, keys, values = block.queries_keys_values(block.before_attention(x)).chunk(3, dim=-1)
    mixed = torch.zeros_like(x)
    for row in range(2):
        for head in (slice(0, 8), slice(8, 16)):
            for place in range(5):
                scores = keys[row, : place + 1, head] @ queries[row, place, head] / 8**0.5
                mixed[row, place, head] = scores.softmax(dim=0) @ values[row, : place + 1, head]
    expected = x + block.mixed(mixed)
    torch.testing.assert_close(block(x), expected + block.wide(expected))


@pytest.mark.parametrize("kind", [GPT, TextClassifier])
def test_stages_in_a_row_are_the_model(kind):
    model = made(kind, depth=3)
    passed = TOKENS
    for stage in split(model.layers, 3):
        passed = stage(passed)
    assert passed.equal(model(TOKENS))


def test_a_classifier_looks_at_all_places():
    model, changed = made(TextClassifier), TOKENS.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 20
    assert model(TOKENS).shape == (3, 20)
    assert not torch.isclose(model(TOKENS), model(changed)).any()


@pytest.mark.parametrize("kind", [GPT, TextClassifier])
def test_bad_sizes_are_refused(kind, subtests):
    for options, rule in (
        ({"input_shape": (4, 4)}, r"input_shape must be \(length,\) of at least 1, got \(4, 4\)"),
        ({"num_classes": 0}, "num_classes and depth must be at least 1, got 0 and"),
        ({"depth": 0}, "num_classes and depth must be at least 1, got 5 and 0"),
        ({"width": 30}, "width must be a multiple of 4 num_heads, got 30"),
    ):
        with subtests.test(rule), pytest.raises(ValueError, match=rule):
            kind(**{"input_shape": (4,), "num_classes": 5, **options})
