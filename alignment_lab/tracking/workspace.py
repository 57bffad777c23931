"""A wandb page that compares methods.  python -m alignment_lab.tracking.workspace [ENTITY/]PROJECT

Curves by method, what came of each beta, margin against drift, the cost, samples. `--dry-run` prints it as JSON, without a network.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from typing import Any

from ..runtime.library_internals import workspace_as_json
from .follower import STEP

NAME = "Methods compared"
CURVES = (
    "train/loss",
    "train/rewards/accuracies",
    "train/rewards/margins",
    "train/logps/chosen",
    "train/logps/rejected",
    "eval/loss",
)
OUTCOMES = (
    "after/eval_rewards/accuracies",
    "after/eval_rewards/margins",
    "after/answers/correct",
    "after/answers/one_sentence",
)
COSTS = ("tokens_per_second", "peak_memory_gb", "seconds/total")
METHOD, BETA, SEED = "method.name", "method.beta", "training.seed"  # of the configuration
DRIFT, MARGIN = (
    "drift",
    "margin",
)  # in nats on held-out answers; no KL divergence, which needs answers sampled from the trained model
TABLE_COLUMNS = (
    "run:displayName",
    "run:state",
    "config:method.value.name",
    "config:method.value.beta",
    *(f"summary:{name}" for name in OUTCOMES),
)


def workspace(entity: str, project: str) -> Any:
    """The page, built and not sent. Grouped by method and beta, so that seeds are one line with their spread."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Config

    def curve(name: str) -> Any:
        return wr.LinePlot(
            title=name,
            x=STEP,
            y=[name],
            groupby=wr.Config(METHOD),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )

    def against(x: Any, name: str, title: str, *, log: bool = False) -> Any:
        return wr.ScatterPlot(
            title=title, x=x, y=wr.SummaryMetric(name), log_x=log, legend_template=f"${{config:{METHOD}}}"
        )

    def bars(name: str) -> Any:
        return wr.BarPlot(
            title=name, metrics=[wr.SummaryMetric(name)], groupby=wr.Config(METHOD), groupby_aggfunc="mean"
        )

    sections = [
        ws.Section(name="Curves by method", panels=[curve(name) for name in CURVES], is_open=True),
        ws.Section(
            name="After training, against beta",
            panels=[against(wr.Config(BETA), name, f"{name} against beta", log=True) for name in OUTCOMES],
            is_open=True,
        ),
        ws.Section(
            name="Margin against drift",
            panels=[
                against(wr.SummaryMetric(DRIFT), MARGIN, "margin against drift, nats"),
                against(wr.SummaryMetric(DRIFT), OUTCOMES[0], "accuracy against drift"),
                wr.LinePlot(title="KTO's estimate of KL", x=STEP, y=["train/kl"], groupby=wr.Config(METHOD)),
            ],
            is_open=True,
        ),
        ws.Section(name="Cost", panels=[bars(name) for name in COSTS], is_open=True),
        ws.Section(name="Samples", panels=[wr.WeavePanelSummaryTable(table_name="samples")]),
    ]
    settings = ws.RunsetSettings(groupby=[Config(METHOD), Config(BETA)], pinned_columns=list(TABLE_COLUMNS))
    return ws.Workspace(
        entity=entity, project=project, name=NAME, sections=sections, runset_settings=settings
    )


def main() -> int:
    """Build and save it, or say what is missing."""
    parser = argparse.ArgumentParser(prog="python -m alignment_lab.tracking.workspace", description=NAME)
    parser.add_argument("project", help="PROJECT, or ENTITY/PROJECT; the first is tracking.project")
    parser.add_argument("--dry-run", action="store_true", help="print it as JSON, send nothing")
    words = parser.parse_args()
    entity, _, project = words.project.rpartition("/")
    if find_spec("wandb_workspaces") is None:
        print(
            "error: the package wandb-workspaces is not installed; pip install -e .[workspace] -c constraints.txt",
            file=sys.stderr,
        )
        return 2
    if words.dry_run:
        print(workspace_as_json(workspace(entity, project)))
        return 0
    import wandb

    try:
        entity = entity or wandb.Api().default_entity or ""
        print(workspace(entity, project).save().url)
    except (wandb.errors.Error, ValueError, OSError) as error:
        print(
            f"error: {words.project}: wandb did not take it ({' '.join(str(error).split())}); `wandb login` first.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
