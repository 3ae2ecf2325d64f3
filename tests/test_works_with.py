"""The works-with tables are what the tests showed, and have no empty cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import works_with
from works_with import (
    CELLS,
    DOCUMENT,
    HERE,
    README,
    Cell,
    Outcome,
    Table,
    WorksWith,
    load,
    public,
    read,
)
from zoo import NEEDS_SERVER

HOME = HERE.parent
PASSES, FAILS = "assert True", "raise OSError"
LORA, QLORA = ("ways", "LoRA", "SFT"), ("ways", "QLoRA", "SFT")
NO_GPU = {("ways", "QLoRA", None): "needs a GPU"}


def test_the_readme_and_the_document_are_what_the_script_would_write(
    request: pytest.FixtureRequest,
) -> None:
    if collected(request.config).file == CELLS:
        pytest.skip("this run brings the record up to date; the script comes after it")
    assert works_with.stale(load(), README, DOCUMENT) == []


def test_the_marks_of_the_tests_are_the_cells_of_the_record(request: pytest.FixtureRequest) -> None:
    cells, works = collected(request.config), load()
    if cells.file == CELLS:
        pytest.skip("this run brings the record up to date")
    here = public(works_with.versions())
    if here not in [public(outcome.versions) for outcome in works.record.values()]:
        pytest.skip(f"recorded with other versions than {', '.join(here)}")
    assert works.disagreements(cells.words(), cells.whole) == []


def test_most_cells_were_measured_with_the_pinned_versions(request: pytest.FixtureRequest) -> None:
    if collected(request.config).file == CELLS:
        pytest.skip("this run brings the record up to date")
    measured = [outcome.versions for outcome in load().record.values()]
    assert measured, "run `make test-all`"
    pins = [line.split(" ")[0] for line in (HOME / "constraints.txt").read_text().splitlines()]
    assert set(public(max(measured, key=measured.count))) <= set(pins), "run `make test-all`"


def test_the_trainers_that_need_a_server_are_rows_without_a_test() -> None:
    whole_rows = {row for _, row, column in works_with.UNTESTED if column is None}
    assert whole_rows >= NEEDS_SERVER.keys()


def collected(config: pytest.Config) -> Any:
    """The plugin of conftest.py, which knows what this run collected."""
    return config.pluginmanager.get_plugin("works-with")


class Project:
    """A folder with tests that mark cells, a record, a README and a document."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester, self.cells = pytester, pytester.path / "cells.json"
        pytester.makeconftest((HERE / "conftest.py").read_text())
        pytester.makefile(".toml", pyproject=(HOME / "pyproject.toml").read_text())
        pytester.mkdir("tests")
        self.readme, self.document = pytester.path / "README.md", pytester.path / "tables.md"
        for path in (self.readme, self.document):
            path.write_text(f"before\n{works_with.BEGIN}\n{works_with.END}\nafter\n")

    def test(self, name: str, body: str, *marks: str) -> None:
        """Write a file with one test."""
        lines = [*(f"@pytest.mark.{mark}" for mark in marks), f"def test_{name}():", f"    {body}"]
        text = "\n".join(["import pytest", *lines])
        (self.pytester.path / f"tests/test_{name}.py").write_text(text + "\n")

    def run(self, *arguments: str) -> Any:
        """Run what the arguments ask for; the plugin of that run."""
        seen: list[Any] = []

        class Spy:
            def pytest_sessionfinish(self, session: pytest.Session) -> None:
                seen.append(collected(session.config))

        self.result = self.pytester.runpytest_inprocess(*arguments, plugins=[Spy()])
        return seen[-1] if seen else None

    def record(self, *arguments: str) -> dict[Cell, str]:
        """Run, and what is recorded after it."""
        self.run(f"--cells={self.cells}", *arguments)
        return {cell: outcome.word for cell, outcome in read(self.cells).items()}

    def script(self, *flags: str) -> str | None:
        places = [f"--readme={self.readme}", f"--document={self.document}"]
        return works_with.main([*flags, f"--cells={self.cells}", *places])


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(works_with, "TABLES", {"ways": Table("Ways.", "way", ("LoRA",), ("SFT",))})
    monkeypatch.setattr(works_with, "UNTESTED", {})
    made = Project(pytester)
    made.test("lora", PASSES, "cell('ways', 'LoRA', 'SFT')")
    return made


@pytest.mark.parametrize(
    ("body", "marks", "wanted"),
    [
        (PASSES, ["cell('ways', 'QLoRA', 'SFT')"], "tested"),
        (PASSES, ["cell('ways', 'QLoRA', 'SFT', refused='too small')"], "refused: too small"),
        (FAILS, ["cell('ways', 'QLoRA', 'SFT')"], None),
        (FAILS, ["cell('ways', 'QLoRA', 'SFT')", "xfail"], None),
        (PASSES, ["cell('ways', 'QLoRA', 'SFT')", "skipif(True, reason='no GPU')"], "as before"),
        ("pytest.skip('no GPU')", ["cell('ways', 'QLoRA', 'SFT')"], "as before"),
        (PASSES, ["cell('ways', 'QLoRA', 'SFT')", "slow"], "as before"),
        (PASSES, [f"cell('ways', 'QLoRA', 'SFT'{x})" for x in ("", ", refused='x'")], None),
    ],
    ids=["passed", "refused", "failed", "xfailed", "skipped", "skips", "deselected", "both"],
)
def test_a_run_records_what_it_decides(
    project: Project, body: str, marks: list[str], wanted: str | None
) -> None:
    works_with.write(project.cells, {QLORA: Outcome("as before", "torch 1")})
    project.test("other", body, *marks)
    found = project.record()
    assert found.pop(LORA) == "tested"
    assert found == ({} if wanted is None else {QLORA: wanted})


def test_a_cell_is_tested_if_all_its_tests_passed(project: Project) -> None:
    mark = "cell('ways', 'QLoRA', 'SFT')"
    project.test("other", PASSES, mark)
    project.test("another", PASSES, mark, "slow")
    assert project.record() == {LORA: "tested"}
    assert project.record("-m", "") == {LORA: "tested", QLORA: "tested"}
    project.test("another", FAILS, mark)
    assert project.record() == {LORA: "tested"}


def test_a_failing_test_makes_both_files_stale(project: Project) -> None:
    project.record()
    said = str(project.script("--check"))
    for path in (project.readme, project.document):
        assert f"{path.name} is not what its tests say: run `make works-with`" in said
    assert project.script() is None
    assert project.script("--check") is None  # control: not stale
    assert "| LoRA | tested |" in project.document.read_text()
    assert "| ways | 1 | 1 | 0 | 0 | – |" in project.readme.read_text()
    project.test("lora", FAILS, "cell('ways', 'LoRA', 'SFT')")
    project.record()
    for flags in (["--check"], []):
        assert "ways | LoRA | SFT: no outcome, and no reason why" in str(project.script(*flags))
    for path in (project.readme, project.document):
        assert path.read_text().endswith(f"{works_with.END}\nafter\n")


def test_a_removed_test_makes_the_record_stale_until_the_next_whole_run(project: Project) -> None:
    project.test("other", PASSES, "cell('ways', 'QLoRA', 'SFT')")
    assert QLORA in project.record()
    assert stale(project) == []  # control: nothing was removed
    (project.pytester.path / "tests/test_other.py").unlink()
    assert stale(project) == ["ways | QLoRA | SFT: recorded, and no test marks it any more"]
    part = "tests/test_lora.py"
    assert stale(project, part) == stale(project, "--ignore=x") == []  # control: not the whole
    assert QLORA in project.record(part)
    assert QLORA not in project.record()


def test_a_test_that_cannot_be_collected_removes_no_cell(project: Project) -> None:
    project.test("other", PASSES, "cell('ways', 'QLoRA', 'SFT')")
    project.record()
    for text in ("import nothing_of_the_kind", "import pytest\npytest.importorskip('no_such')"):
        (project.pytester.path / "tests/test_other.py").write_text(text)
        assert QLORA in project.record("--continue-on-collection-errors")


def test_a_new_mark_makes_the_record_stale(project: Project) -> None:
    project.record()
    project.test("other", PASSES, "cell('ways', 'QLoRA', 'SFT')")
    assert stale(project) == ["ways | QLoRA | SFT: a test marks it, and no outcome is recorded"]
    assert stale(project, untested=NO_GPU) == []  # control: the reason says why
    project.test("other", PASSES, "cell('ways', 'LoRA', 'SFT', refused='x')")
    assert "its tests disagree: refused: x; tested" in stale(project)[0]
    project.test("lora", PASSES)
    assert "is 'tested', marked 'refused: x'" in stale(project)[0]


def stale(project: Project, *arguments: str, untested: Any = None) -> list[str]:
    cells = project.run("--collect-only", *arguments)
    works = WorksWith(read(project.cells), works_with.TABLES, untested or {})
    return works.disagreements(cells.words(), cells.whole)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("cell('weights', 'LoRA', 'SFT')", "no table 'weights'; there are ways"),
        ("cell('ways', 'LoRA')", "missing 1 required positional argument: 'column'"),
        ("cell('ways', 'LoRA | QLoRA', 'SFT')", "without | or line end: 'LoRA | QLoRA'"),
        ("cell('ways', 'LoRA', 'SFT', refused='')", "without | or line end: ''"),
    ],
)
def test_a_mark_that_names_no_cell_is_refused(project: Project, mark: str, message: str) -> None:
    before = project.record()
    project.test("other", PASSES, mark)
    assert project.record() == before
    assert project.result.ret == pytest.ExitCode.USAGE_ERROR
    project.result.stderr.fnmatch_lines(
        [f"*test_other.py::test_other: pytest.mark.cell: *{message}"]
    )


def test_equal_reasons_share_a_note_and_a_reason_must_explain_a_cell(tmp_path: Path) -> None:
    tables = {"ways": Table("Ways.", "way", ("LoRA", "QLoRA"), ("SFT", "DPO"))}
    record = {
        LORA: Outcome("tested", "trl 2"),
        ("ways", "FSDP", "SFT"): Outcome("refused: so", "trl 1"),
    }
    untested = {**NO_GPU, ("ways", None, "DPO"): "no time", ("ways", "FSDP", "DPO"): "needs a GPU"}
    works = WorksWith(record, tables, untested)
    assert works.problems() == []
    assert works.markdown().splitlines() == [
        "Ways.", "",
        "| way | SFT | DPO |", "| --- | --- | --- |", "| LoRA | tested | untested¹ |",
        "| QLoRA | untested² | untested² |", "| FSDP | refused³ | untested² |", "",
        "1. no time", "2. needs a GPU", "3. so", "",
        "Measured: 1 cells with trl 2; 1 cells with trl 1.",
    ]  # fmt: skip
    assert works.summary().splitlines()[2:] == [
        "| ways | 6 | 1 | 1 | 4 | untested: QLoRA. refused or untested: FSDP |"
    ]
    del untested["ways", None, "DPO"]
    untested["ways", "LoRA", "SFT"] = "no need"
    assert works.problems() == [
        "ways | LoRA | DPO: no outcome, and no reason why",
        "ways | LoRA | SFT: its reason in UNTESTED explains no cell",
    ]
    works_with.write(tmp_path / "cells.json", record)
    assert read(tmp_path / "cells.json") == record
    assert len((tmp_path / "cells.json").read_text().splitlines()) == 2 + 2 * len(record) + 2


def test_a_readme_without_the_markers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        works_with.replaced("nothing", "tables")


HOST = """
import logging, warnings
def old():
    warnings.warn("old is deprecated", FutureWarning, stacklevel=2)
def logs():
    logging.getLogger("transformers.models").warning("old is deprecated")
"""


@pytest.mark.parametrize("call", ["old", "logs"])
@pytest.mark.parametrize(("caller", "failed"), [("emoreg.host", 1), ("script", 0)])
def test_a_deprecated_call_to_a_host_fails_if_it_is_ours(
    project: Project, call: str, caller: str, failed: int
) -> None:
    body = f"""
host, ours = {{"__name__": "transformers.models"}}, {{"__name__": "{caller}"}}
exec({HOST!r}, host)
exec("def call(old): old()", ours)
def test_it(): ours["call"](host["{call}"])
"""
    (project.pytester.path / "tests/test_lora.py").write_text(body)
    project.run()
    project.result.assert_outcomes(failed=failed, passed=1 - failed)
