from pathlib import Path

import pytest
import yaml
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

from emoreg import EmoRegConfig

RECIPES = sorted(Path("recipes").rglob("*.yaml"))


def parse(path, monkeypatch):
    for name in yaml.safe_load(path.read_text()).get("env", {}):
        monkeypatch.setenv(
            name, ""
        )  # given back after the test; the parser sets it for the process
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, EmoRegConfig))
    return parser.parse_args_and_config(["--config", str(path), "--use_cpu", "true"])


def test_recipes_were_found():
    assert {p.stem for p in RECIPES} >= {"baseline", "story_only", "emoreg"}


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_parses_is_listed_and_names_its_command(path, monkeypatch):
    *_, emoreg = parse(path, monkeypatch)
    assert Path(emoreg.emoreg_vectors).is_dir()
    assert str(path) in Path("recipes/README.md").read_text()
    assert f"--config {path}" in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_differs_from_its_baseline_only_in_the_control(path):
    own, baseline = (yaml.safe_load(p.read_text()) for p in (path, path.with_name("baseline.yaml")))
    control = {"emoreg_penalize", "emoreg_reward", "emoreg_facets", "emoreg_keep", "emoreg_pool"}
    differs = {k for k in own | baseline if own.get(k) != baseline.get(k)}
    assert differs <= control | {"output_dir", "run_name"}
    assert set(baseline["emoreg_penalize"].values()) == {0.0}


def test_an_unknown_key_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "wrong.yaml"
    path.write_text(Path("recipes/tiny/sft/emoreg.yaml").read_text() + "emoreg_wieght: 1\n")
    with pytest.raises(ValueError, match="emoreg_wieght"):
        parse(path, monkeypatch)
