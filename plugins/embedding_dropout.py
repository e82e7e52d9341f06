"""Embedding dropout: words of the vocabulary that a whole step goes without."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from framework.errors import UserError, some
from framework.ops.draws import Rate
from framework.ops.noise import masked
from framework.ops.patterns import Patterns
from framework.plugin import Finding, Host, Plan, Plugin, Step
from framework.ranges import Range

_NO_WORDS = re.compile(r"pos|wpe|type|segment", re.IGNORECASE)


def drop_words(vectors: Tensor, tokens: Tensor, rate: float | Tensor, uniform: Tensor) -> Tensor:
    r"""Set the vectors of dropped words to zero, wherever they occur, and divide the others by :math:`1 - p`.

    .. math:: \tilde e_{nt} = \frac{\mathbb 1[u_{w_{nt}} \ge p]}{1 - p}\, e_{nt}

    Args:
        vectors: :math:`e`, the output of an embedding, ``(…, width)``.
        tokens: :math:`w`, its input, ``(…)``.
        rate: the probability :math:`p` that a word is dropped.
        uniform: draws :math:`u` from [0, 1), one for each word of the vocabulary.

    Example:
        >>> drop_words(torch.ones(3, 1), torch.tensor([0, 1, 0]), 0.5, torch.tensor([0.4, 0.5])).flatten().tolist()
        [0.0, 2.0, 0.0]
    """
    return masked(vectors, rate, F.embedding(tokens, uniform.unsqueeze(1)), rescale=True)


class EmbeddingDropout(Plugin):
    r"""Go without random words of the vocabulary in each optimizer step: embedding dropout.

    .. math:: \tilde E_w = \frac{b_w}{1 - p} E_w, \qquad P(b_w = 0) = p, \qquad \text{one } b \text{ a step}

    A dropped word is a vector of zeros wherever it occurs in the step, in every micro-batch and on every rank, and gets
    no gradient through the embedding. The mean is preserved, and evaluation uses :math:`E`. The weight itself is not
    edited: what the layer gives is masked by the tokens it was given, so an output layer that is tied to the table sees
    all words. Layers that share a table drop the same words.

    Args:
        layers: patterns over names or class names of ``nn.Embedding`` layers. Where there are tables of positions as
            well, name that of words: ``"wte"``.
        rate: :math:`p` in [0, 1): 0.1 in Merity et al., up to 0.5 for small data in Gal and Ghahramani. Zero drops
            nothing.

    Raises:
        UserError: if a pattern matches no layer, or one that is no ``nn.Embedding``; the message lists those there are.

    Example:
        >>> EmbeddingDropout(rate=0.2).describe()
        'EmbeddingDropout(rate=0.2)'

    Interacts with:
        ``HiddenNoise`` at the same layer: earlier in the recipe, its noise is dropped with the word. ``NormPenalty``
        and weight decay act on all rows. A table that the network reads without calling the layer is not masked.

    Source: Gal and Ghahramani (2016), A theoretically grounded application of dropout in recurrent neural networks;
    Merity, Keskar and Socher (2018), Regularizing and optimizing LSTM language models.
    """

    layers: Patterns = "Embedding"
    rate: Annotated[Rate, Range(0, 0.5)] = 0.1

    examples = ({"rate": 0.4, "in": "tokens"},)
    absent = ({"rate": 0.0},)

    def attach(self, core: Host) -> None:
        """Select the layers, and follow the tokens that they are given."""
        known = [name for name, layer in core.model.named_modules() if isinstance(layer, nn.Embedding)]
        there = f"the network's nn.Embedding layers: {', '.join(known) or 'none'}"
        try:
            chosen = core.observe(self, self.layers)
        except UserError as error:
            raise UserError(f"{error}; {there}") from None
        for handle in getattr(self, "handles_", []):
            handle.remove()
        self.tokens_: dict[str, Tensor] = {}
        self.draws_: dict[str, Tensor] = {}
        self.handles_: list[RemovableHandle] = []
        self.tables_: dict[str, tuple[str, nn.Embedding]] = {}
        first: dict[Tensor, str] = {}
        for name, layer in chosen.items():
            if not isinstance(layer, nn.Embedding):
                what = f"{name} is {type(layer).__name__}, whose output is not one vector a word"
                raise UserError(f"{self.describe()}: {what}; {there}")
            self.handles_.append(layer.register_forward_pre_hook(_Tokens(self.tokens_, name), with_kwargs=True))
            self.tables_[name] = first.setdefault(layer.weight, name), layer

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report tables that are none of words."""
        if odd := [name for name in self.tables_ if _NO_WORDS.search(name.rpartition(".")[2])]:
            message = f"{some(odd)} looks like no table of words, and has rows dropped; name that of words by layers="
            yield Finding("warning", self.name, message)

    def begin_step(self, step: Step) -> None:
        """Draw a number for each word, the same in every micro-batch and on every rank."""
        for name, (table, layer) in self.tables_.items():
            size, device = layer.num_embeddings, layer.weight.device
            stream = step.stream(f"{self.name}/{table}")
            if device.type == "cpu":
                self.draws_[name] = stream.of_step(step.index, room=size, start=0, size=size, kind="uniform")
            else:
                self.draws_[name] = torch.rand(size, generator=stream.torch(step.index, device=device), device=device)

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Return the layer's output with the vectors of dropped words set to zero."""
        tokens = self.tokens_.pop(layer, None)
        rate = step.number(self, "rate")
        if not isinstance(rate, Tensor) and not rate:
            return x
        if tokens is None or tokens.shape != x.shape[:-1]:
            found = "no tokens" if tokens is None else f"tokens {tuple(tokens.shape)}"
            raise UserError(
                f"{self.describe()}: {layer} was given {found} and returns {tuple(x.shape)}; choose another"
            )
        return drop_words(x, tokens, rate, self.draws_[layer])


class _Tokens:
    """A forward pre-hook of an embedding that keeps its input; in a copy of the layer it does nothing."""

    def __init__(self, kept: dict[str, Tensor], layer: str) -> None:
        self._kept, self._layer = kept, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if module.training or torch.is_grad_enabled():
            self._kept[self._layer] = args[0] if args else kwargs["input"]

    def __reduce__(self) -> Any:
        return _nobody, ()


def _nobody() -> Any:
    return _pass


def _pass(module: nn.Module, args: Any, kwargs: Any) -> None: ...
