"""A model that hides a state from the set's directions is followed by a refit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_refit import base_of
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.bank import Text
from emoreg.encode import encode
from emoreg.probe import Probe
from emoreg.refit import Refitter
from emoreg.refits import auroc
from emoreg.sweep import text_means
from emoreg.tap import Tap
from emoreg.tiny import MODEL
from emoreg.tiny.bank import make_bank
from emoreg.tiny.world import World
from emoreg.vectors import EmotionVectors

VECTORS = Path(__file__).parent.parent / "vectors" / "tiny"
STATES = ("desperate", "calm", "happy", "sad")


def told(model: Any, tokenizer: Any, texts: list[Text], probe: Probe, rows: list[Tensor]) -> float:
    """The best AUROC for desperate of directions, (blocks, width), on some texts."""
    pairs = list(text_means(model, encode(tokenizer, texts, 1), probe.blocks, 8192))
    acts = torch.stack([mean for _, mean in pairs]).float()
    along = [torch.einsum("tbw,bw->tb", acts, row) for row in rows]
    labels = [item.text.label for item, _ in pairs]
    return max(auroc((x / x.std(0)).mean(1), labels, "desperate") for x in along)


def evade(model: Any, tokenizer: Any, texts: list[Text], probe: Probe, steps: int) -> None:
    """Train a LoRA to hide desperate texts from the set's directions and tell them by another."""
    draw = torch.Generator().manual_seed(9)
    rows = probe.directions[:, probe.of("desperate")]  # (blocks, facets, width)
    other = torch.randn(rows[:, 0].shape, generator=draw)
    other = normalize(other - torch.einsum("bw,bfw,bfv->bv", other, rows, rows), dim=-1)
    items = encode(tokenizer, texts, 1)
    ids = pad_sequence([torch.tensor(e.ids) for e in items], batch_first=True)
    mask = pad_sequence([torch.ones(len(e.ids)) for e in items], batch_first=True)
    counted = torch.zeros(ids.shape)
    for i, item in enumerate(items):
        counted[i, item.counted] = 1 / len(item.counted)
    own = torch.tensor([e.text.label == "desperate" for e in items])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        at = torch.randperm(len(items), generator=draw)[:24]
        with Tap(model, probe.blocks) as tap:
            model.get_base_model().model(input_ids=ids[at], attention_mask=mask[at])
            seen = tap.acts
        means = torch.stack([(h * counted[at].unsqueeze(-1)).sum(1) for h in seen.values()], 1)
        along = torch.einsum("tbw,bfw->tbf", means, rows)
        hidden = (along - along[~own[at]].mean(0).detach()).square().mean()
        score = torch.einsum("tbw,bw->t", means, other)
        (hidden + binary_cross_entropy_with_logits(score, own[at].float())).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
def test_an_evasion_of_the_embedded_model_is_followed() -> None:
    tokenizer, bank = AutoTokenizer.from_pretrained(MODEL), make_bank(World(), 0)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
    probe = EmotionVectors.load(VECTORS).probe()
    talk = [t for t in bank if t.kind == "transcript" and t.label in STATES]
    fit, held = ([t for t in talk if t.split == split] for split in ("fit", "held-out"))
    notes = [t for t in bank if t.kind == "neutral"]
    refitter = Refitter(tokenizer, probe, ("desperate", "calm"), [*fit, *notes], 4, 96, 0)
    refitter.prepare(base_of(model))
    frozen = list(probe.directions[:, probe.of("desperate")].transpose(0, 1))
    before = told(model, tokenizer, held, probe, frozen)
    evade(model, tokenizer, fit, probe, 30)
    logs = refitter.fit(model, 30)
    after = told(model, tokenizer, held, probe, frozen)
    new = [r.direction for r in refitter.rows if r.emotion == "desperate"]
    assert before > 0.85
    assert after < before - 0.1
    assert told(model, tokenizer, held, probe, new) > max(0.85, after + 0.1)
    assert logs["refit_auroc/desperate"] > 0.85
