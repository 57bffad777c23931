"""What the guides on extending the lab and on notebooks show, works as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_guides import files_of, python_of

from alignment_lab.config.compose import load_experiment
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.run_directory import RunDirectory

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def write_files(folder: Path) -> None:
    """The project of extending.md; its one pair, fifty times with another number."""
    for name, content in files_of("extending.md").items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            pair = json.loads(content)
            rows = [{**pair, "prompt": f"{pair['prompt']} ({number})"} for number in range(50)]
            content = "".join(json.dumps(row) + "\n" for row in rows)
        file.write_text(content)


def test_the_options_of_the_guide_compose(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    spec = load_experiment(["recipe=tilted"], config_dir="options")
    assert (spec.model.name, spec.data.name, spec.method.name) == ("mine", "support", "tilted")
    assert spec.method.tilt == 0.5
    with pytest.raises(UserError, match=r"method\.tlit: no such key; did you mean method\.tilt\?"):
        load_experiment(["recipe=tilted", "method.tlit=1"], config_dir="options")


@pytest.mark.slow
def test_the_example_of_the_guide_runs(tmp_path):
    write_files(tmp_path)
    words = ["--config-dir", "options", "recipe=tilted", "parallel.device=cpu", "hydra.run.dir=run"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    for more in (["action=plan"], ["training.max_steps=2"]):
        ended = subprocess.run(
            [sys.executable, str(TRAIN), *words, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
    run = RunDirectory(tmp_path / "run")
    assert run.state()["state"] == "finished"
    assert run.spec()["plugin"] == str(tmp_path / "tilted.py")


def test_the_notebook_page_runs(tmp_path):
    """All blocks as one process, as a notebook runs its cells."""
    (tmp_path / "page.py").write_text("\n".join(python_of("notebook.md")))
    ended = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "method.betta: no such key; did you mean method.beta?" in ended.stdout
    runs = sorted(path.name for path in (tmp_path / "outputs" / "notebook").iterdir())
    assert runs == ["dpo", "ipo-0.05", "ipo-0.5"]
    assert {RunDirectory(tmp_path / "outputs" / "notebook" / run).state()["state"] for run in runs} == {
        "finished"
    }
