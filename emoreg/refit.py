"""Directions fitted again on the model as training has left it, beside those of the set.

A frozen direction can be left by representing the same thing along another one; a probe that is
fitted again follows (Libon et al. 2026, arXiv:2609.38645). A refit reads transcripts of an
assistant in known states, and what the model itself answers in those states, with the current
weights; both labels are known without any probe. What the new direction of an emotion has beyond
its earlier facets becomes a facet of its own, in the unit of all readings: σ of neutral text under
the base. Those that tell the state least on the current model go when there are too many.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emoreg import refits
from emoreg.bank import Text, choose
from emoreg.encode import Encoded, encode, encode_prompt
from emoreg.errors import BankError, ConfigError
from emoreg.extract import Choices
from emoreg.files import parse_json
from emoreg.identity import context_length
from emoreg.knobs import told as quoted
from emoreg.moments import Scatter
from emoreg.probe import Facet, Probe
from emoreg.processes import shared
from emoreg.refits import auroc_along, auroc_beyond, bar, beyond
from emoreg.responses import answers, can_answer
from emoreg.samples import Sample
from emoreg.sweep import Acts, means, sweep, text_means

LEAST_TEXTS = 4  # of a state
NEUTRAL_TOKENS = 2048  # of the base, kept for the scale of directions to come
BATCH_TOKENS = 8192
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One direction that a refit found."""

    name: str  # of the facet: where from, and the step
    emotion: str
    direction: Tensor  # (blocks, width), float32, unit length; 0 at a block with nothing new
    sigma: Tensor  # (blocks,), residual-stream units


@dataclass(frozen=True)
class Neutral:
    """What the base is on neutral texts: the scale and the noise of every direction."""

    tokens: Tensor  # (tokens, blocks, width), float32
    noise: list[Tensor]  # at each block orthonormal rows, (components, width)


class Refitter:
    """Fits facets of some emotions again and again.

    Args:
        tokenizer: The model's, with a chat template.
        probe: The set's facets at the blocks that are read.
        emotions: Whose directions are fitted; those with too few transcripts are left out.
        texts: A bank, or a run's own texts: transcripts of at least two states, and neutral texts.
        most: Facets of an emotion at most, with the set's.
        number: Transcripts that are read, equally many of each state.
        response_tokens: Length of the model's own responses that are read too; 0 for none.

    Attributes:
        rows: What is kept, in the order it was found.

    Raises:
        BankError: The texts hold no states to tell apart, or too few texts of one; or the tokenizer
            has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        probe: Probe,
        emotions: Iterable[str],
        texts: Sequence[Text],
        most: int = 4,
        number: int = 64,
        response_tokens: int = 24,
    ) -> None:
        self.tokenizer, self.probe, self.most = tokenizer, probe, most
        self.response_tokens = response_tokens
        self.rows: list[Row] = []
        self._neutral_texts = choose(texts, "neutral", "fit")
        self._texts = _some(choose(texts, "transcript", "fit"), number)
        if not getattr(tokenizer, "chat_template", None):
            raise BankError(
                "The tokenizer has no chat template, so a refit cannot read transcripts. Give it "
                "the one the model is used with (tokenizer.chat_template), or set "
                "emoreg_refit_steps to 0."
            )
        states = Counter(t.label for t in self._texts)
        self.emotions = [e for e in emotions if states[e] >= LEAST_TEXTS]
        if not self.emotions or len(states) < 2 or len(self._neutral_texts) < 2:
            have = ", ".join(f"{states[x]} of {x}" for x in sorted(states)) or "none"
            raise BankError(
                f"A refit needs {LEAST_TEXTS} transcripts of {' or '.join(emotions)}, some of "
                f"another state, and neutral texts; the bank has transcripts: {have}; and "
                f"{len(self._neutral_texts)} neutral texts. Name another with emoreg_bank, or set "
                "emoreg_refit_steps to 0."
            )
        self._neutral: Neutral | None = None

    def prepare(self, base: AbstractContextManager[nn.Module]) -> None:
        """Read the neutral texts once with the base, the same weights with every adapter off.

        Raises:
            CaptureError: Activations that are not finite, or no memory for a single text.
        """
        with base as model:
            self._neutral = self._of_base(model)

    def fit(self, model: nn.Module, step: int) -> dict[str, float]:
        """Fit on the model as it stands; every process must call it.

        Args:
            model: Its mode, hooks, settings and random state are left as they were.
            step: Of the run, which the new facets are named after.

        Returns:
            Metrics without prefix.

        Raises:
            BankError: A text that cannot be read.
            CaptureError: Activations that are not finite, or no memory for a single text.
        """
        encoded = self._encoded(model)
        samples = {f"transcripts@{step}": self._read(model, encoded)}
        if self.response_tokens and can_answer(model) and (own := self._own(model)):
            samples[f"own@{step}"] = self._read(model, own)
        found = {e: self._ranked(e, samples) for e in self.emotions}
        logs = {f"refit_facets/{e}": float(len(rows)) for e, (rows, _) in found.items()}
        logs |= {f"refit_auroc/{e}": best for e, (_, best) in found.items()}
        self.rows = shared([row for rows, _ in found.values() for row in rows])
        return logs

    def facets(self) -> list[Facet]:
        """What is kept, as facets of the probe's blocks."""
        by_name: dict[str, list[Row]] = {}
        for row in self.rows:
            by_name.setdefault(row.name, []).append(row)
        return [
            Facet(
                name,
                tuple(row.emotion for row in rows),
                torch.stack([row.direction for row in rows]),
                torch.stack([row.sigma for row in rows]),
            )
            for name, rows in by_name.items()
        ]

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Tensors and a text from which `restore` makes the same rows."""
        tensors = {f"{i}.direction": row.direction for i, row in enumerate(self.rows)}
        tensors |= {f"{i}.sigma": row.sigma for i, row in enumerate(self.rows)}
        return tensors, json.dumps([[row.name, row.emotion] for row in self.rows])

    def restore(self, tensors: Mapping[str, Tensor], names: str) -> None:
        """Go on with what `state` gave.

        Raises:
            ConfigError: It is of other emotions or blocks, or of a model of another width.
            KeyError: A tensor is missing.
            ValueError: The text or the tensors are not of the kind that `state` gives.
        """
        rows = [
            Row(name, emotion, tensors[f"{i}.direction"], tensors[f"{i}.sigma"])
            for i, (name, emotion) in enumerate(_named(names))
        ]
        shape = (len(self.probe.blocks), self.probe.mu.shape[-1])
        for row in rows:
            if row.emotion not in self.emotions or row.direction.shape != shape:
                raise ConfigError(
                    f"A saved facet of {row.emotion} has the shape {tuple(row.direction.shape)}; "
                    f"this run fits {', '.join(self.emotions)} with {shape} blocks and width. "
                    "Resume with the vectors, emotions and blocks of the run that saved it."
                )
            values = torch.cat([row.direction.flatten(), row.sigma.flatten()])
            sound = values.dtype == torch.float32 and bool(values.isfinite().all())
            if not sound or row.sigma.shape != shape[:1] or not bool((row.sigma > 0).all()):
                raise ValueError(f"values that are no directions with scales, of {row.emotion}")
        self.rows = rows

    def _ranked(self, emotion: str, samples: Mapping[str, Sample]) -> tuple[list[Row], float]:
        """The facets of an emotion that are kept now, and the best AUROC among new ones."""
        assert self._neutral is not None
        own = self.probe.directions[:, self.probe.of(emotion)].transpose(0, 1).cpu()
        kept = [row for row in self.rows if row.emotion == emotion]
        best, found = 0.0, [(row, self._told(row.direction, emotion, samples)) for row in kept]
        earlier = torch.cat([own, *(row.direction[None] for row in kept)])
        for name, sample in samples.items():
            direction, share = beyond(sample, emotion, self._neutral.noise, earlier)
            told = 0.0
            if share >= refits.NEW:
                told = auroc_beyond(sample, emotion, self._neutral.noise, earlier)
            best = max(best, told)
            if told >= bar(sample, emotion):
                sigma = torch.einsum("tbw,bw->tb", self._neutral.tokens, direction).std(0)
                sigma[~direction.any(-1)] = 1.0
                found.append((Row(name, emotion, direction, sigma), told))
                earlier = torch.cat([earlier, direction[None]])
        room = max(self.most - len(own), 0)
        useful = sorted(found, key=lambda pair: -pair[1])[:room]
        held = {id(row) for row, told in useful if told >= refits.USEFUL}
        return [row for row, _ in found if id(row) in held], best

    def _told(self, direction: Tensor, emotion: str, samples: Mapping[str, Sample]) -> float:
        """How well a facet tells the state on the current model, wherever it does best."""
        return max(auroc_along(sample, direction, emotion) for sample in samples.values())

    def _of_base(self, model: nn.Module) -> Neutral:
        texts = encode(self.tokenizer, self._neutral_texts, 1, context_length(model))
        each = max(1, NEUTRAL_TOKENS // len(texts))
        kept, scatter = [], Scatter()

        def reduce(acts: Acts, group: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
            row = [i for i, e in enumerate(group) for _ in _spaced(e.counted, each)]
            column = [c for e in group for c in _spaced(e.counted, each)]
            tokens = torch.stack([h[row, column].float().cpu() for h in acts.values()], 1)
            return tokens, means(acts, group, [e.counted for e in group])

        for _, (tokens, found) in sweep(model, texts, self.probe.blocks, BATCH_TOKENS, reduce):
            kept.append(tokens)
            for mean in found:
                scatter.add(mean)
        noise = scatter.components(Choices().neutral_variance)
        return Neutral(torch.cat(kept), [rows.float() for rows in noise])

    def _encoded(self, model: nn.Module) -> list[Encoded]:
        return encode(self.tokenizer, self._texts, 1, context_length(model))

    def _own(self, model: nn.Module) -> list[Encoded]:
        """The model's own answers in the states of the transcripts, in place of the last turn."""
        ids = [encode_prompt(self.tokenizer, _asked(t)) for t in self._texts]
        context = context_length(model)
        room = [
            n for n, x in enumerate(ids) if not context or len(x) <= context - self.response_tokens
        ]
        said = shared(answers(model, self.tokenizer, [ids[n] for n in room], self.response_tokens))
        found = [
            Encoded(
                self._texts[n],
                [*ids[n], *answer],
                list(range(len(ids[n]), len(ids[n]) + len(answer))),
                [len(ids[n]) - 1],
            )
            for n, answer in zip(room, said, strict=True)
        ]
        return sorted(found, key=lambda e: len(e.ids))

    def _read(self, model: nn.Module, encoded: list[Encoded]) -> Sample:
        pairs = list(text_means(model, encoded, self.probe.blocks, BATCH_TOKENS))
        return Sample(
            tuple(item.text for item, _ in pairs), torch.stack([mean for _, mean in pairs]).float()
        )


def _asked(text: Text) -> Sequence[dict[str, str]]:
    """A conversation up to the assistant's last turn."""
    return text.messages[:-1] if text.messages[-1]["role"] == "assistant" else text.messages


def _some(texts: Sequence[Text], number: int) -> list[Text]:
    """The first texts of each label, so many in all, but of each enough for two halves."""
    met: dict[str, int] = {}
    each = max(LEAST_TEXTS, number // max(1, len({t.label for t in texts})))
    kept = []
    for text in texts:
        met[text.label] = met.get(text.label, 0) + 1
        if met[text.label] <= each:
            kept.append(text)
    return kept


def _spaced(positions: Sequence[int], number: int) -> Sequence[int]:
    """At most so many of the positions, evenly spaced."""
    return positions[:: max(1, -(-len(positions) // number))]


def _named(names: str) -> list[list[str]]:
    """The name and the emotion of each row, from what `Refitter.state` gave."""
    found: Any = parse_json(names)
    rows: list[Any] = found if isinstance(found, list) else [None]
    if not all(isinstance(r, list) and [type(x) for x in r] == [str, str] for r in rows):
        raise ValueError(f"{quoted(found)} where pairs of a name and an emotion are wanted")
    return rows
