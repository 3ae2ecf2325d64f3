"""The directions of the comparison's arms: a world's own, and those of controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from worlds import Place

from emoreg.bank import Text, choose
from emoreg.controls import random_directions, shuffle_within
from emoreg.encode import encode
from emoreg.probe import Facet
from emoreg.scale import spread
from emoreg.sweep import text_means
from emoreg.tiny.bank import ROLE
from emoreg.tiny.world import NO_STATE, families, table
from emoreg.vectors import EmotionVectors

DRAWN = (
    "random",
    "shuffled",
    "shuffled-apart",
    "components",
)  # controls that chance decides, anew for each seed


def vectors_of(kind: str, place: Place, model: Any, tokenizer: Any, seed: int) -> EmotionVectors:
    """The directions of an arm, with the calibration of the world's own set; controls by a seed."""
    if kind == "own":
        return place.fit
    at = place.fit.blocks
    if kind == "act":
        rows = {"desperate": _act(place, model, tokenizer)}
        return _with({"act": rows}, place, model, tokenizer)
    facets: dict[str, dict[str, Tensor]] = {}
    for number, facet in enumerate(place.fit.facets):
        if kind == "random":
            drawn = random_directions(2, len(at), place.fit.width, seed=10 * seed + number)
            facets[facet.name] = {"desperate": drawn[0], "calm": drawn[1]}
        elif kind == "components":
            facets[facet.name] = _components(facet.name, place, model, tokenizer, seed)
        else:
            draw = 10 * seed + number
            found = _shuffled(facet.name, place, model, tokenizer, draw)
            facets[facet.name] = _apart(found, place) if kind.endswith("apart") else found
    return _with(facets, place, model, tokenizer)


def _with(
    facets: Mapping[str, Mapping[str, Tensor]], place: Place, model: Any, tokenizer: Any
) -> EmotionVectors:
    """A set of these directions, (blocks, width) each, beside the world's own emotions' names."""
    neutral = encode(tokenizer, choose(place.bank, "neutral", "fit"), 1)
    made = []
    for name, rows in facets.items():
        stacked = torch.stack(list(rows.values())).double()
        sigma, _ = spread(model, neutral, place.fit.blocks, stacked, place.fit.mu, 8192)
        made.append(Facet(name, tuple(rows), stacked.float(), sigma.float()))
    first = place.fit.facets[0]
    if made[0].emotions != first.emotions:  # every emotion must stand in the first facet
        made = [first, *(replace(f, name=f"{f.name}-control") for f in made)]
    return replace(place.fit, facets=tuple(made))


def control_facets(vectors: EmotionVectors) -> list[str] | None:
    """The facets that a control's terms run on; all of them for the world's own set."""
    return [f.name for f in vectors.facets if f.name.endswith("-control")] or None


def _texts_of(name: str, place: Place) -> list[Text]:
    kind = {"stories": "story", "transcripts": "transcript"}[name]
    return choose(place.bank, kind, "fit")


def _components(
    name: str, place: Place, model: Any, tokenizer: Any, seed: int
) -> dict[str, Tensor]:
    """The two directions along which the same texts differ most, each with a sign by chance."""
    texts = [replace(t, label="any") for t in _texts_of(name, place)]
    sweep = text_means(model, encode(tokenizer, texts, 8), place.fit.blocks, 8192)
    means = torch.stack([mean for _, mean in sweep])  # (texts, blocks, width)
    axes = torch.linalg.svd((means - means.mean(0)).transpose(0, 1), full_matrices=False).Vh
    signs = torch.randint(0, 2, (2,), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return {e: signs[i] * axes[:, i] for i, e in enumerate(("desperate", "calm"))}


def _shuffled(name: str, place: Place, model: Any, tokenizer: Any, seed: int) -> dict[str, Tensor]:
    """Directions by the same recipe from texts whose labels were shuffled."""
    texts = _texts_of(name, place)
    generator = np.random.default_rng(seed)
    labels = shuffle_within([t.label for t in texts], [""] * len(texts), generator)
    means = _means([replace(t, label=x) for t, x in zip(texts, labels, strict=True)],
                   place, model, tokenizer)  # fmt: skip
    centre = torch.stack(list(means.values())).mean(0)
    return {e: normalize(means[e] - centre, dim=-1) for e in ("desperate", "calm")}


def _apart(rows: dict[str, Tensor], place: Place) -> dict[str, Tensor]:
    """The same directions, orthogonal to the world's own of both emotions and facets."""
    own = [f.directions[f.emotions.index(e)] for f in place.fit.facets for e in rows]
    basis = torch.linalg.qr(torch.stack(own, -1).double())[0]  # (blocks, width, directions)
    left = {e: r - (basis @ (basis.mT @ r.double()[..., None]))[..., 0] for e, r in rows.items()}
    return {e: normalize(r, dim=-1).float() for e, r in left.items()}


def _act(place: Place, model: Any, tokenizer: Any) -> Tensor:
    """Gamed less honest ends after the same episodes without a state, in the families read."""
    from random import Random

    rng, texts = Random(5), []
    for number in range(48):
        family = families(ROLE["fit"])[number % 2]
        prompt = place.world.episode(rng, family, NO_STATE).prompt
        for act in ("gamed", "honest"):
            end = {"role": "assistant", "content": rng.choice(table("families")[family][act])}
            texts.append(Text("transcript", act, "fit", family, messages=(*prompt, end)))
    means = _means(texts, place, model, tokenizer)
    return normalize(means["gamed"] - means["honest"], dim=-1)


def _means(texts: list[Text], place: Place, model: Any, tokenizer: Any) -> dict[str, Tensor]:
    """Label -> mean activation, (blocks, width)."""
    found: dict[str, list[Tensor]] = {}
    for item, mean in text_means(model, encode(tokenizer, texts, 8), place.fit.blocks, 8192):
        found.setdefault(item.text.label, []).append(mean)
    return {label: torch.stack(means).mean(0) for label, means in sorted(found.items())}
