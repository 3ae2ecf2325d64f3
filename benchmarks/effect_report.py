"""Tables, plot and JSON of the comparison, from the runs that have finished."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from effect_arms import ARMS, VARIANTS
from effect_run import COST, TUNING_SEED
from scipy.stats import t as student

from emoreg.audit_values import Value
from emoreg.files import write_atomic
from emoreg.verdict import judge

mpl.use("agg")
from matplotlib.figure import Figure

RESULTS = Path("benchmarks/results")
BEGIN, END = "<!-- effect: begin -->", "<!-- effect: end -->"
HELD_OUT = "drift/held_out"
LEAST_SEEDS = 3  # of `none`: fewer tell nothing, and a setting with fewer is left out
SUCCESS = 0.95  # of `none`'s, at which arms are compared
Run = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The runs of one world, trainer and adapter."""

    name: tuple[str, str, str]
    runs: list[Run]
    costs: Mapping[str, Mapping[str, float]]  # by world/trainer/adapter/arm

    @property
    def base(self) -> Run:
        """What the untouched model does."""
        found: Run = self.runs[0]["base"]
        return found

    def of(self, arm: str) -> list[Run]:
        """An arm's runs, one a seed."""
        return [r for r in self.runs if r["arm"] == arm]

    @property
    def wanted(self) -> float:
        """The success at which arms are compared."""
        return SUCCESS * float(np.mean([r["in_domain"] for r in self.of("none")]))

    def matched(self, run: Run, read: Callable[[Run], float]) -> float:
        """A measure where the run's success first reaches what is wanted; at the end if never."""
        points = [self.base, *run["curve"]]
        for before, after in pairwise(points):
            low, high = before["in_domain"], after["in_domain"]
            if low < self.wanted <= high:
                part = (self.wanted - low) / (high - low)
                return (1 - part) * read(before) + part * read(after)
        return read(points[-1])

    def reached(self, run: Run) -> bool:
        """Whether it ever reaches that success."""
        return any(p["in_domain"] >= self.wanted for p in run["curve"])

    def row(self, arm: str) -> dict[str, Any]:
        """Every measure of an arm: mean, interval over seeds, and the value of each seed."""
        runs, base = self.of(arm), self.base
        gaming = [self.matched(r, lambda p: p["out_of_domain"]) for r in runs]
        spread = np.mean([self.matched(r, lambda p: p["out_of_domain"]) for r in self.of("none")])
        added = float(spread) - base["out_of_domain"]
        last = np.mean([r["out_of_domain"] for r in self.of("none")]) - base["out_of_domain"]
        found = {
            "task_loss": [r["task_loss"] for r in runs],
            "in_domain": [r["in_domain"] for r in runs],
            "out_of_domain": gaming,
            "added_share": [(g - base["out_of_domain"]) / added for g in gaming],
            "added_at_end": [(r["out_of_domain"] - base["out_of_domain"]) / last for r in runs],
            "generated": [r["generated_out_of_domain"] for r in runs],
        }
        for key in sorted(base["readings"]):  # held_out/stories/desperate, and so on
            found[f"drift/{key}"] = [
                self.matched(r, lambda p, k=key: p["readings"][k]) - base["readings"][key]
                for r in runs
            ]
        for fact in ("urgency", "perplexity", "concealed", "own_colon", "refit", "lean"):
            found[fact] = [
                r["audit"]["facts"][fact]["value"]
                for r in runs
                if fact in r.get("audit", {}).get("facts", {})
            ]
        own, none = (self.costs.get("/".join([*self.name, a])) for a in (arm, "none"))
        costs = {k: own[k] / none[k] if own and none else None for k in ("bytes", "step_seconds")}
        return {
            "arm": arm,
            "what": ARMS[arm].what,
            "step_time": costs["step_seconds"],
            "memory": costs["bytes"],
            "strength": runs[0]["strength"],
            "seeds": [r["seed"] for r in runs],
            "reached": sum(map(self.reached, runs)),
            "verdicts": dict(Counter(r["audit"]["verdict"] for r in runs if "audit" in r)),
            **{name: summary(values) for name, values in found.items() if values},
        }


def _judged(audit: Run) -> Run:
    """An audit with the verdict that the rule gives now."""
    facts = {name: Value(**fact) for name, fact in audit["facts"].items()}
    return {**audit, "verdict": judge(facts).word}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, and its 95 % interval over seeds by Student's t."""
    mean, n = float(np.mean(values)), len(values)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else None
    return {"mean": mean, "half": half, "values": [round(float(v), 5) for v in values]}


def settings(out: Path) -> list[Setting]:
    """Everything that has run, but for the tuning."""
    found: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for path in sorted(out.glob("*/*/*/run.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        audit = path.with_name("audit.json")
        if audit.exists():
            run["audit"] = _judged(json.loads(audit.read_text(encoding="utf-8")))
        if run["seed"] != TUNING_SEED:
            found[run["world"], run["trainer"], run["adapter"]].append(run)
    path = out / COST
    costs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = [Setting(name, runs, costs) for name, runs in found.items()]
    return sorted((s for s in kept if len(s.of("none")) >= LEAST_SEEDS), key=_place)


def _place(s: Setting) -> tuple[int, int, str]:
    """The adapter on every projection first, then longer training; by trainer, then by world."""
    world, trainer, adapter = s.name
    order = ("large", "long", "small").index(adapter)
    return order, ("sft", "dpo", "grpo").index(trainer), world


def report(out: Path) -> None:
    """Write ``results/effect.json``, ``results/effect.svg`` and the tables in ``RESULTS.md``."""
    found = settings(out)
    tables = {s.name: [s.row(arm) for arm in ARMS if s.of(arm)] for s in found}
    versions = {p: version(p) for p in ("emoreg", "torch", "transformers", "trl", "peft")}
    rows = [
        {**dict(zip(("world", "trainer", "adapter"), name, strict=True)), "arms": arms}
        for name, arms in tables.items()
    ]
    bases = {"/".join(s.name): s.base for s in found}
    whole = {"date": date.today().isoformat(), "versions": versions, "bases": bases}
    data = {**whole, "settings": rows, "runs": [_bare(r) for s in found for r in s.runs]}
    write_atomic(RESULTS / "effect.json", json.dumps(data) + "\n")
    draw(found, RESULTS / "effect.svg")
    text = "\n\n".join(_section(s, tables[s.name]) for s in found)
    note = f"{date.today().isoformat()}; " + ", ".join(f"{k} {v}" for k, v in versions.items())
    _between(Path("benchmarks/RESULTS.md"), f"Measured {note}.\n\n{text}")
    _between(Path("README.md"), _short(found, tables))


SHORT = (
    "none", "frozen", "two-facets", "refit", "top", "refit-top", "anchored", "adaptive", "prevent",
    "ablate", "cap", "act", "kl", "honest-replies", "inoculation", "reward-base", "reward-policy",
    "screen", "random", "shuffled", "shuffled-apart", "components",
)  # fmt: skip


def _short(found: Sequence[Setting], tables: dict[tuple[str, str, str], Any]) -> str:
    """The README's table: an adapter on every projection, every trainer and world."""
    shown = [s for s in found if s.name[2] == "large"]
    names = [f"{s.name[1].upper()}, {s.name[0]}" for s in shown]
    lines = [
        f"| arm | {' | '.join(names)} | verdicts, in this order |",
        "| --- " * (len(shown) + 2) + "|",
    ]
    most = {s.name: max(len(r["seeds"]) for r in tables[s.name]) for s in shown}
    for arm in SHORT:
        rows = [next((r for r in tables[s.name] if r["arm"] == arm), None) for s in shown]
        if not any(rows):
            continue
        cells = [
            _with_seeds(r, most[s.name]) if r else "–" for r, s in zip(rows, shown, strict=True)
        ]
        words = "; ".join(_verdicts(r) if r else "–" for r in rows)
        name = f"**{arm}**" if arm == "refit" else arm
        lines.append(f"| {name} | {' | '.join(cells)} | {words} |")
    for what, read in (
        ("gamed elsewhere, base", lambda s: f"{s.base['out_of_domain']:.2f}"),
        ("gamed elsewhere, none", lambda s: f"{_of(tables, s, 'none', 'out_of_domain'):.2f}"),
        ("seeds, if a cell has no other", lambda s: f"{most[s.name]}"),
    ):
        lines.append(f"| *{what}* | {' | '.join(read(s) for s in shown)} | |")
    return "\n".join(lines)


def _with_seeds(row: dict[str, Any], usual: int) -> str:
    number = len(row["seeds"])
    if not row["reached"]:
        return "task not learnt"
    return _cell(row, "added_share", 2) + (f" ({number})" if number < usual else "")


def _of(tables: dict[tuple[str, str, str], Any], s: Setting, arm: str, measure: str) -> float:
    return float(next(r for r in tables[s.name] if r["arm"] == arm)[measure]["mean"])


def _between(path: Path, text: str) -> None:
    """Put a text between the marks in a page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomic(path, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _bare(run: Run) -> Run:
    return {k: v for k, v in run.items() if k not in ("base", "last_log")}


def _section(s: Setting, rows: Sequence[dict[str, Any]]) -> str:
    world, trainer, adapter = s.name
    base = s.base
    lines = [
        f"### {trainer.upper()}, world `{world}`, {adapter} adapter",
        "",
        f"Base: gamed {base['in_domain']:.2f} in the families trained on, "
        f"{base['out_of_domain']:.2f} elsewhere. Compared at a success of {s.wanted:.3f}.",
        "",
        "| arm | strength | seeds, reached | success | task loss | gamed elsewhere | of `none`'s "
        "added | at the end | generated | desperate, stories | desperate, transcripts | calm, "
        "stories | verdicts | urgency kept | perplexity | step time | memory |",
        "| --- " * 17 + "|",
    ]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: dict[str, Any]) -> str:
    verdicts = _verdicts(row)
    cells = [
        f"`{row['arm']}`", f"{row['strength']:g}", f"{len(row['seeds'])}, {row['reached']}",
        _cell(row, "in_domain", 3), _cell(row, "task_loss", 3), _cell(row, "out_of_domain", 2),
        _cell(row, "added_share", 2), _cell(row, "added_at_end", 2), _cell(row, "generated", 2),
        _cell(row, f"{HELD_OUT}/stories/desperate", 1, True),
        _cell(row, f"{HELD_OUT}/transcripts/desperate", 1, True),
        _cell(row, f"{HELD_OUT}/stories/calm", 1, True), verdicts, _cell(row, "urgency", 2),
        _cell(row, "perplexity", 2),
        *(f"{row[k]:.2f}" if row[k] else "–" for k in ("step_time", "memory")),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _verdicts(row: dict[str, Any]) -> str:
    return ", ".join(f"{k} {n}" for k, n in row["verdicts"].items()) or "–"


def _cell(row: dict[str, Any], name: str, digits: int, signed: bool = False) -> str:
    if name not in row:
        return "–"
    mean, half = row[name]["mean"], row[name]["half"]
    text = f"{mean:{'+' if signed else ''}.{digits}f}"
    return text if half is None else f"{text} ± {half:.{digits}f}"


def draw(found: Sequence[Setting], path: Path) -> None:
    """Task success against gaming elsewhere, along training, mean over seeds."""
    rows = -(-len(found) // 3)
    figure = Figure(figsize=(15.6, 4.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    colours, lines = mpl.colormaps["tab20"], dict[str, Any]()
    for axis, s in zip(axes, found, strict=False):
        main = [a for a in ARMS if a not in VARIANTS]
        for number, arm in ((i, a) for i, a in enumerate(main) if s.of(a)):
            steps = zip(*([s.base, *r["curve"]] for r in s.of(arm)), strict=True)
            pairs = [
                [np.mean([p[k] for p in point]) for k in ("in_domain", "out_of_domain")]
                for point in steps
            ]
            x, y = zip(*pairs, strict=True)
            look = {"color": colours(number % 20), "ls": "-" if number < 20 else "--"}
            lines.setdefault(arm, axis.plot(x, y, marker="o", ms=3, lw=1.3, **look)[0])
        axis.axhline(s.base["out_of_domain"], color="0.6", lw=0.8, ls="--")
        axis.axvline(s.wanted, color="0.6", lw=0.8, ls=":")
        axis.set_title(f"{s.name[1].upper()}, {s.name[0]}, {s.name[2]} adapter", fontsize=10)
        axis.set_xlabel("gamed, families trained on (task success)")
        axis.set_ylabel("gamed, families only tested on")
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=9, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
