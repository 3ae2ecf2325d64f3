"""The table of metrics is what is logged: nothing more, nothing less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import zoo
from audit_bank import write_bank
from models import vector_set
from test_auditing import audited
from test_refit import TEXTS
from test_rewards import READ
from test_rewards import make as make_rollouts
from test_rewards import vectors as make_rewarded
from trainers import EMOTIONS, EVERYTHING, PROMPT_FILE, make_rows, make_trainer, make_vectors

from emoreg.callbacks import DriftCallback
from emoreg.identity import identity
from emoreg.metrics import METRICS, described, markdown
from emoreg.regularizer import EmotionRegularizer
from emoreg.rewards import DesperationPenalty, EmotionScreen

TABLE = Path(__file__).parents[1] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def logged_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every emoreg key of a run with everything on, evaluated on two sets, and of one on pairs."""
    trainer = make_trainer(
        tmp_path_factory.mktemp("run"), eval_strategy="steps", eval_steps=1,
        eval_rows={"a": make_rows(2), "b": make_rows(3)},
    )  # fmt: skip
    knobs = {**EVERYTHING, "anchor": "base", "keep": 0.1, "warmup": 0.5, "target": 0.1, "kl": 0.1,
             "refit_steps": 1, "refit_tokens": 4, "texts": TEXTS}  # fmt: skip
    trainer.add_callback(EmotionRegularizer(trainer, make_vectors(), **knobs))
    bank = write_bank(tmp_path_factory.mktemp("bank") / "bank.jsonl")
    audited(trainer, bank)
    # As many emotions as a correlation with the published shift needs.
    more = make_vectors((*EMOTIONS, "angry", "hopeful", "proud", "sad", "tired"))
    trainer.add_callback(DriftCallback(trainer, more, prompts=PROMPT_FILE))
    trainer.train()
    pairs = zoo.make("DPO", tmp_path_factory.mktemp("pairs"))
    vectors = vector_set(card={"model": identity(pairs.model, pairs.processing_class)})
    pairs.add_callback(EmotionRegularizer(pairs, vectors, check_name=False))
    pairs.train()
    rewards = [DesperationPenalty(make_rewarded(), threshold=-9.0, **READ),
               EmotionScreen(make_rewarded(), zoo.reward, threshold=9.0, **READ)]  # fmt: skip
    rollouts = make_rollouts(tmp_path_factory.mktemp("rollouts"), rewards)
    for reward in rewards:
        reward.bind(rollouts)
    rollouts.train()
    histories = (t.state.log_history for t in (trainer, pairs, rollouts))
    rows = [row for history in histories for row in history]
    return {k for row in rows for k in row if "emoreg" in k}


def test_every_logged_name_is_described(logged_names: set[str]) -> None:
    assert len(logged_names) > 50
    assert [name for name in logged_names if not described(name)] == []


def test_every_described_name_is_logged(logged_names: set[str]) -> None:
    for name in METRICS:
        parts = re.split(r"\{\w+\}", name)
        pattern = "[^/]+".join(re.escape(part) for part in parts)
        assert any(re.fullmatch(pattern, found) for found in logged_names), name


@pytest.mark.parametrize(
    "name", ["loss", "emoreg/happiness", "emoreg/drift", "emoreg/reading/a/b/c", "xemoreg/loss"]
)
def test_other_names_are_not_described(name: str) -> None:
    assert not described(name)
    assert not described("eval_" + name)


def test_the_page_has_the_table() -> None:
    assert markdown() in TABLE.read_text(encoding="utf-8")
