"""A package imports only from the floors below it, and what answers a mistake imports no torch."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "alignment_lab"
FLOORS = {
    "__init__": 0, "runtime": 0,
    "config": 1,
    "losses": 2, "data": 2, "distributed": 2, "tracking": 2, "report": 2,
    "models": 3, "estimate": 3,
    "engine": 4, "checkpoints": 4, "content": 4,
    "evaluation": 5,
    "training": 6, "export": 6, "chat": 6,
    "methods": 7, "sweep": 7,
    "actions": 8,
    "entrypoints": 9,
    "train": 10,
}  # fmt: skip
READERS = {"report": {"runtime", "config"}}  # packages that may use only these, whatever lies below them
HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "matplotlib", "wandb"}
WITH_TORCH = {
    "losses",
    "models",
    "engine",
    "checkpoints",
    "training",
    "methods",
}  # every other package answers without
LOADS_BY_NAME = PACKAGE / "config" / "plugins.py"  # a user's own module
WAYS_TO_LOAD = {
    "__import__", "import_module", "run_module", "run_path", "exec_module",
    "spec_from_loader", "spec_from_file_location", "module_from_spec",
}  # fmt: skip
BUILT_IN_WAYS_TO_LOAD = {"exec", "eval"}
FILES = [*sorted(PACKAGE.rglob("*.py")), ROOT / "train.py"]


def package(file: Path) -> str:
    """The name in FLOORS: alignment_lab/data/split.py -> data, train.py -> train."""
    return file.stem if file == ROOT / "train.py" else file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(node: ast.AST, *, at_run_time: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a module: all, or those that importing it runs (no function's, no type checker's)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif at_run_time and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from statements(ast.Module(child.orelse, []), at_run_time=True)
        elif not at_run_time or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, at_run_time=at_run_time)


def imported(file: Path, *, at_run_time: bool = False) -> set[str]:
    """Dotted names of a file's imports: `from .data import split` in alignment_lab/x.py is
    alignment_lab.data.split.
    """
    here = ["alignment_lab", *file.relative_to(PACKAGE).parent.parts] if file.is_relative_to(PACKAGE) else []
    found = set()
    for statement in statements(ast.parse(file.read_text()), at_run_time=at_run_time):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            start = here[: len(here) - statement.level + 1] if statement.level else []
            base = ".".join([*start, *([statement.module] if statement.module else [])])
            found |= {f"{base}.{alias.name}" for alias in statement.names}
    return found


def packages_used(file: Path) -> set[str]:
    """The packages a file imports from but its own; any other name comes from alignment_lab/__init__.py."""
    names = {
        name.split(".")[1] if "." in name else "__init__"
        for name in imported(file)
        if name.partition(".")[0] == "alignment_lab"
    }
    return {name if name in FLOORS else "__init__" for name in names} - {package(file)}


def test_every_package_has_a_floor_and_every_floor_its_package():
    assert {package(file) for file in FILES} == set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_package_imports_only_from_the_floors_below(file):
    own = package(file)
    assert {other: FLOORS[other] for other in packages_used(file) if FLOORS[other] >= FLOORS[own]} == {}, (
        f"{own} is on floor {FLOORS[own]}"
    )
    assert packages_used(file) <= READERS.get(own, set(FLOORS))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_imported_by_another_way(file):
    """A name in a string would pass under the floors; and nobody imports train.py or the tests."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used = (WAYS_TO_LOAD & (names | attributes)) | (BUILT_IN_WAYS_TO_LOAD & calls)
    assert bool(used) is (file == LOADS_BY_NAME)
    assert not {"train", "tests", "conftest"} & {name.partition(".")[0] for name in imported(file)}
    assert not any("*" in name for name in imported(file))


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if package(file) not in WITH_TORCH],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_what_answers_a_mistake_imports_nothing_heavy_at_its_top(file):
    assert not HEAVY & {name.partition(".")[0] for name in imported(file, at_run_time=True)}


def test_the_module_that_loads_a_plugin_is_the_only_one_that_is_let():
    assert LOADS_BY_NAME in FILES


def test_all_that_the_command_imports_leaves_torch_out(run_command):
    ended = run_command("import sys; sys.path.insert(0, sys.argv[1]); import train", str(ROOT), script=["-c"])
    assert (ended.code, ended.errors) == (0, [])
    assert {"alignment_lab", "hydra"} <= ended.imported
    assert not HEAVY & ended.imported


SEEN = [
    "if TYPE_CHECKING:\n    from ..actions import run_action",
    "from .. import actions",
    "from ..actions import run_action",
    "import alignment_lab.actions",
    "from alignment_lab.actions import run_action",
    "from alignment_lab import actions",
    "def f():\n    from ..actions import run_action",
    "try:\n    from .. import actions\nexcept Exception:\n    pass",
    "class A:\n    def f(self):\n        if True:\n            from .. import actions",
    "if TYPE_CHECKING:\n    pass\nelse:\n    from .. import actions",
    "if not TYPE_CHECKING:\n    from .. import actions",
]
EXEMPT = [
    "from .split import load\nfrom ..data import split\nimport torch",
]


@pytest.mark.parametrize("source", [*SEEN, *EXEMPT])
def test_the_test_sees_what_it_forbids(source, tmp_path, monkeypatch):
    """Each source stands in alignment_lab/data/x.py; actions are far above."""
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    file = tmp_path / "data" / "x.py"
    file.parent.mkdir()
    file.write_text(source)
    assert packages_used(file) == (set() if source in EXEMPT else {"actions"})


PAGE = ROOT / "docs" / "ARCHITECTURE.md"
BETWEEN = re.compile(r"(?<=<!-- floors -->\n).*?(?=<!-- /floors -->)", re.DOTALL)


def drawn() -> str:
    """The floors from the top down, each package with the first sentence of its docstring."""
    width = max(map(len, FLOORS))
    lines = []
    for floor in sorted(set(FLOORS.values()), reverse=True):
        for name in (name for name, other in FLOORS.items() if other == floor and name != "__init__"):
            file = ROOT / "train.py" if name == "train" else PACKAGE / name / "__init__.py"
            sentence = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split()).split(". ")[0]
            label = "train.py" if name == "train" else name
            lines += textwrap.wrap(
                sentence.rstrip("."),
                100,
                initial_indent=f"{floor:>2}  {label:<{width}}  ",
                subsequent_indent=" " * (width + 6),
            )
        lines.append("-" * 100)
    return "\n".join(["```text", *lines[:-1], "```", ""])


def test_the_architecture_page_has_the_floors():
    """`python tests/test_floors.py` draws them anew."""
    found = BETWEEN.search(PAGE.read_text())
    assert found and found[0] == drawn()


if __name__ == "__main__":
    PAGE.write_text(BETWEEN.sub(lambda _: drawn(), PAGE.read_text()))
