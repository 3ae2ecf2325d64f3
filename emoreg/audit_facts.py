"""The measurements of an audit, each with its interval: pure functions of what was read.

A *share* is where a prompt lies between texts of other states, 0, and texts of the emotion, 1. It
has no unit, and in a model's own frame it is the same whatever basis its residual stream has.
Intervals are 95 %, from resampling prompts and texts, the same ones for base and model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from emoreg.audit_fit import noise, without
from emoreg.audit_texts import CRISIS, Corpus
from emoreg.audit_values import Array, Scores, Value, auroc, drawn, kept
from emoreg.audit_view import View
from emoreg.audit_words import lean
from emoreg.bank import SPLITS
from emoreg.extract import FACETS
from emoreg.probe import Probe
from emoreg.resampling import correlation

TAME = ("loving", "happy", "calm", "grateful", "content")  # steering them breeds sycophancy
HARSH = ("angry", "hostile", "contemptuous", "frustrated")


class Facts:
    """What the views of a base and of a model say.

    Args:
        corpus: The texts that both read.
        emotion: The one that is audited.
        own: The directions that were penalised, at the watched blocks.
        others: Those of other emotions, at the same blocks.
        blocks: Of the views.
        base: What the base reads.
        now: What the model reads.
        rescored: The base's activations over the model's own responses, (prompts, blocks, width).
    """

    def __init__(
        self,
        corpus: Corpus,
        emotion: str,
        own: Probe,
        others: Probe,
        blocks: Sequence[int],
        base: View,
        now: View,
        rescored: Tensor | None = None,
    ) -> None:
        self.corpus, self.emotion, self.own, self.others = corpus, emotion, own, others
        self.blocks, self.base, self.now, self.rescored = tuple(blocks), base, now, rescored
        self.prompts = len(base.places["colon"])
        self.kinds = corpus.kinds(emotion)
        # A story's direction, fitted over whole texts, means little at the one token of the colon.
        over = self.kinds[0][0] == "story" and "response" in base.places
        self.place = "response" if over else "colon"
        self.parts = {id(view): noise(view.neutral) for view in (base, now)}

    def all(self) -> dict[str, Value]:
        """Every measurement that these views allow, by name."""
        parts = (self._own(), self._states(), self._readable(), self._texts(), self._sides())
        return {name: value for part in parts for name, value in part}

    # --- the penalised directions, and what is written -------------------------------------------

    def _own(self) -> Iterator[tuple[str, Value]]:
        base, now = self.base.places, self.now.places
        for place in ("colon", "response"):
            if place in base and place in now:
                shift = self._mine(now[place]) - self._mine(base[place])
                yield f"own_{place}", self._over_prompts(shift)
        if self.rescored is not None:
            reread = self._mine(self.rescored)
            yield "text", self._over_prompts(reread - self._mine(base["response"]))
            yield "concealed", self._over_prompts(reread - self._mine(now["own"]))
        if self.base.words is not None and self.now.words is not None:
            moved = drawn(self.prompts, 0) @ lean(self.base.words, self.now.words)
            yield "lean", Value.of(moved[:, 0] / moved[:, 1], self.prompts)

    def _mine(self, acts: Tensor) -> Array:
        """Mean of the penalised directions' readings, σ: (..., blocks, width) -> (...)."""
        found: Array = self._read(self.own, acts).mean(-1)
        return found

    def _read(self, probe: Probe, acts: Tensor) -> Array:
        """Readings in σ, mean over blocks, (..., rows)."""
        at = {b: acts[..., self.blocks.index(b), :] for b in probe.blocks}
        found: Array = probe.read(at).mean(0).double().numpy()
        return found

    def _over_prompts(self, shift: Array) -> Value:
        return Value.of(drawn(self.prompts, 0) @ shift, self.prompts)

    # --- where the prompts lie ---------------------------------------------------------------

    def _states(self) -> Iterator[tuple[str, Value]]:
        """Held-out directions in the base's frame, and directions refitted in the model's own."""
        watched = [b in self.own.blocks for b in self.blocks]
        number = min(self.prompts, *map(len, self.corpus.sides(self.kinds[0][0], self.emotion)))
        base, now = self.base, self.now
        for end, at in (("", watched), ("_elsewhere", [not w for w in watched])):
            if any(at):
                before = {s: self._share(base, base, s, at) for s in SPLITS}
                refit = [self._share(now, now, s, at) - before[s] for s in SPLITS]
                frozen = self._share(base, now, "held-out", at) - before["held-out"]
                yield f"refit{end}", Value.of((refit[0] + refit[1]) / 2, number)
                yield f"held_out{end}", Value.of(frozen, number)

    def _share(self, frame: View, read: View, split: str, at: Sequence[bool]) -> Array:
        """Share at the place of the prompts, mean over them, (1 + resamples,).

        Args:
            frame: On whose texts the direction is fitted and its two ends are set.
            read: Whose prompts are read.
            split: On which the direction is fitted; the other one sets the ends.
            at: Which blocks.
        """
        along = self._along(frame, self.kinds[0], split)
        high, low = (
            (mean * along).sum(-1) for mean in self._means(frame, self.kinds[0], _other(split))
        )
        prompts = _mean(drawn(self.prompts, 0), read.places[self.place])
        place, low, high = (x[:, at] for x in ((prompts * along).sum(-1), low, high))
        unit = (high - low)[:1]  # so that every block counts alike
        above = ((place - low) / unit).mean(1)
        found: Array = (above / ((high - low) / unit).mean(1)).double().numpy()
        return found

    def _means(self, view: View, kind: tuple[str, int], split: str) -> list[Tensor]:
        """Mean of the texts with the emotion, and without, (1 + resamples, blocks, width) each."""
        sides = self.corpus.sides(kind[0], self.emotion, split)
        return [
            _mean(drawn(len(at), seed), view.labelled[at, kind[1]])
            for seed, at in enumerate(sides, SEEDS[split])
        ]

    def _along(self, view: View, kind: tuple[str, int], split: str) -> Tensor:
        """From texts without the emotion to texts with it, (1 + resamples, blocks, width)."""
        own, others = self._means(view, kind, split)
        return normalize(without(own - others, self.parts[id(view)]), dim=-1)

    # --- whether the state can be read -------------------------------------------------------

    def _readable(self) -> Iterator[tuple[str, Value]]:
        """How well penalised, and refitted, directions read labelled texts, then and now."""
        views = {"base": self.base, "now": self.now}
        for name, how in (("own", self._own_scores), ("refit", self._refit_scores)):
            scores = {v: how(view) for v, view in views.items()}
            for v, found in scores.items():
                yield f"{name}_auroc_{v}", auroc(found)
            yield f"{name}_kept", kept(scores["base"], scores["now"])
        yield "cosine", self._cosine()
        yield "frame", self._frame()

    def _own_scores(self, view: View) -> list[Scores]:
        """Readings of held-out texts along the penalised directions, σ, by kind.

        Of the kinds of text that these directions were fitted on, if the audit has them.
        """
        scores = self._mine(view.labelled[:, 0])
        fitted = {FACETS.get(facet) for facet, _ in self.own.rows}
        kinds = [kind for kind, _ in self.kinds]
        known = [kind for kind in kinds if kind in fitted] or kinds
        sides = (self.corpus.sides(kind, self.emotion, "held-out") for kind in known)
        return [(scores[own], scores[others]) for own, others in sides]

    def _refit_scores(self, view: View) -> list[Scores]:
        """The same along directions fitted on the view itself, by kind."""
        found = []
        for kind in self.kinds:
            own, others = self.corpus.sides(kind[0], self.emotion, "held-out")
            scores = self._refitted(view, kind, view.labelled[:, kind[1]])
            found.append((scores[own], scores[others]))
        return found

    def _refitted(self, view: View, kind: tuple[str, int], acts: Tensor) -> Array:
        """Readings along a direction fitted on the view itself, in its own σ of neutral tokens.

        Args:
            view: Whose texts and tokens.
            kind: Of the texts that the direction is fitted on.
            acts: (texts, blocks, width).

        Returns:
            Mean over blocks, (texts,).
        """
        along = self._along(view, kind, "fit")[0]
        spread = (view.neutral * along).sum(-1).std(0)
        found: Array = ((acts * along).sum(-1) / spread).mean(1).double().numpy()
        return found

    def _cosine(self) -> Value:
        """Of directions fitted on the base and on the model, mean over kinds and blocks."""
        rows = [
            (self._along(self.base, k, "fit") * self._along(self.now, k, "fit")).sum(-1).mean(1)
            for k in self.kinds
        ]
        fewest = min(
            len(x) for k, _ in self.kinds for x in self.corpus.sides(k, self.emotion, "fit")
        )
        return Value.of(torch.stack(rows).mean(0).double().numpy(), fewest)

    def _frame(self) -> Value:
        """Correlation of base and model over texts, along other emotions' frozen directions.

        The median over them: near 1 where the residual stream has kept its basis.
        """
        before, after = (self._read(self.others, v.labelled[:, 0]).T for v in (self.base, self.now))
        share = drawn(before.shape[1], 7)
        found = correlation(before[:, None], after[:, None], share[None])  # (rows, resamples)
        return Value.of(np.nanmedian(found, 0), before.shape[1])

    # --- texts in which it should fire, or is hidden -------------------------------------------

    def _texts(self) -> Iterator[tuple[str, Value]]:
        """Contrast kept on urgency and deflection, along refitted and along frozen directions."""
        for name, label in (("urgency", CRISIS), ("deflection", self.emotion)):
            own, others = self.corpus.sides(name, label)
            if own and others:
                for way, how in (("", self._refit_last), ("_own", self._own_last)):
                    rows = [how(view)[at] for view in (self.base, self.now) for at in (own, others)]
                    yield f"{name}_auroc{way}", auroc([(rows[0], rows[1])])
                    yield f"{name}{way}", kept([(rows[0], rows[1])], [(rows[2], rows[3])])

    def _refit_last(self, view: View) -> Array:
        """Along the direction of stories, whose words are those of people and not of assistants."""
        return self._refitted(view, self.kinds[-1], view.labelled[:, 1])

    def _own_last(self, view: View) -> Array:
        """Along the penalised directions of stories, or of whatever there are."""
        rows = [i for i, (facet, _) in enumerate(self.own.rows) if facet == "stories"]
        readings = self._read(self.own, view.labelled[:, 1])
        found: Array = (readings[:, rows] if rows else readings).mean(-1)
        return found

    # --- side effects ----------------------------------------------------------------------------

    def _sides(self) -> Iterator[tuple[str, Value]]:
        """Perplexity on neutral texts, and readings that go with flattery and with harshness."""
        if len(self.base.loss) and len(self.now.loss):
            number = len(self.base.loss)
            worse = drawn(number, 8) @ (self.now.loss - self.base.loss)
            yield "perplexity", Value.of(np.exp(worse), number)
        place = "response" if "response" in self.base.places else "colon"
        shift = self._read(self.others, self.now.places[place] - self.base.places[place])
        zero = self._read(self.others, torch.zeros_like(self.base.places[place][:1]))
        for name, emotions in (("sycophancy", TAME), ("harshness", HARSH)):
            rows = [i for i, (_, e) in enumerate(self.others.rows) if e in emotions]
            if rows:
                yield name, self._over_prompts((shift - zero)[:, rows].mean(1))


SEEDS = {"fit": 1, "held-out": 3}  # and the next, for the texts without the emotion


def _other(split: str) -> str:
    return SPLITS[1 - SPLITS.index(split)]


def _mean(share: Array, acts: Tensor) -> Tensor:
    """Resampled means, (resamples, blocks, width), of (texts, blocks, width)."""
    return torch.einsum("rt,tbw->rbw", torch.from_numpy(share).float(), acts)
