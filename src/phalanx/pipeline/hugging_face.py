"""Hugging Face transformers as chains of layers that can be cut into stages."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from phalanx.parameters import module_modes, set_modes

_PROBE = 8  # tokens on which chain and model are compared


def hugging_face_layers(
    model: nn.Module, *, padding: int | None = None, untie: bool = False
) -> nn.Sequential:
    """The layers of a model of transformers in a chain: tokens in, logits out.

    They are the model's own modules: what trains them, trains the model. Known are
    `GPT2LMHeadModel`, `GPT2ForSequenceClassification`, `BertForSequenceClassification`,
    `RobertaForSequenceClassification` and `DistilBertForSequenceClassification`. Tokens are all
    that goes in: token types and places are what the model takes by default.

    Only one tensor crosses from stage to stage, so masks are made on the way. A causal mask follows
    from the length. Where texts are filled up, every place carries one value more, whose sign says
    whether it is a real one, and which is as large as the sample's largest value: rounding leaves
    it its sign. (Not if activations change too much between two visits of a sample: in 2 bits by
    three times the largest, or half of that with stochastic rounding; in 4 bits by 15 times.)
    Language models need no such mask, as no place sees those after it: fill texts up at their end,
    and make the targets there -100.

    Dropout is left as it is, and a pipeline that sends differences warns of it: configure models
    without. The chain is compared with the model on a few tokens, unless it is on torch's meta
    device.

    Args:
        model: an instance of one of these classes, with eager or `sdpa` attention.
        padding: the token that fills up texts, for classifiers; None where all texts are equally
            long.
        untie: whether a head that shares its weights with the embedding, which may lie in another
            stage, is given a copy of them; the two are then trained apart. Such a model is refused
            otherwise.

    Raises:
        ValueError: if the model is none of these, its head is tied, or the chain does not compute
            what the model does.
    """
    name = type(model).__name__
    if name not in _HEADS:
        raise ValueError(f"model must be one of {', '.join(_HEADS)}, got {name}")
    whole: Any = model
    base = whole.base_model
    causal = name.startswith("GPT2")
    if name == "GPT2LMHeadModel" and padding is not None:
        raise ValueError(
            "padding must be None for a language model, which does not look at what follows: make "
            f"the targets there -100, got {padding}"
        )
    head = _HEADS[name](whole, padding is not None)
    tied = base.get_input_embeddings().weight
    if any(weight is tied for weight in head.parameters()):
        if not untie:
            raise ValueError(
                "model must have a head with weights of its own, as embedding and head may lie in "
                "different stages; untie=True gives it a copy, which is trained apart"
            )
        head = copy.deepcopy(head)
    if causal:
        embedding, blocks = _TokensAndPlaces(base.wte, base.wpe, base.drop), base.h
    else:
        embedding = base.embeddings
        blocks = (base.transformer if hasattr(base, "transformer") else base.encoder).layer
    chain = nn.Sequential(
        _Embedding(embedding, padding),
        *(_Block(block, causal=causal, marked=padding is not None) for block in blocks),
        head,
    )
    if tied.device.type != "meta":
        _compare(chain, whole, padding)
    return chain


class _TokensAndPlaces(nn.Module):
    """The embedding of GPT-2, which has no module of its own."""

    def __init__(self, tokens: nn.Module, places: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.tokens, self.places, self.dropout = tokens, places, dropout

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        found: Tensor = self.dropout(self.tokens(tokens) + self.places(places))
        return found


class _Embedding(nn.Module):
    """Tokens to vectors; marked, if there may be padding."""

    def __init__(self, embedding: nn.Module, padding: int | None) -> None:
        super().__init__()
        self.embedding, self.padding = embedding, padding

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length wide"]:
        vectors: Tensor = self.embedding(tokens)
        return vectors if self.padding is None else mark(vectors, tokens != self.padding)


class _Block(nn.Module):
    """A block of attention with the mask that it needs."""

    def __init__(self, block: nn.Module, *, causal: bool, marked: bool) -> None:
        super().__init__()
        self.block, self.causal, self.marked = block, causal, marked

    def forward(self, x: Float[Tensor, "batch length wide"]) -> Float[Tensor, "batch length wide"]:
        vectors, real = unmark(x) if self.marked else (x, None)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)[None, None]
        seen = seen.tril() if self.causal else seen
        seen = seen if real is None else seen & real[:, None, None]
        hidden = torch.finfo(x.dtype).min
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill(~seen, hidden)
        given = self.block(vectors, attention_mask=mask)
        found: Tensor = given[0] if isinstance(given, tuple) else given  # with attention's weights
        return found if real is None else mark(found, real)


class _Pick(nn.Module):
    """One place of every text, or all of them, without marks."""

    def __init__(self, place: str, *, marked: bool) -> None:
        super().__init__()
        self.place, self.marked = place, marked

    def forward(self, x: Float[Tensor, "batch length wide"]) -> Float[Tensor, "batch ..."]:
        vectors, real = unmark(x) if self.marked else (x, None)
        if self.place == "all":
            return vectors
        if self.place == "first" or real is None:
            return vectors[:, 0 if self.place == "first" else -1]
        last = (real * torch.arange(x.shape[1], device=x.device)).argmax(dim=1)
        return vectors[torch.arange(len(x), device=x.device), last]


def mark(
    vectors: Float[Tensor, "batch length width"], real: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch length wide"]:
    """Vectors with one value more: as large as the sample's largest, and negative for padding.

    Rounding on a grid up to the largest value keeps it, and no grid grows by it.
    """
    top = vectors.detach().abs().amax(dim=(1, 2), keepdim=True)
    return torch.cat([vectors, torch.where(real[..., None], top, -top)], dim=-1)


def unmark(
    x: Float[Tensor, "batch length wide"],
) -> tuple[Float[Tensor, "batch length width"], Bool[Tensor, "batch length"]]:
    """The vectors, and which places are real."""
    return x[..., :-1], x[..., -1] > 0


def _language_model(model: Any, marked: bool) -> nn.Sequential:
    return nn.Sequential(model.transformer.ln_f, model.lm_head)


def _gpt2_classifier(model: Any, marked: bool) -> nn.Sequential:
    return nn.Sequential(_Pick("last", marked=marked), model.transformer.ln_f, model.score)


def _bert(model: Any, marked: bool) -> nn.Sequential:
    pick = _Pick("all", marked=marked)
    return nn.Sequential(pick, model.bert.pooler, model.dropout, model.classifier)


def _roberta(model: Any, marked: bool) -> nn.Sequential:
    return nn.Sequential(_Pick("all", marked=marked), model.classifier)


def _distilbert(model: Any, marked: bool) -> nn.Sequential:
    pick = _Pick("first", marked=marked)
    return nn.Sequential(pick, model.pre_classifier, nn.ReLU(), model.dropout, model.classifier)


_HEADS: dict[str, Callable[[Any, bool], nn.Sequential]] = {
    "GPT2LMHeadModel": _language_model,
    "GPT2ForSequenceClassification": _gpt2_classifier,
    "BertForSequenceClassification": _bert,
    "RobertaForSequenceClassification": _roberta,
    "DistilBertForSequenceClassification": _distilbert,
}
"""What comes after the last block, by class; whether places are marked is told."""


@torch.no_grad()
def _compare(chain: nn.Module, model: Any, padding: int | None) -> None:
    """Refuses a model that computes something else, by its configuration or its version."""
    config, modes = model.config, module_modes(model) | module_modes(chain)
    length = min(_PROBE, config.max_position_embeddings - 2)  # of which RoBERTa leaves out two
    used = {padding, config.pad_token_id}
    tokens = [token for token in range(config.vocab_size) if token not in used][:length]
    inputs = torch.tensor([tokens], device=model.device)
    real = torch.ones_like(inputs)
    if padding is not None:
        inputs[0, -2:], real[0, -2:] = padding, 0
    model.eval()
    chain.eval()
    try:
        wanted = model(inputs, attention_mask=real).logits
        found = chain(inputs)
    finally:
        set_modes(modes)
    allowed = torch.finfo(wanted.dtype).eps ** 0.5 * wanted.norm()
    if found.shape != wanted.shape or not (found - wanted).norm() <= allowed:
        raise ValueError(
            "model must compute what its layers do one after the other, got other logits from it: "
            f"something in its configuration is not carried over, {type(config).__name__}"
        )
