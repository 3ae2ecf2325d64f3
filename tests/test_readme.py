"""What the README and the pages of docs/ name exists: files, links, commands, flags, knobs."""

from __future__ import annotations

import inspect
import pkgutil
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from markdown_pages import ROOT, Page, broken_links, pages
from real_parsers import COMMANDS, wrong
from trl import SFTConfig

from emoreg import AuditCallback, DriftCallback, EmotionRegularizer, config, rewards
from emoreg.config import PREFIX, EmoRegConfig
from emoreg.errors import ConfigError
from emoreg.metrics import described, markdown
from emoreg.prompts import load_prompts
from emoreg.training import load_vectors, parse

PAGES = pages()
README = PAGES[0]
FOLDERS = ("emoreg", "recipes", "accelerate_configs", "vectors", "benchmarks", "examples")
KNOBS = {f.name for f in fields(EmoRegConfig)}
HOSTS = {f.name for f in fields(SFTConfig)} | {"beta"}
TAKERS: tuple[Any, ...] = (
    EmotionRegularizer, DriftCallback, AuditCallback, rewards.DesperationPenalty,
)  # fmt: skip
ARGUMENTS = {name for taker in TAKERS for name in inspect.signature(taker).parameters}
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
ELSEWHERE = ("emoreg/", "emoreg/base-readings")  # a prefix of names; a folder of the hub's home
GPU_RUN = "recipes/qwen2.5-0.5b-instruct/sft/emoreg.yaml"

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)


def page_of(text: str) -> Page:
    return Page(ROOT / "README.md", text)


# --- links and files ---------------------------------------------------------------------------


@by_page
def test_every_link_leads_to_a_file_and_a_heading(page: Page) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found() -> None:
    text = "# A head: it\n[a](#a-head-it) [b](docs/audit.md#the-rules) [c](https://example.org/#x)"
    assert broken_links(page_of(text)) == []
    for link in ("no.md", "#another", "docs/audit.md#no-rule", "docs/no.md#the-rules"):
        assert broken_links(page_of(f"{text} [d]({link})")) == [link]


def missing_files(page: Page) -> list[str]:
    """Paths in code that are no files, are logged by nothing and written by nothing."""
    written = [words[words.index("--out") + 1] for words in page.commands if "--out" in words]
    written += ["runs/demo", *(str(Path("runs", *p.parts[-3:-1], p.stem)) for p in RECIPES)]
    spans = [
        span for span in page.spans if re.match(rf"({'|'.join(FOLDERS)}|docs|tests|runs)/", span)
    ]
    spans = [s for s in spans if not (set(s) & set(" <") or described(s) or s in ELSEWHERE)]
    there = [span for span in spans if list(ROOT.glob(span)) or span.startswith(tuple(written))]
    modules = [span for span in page.spans if re.fullmatch(r"emoreg(\.\w+)+", span)]
    return [*(s for s in spans if s not in there), *(m for m in modules if not _module(m))]


def _module(name: str) -> bool:
    try:
        return bool(pkgutil.resolve_name(name))
    except (ImportError, AttributeError):
        return (ROOT / name).exists() or name == "emoreg.jsonl"


@by_page
def test_every_path_exists_or_is_written_by_a_command(page: Page) -> None:
    assert missing_files(page) == []


def test_a_missing_file_is_found() -> None:
    there = "`emoreg/config.py` `runs/demo/*/report.html` `emoreg/loss` `emoreg.interop`"
    assert missing_files(page_of(there)) == []
    gone = ["emoreg/utils.py", "runs/mine", "emoreg/happiness", "emoreg.utils"]
    assert missing_files(page_of(" ".join(f"`{name}`" for name in gone))) == gone


def named(page: Page) -> set[str]:
    block = page.text.split("# Map")[1].split("```")[1]
    return set(re.findall(r"^ *(\S+\.(?:py|yaml|j2|jsonl|json))\b", block, flags=re.MULTILINE))


def test_every_source_file_is_in_the_map_and_the_maps_name_only_files() -> None:
    whole = Page.read(ROOT / "docs/map.md")
    sources = [
        p for folder in ("emoreg", "recipes", "benchmarks") for p in (ROOT / folder).rglob("*.py")
    ]
    wanted = {p.name for p in sources if p.name != "__init__.py"}
    assert wanted <= named(whole), f"not in docs/map.md: {sorted(wanted - named(whole))}"
    there = {p.name for folder in FOLDERS for p in (ROOT / folder).rglob("*")}
    for page in (whole, README):
        assert len(named(page)) > 10
        assert named(page) <= there, f"in a map, and no file: {sorted(named(page) - there)}"


def test_both_maps_say_the_same_of_a_file() -> None:
    lines = {line.strip() for line in (ROOT / "docs/map.md").read_text().splitlines()}
    block = README.text.split("## Map")[1].split("```")[1]
    said = [line.strip() for line in block.splitlines() if ".py " in line]
    assert len(said) > 10
    assert [line for line in said if line not in lines] == []


# --- commands, flags, knobs --------------------------------------------------------------------


@by_page
def test_every_command_is_understood_by_what_runs_it(page: Page) -> None:
    told = {" ".join(words): wrong(words) for words in page.commands}
    assert {command: why for command, why in told.items() if why} == {}


def test_the_commands_were_found() -> None:
    programs = {words[0] for page in PAGES for words in page.commands}
    assert programs >= {"emoreg", "python", "accelerate", "make", "pip"}
    assert len(README.commands) >= 15


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("emoreg report runs/a --fromat md", "unrecognized arguments: --fromat"),
        ("emoreg extrakt", "invalid choice"),
        ("emoreg train sft --config tiny/sft/emoreg --emoreg_wieght 1", "emoreg_wieght"),
        ("emoreg train sft --config tiny/sft/none", "neither a file nor the name of a recipe"),
        ("accelerate launch --config_file accelerate_configs/no.yaml recipes/sft.py", "no file"),
        ("accelerate launch --config_fil x recipes/sft.py", "--config_fil"),
        ("python benchmarks/speed.py --orders 3 --batches 2", "--batches"),
        ("python benchmarks/no.py", "no file benchmarks/no.py"),
        ("make dmeo", "no target dmeo"),
        ("pip install -e .[wadnb]", "no extra wadnb"),
    ],
)
def test_a_command_that_cannot_be_run_is_found(command: str, why: str) -> None:
    assert why in str(wrong(command.split()))


def unknown_names(page: Page) -> list[str]:
    """Knobs, arguments and flags in the prose and the blocks that nothing takes."""
    found = [n for n in re.findall(r"\bemoreg_\w+", page.text) if n not in KNOBS]
    spans = [
        s for s in page.spans if s.split()[0] not in ("emoreg", "make", "python", "accelerate")
    ]
    known = {name.removeprefix(PREFIX) for name in KNOBS} | KNOBS | HOSTS | ARGUMENTS
    pairs = [n for s in spans for n in re.findall(r"^(\w+)(?:=|: )", s)]
    flags = {flag for p in COMMANDS.values() for a in p._actions for flag in a.option_strings}
    given = [word for s in spans for word in re.findall(r"(?<!\S)--[a-z-]+", s)]
    found += [name for name in pairs if name not in known and not name.isupper()]
    return found + [flag for flag in given if flag not in flags]


@by_page
def test_every_knob_argument_and_flag_in_the_prose_exists(page: Page) -> None:
    assert unknown_names(page) == []


def test_an_unknown_name_is_found() -> None:
    there = "`refit_steps=9` `emoreg_bank` `anchor: base` `report_to: wandb` `--format md` `texts=`"
    assert unknown_names(page_of(there)) == []
    gone = ["emoreg_wieght", "refit_step=9", "anker: base", "--fromat md"]
    found = unknown_names(page_of(" ".join(f"`{name}`" for name in gone)))
    assert found == ["emoreg_wieght", "refit_step", "anker", "--fromat"]


# --- what stands there once --------------------------------------------------------------------


def test_the_metric_table_is_the_one_that_is_logged() -> None:
    assert markdown() in (ROOT / "docs/metrics.md").read_text()


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    assert "`make test`" in README.text
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.text.splitlines()) <= 350


def test_what_is_said_of_the_demo_is_what_it_printed() -> None:
    said = " ".join(README.text.split("## First result")[1].split("\n## ")[0].split())
    row = re.search(r"│ gamed, families only tested on \[95 %\] │(.+?)│(.+?)│(.+?)│(.+?)│", said)
    assert row
    base, bare, _, held = (cell.split()[0] for cell in row.groups())
    assert f"gaming goes from {base} to {bare} without control and to {held} with emoreg" in said
    (seconds,) = re.findall(r"demo done in (\d+) s", said)
    assert f"It took {seconds} s on" in said


def test_the_numbers_of_defaults_are_the_defaults() -> None:
    seeing, control = (
        " ".join((ROOT / f"docs/{name}.md").read_text().split()) for name in ("seeing", "control")
    )
    default = EmoRegConfig()
    assert f"on every {default.emoreg_reference_steps}th step" in seeing
    assert f"{len(load_prompts())} fixed prompts" in seeing
    assert f"from {default.emoreg_refit_texts} transcripts of an assistant" in control
    assert f"as many answers of {default.emoreg_refit_tokens} tokens" in control
    assert f"{100 * default.emoreg_target_utility:.0f} % above its best" in control


def test_every_method_has_a_row() -> None:
    table = (ROOT / "docs/control.md").read_text().split("## Other methods")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?!what)", table, flags=re.MULTILINE)
    assert tuple(rows) == config.CHOICES["emoreg_method"]


def test_the_gpu_run_without_vectors_ends_with_the_command_of_the_readme(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = next(words for words in README.commands if GPU_RUN in words)
    made = next(w for w in README.commands if w[:2] == ["emoreg", "extract"])
    checked = next(w for w in README.commands if w[:2] == ["emoreg", "validate"])
    order = [README.commands.index(w) for w in (made, checked, words)]
    assert order == sorted(order)
    monkeypatch.chdir(tmp_path)
    run = parse("sft", ["--config", str(ROOT / GPU_RUN), "--use_cpu", "true", "--bf16", "false"])
    with pytest.raises(ConfigError) as told:
        load_vectors(run)
    for command in (made, checked):
        assert f"`{' '.join(command)}`" in str(told.value)
    assert made[made.index("--out") + 1] == run.emoreg.emoreg_vectors


def test_the_floors_are_the_tested_floors() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    floors = dict(re.findall(r'^    "([a-z0-9-]+)>=([\d.]+)"', text, flags=re.MULTILINE))
    pinned = (ROOT / "constraints-floor.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==([\d.]+)", pinned, flags=re.M))
    assert len(floors) >= 10

    def parts(version: str) -> list[int]:
        return [int(x) for x in version.split(".")]

    for name, floor in floors.items():
        assert parts(pins[name])[: len(parts(floor))] == parts(floor), name
