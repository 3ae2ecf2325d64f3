"""An HTML page, taken apart: its tags, attributes and text."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = ("meta", "input", "br")


class Page(HTMLParser):
    """A page whose tags were checked to be balanced: its tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        shown = self.open and self.open[-1] not in ("style", "script")
        self.pieces.append(data if shown else "")

    def values(self, name: str) -> list[str | None]:
        """Every value of an attribute of that name."""
        return [value for _, its_name, value in self.attributes if its_name == name]
