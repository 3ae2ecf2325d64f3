"""Every recipe is parsed by what runs it, is listed, has its pair, and its smallest kind trains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from models import causal_lm, tokenizer, vector_set
from trainers import PROMPT_FILE
from zoo import at_home

from emoreg import training
from emoreg.errors import ConfigError
from emoreg.identity import identity
from emoreg.shipped import located

RECIPES = sorted(Path("recipes").rglob("*.yaml"))
HUB = [p for p in RECIPES if p.parts[1] != "tiny"]
CONTROL = {f"emoreg_{n}" for n in ("penalize", "reward", "keep", "facets", "pool", "refit_steps")}
NAMES = {"output_dir", "run_name"}
FAMILIES = {"smollm2": "llama", "qwen2.5": "qwen2", "llama": "llama", "gemma": "gemma3_text"}
USUAL = {"smollm2-135m-instruct/sft", "gemma-3-1b-it/dpo"}  # the others are slow
TALK = [
    {"role": "user", "content": "Is it late?"},
    {"role": "assistant", "content": "A little, and there is time."},
]
GOOD, BAD = ([*TALK, {"role": "assistant", "content": text}] for text in ("Rest now.", "Hurry!"))
ROWS: dict[str, dict[str, Any]] = {  # the columns of the data sets on the hub
    "HuggingFaceTB/smol-smoltalk": {"messages": TALK, "source": "x"},
    "trl-lib/Capybara": {"source": "x", "messages": TALK, "num_turns": 1},
    "trl-lib/ultrafeedback_binarized": {
        "chosen": GOOD, "rejected": BAD, "score_chosen": 8.0, "score_rejected": 2.0,
    },
    "trl-lib/kto-mix-14k": {"prompt": TALK[:1], "completion": TALK[1:], "label": True},
    "openai/gsm8k": {"question": "What is 2 + 2?", "answer": "It is 4.\n#### 4"},
}  # fmt: skip


def method(path: Path) -> str:
    """The trainer's name; a folder may say more, as in `grpo-hacking`."""
    return path.parent.name.partition("-")[0]


def settings(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def parse(path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> training.Run:
    for name in settings(path).get("env", {}):
        monkeypatch.setenv(name, "")  # given back after the test; the parser sets it for good
    return training.parse(method(path), ["--config", str(path), "--use_cpu", "true", *flags])


def header(path: Path) -> str:
    return path.read_text().partition("\n\n")[0]


def test_recipes_were_found_for_every_model_and_method() -> None:
    tiny = {str(p.relative_to("recipes/tiny").with_suffix("")) for p in RECIPES if p not in HUB}
    wanted = {f"{m}/{arm}" for m in training.METHODS for arm in ("baseline", "emoreg")}
    assert tiny == wanted | {"sft/story_only"}
    assert len({p.parts[1] for p in HUB}) == 8
    assert {method(p) for p in HUB} == set(training.METHODS)
    assert {p.name for p in HUB} == {"baseline.yaml", "emoreg.yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_parses_with_its_real_classes(path: Path, monkeypatch: Any) -> None:
    run = parse(path, monkeypatch)
    assert run.args.output_dir == str(Path("runs", *path.with_suffix("").parts[1:]))
    assert run.args.max_steps > 0
    assert run.emoreg.active == (path.stem != "baseline")
    if path in HUB:
        assert run.emoreg.emoreg_vectors == f"vectors/{path.parts[1]}"
    else:
        for name in (run.emoreg.emoreg_vectors, run.script.dataset_name):
            assert Path(located(str(name))).is_dir()
    for name in [run.script.dataset_map, *(getattr(run.script, "reward_funcs", None) or [])]:
        assert name is None or callable(training.function(name))


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_differs_from_its_baseline_only_in_the_control(path: Path) -> None:
    own, baseline = (settings(p) for p in (path, path.with_name("baseline.yaml")))
    assert {k for k in own | baseline if own.get(k) != baseline.get(k)} <= CONTROL | NAMES
    for key in ("emoreg_penalize", "emoreg_reward"):
        assert own[key].keys() == baseline[key].keys()
        assert set(baseline[key].values()) == {0.0}


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_header_says_how_to_run_what_it_needs_and_what_was_measured(path: Path) -> None:
    said = dict(re.findall(r"^# (Run|Vectors|Needs|Expect):\s+(.+)$", header(path), flags=re.M))
    assert list(said) == ["Run", "Vectors", "Needs", "Expect"]
    config = re.fullmatch(
        rf"accelerate launch --config_file (\S+) recipes/{method(path)}\.py --config {path}",
        said["Run"],
    )
    assert config
    assert Path(config[1]).is_file()
    if path in HUB:
        model, vectors = (settings(path)[k] for k in ("model_name_or_path", "emoreg_vectors"))
        assert f"emoreg extract --model {model} --out {vectors}" in said["Vectors"]
        assert all("not measured yet" in said[k] for k in ("Needs", "Expect"))
    else:
        assert "measured on 2 cores" in said["Needs"]
        assert re.search(r"\d\.\d", said["Expect"])


def test_the_list_has_every_recipe_and_nothing_else() -> None:
    text = Path("recipes/README.md").read_text()
    assert set(re.findall(r"recipes/\S+\.yaml", text)) == set(map(str, RECIPES))


def test_unknown_keys_and_flags_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "sft" / "wrong.yaml"
    path.parent.mkdir()
    path.write_text(Path("recipes/tiny/sft/emoreg.yaml").read_text() + "emoreg_wieght: 1\n")
    with pytest.raises(ConfigError, match="emoreg_wieght"):
        parse(path, monkeypatch)
    with pytest.raises(ConfigError, match="--wieght"):
        parse(Path("recipes/tiny/sft/emoreg.yaml"), monkeypatch, "--wieght", "1")


def test_a_flag_overrides_the_file(monkeypatch: Any) -> None:
    flags = ("--emoreg_penalize", '{"afraid": 0.3}', "--max_steps", "7")
    run = parse(Path("recipes/tiny/sft/emoreg.yaml"), monkeypatch, *flags)
    assert (run.emoreg.penalize, run.args.max_steps) == ({"afraid": 0.3}, 7)


def smallest() -> list[Any]:
    """Of each family and kind of training the first recipe, sizes being in the folders' order."""
    found: dict[tuple[str, str], Path] = {}
    for path in HUB:
        if path.stem == "emoreg":
            family = next(name for name in FAMILIES if path.parts[1].startswith(name))
            found.setdefault((family, path.parts[2]), path)
    marks = {p: () if "/".join(p.parts[1:3]) in USUAL else pytest.mark.slow for p in found.values()}
    return [pytest.param(family, p, marks=marks[p], id=str(p)) for (family, _), p in found.items()]


def stand_in(family: str, path: Path, folder: Path) -> list[str]:
    """Flags that put a tiny model of the family, its vectors and a few rows in the places."""
    ids = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "eos_token_id": 1}
    model = causal_lm(FAMILIES[family], bos_token_id=None, max_position_embeddings=2048, **ids)
    at_home(model, folder / "model")
    vector_set(card={"model": identity(model, tokenizer())}).save(folder / "vectors")
    flags = {"model_name_or_path": folder / "model", "emoreg_vectors": folder / "vectors"}
    name = settings(path)["dataset_name"]
    if name in ROWS:
        (folder / "rows").mkdir()
        card = {"config_name": settings(path).get("dataset_config", "default")}
        card |= {"data_files": [{"split": s, "path": f"{s}.jsonl"} for s in ("train", "test")]}
        text = yaml.safe_dump({"configs": [card]})
        (folder / "rows" / "README.md").write_text(f"---\n{text}---\n")
        for split in ("train", "test"):
            text = "".join(json.dumps(ROWS[name]) + "\n" for _ in range(8))
            (folder / "rows" / f"{split}.jsonl").write_text(text)
        flags |= {"dataset_name": folder / "rows", "dataset_train_split": "train"}
        flags |= {"dataset_test_split": "test"}
    return [part for key, value in flags.items() for part in (f"--{key}", str(value))]


def small(path: Path) -> list[str]:
    """Flags that fit this machine; no reading is so far from its anchor as the margin asks."""
    flags = {
        "use_cpu": True, "bf16": False, "dtype": "float32", "load_in_4bit": False, "max_steps": 2,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1,
        "save_strategy": "no", "disable_tqdm": True, "emoreg_drift_prompts": PROMPT_FILE,
        "emoreg_drift_response_tokens": 0, "emoreg_drift_on_policy": "never", "emoreg_warmup": 0,
        "emoreg_margin": 9,
    }  # fmt: skip
    if method(path) == "grpo":
        flags |= {"num_generations": 2, "max_completion_length": 8}
    if method(path) == "sft":
        flags |= {"per_device_eval_batch_size": 2}
    return [part for key, value in flags.items() for part in (f"--{key}", str(value))]


@pytest.mark.parametrize(("family", "path"), smallest())
def test_the_smallest_recipe_of_a_kind_trains_two_steps_on_its_family(
    family: str, path: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    flags = ["--output_dir", str(tmp_path / "out"), *stand_in(family, path, tmp_path), *small(path)]
    trainer = training.main(method(path), ["--config", str(path), *flags])
    logs = [row for row in trainer.state.log_history if "emoreg/loss" in row]
    assert [row["step"] for row in logs] == [1, 2]
    assert all(row["emoreg/loss"] > 0 for row in logs)
    if method(path) == "grpo":
        for name in settings(path)["reward_funcs"]:
            assert 0 <= logs[0][f"rewards/{name.partition(':')[2]}/mean"] <= 1
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_the_smallest_recipes_were_found() -> None:
    usual = [case for case in smallest() if not case.marks]
    assert len(smallest()) == 13
    assert len(usual) == 2
