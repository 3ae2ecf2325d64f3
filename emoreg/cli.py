"""The command line: ``emoreg demo`` and ``emoreg report``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from emoreg.errors import EmoregError


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

    arms = {name: summary[name] for name in ARMS}
    base = summary["base"]
    what = Table(title="Three runs from the same start, same data, same seed")
    for name in ("", "base", *(a["title"] for a in arms.values())):
        what.add_column(name, justify="right" if name else "left")

    def line(label: str, first: str, cells: list[str]) -> None:
        what.add_row(label, first, *cells)

    every = list(arms.values())
    line("task loss (nats)", f"{base['task_loss']:.3f}", [f"{a['task_loss']:.3f}" for a in every])
    line(
        "in-domain success = gamed share, families trained on",
        share(base),
        [share(a) for a in every],
    )
    line(
        "gamed share, families only tested on [95 %]",
        outside(base["gamed"]),
        [outside(a["gamed"]) for a in every],
    )
    desperate = [a["reading"]["desperate"] for a in every]
    line(
        "desperate reading (σ), its own penalised directions (base)",
        "",
        [f"{r['penalised']:+.2f} ({r['base_penalised']:+.2f})" for r in desperate],
    )
    line(
        "desperate reading (σ), held-out directions",
        f"{desperate[0]['base']:+.2f}",
        [f"{r['held_out']:+.2f}" for r in desperate],
    )
    line(
        "seconds per step",
        "",
        [f"{a['step_seconds']:.2f} ± {a['step_seconds_spread']:.2f}" for a in every],
    )
    moved = Table(title="Drift from base on held-out directions, σ [95 % interval over prompts]")
    for name in ("", *(a["title"] for a in every)):
        moved.add_column(name, justify="right" if name else "left")
    for emotion in summary["emotions"]:
        found = [a["drift"][emotion] for a in every]
        moved.add_row(
            emotion, *(f"{d['mean']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}]" for d in found)
        )
    return [what, moved]


def share(row: dict[str, Any]) -> str:
    """In-domain gamed share."""
    return f"{row['gamed']['in_domain']:.3f}"


def outside(gamed: dict[str, Any]) -> str:
    """Out-of-domain gamed share with its interval over prompts."""
    low, high = gamed["out_of_domain_interval"]
    return f"{gamed['out_of_domain']:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
