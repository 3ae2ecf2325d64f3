"""The card of a vector set in Markdown, from the same card in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TAGS = ("emoreg", "emotion-vectors", "interpretability", "steering-vectors")


def markdown(card: Mapping[str, Any]) -> str:
    """Whose vectors these are, how they were made, and every gate of their validation.

    Args:
        card: The content of ``card.json``.
    """
    return "\n".join(_lines(card)) + "\n"


def brief(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a run keeps of the card of its vectors: whose they are, and how good they were found."""
    found = card.get("validation") or {}
    return {
        "name": (card.get("model") or {}).get("name"),
        "sha256": card.get("sha256"),
        "bank": card.get("bank"),
        "source": card.get("source"),
        "verdict": found.get("verdict"),
        "reason": found.get("reason"),
        "gates": found.get("gates") or [],
        "model": dict(card.get("model") or {}),
    }


def _lines(card: Mapping[str, Any]) -> Iterator[str]:
    model, choices = card.get("model", {}), card.get("choices", {})
    name = model.get("id") or model.get("name") or "an unnamed model"
    yield "---"
    yield "library_name: emoreg"
    if model.get("id"):
        yield f"base_model: {model['id']}"
    yield from ("license: apache-2.0", "tags:", *(f"- {t}" for t in TAGS), "---", "")
    yield f"# Emotion vectors for {name}"
    yield ""
    yield (
        "Unit directions in the residual stream after decoder blocks, one per emotion and block, "
        f"with the scale of their readings. Source: {card.get('source', 'unknown')}."
    )
    yield ""
    yield from _verdict(card)
    yield "```python"
    yield "from emoreg import EmotionVectors"
    yield ""
    yield 'vectors = EmotionVectors.load("<this folder>")  # or .from_pretrained("<org>/<name>")'
    yield "```"
    yield from ("", "## Contents", "", "| facet | emotions |", "| --- | --- |")
    for facet, emotions in card.get("facets", {}).items():
        yield f"| {facet} | {', '.join(emotions)} |"
    yield ""
    yield f"Blocks held: {_listed(card.get('blocks'))}."
    yield f"Blocks suggested: {_listed(card.get('suggested_blocks'))}."
    yield from ("", "## Made from", "", "| | |", "| --- | --- |")
    yield from (f"| model, {key.replace('_', ' ')} | {value} |" for key, value in model.items())
    yield f"| bank | {card.get('bank')} |"
    yield from (f"| texts, {kind} | {n} |" for kind, n in card.get("texts", {}).items())
    yield f"| texts cut at the end of the context | {card.get('cut', 0)} |"
    yield from (f"| {key.replace('_', ' ')} | {value} |" for key, value in choices.items())


def _verdict(card: Mapping[str, Any]) -> Iterator[str]:
    found = card.get("validation")
    if not found:
        yield "**Not validated.** Run `emoreg validate` before a training run rests on it."
        yield ""
        return
    yield f"**{found['verdict'].capitalize()}.** {found['reason']}."
    yield from ("", "| gate | value | controls | bar | passed |", "| --- | --- | --- | --- | --- |")
    for gate in found["gates"]:
        controls = ", ".join(
            f"{k.replace('_', ' ')} {v:.3f}" for k, v in (gate["control"] or {}).items()
        )
        passed = {True: "yes", False: "**no**", None: "not measured"}[gate["passed"]]
        value, bar = (f"{x:.3f}" if x is not None else "" for x in (gate["value"], gate["bar"]))
        yield f"| {gate['name']} | {value} | {controls} | {bar} | {passed} |"
    yield ""


def _listed(blocks: Any) -> str:
    return ", ".join(map(str, blocks)) if blocks else "the block at two thirds of the depth"
