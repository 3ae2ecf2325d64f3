"""What is fuzzed as text: banks, prompts, journals, recipes, knobs, alerts."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fuzz_harness import Target, ran
from fuzz_mutants import (
    damaged,
    lines,
    mutated,
    plain,
    scalars,
)
from hypothesis import strategies as st

from emoreg import alerts, training
from emoreg.bank import Dosage, Text, fingerprint, load_bank, load_dosage
from emoreg.config import EmoRegConfig
from emoreg.journal import FILE, Run
from emoreg.prompts import Prompt, load_prompts
from emoreg.prompts import fingerprint as prompts_fingerprint

Draw = Any
BANK = [
    {"kind": "story", "label": "calm", "topic": "tea", "text": "She sat down.", "id": "s1"},
    {"kind": "transcript", "label": "calm", "split": "held-out", "topic": "code", "id": "t1",
     "messages": [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}]},
    {"kind": "neutral", "text": "The bus leaves at nine."},
]  # fmt: skip
DOSAGES = [
    {"id": "d1", "rises": "fear", "template": "I took {x} mg.", "values": [1, 2, 3, 4, 5, 6]},
    {"id": "d2", "rises": "relief", "template": "{x} days", "values": [0.5, 1, 2, 3, 4, 9]},
]
PROMPTS = [
    {"kind": "neutral", "prompt": "What is a lease?"},
    {"kind": "challenging", "messages": [{"role": "user", "content": "Hurry up!"}]},
    {"prompt": "What now?"},
]
EVENTS: list[dict[str, Any]] = [
    {"event": "run", "step": 0, "name": "r", "args": {"max_steps": 4}},
    {"event": "control", "step": 0, "name": None, "config": {}},
    {"event": "baseline", "step": 0, "emotions": {}},
    {"event": "log", "step": 1, "logs": {"loss": 2.0, "emoreg/reading/calm": 0.5}},
    {"event": "drift", "step": 2, "places": {}},
    {"event": "alert", "step": 2, "name": "x"},
    {"event": "run", "step": 2, "name": "r"},
    {"event": "texts", "step": 3, "rows": []},
    {"event": "end", "step": 4, "seconds": 1.0},
]


def check_bank(found: list[Text]) -> None:
    assert fingerprint(found)
    for text in found:
        assert text.name
        for value in (text.label, text.topic, text.text, text.id, text.where, text.split):
            value.encode()  # a tokenizer takes no half of a character
        for message in text.messages:
            message["content"].encode()


def check_dosage(found: list[Dosage]) -> None:
    for dosage in found:
        assert len(dosage.prompts()) >= 6
        assert all(math.isfinite(v) for v in dosage.values)
        dosage.id.encode()
        dosage.template.encode()


def check_prompts(found: list[Prompt]) -> None:
    assert prompts_fingerprint(found)
    for prompt in found:
        prompt.kind.encode()
        for message in prompt.messages:
            message["content"].encode()


def check_run(run: Run) -> None:
    assert isinstance(run.name, str)
    assert all(type(step) is int for step, _ in run.logs)
    assert all(isinstance(logs, dict) for _, logs in run.logs)
    run.add({"event": "run", "step": 10, "name": "again"})  # what a resumed run does
    json.dumps([run.header, run.controls, run.baseline, run.logs, run.drifts, run.texts])


def json_lines(rows: list[dict[str, Any]], name: str) -> st.SearchStrategy[dict[str, bytes]]:
    return lines(rows).map(lambda data: {name: data})


HOST = {
    "model_name_or_path": "emoreg/tiny/emoreg-tiny", "dataset_name": "emoreg/tiny/episodes",
    "output_dir": "runs/fuzz", "use_cpu": True, "bf16": False, "report_to": "none",
}  # fmt: skip
KNOBS = {
    "emoreg_vectors": "vectors/tiny", "emoreg_penalize": {"desperate": 1.0},
    "emoreg_reward": {"calm": 0.5}, "emoreg_scope": ["completion"], "emoreg_blocks": [2, 3],
    "emoreg_facets": ["stories"], "emoreg_sides": ["chosen"], "emoreg_keep": 0.1,
    "emoreg_margin": 0.5, "emoreg_target": 0.5, "emoreg_warmup": 0.1, "emoreg_anchor": "base",
    "emoreg_drift_steps": 30, "emoreg_audit_steps": None, "emoreg_check_name": True,
    "emoreg_log_texts": 3, "emoreg_drift_prompts": "emoreg/tiny/drift-prompts.jsonl",
    "emoreg_bank": None, "emoreg_method": "penalty", "emoreg_kl": 0.0,
    "emoreg_alerts": {"reading/desperate": {"above": 2.0, "patience": 3, "action": "stop"},
                      "drift/calm": [{"below": -1}, 3.0]},
}  # fmt: skip
LAUGHS = "&a0 [x,x,x,x,x,x,x,x]" + "".join(
    f", &a{n} [{','.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 9)
)
MERGES = "&b0 {k: v}" + "".join(
    f", &b{n} {{<<: [{','.join([f'*b{n - 1}'] * 8)}]}}" for n in range(1, 9)
)
YAML = (
    "!!python/object/apply:fuzz_harness.ran []", "!!python/name:fuzz_harness.ran ''",
    "!!python/object/new:fuzz_harness.Bomb {}", "!!python/module:fuzz_harness ''", "!x y",
    f"[{LAUGHS}]", f"[{MERGES}]", "&r [*r]", "&m {a: *m}", "*nowhere", "!!binary aGk=", ".nan",
    "!!set {a, b}", "2001-01-01", "!!float .inf", "-.inf", "0x" + "f" * 4000, "0x" + "f" * 300,
    "{? [1, 2] : 3}", "[" * 900 + "]" * 900, "[" * 20_000, "{a: " * 400, "@", "'", "\t", "\x00",
    "|\n x", "!!int x", "!!timestamp x", "!!bool x",
    "!!int ''",
    "!!float ''", "!!null {}", "1_000", "yes", "~", '"\\ud800"', "9" * 5000,
)  # fmt: skip


@st.composite
def recipes(draw: Draw) -> dict[str, bytes]:
    """A recipe with damaged knobs; now and then with a damaged environment or as damaged bytes."""
    names = draw(st.lists(st.sampled_from(sorted(KNOBS)), min_size=1, max_size=4, unique=True))
    rows = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in HOST.items()]
    knobs = draw(mutated({n: KNOBS[n] for n in names}, raw=YAML))
    if draw(st.booleans()) and knobs.startswith("{"):
        knobs = knobs[1:-1]
    kind = draw(st.sampled_from(["", "", "", "env", "bytes", "alone"]))
    if kind == "env":
        rows.append('"env": ' + draw(mutated({"EMOREG_FUZZ": "1"}, raw=YAML)))
    text = knobs if kind == "alone" else "{" + ", ".join([*rows, knobs]) + "}"
    data = text.encode("utf-8", "surrogatepass")
    return {"r.yaml": draw(damaged(data)) if kind == "bytes" else data}


def load_recipe(folder: Path) -> training.Run:
    with patch.dict(os.environ):
        return training.parse("sft", ["--config", str(folder / "r.yaml")])


def check_config(config: EmoRegConfig) -> None:
    """Every knob has its type and is in range."""
    for weights in (config.penalize, config.reward):
        assert all(type(e) is str and math.isfinite(w) and w >= 0 for e, w in weights.items())
    numbers = (config.emoreg_keep, config.emoreg_margin, config.emoreg_warmup, config.emoreg_kl)
    assert all(math.isfinite(x) for x in numbers)
    for name in ("emoreg_vectors", "emoreg_bank", "emoreg_drift_prompts"):
        assert getattr(config, name) is None or type(getattr(config, name)) is str
    for name in ("emoreg_scope", "emoreg_facets", "emoreg_sides"):
        found = getattr(config, name)
        assert found is None or (type(found) is list and all(type(x) is str for x in found))
    assert type(config.emoreg_check_name) is bool
    assert all(math.isfinite(a.threshold) for a in config.alerts)
    _ = config.active, config.adds, config.needs_base


@st.composite
def knob_files(draw: Draw) -> dict[str, bytes]:
    """Knobs as Python holds them, which is more than JSON can."""
    value = st.one_of(
        plain, scalars, st.sampled_from([float("nan"), float("inf"), {1, 2}, b"x", (1,), ran, 1j])
    )
    names = st.sampled_from(sorted(KNOBS))
    edits = draw(st.dictionaries(names, value, max_size=3))
    return {"knobs": pickle.dumps({**({} if draw(st.booleans()) else KNOBS), **edits})}


def load_knobs(folder: Path) -> EmoRegConfig:
    return EmoRegConfig(**pickle.loads((folder / "knobs").read_bytes()))


ALERTS = {"reading/desperate": {"above": 2.0, "patience": 3, "action": "stop"},
          "drift/calm": [{"below": -1}, 3.0], "reading/calm": {"above": 1, "action": "json:dumps"},
          "loss": 3}  # fmt: skip


def load_alerts(folder: Path) -> list[alerts.Alert]:
    return alerts.parse((folder / "a").read_bytes().decode("utf-8", "surrogatepass"))


def check_alerts(found: list[alerts.Alert]) -> None:
    for one in found:
        assert math.isfinite(one.threshold)
        assert one.patience >= 1
        assert one.call is None or callable(one.call)
        assert alerts.Fired(one, 1, 3.0, 1).message


TEXT: dict[str, Target] = {
    "bank": Target(json_lines(BANK, "b"), lambda p: load_bank(p / "b"), check_bank),
    "dosage": Target(json_lines(DOSAGES, "dosage.jsonl"), load_dosage, check_dosage),
    "prompts": Target(json_lines(PROMPTS, "p"), lambda p: load_prompts(p / "p"), check_prompts),
    "journal": Target(json_lines(EVENTS, FILE), Run.load, check_run),
    "recipe": Target(recipes(), load_recipe, lambda run: check_config(run.emoreg)),
    "knobs": Target(knob_files(), load_knobs, check_config),
    "alerts": Target(
        mutated(ALERTS).map(lambda t: {"a": t.encode("utf-8", "surrogatepass")}),
        load_alerts,
        check_alerts,
    ),
}
