"""Installed from its wheel, the lab needs nothing of its clone: options, assets, processes, sweeps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_plugins import SHORT

from alignment_lab.runtime.files import read_json
from alignment_lab.runtime.run_directory import RunDirectory

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("alignment_lab", "conf", "pyproject.toml", "setup.py", "README.md", "LICENSE")
CLEAN = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
GUARD = """
import sys

def note_clone(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith({clone!r}):
        with open({notes!r}, "a") as file:
            file.write(f"{{event}} {{arguments[0]}}\\n")

sys.addaudithook(note_clone)
"""


@dataclass
class Installation:
    """An environment with the lab's wheel. `notes`: what of the clone its processes have looked at."""

    folder: Path
    wheel: Path
    notes: Path

    def call(self, program: str, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        """Run `python` or `alignment-lab` of this environment."""
        return subprocess.run(
            [str(self.folder / "bin" / program), *words],
            cwd=cwd,
            env={**CLEAN, **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@pytest.fixture(scope="module")
def installation(tmp_path_factory) -> Installation:
    """The wheel of the working tree, installed without its dependencies: those are of this Python."""
    folder = tmp_path_factory.mktemp("package")
    for name in PACKAGED:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", str(folder / "source"), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build], check=True, capture_output=True, env=CLEAN)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True, env=CLEAN)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # a path in a .pth file is searched; the .pth files in it are not read: an editable install stays unseen
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clone = tuple(str(ROOT / name) for name in ("alignment_lab", "conf", "train.py"))
    notes = folder / "clone-was-used.txt"
    (site / "sitecustomize.py").write_text(GUARD.format(clone=clone, notes=str(notes)))
    return Installation(folder / "venv", wheel, notes)


@pytest.fixture(autouse=True)
def nothing_of_the_clone_is_used(installation):
    yield
    assert not installation.notes.exists(), installation.notes.read_text()


def test_the_guard_sees_the_clone(installation, tmp_path):
    found = installation.call("python", "-c", f"open({str(ROOT / 'train.py')!r})", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert installation.notes.read_text() == f"open {ROOT / 'train.py'}\n"
    installation.notes.unlink()


def test_the_wheel_holds_every_file_that_git_has(installation):
    """The options of conf/ as alignment_lab/conf, and all that is beside the code."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "alignment_lab", "conf"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    expected = {
        f"alignment_lab/{name}" if name.startswith("conf/") else name
        for name in tracked
        if (ROOT / name).exists()
    }
    packed = {name for name in zipfile.ZipFile(installation.wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert "alignment_lab/conf/config.yaml" in packed


def test_it_is_the_wheels_code(installation, tmp_path):
    found = installation.call(
        "python", "-c", "import alignment_lab; print(alignment_lab.__file__)", cwd=tmp_path
    )
    assert found.stdout.startswith(str(installation.folder)), found.stderr


def test_help_and_mistakes_name_the_installed_command(installation, tmp_path):
    found = installation.call("alignment-lab", "--help", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "alignment-lab recipe=demo" in found.stdout
    assert "python train.py" not in found.stdout.partition("Groups and their options")[0]
    found = installation.call("alignment-lab", "nonsense=1", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (
        2,
        "error: nonsense=1: no such key; alignment-lab --cfg job lists them all.\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_an_empty_folder_and_its_report(installation, tmp_path):
    found = installation.call("alignment-lab", "method=dpo", *SHORT, "hydra.run.dir=run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    run = RunDirectory(tmp_path / "run")
    assert run.state()["state"] == "finished"
    assert "Again: alignment-lab --config-path" in run.spec_file.read_text()
    assert run.page_file.stat().st_size > 10_000
    provenance = read_json(run.provenance_file)
    assert provenance["git"] is None  # this code is no checkout
    assert "alignment-lab" in provenance["packages"]
    report = installation.call("python", "-m", "alignment_lab.report", "run", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    again = ["--config-path", "run", "--config-name", "spec", "hydra.run.dir=again"]
    found = installation.call("alignment-lab", *again, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert RunDirectory(tmp_path / "again").state()["id"] == run.state()["id"]


def test_installed_into_a_repository_it_claims_no_commit_of_it(installation, tmp_path):
    """As with a .venv inside of the user's own project."""
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost"]
    repository = tmp_path / "repository"
    shutil.copytree(installation.folder, repository / ".venv", symlinks=True)
    (repository / "file").write_text("theirs")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "theirs"]):
        subprocess.run([*git, *words], cwd=repository, check=True)
    code = "from alignment_lab.runtime.provenance import git_state; print(git_state())"
    python = repository / ".venv" / "bin" / "python"
    found = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=CLEAN
    )
    assert found.stdout == "None\n"


def test_two_processes_and_a_directory_of_options(installation, tmp_path):
    """Workers find the installed code, and the user's options stand beside the lab's."""
    (tmp_path / "options" / "recipe").mkdir(parents=True)
    recipe = tmp_path / "options" / "recipe" / "mine.yaml"
    recipe.write_text("# @package _global_\ndefaults: [{override /method: ipo}]\nbeta: 0.3\n")
    words = ["--config-dir", "options", "recipe=mine", *SHORT, "parallel=ddp", "parallel.processes=2"]
    found = installation.call(
        "alignment-lab", *words, "parallel.device=cpu", "hydra.run.dir=run", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    spec = RunDirectory(tmp_path / "run").spec()
    assert (spec["method"]["name"], spec["method"]["beta"], spec["parallel"]["processes"]) == ("ipo", 0.3, 2)


def test_a_sweep_of_two_cells_and_its_status(installation, tmp_path):
    """Cells run a copy of the installed code."""
    sweep = ["--multirun", "method=dpo,ipo", *SHORT, "hydra/launcher=pool", "hydra.sweep.dir=sweep"]
    found = installation.call("alignment-lab", *sweep, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    cells = [RunDirectory(tmp_path / "sweep" / f"method={name}") for name in ("dpo", "ipo")]
    assert [cell.state()["state"] for cell in cells] == ["finished"] * 2
    (code,) = (tmp_path / "sweep" / ".code").iterdir()
    assert (code / "alignment_lab" / "conf" / "config.yaml").exists()
    assert sorted(path.name for path in code.iterdir()) == ["alignment_lab", "git.json"]
    status = installation.call("python", "-m", "alignment_lab.sweep", "status", "sweep", cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    assert status.stdout.count("finished") >= 2
    report = installation.call("python", "-m", "alignment_lab.report", "sweep", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
