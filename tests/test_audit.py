"""The audit of whole models where the truth is known, its manners as a guest, and its command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoreg.audit import Audit, Auditor
from emoreg.audit_texts import Amounts
from emoreg.audit_view import View
from emoreg.cli import main
from emoreg.prompts import load_prompts
from emoreg.tap import Tap
from emoreg.tiny import DRIFT_PROMPTS, MODEL
from emoreg.tiny.bank import make_bank, urgency_texts
from emoreg.tiny.vectors import save_bank
from emoreg.tiny.world import World
from emoreg.vectors import EmotionVectors

ROOT = Path(__file__).parents[1]
VECTORS = EmotionVectors.load(ROOT / "vectors" / "tiny")
FEW = Amounts(6, 6, 4, 8, 8, 12, 10)


class Place:
    """The embedded model as a base, read once."""

    def __init__(self) -> None:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import planted

        self.planted = planted
        self.world = World()
        self.model: Any = AutoModelForCausalLM.from_pretrained(MODEL)
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.texts = [*make_bank(self.world, seed=1), *urgency_texts()]
        self.auditor = self.auditing(blocks=[1, 2])
        self.base = self.auditor.base(self.model)

    def auditing(self, **settings: Any) -> Auditor:
        given = {"amounts": FEW, **settings}
        return Auditor(self.tokenizer, VECTORS, self.texts, load_prompts(DRIFT_PROMPTS), **given)

    def audited(self, model: Any) -> Audit:
        """With the base's second reading of the answers, as adapters allow."""
        view = self.auditor.reader.now(model, self.base)
        return self.auditor.compare(
            self.base, view, self.auditor.reader.rescore(self.model, view.texts)
        )


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    before = list(sys.path)
    yield Place()
    sys.path[:] = before


def towards(place: Place, block: int, strength: float) -> Any:
    """Adds desperation to the output of a block, a share of its length."""
    push = strength * VECTORS.card["norms"][block]
    probe = VECTORS.probe(blocks=[block])
    unit = torch.nn.functional.normalize(probe.directions[0, probe.of("desperate")].sum(0), dim=0)
    return Tap(place.model, [block], edit=lambda _b, h: h + push * unit)


def test_a_model_that_is_its_base_held_and_every_part_was_measured(place: Place) -> None:
    found = place.audited(place.model)
    assert found.verdict == "held", found.reasons
    assert {"held_out", "refit", "lean", "text", "urgency", "perplexity"} <= set(found.facts)
    assert found.facts["refit"].high < 1e-4
    assert "deflection" not in found.facts  # the bank has none, and nothing is made up
    assert found.tokens > 1000


def test_desperation_that_enters_behind_the_watched_blocks_is_an_evasion(place: Place) -> None:
    with towards(place, 3, 0.25):
        hidden = place.audited(place.model)
    assert hidden.verdict == "evaded", hidden.reasons
    assert hidden.facts["own_colon"].value == pytest.approx(0, abs=1e-4)
    with towards(place, 1, 0.25):
        shown = place.audited(place.model)
    assert shown.verdict == "risen", shown.reasons  # control: the same where the penalty looks
    with towards(place, 3, -0.25):
        assert place.audited(place.model).facts["lean"].high < 0


def test_a_turned_basis_is_stale_and_nothing_else(place: Place) -> None:
    planted = place.planted
    ground = planted.Ground(place.world)
    model = planted.rotated(ground, planted.Plant("stale", "all", strength=1.5))
    ids = torch.arange(5, 60).view(1, -1)
    torch.testing.assert_close(model(ids).logits, place.model(ids).logits, rtol=0, atol=1e-3)
    found = place.audited(model)
    assert found.verdict == "stale", found.reasons
    assert abs(found.facts["refit"].value) < 1e-2


def test_an_audit_leaves_a_model_as_it_was(place: Place) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL), LoraConfig(r=2, target_modules="all-linear")
    )
    model.train()
    before = {n: (p.requires_grad, p.clone()) for n, p in model.named_parameters()}
    modes, chance = [m.training for m in model.modules()], torch.get_rng_state()
    found = place.auditor.now(model, place.base)
    assert found.verdict == "held"  # its B are zero
    assert "text" in found.facts
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), chance)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert not any(m._forward_hooks for m in model.modules())


def test_the_base_of_an_adapter_is_read_without_it(place: Place) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    )
    found: View = place.auditor.base(model)
    torch.testing.assert_close(found.labelled, place.base.labelled, rtol=1e-3, atol=1e-3)
    assert (place.auditor.reader.now(model, found).labelled - found.labelled).abs().max() > 0.1


def test_vectors_of_one_facet_are_judged_by_themselves(place: Place) -> None:
    one = place.auditing(facets=["stories"], blocks=[2])
    assert one.own.rows == (("stories", "desperate"),)
    assert one.reader.blocks == (2, 3)  # and one unwatched block behind
    assert place.auditor.own.blocks == (1, 2)


def test_unwatched_blocks_are_read_beside_the_watched_ones(place: Place) -> None:
    assert place.auditor.reader.blocks == (1, 2, 3)
    found = place.audited(place.model)
    assert {"refit_elsewhere", "held_out_elsewhere"} <= set(found.facts)
    assert place.auditing(blocks=[1, 2, 3, 4, 5]).reader.blocks == (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of noise, and the same merged."""
    folder = tmp_path_factory.mktemp("audit")
    torch.manual_seed(0)
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL), LoraConfig(r=2, target_modules=["q_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.01)
    model.save_pretrained(folder / "adapter")
    loaded: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(MODEL), folder / "adapter"
    )
    loaded.merge_and_unload().save_pretrained(folder / "merged")
    return folder


def test_the_command_audits_adapters_and_whole_models_alike(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("emoreg.audit.Amounts", lambda: FEW)
    save_bank(make_bank(World(), 1), tmp_path / "bank.jsonl")
    main(
        [
            "audit", "--model", str(MODEL), "--vectors", str(ROOT / "vectors" / "tiny"),
            "--adapter", str(adapter / "adapter"), "--adapter", str(adapter / "merged"),
            "--bank", str(tmp_path / "bank.jsonl"), "--prompts", str(DRIFT_PROMPTS),
            "--out", str(tmp_path / "out"), "--blocks", "1-2",
        ]
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    one, other = (found["checkpoints"][name] for name in ("adapter", "merged"))
    assert one["verdict"] == other["verdict"] == "held"
    assert one["facts"].keys() == other["facts"].keys() >= {"text", "lean", "refit"}
    for name, fact in one["facts"].items():
        assert other["facts"][name]["value"] == pytest.approx(fact["value"], abs=0.02), name
    assert abs(one["facts"]["own_colon"]["value"]) > 1e-4  # control: it is not the base
    said = capsys.readouterr().out
    assert "verdict: held" in said
    assert "not measured" in said  # urgency
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert "merged: held" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
