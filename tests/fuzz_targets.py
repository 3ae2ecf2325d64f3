"""What is fuzzed: every file that emoreg reads, with a small whole one to damage."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import struct
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fuzz_harness import Bomb, Target, ran
from fuzz_mutants import (
    damaged,
    lines,
    mutated,
    plain,
    retyped,
    scalars,
    stored,
    tensors_like,
)
from hypothesis import strategies as st
from models import vector_set
from safetensors.torch import load as load_tensors
from torch import Tensor

from emoreg import alerts, audit_kept, control, interop, kept, training
from emoreg.audit_view import View
from emoreg.audit_words import Words
from emoreg.bank import Dosage, Text, fingerprint, load_bank, load_dosage
from emoreg.card import brief, markdown
from emoreg.config import EmoRegConfig
from emoreg.errors import EmoregError
from emoreg.journal import FILE, Run
from emoreg.prompts import Prompt, load_prompts
from emoreg.prompts import fingerprint as prompts_fingerprint
from emoreg.refit import Refitter
from emoreg.schedule import Dual
from emoreg.snapshot import Snapshot
from emoreg.vectors import EmotionVectors

Draw = Any
BLOCKS, WIDTH = (1, 2), 4
GATE = {"name": "held_out", "value": 0.9, "bar": 0.5, "passed": True, "control": {"p95": 0.2},
        "note": "12 emotions"}  # fmt: skip
CARD = {
    "model": {"name": "m", "id": None, "type": "llama", "width": WIDTH, "blocks": 3},
    "source": "extract", "bank": "5f2c", "texts": {"story": 3}, "choices": {"skip_tokens": 50},
    "suggested_blocks": [2], "norms": [1.0, 2.0],
    "validation": {"verdict": "usable", "reason": "2 of 2 gates passed", "gates": [GATE]},
}  # fmt: skip
SET = vector_set(None, BLOCKS, WIDTH, CARD)


def _saved() -> tuple[dict[str, Any], dict[str, Tensor]]:
    with TemporaryDirectory() as folder:
        SET.save(folder)
        card = json.loads((Path(folder) / "card.json").read_bytes())
        return card, load_tensors((Path(folder) / "vectors.safetensors").read_bytes())


WHOLE_CARD, TENSORS = _saved()


@st.composite
def vector_files(draw: Draw) -> dict[str, bytes]:
    """A set's files; the card mostly has the sum of the damaged tensors, so that they are read."""
    data: bytes = draw(stored(tensors_like(TENSORS)))
    card = dict(WHOLE_CARD)
    if draw(st.integers(0, 4)):
        card["sha256"] = hashlib.sha256(data).hexdigest()
    text = draw(mutated(card)).encode("utf-8", "surrogatepass")
    if not draw(st.integers(0, 4)):
        text = draw(damaged(text))
    found = {"vectors.safetensors": data, "card.json": text}
    if not draw(st.integers(0, 40)):
        del found[draw(st.sampled_from(sorted(found)))]
    return found


def check_vectors(found: EmotionVectors) -> None:
    """It can be read with, told of, written down and saved again."""
    found.verify()
    found.probe().read({b: torch.zeros(2, found.width) for b in found.suggested_blocks})
    found.require(found.emotions)
    assert isinstance(found.caveat, str)
    for text in (json.dumps(dict(found.card), ensure_ascii=False), markdown(found.card)):
        text.encode()
    json.dumps(brief(found.card))
    assert list(found.blocks) == sorted(set(found.blocks))
    assert all(type(b) is int and b >= 0 for b in found.blocks)
    assert all(type(e) is str for f in found.facets for e in f.emotions)


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
    "|\n x", "!!int x", "!!timestamp x", "!!null {}", "1_000", "yes", "~", '"\\ud800"', "9" * 5000,
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


def _snapshot() -> dict[str, np.ndarray[Any, Any]]:
    places = {p: np.ones((2, 2, 3), np.float32) for p in ("colon", "response")}
    numbers = np.ones((2, WIDTH), np.float32), np.ones(2, np.float32)
    return Snapshot(places, *numbers, ([5, 6, 7], [8])).tensors()


ABOUT = {"prompts": "d00d", "response_tokens": 2}
SNAPSHOT = {f"base/{k}": torch.from_numpy(v) for k, v in _snapshot().items()}


def _digest(tensors: dict[str, Tensor]) -> str:
    known = {n: t for n, t in tensors.items() if t.dtype is not torch.bfloat16}
    return kept._digest({n: t.numpy() for n, t in known.items() if "float8" not in str(t.dtype)})


@st.composite
def kept_files(draw: Draw) -> dict[str, bytes]:
    """Snapshots whose sum is mostly right."""
    tensors = draw(tensors_like(SNAPSHOT))
    metadata = {
        "format": kept.FORMAT, "about": draw(mutated(ABOUT, 1)), "digest": _digest(tensors),
    }  # fmt: skip
    if not draw(st.integers(0, 5)):
        del metadata[draw(st.sampled_from(sorted(metadata)))]
    clean = {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()}
    deep = draw(st.integers(0, 2)) > 0
    return {"kept": draw(stored(st.just(tensors), st.just(clean), deep))}


def load_kept(folder: Path) -> dict[str, Snapshot]:
    try:
        return kept.read(folder / "kept", ABOUT)
    except kept.NotThese as e:  # which never leaves the package
        raise EmoregError(str(e)) from e


def check_kept(found: dict[str, Snapshot]) -> None:
    for snapshot in found.values():
        assert kept.digest(snapshot)
        assert snapshot.places["colon"].ndim == 3
        assert all(p.shape == snapshot.places["colon"].shape for p in snapshot.places.values())
        assert snapshot.mean.shape == (len(snapshot.length), *snapshot.mean.shape[1:])
        assert all(type(i) is int for text in snapshot.texts for i in text)


VIEW = View(
    torch.ones(3, 2, 2, WIDTH), torch.ones(5, 2, WIDTH), np.ones(2),
    {"colon": torch.ones(2, 2, WIDTH), "response": torch.ones(2, 2, WIDTH)}, ([5, 6], [7]),
    Words(*(tuple(torch.ones(n, 4) for n in (3, 2)) for _ in range(4))), 0.0,
)  # fmt: skip


def _view_file() -> dict[str, Tensor]:
    with TemporaryDirectory() as folder:
        audit_kept.write(Path(folder) / audit_kept.FILE, VIEW, ABOUT)
        return load_tensors((Path(folder) / audit_kept.FILE).read_bytes())


@st.composite
def view_files(draw: Draw, view: dict[str, Tensor]) -> dict[str, bytes]:
    about = json.dumps(ABOUT, sort_keys=True)
    metadata = {"about": about if draw(st.integers(0, 5)) else draw(mutated(ABOUT))}
    clean = {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()}
    deep = draw(st.integers(0, 2)) > 0
    return {audit_kept.FILE: draw(stored(tensors_like(view), st.just(clean), deep))}


def check_view(view: View) -> None:
    assert view.labelled.ndim == 4
    assert view.neutral.shape[1:] == view.labelled.shape[2:]
    assert view.loss.ndim == 1
    assert all(p.shape[1:] == view.labelled.shape[2:] for p in view.places.values())
    assert all(type(i) is int for text in view.texts for i in text)
    if view.words is not None:
        wanted = [len(text) + 1 for text in view.texts]
        for name in audit_kept.WORDS:
            assert [len(t) for t in getattr(view.words, name)] == wanted


class Refits(Refitter):
    """A refitter without a model."""

    def __init__(self) -> None:
        self.probe, self.emotions, self.rows = SET.probe(blocks=BLOCKS), ["desperate"], []

    def prepare(self, base: Any) -> None:
        """There is no base to read."""


def controlled() -> control.Control:
    """A control with adaptive weights and refits, without a trainer."""
    made = object.__new__(control.Control)
    made.trainer = SimpleNamespace(state=SimpleNamespace(global_step=7))
    made.terms = SimpleNamespace(weights={}, extend=lambda facets: list(facets))
    made._dual = Dual({"desperate": 0.1, "calm": 0.2}, 0.5, 0.05, 10.0, 0.1)
    made._refitter = Refits()
    return made


FACETS = {
    "0.direction": SET.facets[0].directions[0].clone(), "0.sigma": SET.facets[0].sigma[0].clone(),
    "step": torch.tensor([7]),
}  # fmt: skip


@st.composite
def control_files(draw: Draw) -> dict[str, bytes]:
    dual = {"weights": {"desperate": 0.3, "calm": 0.1}, "losses": 12, "sum": 1.5, "lowest": 0.7}
    metadata = {
        "format": control.FORMAT, "dual": draw(mutated(dual)),
        "refit": draw(mutated([["transcripts@7", "desperate"]])),
    }  # fmt: skip
    if not draw(st.integers(0, 5)):
        del metadata[draw(st.sampled_from(sorted(metadata)))]
    clean = {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()}
    deep = draw(st.integers(0, 2)) > 0
    return {"c.safetensors": draw(stored(tensors_like(FACETS), st.just(clean), deep))}


def load_control(folder: Path) -> control.Control:
    found = controlled()
    with patch.object(control, "base_model", lambda _: nullcontext()):
        found._restore(folder / "c.safetensors")
    return found


def check_control(found: control.Control) -> None:
    assert found._dual is not None
    assert found._refitter is not None
    assert all(math.isfinite(w) and w >= 0 for w in found._dual.weights.values())
    found._dual.update({"calm": 1.0, "desperate": -1.0}, 2.0)
    json.dumps(found._dual.state(), allow_nan=False)
    for facet in found._refitter.facets():
        assert facet.directions.shape == (1, len(BLOCKS), WIDTH)
        assert bool(facet.directions.isfinite().all())
        assert facet.sigma.shape == (1, len(BLOCKS))
        assert bool((facet.sigma >= 0).all() and facet.sigma.isfinite().all())


def _gguf() -> bytes:
    with TemporaryDirectory() as folder:
        return interop.write_gguf(SET, "calm", Path(folder) / "c.gguf").read_bytes()


def _entry(name: str, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + content


@st.composite
def gguf_files(draw: Draw, data: bytes) -> dict[str, bytes]:
    """Damaged bytes, or a field more that claims to hold much."""
    if draw(st.booleans()):
        return {"c": draw(damaged(data))}
    element = draw(st.sampled_from([0, 1, 4, 7, 8, 9, 10, 12, 13, 99]))
    count = draw(st.sampled_from([0, 1, 5, 2**20, 2**40, 2**63, 2**64 - 1]))
    array = struct.pack("<IQ", element, count) * draw(st.sampled_from([1, 2, 40, 3000]))
    entry = _entry(draw(st.sampled_from(["a", "general.alignment"])), 9, array)
    if draw(st.booleans()):
        alignment = draw(st.sampled_from([0, 1, 3, 32, 2**31, 2**32 - 1]))
        entry = _entry("general.alignment", 4, struct.pack("<I", alignment))
    number = struct.unpack("<Q", data[16:24])[0] + 1
    return {"c": data[:16] + struct.pack("<Q", number) + entry + data[24:]}


@st.composite
def persona_files(draw: Draw) -> dict[str, bytes]:
    rows = np.ones((4, WIDTH), np.float32)
    saved: Any = draw(
        st.one_of(retyped(rows), retyped(rows), plain, st.just({"calm": torch.ones(4)}))
    )
    kind = draw(st.sampled_from(["", "", "bytes", "bomb"]))
    buffer = io.BytesIO()
    torch.save(Bomb() if kind == "bomb" else saved, buffer)
    data = buffer.getvalue()
    return {"p": draw(damaged(data)) if kind == "bytes" else data}


def check_directions(found: dict[int, Tensor]) -> None:
    assert found
    for block, row in found.items():
        assert type(block) is int
        assert block >= 0
        assert row.ndim == 1
        assert row.dtype is torch.float32


TARGETS: dict[str, Target] = {
    "vectors": Target(vector_files(), EmotionVectors.load, check_vectors),
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
    "kept": Target(kept_files(), load_kept, check_kept),
    "audit": Target(
        view_files(_view_file()), lambda p: audit_kept.read(p / audit_kept.FILE, ABOUT), check_view
    ),
    "control": Target(control_files(), load_control, check_control),
    "gguf": Target(gguf_files(_gguf()), lambda p: interop.read_gguf(p / "c"), check_directions),
    "persona": Target(persona_files(), lambda p: interop.read_persona(p / "p"), check_directions),
}
