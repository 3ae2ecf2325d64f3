"""The command line: ``emoreg demo`` and ``emoreg report``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from emoreg.errors import EmoregError

WIDTH = 124  # of the demo's tables


def main(argv: list[str] | None = None) -> None:
    """Parse the command and run it; an error of emoreg's is one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="emoreg", description=__doc__)
    commands = parser.add_subparsers(required=True)
    demo = commands.add_parser("demo", help="train the embedded model three times and compare")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=run_demo)
    report = commands.add_parser("report", help="write a demo's report again from its summary.json")
    report.add_argument("folder", type=Path)
    report.set_defaults(run=run_report)
    flags = parser.parse_args(argv)
    try:
        flags.run(flags)
    except EmoregError as e:
        print(f"emoreg: {e}", file=sys.stderr)
        raise SystemExit(1) from e


def run_demo(flags: argparse.Namespace) -> None:
    """Run the demo and print its table."""
    from emoreg.demo import run

    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    summary = run(flags.out, console.print, flags.seed)
    console.print()
    for table in tables(summary):
        console.print(table)
    console.print(f"wandb runs: {flags.out}/*/wandb/offline-run-* (wandb sync, wandb beta leet)")
    console.print(
        f"emoreg: demo done in {summary['seconds']:.0f} s; open {flags.out / 'report.html'}"
    )


def run_report(flags: argparse.Namespace) -> None:
    """Write the report of a finished demo again."""
    from emoreg.errors import ReportError
    from emoreg.reporting import write_report

    path = flags.folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ReportError(
            f"{path} cannot be read ({e}); run `emoreg demo --out {flags.folder}`."
        ) from e
    print(f"emoreg: wrote {write_report(summary, flags.folder / 'report.html')}")


def tables(summary: dict[str, Any]) -> list[Table]:
    """The demo's two tables: what the runs did, and the drift of every emotion."""
    from emoreg.demo import ARMS

    base, every = summary["base"], [summary[name] for name in ARMS]
    titles = [arm["title"] for arm in every]
    desperate = [arm["reading"]["desperate"] for arm in every]
    before = f"{desperate[0]['base']:+.2f}"
    seconds = [f"{a['step_seconds']:.2f} ± {a['step_seconds_spread']:.2f}" for a in every]
    own = [f"{r['penalised']:+.2f} (base {r['base_penalised']:+.2f})" for r in desperate]
    rows = [
        ("task loss, nats", loss(base), *map(loss, every)),
        ("success: gamed, families trained on", share(base), *map(share, every)),
        ("gamed, families only tested on [95 %]", outside(base), *map(outside, every)),
        ("desperate, its own directions, σ", "", *own),
        (
            "desperate, held-out directions, σ",
            before,
            *(f"{r['held_out']:+.2f}" for r in desperate),
        ),
        ("seconds per step", "", *seconds),
    ]
    drift = [(e, *(interval(arm["drift"][e]) for arm in every)) for e in summary["emotions"]]
    return [
        grid("Three runs: same start, same data, same seed", ["", "base", *titles], rows),
        grid("Drift from base on held-out directions, σ [95 % over prompts]", ["", *titles], drift),
    ]


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table with its first column to the left and the others to the right."""
    table = Table(title=title)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def loss(row: dict[str, Any]) -> str:
    """Task loss."""
    return f"{row['task_loss']:.3f}"


def interval(row: dict[str, float]) -> str:
    """A mean with its interval."""
    return f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def share(row: dict[str, Any]) -> str:
    """In-domain gamed share."""
    return f"{row['gamed']['in_domain']:.3f}"


def outside(row: dict[str, Any]) -> str:
    """Out-of-domain gamed share with its interval over prompts."""
    gamed = row["gamed"]
    low, high = gamed["out_of_domain_interval"]
    return f"{gamed['out_of_domain']:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
