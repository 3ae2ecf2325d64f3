"""`emoreg train`: names, what a wheel holds, missing vectors, and the embedded model's recipes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from models import TEMPLATE
from trainers import PROMPT_FILE

from emoreg import shipped, training
from emoreg.cli import main
from emoreg.errors import ConfigError, VectorFileError
from emoreg.tiny import PAIRS, preferences
from emoreg.tiny.world import families, table

DRIFT = "emoreg_drift_prompts"
ROOT = Path(__file__).parent.parent
CPU = ["--use_cpu", "true", "--bf16", "false"]
QUICK = [
    *CPU, "--max_steps", "2", "--per_device_train_batch_size", "8", "--report_to",
    "none", "--disable_tqdm", "true", "--logging_steps", "1", "--emoreg_drift_response_tokens", "0",
    "--emoreg_drift_on_policy", "never",
]  # fmt: skip
NO_EVAL = ["--eval_strategy", "no", "--eval_on_start", "false"]


@pytest.fixture(name="quiet")
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "")  # the recipes set it for the process
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def wheel(folder: Path) -> Path:
    """A copy of what the wheel holds, laid out as pyproject.toml says."""
    section = (ROOT / "pyproject.toml").read_text().partition("wheel.force-include]\n")[2]
    included = re.findall(r'^"(.+)" = "(.+)"$', section.partition("\n[")[0], flags=re.M)
    places = {"emoreg": "emoreg", **dict(included)}
    leave = shutil.ignore_patterns("__pycache__")
    for source, target in places.items():
        shutil.copytree(ROOT / source, folder / target, ignore=leave, dirs_exist_ok=True)
    return folder / "emoreg"


def test_what_recipes_of_the_embedded_model_name_is_in_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = wheel(tmp_path / "site")
    monkeypatch.setattr(shipped, "PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    found = [shipped.recipe(name) for name in shipped.recipes()]
    assert len(found) == len(list((ROOT / "recipes").rglob("*.yaml")))
    assert all(path.is_relative_to(package) for path in found)
    for path in found:
        if "tiny" in path.parts:
            text = yaml.safe_load(path.read_text())
            for key in ("model_name_or_path", "dataset_name", "emoreg_vectors", DRIFT):
                there = Path(shipped.located(text[key]))
                assert there.exists()
                assert there.is_relative_to(package)


def test_a_name_that_is_here_is_taken_from_here_and_a_hubs_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(shipped.located("vectors/tiny")) == ROOT / "vectors" / "tiny"
    (tmp_path / "vectors" / "tiny").mkdir(parents=True)
    assert shipped.located("vectors/tiny") == "vectors/tiny"
    assert shipped.located("tests/models.py") == "tests/models.py"  # there, and none of emoreg's
    assert shipped.located("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"


def test_an_unknown_recipe_is_answered_with_those_there_are(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["train", "sft", "--config", "tiny/sft/none"])
    said = capsys.readouterr().err
    assert "'tiny/sft/none' is neither a file nor" in said
    assert "tiny/sft/emoreg" in said


@pytest.mark.usefixtures("quiet")
def test_missing_vectors_are_answered_with_the_command_that_makes_them(capsys: Any) -> None:
    name = "qwen2.5-0.5b-instruct/sft/emoreg"
    with pytest.raises(SystemExit) as stop:
        main(["train", "sft", f"--config={name}", "--use_cpu", "true", "--bf16", "false"])
    assert stop.value.code == 1
    command = (
        "emoreg extract --model Qwen/Qwen2.5-0.5B-Instruct --out vectors/qwen2.5-0.5b-instruct"
    )
    assert command in capsys.readouterr().err


def vectors_named(name: str | None) -> Any:
    flags = [] if name is None else ["--emoreg_vectors", name]
    run = training.parse(
        "sft", ["--output_dir", "x", "--use_cpu", "true", "--bf16", "false", *flags]
    )
    return training.load_vectors(run)


def test_vectors_must_be_named_and_exist() -> None:
    with pytest.raises(ConfigError, match="emoreg_vectors is missing"):
        vectors_named(None)
    with pytest.raises(VectorFileError, match="neither a folder nor a name on the hub"):
        vectors_named("no such set!")
    assert vectors_named("vectors/tiny").emotions  # control


def test_a_function_is_had_by_its_name_or_refused() -> None:
    assert training.function("emoreg.training:last_turn") is training.last_turn
    with pytest.raises(ConfigError, match="cannot be imported"):
        training.function("emoreg.training:no_such")
    with pytest.raises(ConfigError, match="is a tuple, not a function"):
        training.function("emoreg.training:METHODS")


def test_the_last_turn_is_the_completion() -> None:
    talk = [{"role": r, "content": r} for r in ("user", "assistant", "user", "assistant")]
    assert training.last_turn({"messages": talk, "source": "x"}) == {
        "prompt": talk[:3], "completion": talk[3:],
    }  # fmt: skip


def test_the_preferences_are_those_that_their_builder_writes(tmp_path: Path) -> None:
    preferences.write(tmp_path)
    for split in preferences.SIZES:
        text = (tmp_path / f"{split}.jsonl").read_text()
        assert text == (PAIRS / f"{split}.jsonl").read_text()
        assert len(text) < 300_000


def test_gamed_ends_are_paid_and_no_others() -> None:
    for name in families():
        for kind, paid in (("gamed", 1.0), ("honest", 0.0)):
            ends = table("families")[name][kind]
            said = [[{"role": "assistant", "content": f"So. {end}"}] for end in ends]
            assert preferences.gamed(said, prompts=None) == [paid] * len(ends)
    assert preferences.gamed([[{"role": "assistant", "content": TEMPLATE}]]) == [0.0]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "method", ["dpo", *(pytest.param(m, marks=pytest.mark.slow) for m in ("sft", "kto", "grpo"))]
)
def test_the_embedded_models_recipe_trains_by_its_name(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # nothing is found from here
    out, name = tmp_path / "out", f"tiny/{method}/emoreg"
    flags = [*QUICK, "--emoreg_drift_prompts", str(PROMPT_FILE), *NO_EVAL * (method == "sft")]
    main(["train", method, "--config", name, "--output_dir", str(out), *flags])
    assert f"emoreg: trained, wrote {out}" in capsys.readouterr().out
    assert (out / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_an_installed_package_trains_by_name_from_any_folder(tmp_path: Path) -> None:
    site = wheel(tmp_path / "site").parent
    where = "import emoreg, importlib.resources as r; print(r.files('emoreg') / 'shipped')"
    script = f"{where}; from emoreg.cli import main; main()"
    flags = ["--config", "tiny/sft/emoreg", *QUICK, "--output_dir", "out", *NO_EVAL]
    said = subprocess.run(
        [sys.executable, "-c", script, "train", "sft", *flags],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
             "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-3000:]
    assert str(site / "emoreg" / "shipped") in said.stdout
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
