"""The works-with tables, written from the outcomes of the tests that mark their cells.

`python tests/works_with.py` writes them to docs/works-with.md and their sums to README.md,
`--check` only says whether one of the two is stale. Outcomes are in works_with.json, which a run
with `--cells=tests/works_with.json` (`make test-all`) brings up to date; what no test can show here
has its reason in `UNTESTED`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from grid import TABLES, UNTESTED, Entry, Table

HERE = Path(__file__).parent
CELLS, README = HERE / "works_with.json", HERE.parent / "README.md"
DOCUMENT = HERE.parent / "docs" / "works-with.md"
BEGIN = "<!-- works-with: written by `make works-with`, do not edit -->"
END = "<!-- works-with: end -->"
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
PACKAGES = ("accelerate", "peft", "torch", "transformers", "trl")

Cell = tuple[str, str, str]  # table, row, column


class Outcome(NamedTuple):
    """What the tests of one cell showed, and the versions that they ran with."""

    word: str
    versions: str


Record = dict[Cell, Outcome]


def marked(table: str, row: str, column: str, refused: str | None = None) -> tuple[Cell, str]:
    """The cell that one `pytest.mark.cell(...)` names, and its outcome if the test passes."""
    if table not in TABLES:
        raise ValueError(f"no table {table!r}; there are {', '.join(TABLES)}")
    for text in (row, column, "" if refused == "" else "given"):
        if not text or set(text) & set("|\n"):
            raise ValueError(f"a row, column or reason is text without | or line end: {text!r}")
    return (table, row, column), "tested" if refused is None else f"refused: {refused}"


def versions() -> str:
    """The installed versions of what a cell depends on."""
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def public(text: str) -> list[str]:
    """Versions in pip's form, without builds such as `+cpu`."""
    return [part.split("+")[0].replace(" ", "==") for part in text.split(", ")]


def read(path: Path) -> Record:
    """The outcomes in a file, none if there is no file."""
    groups = json.loads(path.read_text()) if path.exists() else {}
    found: Record = {}
    for measured, cells in groups.items():
        for key, word in cells.items():
            table, row, column = key.split(" | ")
            found[table, row, column] = Outcome(word, measured)
    return found


def write(path: Path, record: Record) -> None:
    """Keep the outcomes by versions, one line a cell, sorted."""
    groups: dict[str, dict[str, str]] = {}
    for cell, (word, measured) in record.items():
        groups.setdefault(measured, {})[" | ".join(cell)] = word
    path.write_text(json.dumps(groups, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def merged(
    old: Record, outcomes: Mapping[Cell, str | None], measured: str, marks: Set[Cell] | None = None
) -> Record:
    """A record after a run: None is a failure, `marks` every cell of the whole suite."""
    kept = {cell: was for cell, was in old.items() if marks is None or cell in marks}
    new = {cell: Outcome(word, measured) for cell, word in outcomes.items() if word}
    return {cell: was for cell, was in kept.items() if cell not in outcomes} | new


@dataclass(frozen=True)
class WorksWith:
    """A record beside what it should hold."""

    record: Record
    tables: Mapping[str, Table]
    untested: Mapping[Entry, str]

    def rows(self, table: str) -> list[str]:
        """Rows in their order; extra ones last."""
        return _ordered(self.tables[table].rows, (e[1] for e in self._named() if e[0] == table))

    def columns(self, table: str) -> list[str]:
        """Columns in their order; extra ones last."""
        return _ordered(self.tables[table].columns, (e[2] for e in self._named() if e[0] == table))

    def _named(self) -> list[Entry]:
        return [*self.record, *self.untested]

    def cells(self) -> list[Cell]:
        """Every cell of every table."""
        return [(t, r, c) for t in self.tables for r in self.rows(t) for c in self.columns(t)]

    def entry(self, cell: Cell) -> Entry | None:
        """The entry that says why a cell is untested, the narrowest one."""
        table, row, column = cell
        tried: list[Entry] = [cell, (table, row, None), (table, None, column), (table, None, None)]
        return next((entry for entry in tried if entry in self.untested), None)

    def word(self, cell: Cell) -> str | None:
        """`tested`, `refused: why` or `untested: why`; None if the cell is empty."""
        if cell in self.record:
            return self.record[cell].word
        entry = self.entry(cell)
        return None if entry is None else f"untested: {self.untested[entry]}"

    def problems(self) -> list[str]:
        """Empty cells, and reasons that explain no cell."""
        cells = self.cells()
        used = {self.entry(cell) for cell in cells if cell not in self.record}
        empty: dict[tuple[str, str], list[str]] = {}
        for table, row, column in cells:
            if self.word((table, row, column)) is None:
                empty.setdefault((table, row), []).append(column)
        spare = self.untested.keys() - used
        said = [
            _said((*k, ", ".join(v)), "no outcome, and no reason why") for k, v in empty.items()
        ]
        return said + sorted(_said(e, "its reason in UNTESTED explains no cell") for e in spare)

    def disagreements(self, marks: Mapping[Cell, Set[str]], whole: bool) -> list[str]:
        """Where the record is not what the collected tests mark; `whole` if no test is missing."""
        found = []
        for cell, words in sorted(marks.items()):
            if len(words) > 1:
                found.append(_said(cell, "its tests disagree: " + "; ".join(sorted(words))))
            elif cell in self.record and self.record[cell].word not in words:
                words_now = ", ".join(words)
                found.append(_said(cell, f"is {self.record[cell].word!r}, marked {words_now!r}"))
            elif self.word(cell) is None:
                found.append(_said(cell, "a test marks it, and no outcome is recorded"))
        gone = sorted(self.record.keys() - marks.keys()) if whole else []
        return found + [_said(cell, "recorded, and no test marks it any more") for cell in gone]

    def markdown(self) -> str:
        """The tables with their notes, and what they were measured with."""
        counts = Counter(outcome.versions for outcome in self.record.values())
        parts = [self._table(name) for name in self.tables]
        if len(counts) == 1:
            return "\n\n".join([*parts, f"Measured with {next(iter(counts))}."])
        lists = [f"{count} cells with {measured}" for measured, count in counts.most_common()]
        return "\n\n".join([*parts, f"Measured: {'; '.join(lists)}."])

    def summary(self) -> str:
        """One line a table: how many cells are what, and the rows without a tested cell."""
        words = ("tested", "refused", "untested")
        head = ("", "cells", "tested", "refused with an error", "untested", "rows with none tested")
        lines = [_line(*head), _line(*("---" for _ in head))]
        for name in self.tables:
            rows = {row: [self._first((name, row, c)) for c in self.columns(name)]
                    for row in self.rows(name)}  # fmt: skip
            counts = Counter(word for found in rows.values() for word in found)
            without: dict[str, list[str]] = {}
            for row, found in rows.items():
                if "tested" not in found:
                    without.setdefault(" or ".join(sorted(set(found))), []).append(row)
            told = ". ".join(f"{word}: {'; '.join(listed)}" for word, listed in without.items())
            sums = map(str, (counts.total(), *(counts[word] for word in words)))
            lines.append(_line(name, *sums, told or "–"))
        return "\n".join(lines)

    def _first(self, cell: Cell) -> str:
        return (self.word(cell) or "").partition(": ")[0]

    def _table(self, name: str) -> str:
        notes: dict[str, int] = {}
        columns, (caption, corner, *_) = self.columns(name), self.tables[name]
        lines = [_line(corner, *columns), _line("---", *("---" for _ in columns))]
        for row in self.rows(name):
            words = [self.word((name, row, column)) or "" for column in columns]
            lines.append(_line(row, *(_short(word, notes) for word in words)))
        below = [f"{number}. {reason}" for reason, number in notes.items()]
        return "\n\n".join([caption, "\n".join(lines), *(["\n".join(below)] if below else [])])


def _ordered(wished: tuple[str, ...], found: Iterable[str | None]) -> list[str]:
    return [*wished, *sorted({name for name in found if name} - set(wished))]


def _said(cell: Entry, what: str) -> str:
    return f"{' | '.join(part or 'all' for part in cell)}: {what}"


def _line(*parts: str) -> str:
    return f"| {' | '.join(parts)} |"


def _short(word: str, notes: dict[str, int]) -> str:
    """The first word; its reason becomes the number of a note."""
    first, _, reason = word.partition(": ")
    if not reason:
        return first
    number = str(notes.setdefault(reason, len(notes) + 1))
    return first + number.translate(RAISED)


def replaced(text: str, made: str, name: str = "README.md") -> str:
    """The text of a file with what was made between its markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{name} must hold {BEGIN!r} and {END!r} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"


def load(path: Path = CELLS) -> WorksWith:
    """The tables of this project."""
    return WorksWith(read(path), TABLES, UNTESTED)


def due(works: WorksWith, readme: Path, document: Path) -> dict[Path, str]:
    """What both files should be: the sums in one, the tables in the other."""
    made = {readme: works.summary(), document: works.markdown()}
    return {path: replaced(path.read_text(), text, path.name) for path, text in made.items()}


def stale(works: WorksWith, readme: Path, document: Path) -> list[str]:
    """Why the two files cannot stay as they are; nothing if they can."""
    if problems := works.problems():
        return problems
    return [
        f"{path.name} is not what its tests say: run `make works-with`"
        for path, text in due(works, readme, document).items()
        if path.read_text() != text
    ]


def main(arguments: list[str] | None = None) -> str | None:
    """Write or check both files; what is returned is an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    parser.add_argument("--cells", type=Path, default=CELLS, help="the outcomes")
    parser.add_argument("--readme", type=Path, default=README, help="with markers, for the sums")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="the same, for the tables")
    options = parser.parse_args(arguments)
    works, places = load(options.cells), (options.readme, options.document)
    problems = stale(works, *places) if options.check else works.problems()
    if problems:
        return "\n".join(["The works-with tables are stale:", *problems])
    if not options.check:
        for path, text in due(works, *places).items():
            path.write_text(text)
    return None


if __name__ == "__main__":
    sys.exit(main())
