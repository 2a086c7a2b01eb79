"""Models of transformers in stages: tiny ones with random weights; nothing is downloaded."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from phalanx.compression import SampleQuantization
from phalanx.pipeline import ActivationDifference, SimulatedPipeline, hugging_face_layers, split
from phalanx.pipeline.hugging_face import mark, unmark

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
CLASSIFIERS = ["GPT2", "Bert", "Roberta", "DistilBert"]
TOKENS = torch.randint(1, 30, (5, 9), generator=torch.Generator().manual_seed(0))
PADDED = TOKENS.clone()
for row, stop in enumerate([9, 4, 1, 7, 5]):
    PADDED[row, stop:] = 0


def tiny(family, task="ForSequenceClassification", **options):
    """A model of two or three blocks, without dropout; weights so large that all places matter."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1}
    sizes["initializer_range"] = 0.5
    if family == "GPT2":
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        shape = {"n_embd": 12, "n_layer": 3, "n_head": 2, "n_positions": 16}
    elif family == "DistilBert":
        drops = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
        shape = {"dim": 12, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    else:
        drops = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
        shape = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
        shape["intermediate_size"] = 24
    config = getattr(transformers, f"{family}Config")(**sizes, **drops, **shape, **options)
    return getattr(transformers, f"{family}{task}")(config)


def in_stages(layers, number, inputs):
    for stage in split(layers, number):
        inputs = stage(inputs)
    return inputs


@needs_transformers
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_stages_of_a_classifier_give_its_logits(family, subtests):
    for attention in ["eager", "sdpa"]:
        with subtests.test(f"{attention}"):
            model = tiny(family, attn_implementation=attention)
            expected = model(TOKENS).logits
            assert expected.shape == (5, 3)
            torch.testing.assert_close(in_stages(hugging_face_layers(model), 3, TOKENS), expected)


@needs_transformers
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_padding_counts_for_nothing(family, subtests):
    for attention in ["eager", "sdpa"]:
        with subtests.test(f"{attention}"):
            model = tiny(family, attn_implementation=attention)
            expected = model(PADDED, attention_mask=(PADDED != 0).long()).logits
            layers = hugging_face_layers(model, padding=0)
            torch.testing.assert_close(in_stages(layers, 3, PADDED), expected)
            if family != "GPT2":  # which sees no padding behind the text anyway
                assert not torch.isclose(
                    hugging_face_layers(model)(PADDED), expected, atol=1e-4
                ).all()


@needs_transformers
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_stages_of_a_language_model_give_its_logits_and_gradients(attention):
    model = tiny("GPT2", "LMHeadModel", attn_implementation=attention, tie_word_embeddings=False)
    layers = hugging_face_layers(model)
    expected = model(TOKENS).logits
    found = in_stages(layers, 4, TOKENS)
    torch.testing.assert_close(found, expected)
    ours, theirs = (
        torch.autograd.grad(logits.square().mean(), list(model.parameters()))
        for logits in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@needs_transformers
def test_a_tied_head_is_refused_or_given_a_copy():
    model = tiny("GPT2", "LMHeadModel")
    with pytest.raises(ValueError, match="model must have a head with weights of its own"):
        hugging_face_layers(model)
    layers = hugging_face_layers(model, untie=True)
    head, embedding = layers[-1][-1].weight, model.transformer.wte.weight
    assert head is not embedding
    assert head.equal(embedding)
    torch.testing.assert_close(layers(TOKENS), model(TOKENS).logits)


@needs_transformers
def test_a_model_that_computes_something_else_is_refused():
    with pytest.raises(ValueError, match=r"model must compute what its layers do .* BertConfig"):
        hugging_face_layers(tiny("Bert", is_decoder=True))  # which looks back only


@needs_transformers
def test_language_models_need_no_padding():
    model = tiny("GPT2", "LMHeadModel", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="padding must be None for a language model"):
        hugging_face_layers(model, padding=0)


@needs_transformers
def test_dropout_is_warned_of():
    model = tiny("Bert", classifier_dropout=0.0)
    model.bert.embeddings.dropout.p = 0.1
    with pytest.warns(UserWarning, match="mostly noise after dropout"):
        SimulatedPipeline(
            split(hugging_face_layers(model), 2), TOKENS[:1], cross_entropy, num_samples=5
        )


@needs_transformers
@pytest.mark.parametrize("family", ["Bert", "GPT2"])
def test_padding_keeps_counting_for_nothing_in_two_bits(family):
    """The same texts with more padding give the same weights but for what carries the marks."""
    model = tiny(family)
    layers = hugging_face_layers(model, padding=0)
    stages = split(layers, 3)
    pipeline = SimulatedPipeline(
        stages,
        PADDED[:1],
        cross_entropy,
        num_samples=5,
        forward=ActivationDifference(2),
        backward=SampleQuantization(4),
        buffer_dtype=torch.float32,
    )
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    seen = []
    for stage in stages[1:]:
        stage.register_forward_pre_hook(lambda _, given: seen.append(unmark(given[0])[1]))
    ids, targets = torch.arange(5), torch.tensor([0, 1, 2, 1, 0])
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(pipeline.step(ids, PADDED, targets).item())
        optimizer.step()
    assert len(seen) == 24
    assert all(real.equal(PADDED != 0) for real in seen)
    assert losses[-1] < losses[0]


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"model must be one of GPT2LMHeadModel, .* got Linear"):
        hugging_face_layers(nn.Linear(2, 2))


def test_marks_survive_two_bits(subtests):
    for rounding, share in [("nearest", 3.0), ("stochastic", 1.5)]:
        for scale in ["sample", "token"]:
            with subtests.test(f"{rounding}, {share}, {scale}"):
                generator = torch.Generator().manual_seed(0)
                vectors = (
                    torch.randn(20, 6, 5, generator=generator)
                    * torch.logspace(-3, 3, 20)[:, None, None]
                )
                real = torch.rand(20, 6, generator=generator) < 0.5
                direct = SampleQuantization(2, rounding, scale)
                marked = mark(vectors, real)
                assert unmark(marked)[0].equal(vectors)
                assert unmark(direct.decode(direct.encode(marked, generator)))[1].equal(real)
                codec, remembered, counted = ActivationDifference(2, rounding, scale), marked, 0
                for _ in range(20):  # other values at every visit
                    vectors = vectors * (1 + 0.3 * torch.randn(vectors.shape, generator=generator))
                    marked = mark(vectors, real)
                    change, top = (
                        (x.abs().amax(dim=(1, 2))) for x in (marked - remembered, vectors)
                    )
                    remembered = codec.decode(
                        codec.encode(marked, remembered, generator), remembered
                    )
                    small = change < share * top
                    assert unmark(remembered)[1][small].equal(real[small])
                    counted += int(small.sum())
                assert counted > 200


@needs_transformers
def test_layers_stay_in_the_modes_that_they_were_in():
    model = tiny("Bert").train()
    frozen = model.bert.encoder.layer[0].eval()
    hugging_face_layers(model)
    assert model.training
    assert model.bert.encoder.layer[1].training
    assert not any(one.training for one in frozen.modules())
