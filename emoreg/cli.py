"""The command line: vectors made and checked, trainings, the demo, reports."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from emoreg.errors import EmoregError

WIDTH = 124  # of the demo's tables
Run = Callable[[argparse.Namespace, Console], None]


def main(argv: list[str] | None = None) -> None:
    """Parse the command and run it; what a user can put right is one line and exit status 1."""
    flags = parser().parse_args(argv)
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    try:
        flags.run(flags, console)
    except KeyboardInterrupt as e:
        goes_on = "; the same command goes on where it stopped" if hasattr(flags, "resumes") else ""
        print(f"emoreg: interrupted{goes_on}", file=sys.stderr)
        raise SystemExit(130) from e
    except (EmoregError, OSError) as e:
        print(f"emoreg: {e}", file=sys.stderr)
        raise SystemExit(1) from e


def parser() -> argparse.ArgumentParser:
    """Every command and flag."""
    found = argparse.ArgumentParser(prog="emoreg", description=__doc__)
    found.add_argument("--version", action="version", version=version("emoreg"))
    commands = found.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Run, help: str) -> argparse.ArgumentParser:
        shown = argparse.ArgumentDefaultsHelpFormatter
        made = commands.add_parser(name, help=help, description=help, formatter_class=shown)
        made.set_defaults(run=run)
        return made

    _add_vectors(command)
    _add_generate(command("generate", later("run_generate"), "write stories with a model"))
    bank = command("bank", later("run_bank"), "check a bank against its rules, write its card")
    bank.add_argument("folder", type=Path, nargs="?", help="emoreg's own bank by default")
    drift = later("run_drift", "compare")
    _add_drift(command("drift", drift, "measure finished checkpoints against their base"))
    audit = later("run_audit", "audit_command")
    _add_audit(command("audit", audit, "tell a control that held from one that was evaded"))
    train = command("train", run_train, "train as a recipe says, by its name or its file")
    train.add_argument("method", choices=("sft", "dpo", "grpo", "kto"))
    train.add_argument("flags", nargs=argparse.REMAINDER, metavar="--config RECIPE …",
                       help="and TRL's flags, which override it; --help lists them")  # fmt: skip
    demo = command("demo", run_demo, "train the embedded model three times and compare")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    demo.add_argument("--seed", type=int, default=0)
    report = command("report", run_report, "write the report of one run, or of several compared")
    report.add_argument("folder", type=Path, nargs="+", help="a run's output folder, or a demo's")
    report.add_argument("--format", choices=("html", "md"), default="html")
    report.add_argument("--out", type=Path, help="report.html in the first folder; md is printed")
    return found


def later(name: str, module: str = "commands") -> Run:
    """A function of a module, imported when called: models take seconds to import."""

    def run(flags: argparse.Namespace, console: Console) -> None:
        getattr(import_module(f"emoreg.{module}"), name)(flags, console)

    return run


def _add_vectors(command: Callable[[str, Run, str], argparse.ArgumentParser]) -> None:
    made = command("extract", later("run_extract"), "read a bank with a model, save its vectors")
    _add_model(made)
    made.add_argument("--out", type=Path, required=True, help="folder for the vector set")
    _add_bank(made)
    made.add_argument("--blocks", type=blocks, help="such as 10-20 or 8,12,16; all by default")
    made.add_argument("--facets", nargs="+", default=["stories", "transcripts"], metavar="FACET")
    made.add_argument("--split", choices=("fit", "held-out"), default="fit")
    made.add_argument("--skip-tokens", type=int, default=50, help="of a story, before the mean")
    made.add_argument("--neutral-variance", type=float, default=0.5, help="projected out")
    made.add_argument("--batch-tokens", type=int, default=8192, help="padded, in one forward")
    made.add_argument("--overwrite", action="store_true")
    made.set_defaults(resumes=True)
    made = command("validate", later("run_validate"), "measure a set: gates, verdict and a page")
    _add_model(made)
    _add_set(made)
    _add_bank(made)
    made.add_argument("--out", type=Path, help="folder for the findings; the set's own by default")
    made.add_argument(
        "--blocks", type=blocks, help="to suggest; chosen on the fit split by default"
    )
    made.add_argument("--strict", action="store_true", help="exit status 2 for a set not usable")
    made = command("steer", later("run_steer"), "write with a vector added and taken away")
    _add_model(made)
    _add_set(made)
    made.add_argument("--emotion", required=True)
    made.add_argument("--prompt", action="append", required=True, help="may be given several times")
    made.add_argument("--strength", type=float, default=0.05, help="share of the residual norm")
    made.add_argument("--blocks", type=blocks, help="the middle suggested one by default")
    made.add_argument("--tokens", type=int, default=120, help="to write")


def _add_model(made: argparse.ArgumentParser) -> None:
    made.add_argument("--model", required=True, help="folder, or name on the hub")
    made.add_argument("--revision", help="of the model on the hub")
    made.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    made.add_argument("--device", help="a GPU if there is one, else cpu")
    made.add_argument("--chat-template", type=Path, help="file, for a tokenizer without one")


def _add_set(made: argparse.ArgumentParser) -> None:
    made.add_argument("--renamed", action="store_true", help="the model is a renamed copy")
    made.add_argument("--vectors", required=True, help="folder of a set, or its name on the hub")


def _add_bank(made: argparse.ArgumentParser) -> None:
    from emoreg.bank import OWN_BANK

    made.add_argument("--bank", type=Path, default=OWN_BANK, help="file or folder; emoreg's own")


def _add_generate(made: argparse.ArgumentParser) -> None:
    _add_model(made)
    made.add_argument("--out", type=Path, required=True, help="file of JSON lines, added to")
    made.add_argument("--endpoint", help="OpenAI-compatible, as http://localhost:8000/v1")
    made.add_argument("--emotions", nargs="+", metavar="EMOTION", help="the 171 by default")
    made.add_argument("--topics", type=Path, help="file, one a line; the bank's 48 by default")
    made.add_argument("--number", type=int, default=1, help="stories for an emotion and topic")
    made.add_argument("--attempts", type=int, default=4, help="at one story, before giving it up")
    made.add_argument("--seed", type=int, default=0)
    made.set_defaults(resumes=True)


def _add_checkpoints(made: argparse.ArgumentParser, out: str) -> None:
    _add_model(made)
    _add_set(made)
    made.add_argument(
        "--adapter",
        type=Path,
        action="append",
        required=True,
        help="folder of an adapter, or of a merged or fully fine-tuned model; may be repeated",
    )
    made.add_argument("--prompts", type=Path, help="JSON lines of drift prompts; emoreg's own")
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--facets", nargs="+", metavar="FACET", help="all of the set by default")
    made.add_argument("--blocks", type=blocks, help="the set's suggested ones by default")


def _add_audit(made: argparse.ArgumentParser) -> None:
    _add_checkpoints(made, "runs/audit")
    _add_bank(made)
    made.add_argument("--emotion", default="desperate", help="that was penalised")


def _add_drift(made: argparse.ArgumentParser) -> None:
    _add_checkpoints(made, "runs/drift")
    made.add_argument("--response-tokens", type=int, default=32, help="0 reads the colon only")
    made.add_argument("--on-policy", action=argparse.BooleanOptionalAction, default=True,
                      help="read each model on its own responses too")  # fmt: skip
    made.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True,
                      help="keep what the base reads on disk")  # fmt: skip


def blocks(text: str) -> list[int]:
    """``10-20`` or ``8,12,16`` as a list."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            found += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError as e:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no list of blocks; wanted such as 10-20 or 8,12,16"
            ) from e
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names no block; wanted such as 10-20 or 8,12")
    return found


def run_train(flags: argparse.Namespace, console: Console) -> None:
    """Train in this process; `accelerate launch -m emoreg.cli train …` starts several."""
    from emoreg.training import main as train

    trainer = train(flags.method, flags.flags)
    if trainer.is_world_process_zero():
        console.print(f"emoreg: trained, wrote {trainer.args.output_dir}", soft_wrap=True)


def run_demo(flags: argparse.Namespace, console: Console) -> None:
    """Run the demo and print its table."""
    from emoreg.demo import run
    from emoreg.demo_tables import tables

    summary = run(flags.out, console.print, flags.seed)
    console.print()
    for table in tables(summary):
        console.print(table)
    console.print(f"report of each run: {flags.out}/*/report.html")
    console.print(f"wandb runs: {flags.out}/*/wandb/offline-run-* (wandb sync, wandb beta leet)")
    console.print(
        f"emoreg: demo done in {summary['seconds']:.0f} s; open {flags.out / 'report.html'}"
    )


def run_report(flags: argparse.Namespace, console: Console) -> None:
    """Write the report of runs, or of a finished demo again."""
    from emoreg.files import write_atomic
    from emoreg.journal import FILE, Run
    from emoreg.reporting import markdown, write_runs

    first = flags.folder[0]
    if (first / "summary.json").exists() and not (first / FILE).exists():
        _report_demo(flags, console)
        return
    runs = [Run.load(folder) for folder in flags.folder]
    if flags.format == "md" and not flags.out:
        sys.stdout.write(markdown(runs))
        return
    if flags.format == "md":
        path = write_atomic(flags.out, markdown(runs))
    else:
        path = write_runs(runs, flags.out or runs[0].folder / "report.html")
    console.print(f"emoreg: wrote {path}", soft_wrap=True)


def _report_demo(flags: argparse.Namespace, console: Console) -> None:
    """A demo's page compares its arms by itself."""
    from emoreg.demo_page import write_report
    from emoreg.errors import ReportError

    if len(flags.folder) > 1 or flags.format != "html":
        raise ReportError(
            f"{flags.folder[0]} is a demo: its page compares the three arms and is HTML. For one "
            "arm, or as Markdown, name the arm's own folder."
        )
    path = flags.folder[0] / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ReportError(
            f"{path} cannot be read ({e}); run `emoreg demo --out {flags.folder[0]}`."
        ) from e
    written = write_report(summary, flags.out or flags.folder[0] / "report.html")
    console.print(f"emoreg: wrote {written}", soft_wrap=True)


if __name__ == "__main__":
    main()
