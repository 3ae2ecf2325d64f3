"""The inside of the sandbox: a program of its own that runs one function on some inputs.

It reads a job from its input, locks itself in, runs the code, and writes one line. Nothing of
emoreg is imported here. In order, each in the way of what the one before lets through:

1. syntax: no attribute or name that leads out of plain Python, imports from a short list only;
2. names: a few builtins, and for each module its functions, never the module itself;
3. the interpreter: anything that Python audits (opening, connecting, starting, importing, frames,
   compiling …) ends the process;
4. the kernel: limits on processor time, memory, bytes written, processes, and on open files: none
   can be opened, and so no socket either.
"""

from __future__ import annotations

import ast
import bisect
import builtins
import collections
import functools
import heapq
import itertools
import json
import math
import os
import re
import resource
import string
import sys
from types import SimpleNamespace
from typing import Any

MODULES = {
    "math": (math, [n for n in dir(math) if n[0] != "_"]),
    "itertools": (itertools, [n for n in dir(itertools) if n[0] != "_"]),
    "functools": (functools, ["reduce", "cache", "lru_cache", "partial", "cmp_to_key"]),
    "collections": (collections, ["Counter", "OrderedDict", "defaultdict", "deque"]),
    "re": (re, ["compile", "findall", "finditer", "fullmatch", "match", "search", "split", "sub"]),
    "string": (string, ["ascii_letters", "ascii_lowercase", "ascii_uppercase", "digits"]),
    "heapq": (heapq, ["heapify", "heappop", "heappush", "heapreplace", "nlargest", "nsmallest"]),
    "bisect": (bisect, ["bisect", "bisect_left", "bisect_right", "insort"]),
    "__future__": (SimpleNamespace(annotations=None), ["annotations"]),
    "typing": (SimpleNamespace(Any=object, List=list, Dict=dict, Tuple=tuple, Set=set),
               ["Any", "List", "Dict", "Tuple", "Set"]),
}  # fmt: skip
NAMES = """
    abs all any bin bool chr dict divmod enumerate filter float frozenset hash hex int isinstance
    issubclass iter len list map max min next object oct ord pow range repr reversed round set slice
    sorted str sum tuple zip True False None __build_class__ property staticmethod classmethod
    ArithmeticError AssertionError AttributeError Exception IndexError KeyError LookupError
    OverflowError RecursionError RuntimeError StopIteration TypeError ValueError ZeroDivisionError
"""
LEADS_OUT = re.compile(r"_|(gi|cr|ag|tb|f|co)_|format(_map)?$|mro$")  # of attributes, at the start
DUNDERS = {"__init__", "__name__", "__main__", "__future__"}


class Refused(Exception):
    """Code that is not run."""


def check(tree: ast.AST) -> None:
    """Refuse syntax that may lead out; raises `Refused`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and LEADS_OUT.match(node.attr):
            raise Refused(node.attr)
        if isinstance(node, ast.MatchClass):  # reads attributes by name
            raise Refused("match on a class")
        for field in ("id", "name", "arg", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str) and name.startswith("__") and name not in DUNDERS:
                raise Refused(name)


def give(name: str, *_: Any, **__: Any) -> SimpleNamespace:
    """What an import finds."""
    if name not in MODULES:
        raise ImportError(f"No module named {name!r} here")
    module, names = MODULES[name]
    return SimpleNamespace(**{n: getattr(module, n) for n in names})


def limit(limits: dict[str, int]) -> None:
    """Set the kernel's limits; there is no way back."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def lock() -> None:
    """End the process at anything audited, but for one ``exec``; there is no way back."""
    left = ["exec"]

    def heard(event: str, _args: Any) -> None:
        if event not in left:
            os._exit(3)
        left.remove(event)

    sys.addaudithook(heard)


def same(got: Any, want: Any) -> bool:
    """Equality of plain data; an object of the code's own making equals nothing."""
    if type(want) is float and type(got) in (int, float):
        return math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-9)
    if type(got) is not type(want):
        return False
    if isinstance(want, list):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(same(got[k], want[k]) for k in want)
    return bool(got == want)


def passes(function: Any, inputs: list[Any], want: Any) -> bool:
    """Whether the function gives what is wanted; a function of anybody's may raise anything."""
    try:
        return same(function(*inputs), want)
    except Exception:
        return False


def main() -> None:
    """One job: JSON in; out the job's key and a digit per test."""
    job = json.loads(sys.stdin.read())
    limit(job["limits"])
    tree = ast.parse(job["code"])
    check(tree)
    code = compile(tree, "<answer>", "exec")
    given = {n: getattr(builtins, n) for n in NAMES.split()}
    space: dict[str, Any] = {"__builtins__": given | {"__import__": give}, "__name__": "answer"}
    lock()
    exec(code, space)
    function = space[job["function"]]
    said = [str(int(passes(function, *test))) for test in job["tests"]]
    os.write(1, f"{job['key']} {''.join(said)}".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
