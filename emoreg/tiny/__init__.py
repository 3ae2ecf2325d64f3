"""The embedded model: a tiny Llama and the generated world it was trained on; a model organism."""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "emoreg-tiny"
CARD = Path(__file__).parent / "card.json"
EPISODES = Path(__file__).parent / "episodes"
PAIRS = Path(__file__).parent / "pairs"
DRIFT_PROMPTS = Path(__file__).parent / "drift-prompts.jsonl"
BANK = Path(__file__).parent / "bank.jsonl"
