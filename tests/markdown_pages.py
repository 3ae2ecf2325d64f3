"""What a Markdown page says that can be checked: its blocks, links, anchors and pieces of code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = ("emoreg", "python", "accelerate", "make", "pip", "wandb", "git")


@dataclass(frozen=True)
class Page:
    """A page and where it lies, which is where its links begin."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> Page:
        """A page of the repository."""
        return cls(path, path.read_text(encoding="utf-8"))

    def blocks(self, language: str) -> list[str]:
        """The fenced blocks of a language."""
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, flags=re.S | re.M)

    @property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.S | re.M)

    @property
    def spans(self) -> list[str]:
        """The pieces of code in the prose."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    @property
    def anchors(self) -> set[str]:
        """The headings as GitHub links to them."""
        heads = re.findall(r"^#+ (.+)$", self.prose, flags=re.M)
        return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}

    @property
    def links(self) -> list[str]:
        """The targets of its links that stay in the repository."""
        found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", self.prose))
        return [target for target in found if not re.match(r"[a-z]+:", target)]

    @property
    def commands(self) -> list[list[str]]:
        """Every command, in blocks and in the prose, as its words."""
        lines = [line for block in self.blocks("bash") for line in block.splitlines()]
        spans = [span for span in self.spans if " " in span and span.split()[0] in PROGRAMS]
        return [words for line in [*lines, *spans] if (words := shlex.split(line, comments=True))]


def pages() -> list[Page]:
    """The README, how to contribute, and the pages of docs/."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [Page.read(path) for path in paths]


def broken_links(page: Page) -> list[str]:
    """Links to no file, or to no heading of it."""
    broken = []
    for target in page.links:
        name, _, anchor = target.partition("#")
        path = page.path.parent / name if name else page.path
        if not path.exists() or (anchor and anchor not in _anchors(page, path)):
            broken.append(target)
    return broken


def _anchors(page: Page, path: Path) -> set[str]:
    return page.anchors if path == page.path else Page.read(path).anchors
