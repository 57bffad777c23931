"""A room imports only from floors below it, and what answers a mistake imports no torch: read from the source, with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "alignment_lab"
FLOORS = {
    "__init__": 0, "errors": 0, "secrets": 0,
    "spec": 1, "artifacts": 1, "progress": 1, "meter": 1, "attention": 1, "cluster": 1,
    "signals": 1, "watchdog": 1,
    "explain": 2, "losses": 2, "data": 2, "embedded": 2, "checkpoint": 2, "refstore": 2, "estimate": 2, "tracking": 2, "report": 2,
    "parallel": 2, "provenance": 2,
    "compose": 3, "model": 3, "logprobs": 3, "eval": 3, "plan": 3, "checks": 3, "trouble": 3, "saved": 3,
    "launch": 4, "reference": 4, "generation": 4, "training": 4, "export": 4,
    "method": 5, "sweep": 5,
    "assembly": 6,
    "run": 7,
    "train": 8, "worker": 8, "cell": 8,
    "share": 9,
    "job": 10,
}  # fmt: skip
READERS = {"report": {"artifacts", "errors", "spec"}}  # rooms that may use only these, whatever lies below them
HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "matplotlib", "wandb"}
WITH_TORCH = {
    "attention",
    "losses",
    "logprobs",
    "reference",
    "generation",
    "training",
    "method",
    "assembly",
}  # every other room answers without
FILES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "train.py"]


def room(file: Path) -> str:
    """The name in FLOORS: alignment_lab/data/split.py -> data, alignment_lab/run.py -> run, train.py -> train."""
    return file.stem if file == ROOT / "train.py" else file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(node: ast.AST, *, inside: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a module, those inside of functions too if asked; what only a type checker reads is none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (found for other in child.orelse for found in statements(ast.Module([other], []), inside=inside))
        elif inside or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, inside=inside)


def imported(file: Path, *, inside: bool = True) -> set[str]:
    """Dotted names of what a file imports: `from .data import split` in alignment_lab/x.py -> alignment_lab.data.split."""
    here = ["alignment_lab", *file.relative_to(PACKAGE).parent.parts] if file.is_relative_to(PACKAGE) else []
    found = set()
    for statement in statements(ast.parse(file.read_text()), inside=inside):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            start = here[: len(here) - statement.level + 1] if statement.level else []
            base = ".".join([*start, *([statement.module] if statement.module else [])])
            found |= {f"{base}.{alias.name}" for alias in statement.names}
    return found


def rooms_used(file: Path) -> set[str]:
    """The rooms that a file imports from, its own left out; a name that is no room comes from alignment_lab/__init__.py."""
    names = {name.split(".")[1] if "." in name else "__init__" for name in imported(file) if name.partition(".")[0] == "alignment_lab"}
    return {name if name in FLOORS else "__init__" for name in names} - {room(file)}


def test_every_room_has_a_floor_and_every_floor_its_room():
    assert {room(file) for file in FILES} == set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_imports_only_from_the_floors_below(file):
    own = room(file)
    assert {other: FLOORS[other] for other in rooms_used(file) if FLOORS[other] >= FLOORS[own]} == {}, f"{own} is on floor {FLOORS[own]}"
    assert rooms_used(file) <= READERS.get(own, set(FLOORS))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_imported_by_another_way(file):
    """A name in a string would pass under the floors; and nobody imports the door or the tests."""
    words = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(ast.parse(file.read_text()))}
    assert not {"__import__", "import_module", "run_module", "run_path"} & words
    assert not {"train", "tests", "conftest"} & {name.partition(".")[0] for name in imported(file)}
    assert not any("*" in name for name in imported(file))


@pytest.mark.parametrize("file", [file for file in FILES if room(file) not in WITH_TORCH], ids=lambda file: str(file.relative_to(ROOT)))
def test_what_answers_a_mistake_imports_nothing_heavy_at_its_top(file):
    assert not HEAVY & {name.partition(".")[0] for name in imported(file, inside=False)}


def test_all_that_the_command_imports_leaves_torch_out(door):
    ended = door("import sys; sys.path.insert(0, sys.argv[1]); import train", str(ROOT), script=["-c"])
    assert (ended.code, ended.errors) == (0, [])
    assert {"alignment_lab", "hydra"} <= ended.imported
    assert not HEAVY & ended.imported


SEEN = [
    "from .. import run",
    "from ..run import execute",
    "import alignment_lab.run",
    "from alignment_lab.run import execute",
    "from alignment_lab import run",
    "def f():\n    from ..run import execute",
    "try:\n    from .. import run\nexcept Exception:\n    pass",
    "class A:\n    def f(self):\n        if True:\n            from .. import run",
    "if TYPE_CHECKING:\n    pass\nelse:\n    from .. import run",
    "if not TYPE_CHECKING:\n    from .. import run",
]
EXEMPT = ["if TYPE_CHECKING:\n    from ..run import execute", "from .split import load\nfrom ..data import split\nimport torch"]


@pytest.mark.parametrize("source", [*SEEN, *EXEMPT])
def test_the_test_sees_what_it_forbids(source, tmp_path, monkeypatch):
    """Each source stands in alignment_lab/data/x.py; run is far above."""
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    file = tmp_path / "data" / "x.py"
    file.parent.mkdir()
    file.write_text(source)
    assert rooms_used(file) == (set() if source in EXEMPT else {"run"})
