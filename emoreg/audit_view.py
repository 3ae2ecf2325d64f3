"""What an audit reads of one model: activations, losses, next words; nothing is judged here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from emoreg.audit_fit import direction, noise
from emoreg.audit_texts import Corpus
from emoreg.audit_words import Words, read_words
from emoreg.bank import Text
from emoreg.blocks import find_backbone
from emoreg.encode import Encoded, encode
from emoreg.identity import context_length
from emoreg.processes import shared
from emoreg.prompts import with_template
from emoreg.responses import Ids, answers, can_answer
from emoreg.snapshot import Gauge
from emoreg.sweep import Acts, batches, means, pad, sweep
from emoreg.tap import Tap, evaluating

BATCH_TOKENS = 8192  # padded, in one forward without logits
LOGIT_TOKENS = 1024  # with them
KEPT = 512  # tokens of neutral texts whose activations are kept: the calibration
STRENGTH = 0.05  # of an activation's length, added at each steered block: the paper's own range


@dataclass(frozen=True)
class View:
    """One model on the texts of an audit; activations are residual-stream units, float32.

    Attributes:
        labelled: Means of each labelled text, (texts, 2, blocks, width): over its counted tokens,
            and at its colons; a raw text has none and gives the first twice.
        neutral: Some tokens of the neutral texts, always the same ones, (tokens, blocks, width).
        loss: Nats per token of each neutral text, (texts,); empty for a model without a head.
        places: Place -> (prompts, blocks, width): ``colon``; ``response``, the mean over the
            base's response; ``own``, over the model's own one.
        texts: Own responses as token ids, by prompt; empty where none are read.
        words: What it would say next along the base's responses; None where there are none.
        tokens: Tokens that went forward, each weighted with the share of the blocks it passed.
    """

    labelled: Tensor
    neutral: Tensor
    loss: NDArray[np.float64]
    places: Mapping[str, Tensor]
    texts: tuple[Ids, ...]
    words: Words | None
    tokens: float


class Reader:
    """Reads models of one kind on the same texts.

    Args:
        gauge: The drift prompts, the blocks, and the length of responses.
        corpus: Labelled and neutral texts.
        emotion: The one that is audited.
        skip: Tokens of a raw text before its mean starts.
        steered: Blocks at which the base is steered.
    """

    def __init__(
        self, gauge: Gauge, corpus: Corpus, emotion: str, skip: int, steered: Sequence[int]
    ) -> None:
        self.gauge, self.corpus, self.emotion, self.skip = gauge, corpus, emotion, skip
        self.blocks, self.steered = gauge.probe.blocks, tuple(steered)

    def base(self, model: nn.Module) -> View:
        """Read a model as it stands; its own responses are what others are read on too."""
        return self._look(model, None)

    def now(self, model: nn.Module, base: View) -> View:
        """Read a model as it stands, on the base's responses and on its own."""
        return self._look(model, base)

    def rescore(self, model: nn.Module, texts: tuple[Ids, ...]) -> tuple[Tensor, float]:
        """Mean over anybody's responses, (prompts, blocks, width), and what it cost in tokens."""
        found = self.gauge.activations(model, texts)[1]
        assert found is not None
        return found.float(), self._share(model) * self._length(texts)

    def _look(self, model: nn.Module, base: View | None) -> View:
        labelled, spent = self._labelled(model)
        neutral, loss, whole = self._neutral(model)
        own = self._answers(model)
        texts = own if base is None else base.texts
        if not texts:
            colons = {"colon": self.gauge.activations(model, ())[0].float()}
            spent += self._share(model) * self._length(())
            return View(labelled, neutral, loss, colons, own, None, spent + whole)
        push = None if base else self._push(labelled, neutral)
        found = read_words(
            model, self.gauge.ids, texts, self.blocks, push, base.words if base else None
        )
        places = {"colon": found.colons, "response": found.responses}
        whole += (1 if base else 3) * self._length(texts)  # as it is, and steered to either side
        whole += self._length(own)  # to write them
        if base is not None and own:
            places["own"], more = self.rescore(model, own)
            spent += more
        return View(labelled, neutral, loss, places, own, found.words, spent + whole)

    def _labelled(self, model: nn.Module) -> tuple[Tensor, float]:
        rows = self._encoded(model, self.corpus.labelled)
        found: dict[int, Tensor] = {}
        for group, acts in sweep(model, rows, self.blocks, BATCH_TOKENS, _text_means):
            found |= {id(e.text): a.float() for e, a in zip(group, acts, strict=True)}
        acts = torch.stack([found[id(t)] for t in self.corpus.labelled])
        return acts, self._share(model) * _tokens(rows)

    @torch.no_grad()
    def _neutral(self, model: nn.Module) -> tuple[Tensor, NDArray[np.float64], int]:
        """Activations of some tokens, and the loss of each text, in the same forwards."""
        rows = self._encoded(model, self.corpus.neutral)
        every = -(-sum(len(e.counted) for e in rows) // KEPT)
        kept, losses = [], []
        device = next(model.parameters()).device
        with evaluating(model), Tap(model, self.blocks) as tap:
            for group in batches(rows, LOGIT_TOKENS):
                ids, mask = (x.to(device) for x in pad(group))
                output = model(input_ids=ids, attention_mask=mask, use_cache=False)
                width = ids.shape[1]  # the virtual tokens of a learned prompt come first
                acts = torch.stack([tap.acts[b][:, -width:] for b in self.blocks], 2)
                for row, item in enumerate(group):
                    kept.append(acts[row, item.counted[::every]].float().cpu())
                    if can_answer(model):
                        losses.append(_loss(output.logits[row, -width:], item.ids))
        return torch.cat(kept), np.array(losses), _tokens(rows)

    def _push(self, labelled: Tensor, neutral: Tensor) -> dict[int, Tensor]:
        """Towards the emotion, by held-out texts: block -> what is added, (width,)."""
        parts, rows = noise(neutral), []
        for kind, place in self.corpus.kinds(self.emotion):
            sides = self.corpus.sides(kind, self.emotion, "held-out")
            rows.append(direction(labelled[:, place], sides, parts))
        found = torch.stack(rows).sum(0)
        length = STRENGTH * neutral.norm(dim=-1).mean(0) / found.norm(dim=-1)
        at = {b: self.blocks.index(b) for b in self.steered}
        return {b: found[i] * length[i] for b, i in at.items()}

    def _encoded(self, model: nn.Module, texts: Sequence[Text]) -> list[Encoded]:
        tokenizer = with_template(self.gauge.tokenizer)
        return encode(tokenizer, texts, self.skip, context_length(model))

    def _answers(self, model: nn.Module) -> tuple[Ids, ...]:
        gauge = self.gauge
        if not gauge.response_tokens or not can_answer(model):
            return ()
        return tuple(shared(answers(model, gauge.tokenizer, gauge.ids, gauge.response_tokens)))

    def _length(self, texts: Sequence[Ids]) -> int:
        """Tokens of the prompts with responses."""
        return sum(map(len, self.gauge.ids)) + sum(map(len, texts))

    def _share(self, model: nn.Module) -> float:
        """Of the blocks, those up to the deepest that is read."""
        return (self.blocks[-1] + 1) / len(find_backbone(model).blocks)


def _text_means(acts: Acts, group: Sequence[Encoded]) -> Tensor:
    """Means over counted tokens and at colons, (batch, 2, blocks, width).

    The first of several colons is left out: before it nothing tells the assistant's state.
    """
    colons = [e.colons[1:] or e.colons or e.counted for e in group]
    return torch.stack([means(acts, group, at) for at in ([e.counted for e in group], colons)], 1)


def _loss(logits: Tensor, ids: Sequence[int]) -> float:
    """Nats per token of one text: (tokens, vocabulary)."""
    target = torch.tensor(ids[1:], device=logits.device)
    return float(cross_entropy(logits[: len(ids) - 1].float(), target))


def _tokens(rows: Sequence[Encoded]) -> int:
    return sum(len(e.ids) for e in rows)
