import re
from pathlib import Path

from emoreg.metrics import markdown

README = Path("README.md").read_text()


def test_the_metric_table_is_the_one_that_is_logged():
    assert markdown() in README


def test_every_source_file_is_in_the_map_and_the_map_names_only_files():
    block = README.split("## Map")[1].split("```")[1]
    named = set(re.findall(r"^ *(\S+\.(?:py|yaml|j2|jsonl|json))\b", block, flags=re.MULTILINE))
    sources = [
        *Path("emoreg").rglob("*.py"),
        *Path("recipes").rglob("*.py"),
        *Path("benchmarks").rglob("*.py"),
    ]
    wanted = {p.name for p in sources if p.name != "__init__.py"}
    assert wanted <= named, f"not in the README's map: {sorted(wanted - named)}"
    folders = ("emoreg", "recipes", "accelerate_configs", "vectors", "benchmarks", "examples")
    there = {p.name for folder in folders for p in Path(folder).rglob("*")}
    assert named <= there, f"in the README's map, and no file: {sorted(named - there)}"


def test_the_test_command_is_the_one_that_ci_runs():
    assert "`make test`" in README
    assert "make test" in Path(".ci/run").read_text()


def test_the_floors_are_the_tested_floors():
    text = Path("pyproject.toml").read_text()
    floors = dict(re.findall(r'^    "([a-z0-9-]+)>=([\d.]+)"', text, flags=re.MULTILINE))
    pins = dict(
        re.findall(
            r"^([a-z0-9-]+)==([\d.]+)", Path("constraints-floor.txt").read_text(), flags=re.M
        )
    )
    assert len(floors) >= 10

    def parts(version):
        return [int(x) for x in version.split(".")]

    for name, floor in floors.items():
        assert parts(pins[name])[: len(parts(floor))] == parts(floor), name
