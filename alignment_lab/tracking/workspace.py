"""A wandb page that compares methods. python -m alignment_lab.tracking.workspace [ENTITY/]PROJECT

Curves by method, results against beta, margin against drift, cost, samples. `--dry-run` prints it as JSON,
without a network.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from typing import Any

from ..config.metrics import metric
from ..runtime.library_internals import workspace_as_json
from .forwarder import STEP

NAME = "Methods compared"
CURVES = (
    "train/loss",
    "train/rewards/accuracies",
    "train/rewards/margins",
    "train/logps/chosen",
    "train/logps/rejected",
    "eval/loss",
    "eval/implicit_rewards/accuracies",
)
RESULTS = (
    "after/eval_implicit_rewards/accuracies",
    "after/eval_implicit_rewards/margins",
    "after/answers/correct",
    "after/answers/one_sentence",
)
COST_SUMMARIES = ("tokens_per_second", "peak_memory_gb", "seconds/total")
METHOD, BETA = "method.name", "method.beta"  # of the config
# In nats on held-out answers. Not a KL divergence, which needs answers sampled from the trained model.
DRIFT, MARGIN = "drift", "margin"
TABLE_COLUMNS = (
    "run:displayName",
    "run:state",
    "config:method.value.name",
    "config:method.value.beta",
    *(f"summary:{name}" for name in RESULTS),
)


def title_of(name: str) -> str:
    """The label of a metric as trackers name it: `train/loss`, `eval/loss`, `after/eval_loss`."""
    where, _, metric_name = name.partition("/")
    suffix = {"eval": ", held out", "after": ", after training"}.get(where, "")
    return metric(metric_name).label + suffix


def workspace(entity: str, project: str) -> Any:
    """Build the page without uploading it. Grouped by method and beta: seeds are one line with a spread."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import Config

    def curve(name: str) -> Any:
        return wr.LinePlot(
            title=title_of(name),
            x=STEP,
            y=[name],
            groupby=wr.Config(METHOD),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )

    def scatter(x: Any, name: str, title: str, *, log: bool = False) -> Any:
        return wr.ScatterPlot(
            title=title, x=x, y=wr.SummaryMetric(name), log_x=log, legend_template=f"${{config:{METHOD}}}"
        )

    def against_beta(name: str) -> Any:
        return scatter(wr.Config(BETA), name, f"{title_of(name)}, against beta", log=True)

    def bars(name: str) -> Any:
        return wr.BarPlot(
            title=name, metrics=[wr.SummaryMetric(name)], groupby=wr.Config(METHOD), groupby_aggfunc="mean"
        )

    drift = wr.SummaryMetric(DRIFT)
    against_drift = [
        scatter(drift, MARGIN, "margin against drift, nats"),
        scatter(drift, RESULTS[0], f"{title_of(RESULTS[0])}, against drift"),
        wr.LinePlot(title=metric("kl").label, x=STEP, y=["train/kl"], groupby=wr.Config(METHOD)),
    ]
    sections = [
        ws.Section(name="Curves by method", panels=[curve(name) for name in CURVES], is_open=True),
        ws.Section(
            name="After training, against beta",
            panels=[against_beta(name) for name in RESULTS],
            is_open=True,
        ),
        ws.Section(name="Margin against drift", panels=against_drift, is_open=True),
        ws.Section(name="Cost", panels=[bars(name) for name in COST_SUMMARIES], is_open=True),
        ws.Section(name="Samples", panels=[wr.WeavePanelSummaryTable(table_name="samples")]),
    ]
    settings = ws.RunsetSettings(groupby=[Config(METHOD), Config(BETA)], pinned_columns=list(TABLE_COLUMNS))
    return ws.Workspace(
        entity=entity, project=project, name=NAME, sections=sections, runset_settings=settings
    )


def main() -> int:
    """Build and save the page, or print one sentence about what is missing."""
    parser = argparse.ArgumentParser(prog="python -m alignment_lab.tracking.workspace", description=NAME)
    parser.add_argument("project", help="PROJECT, or ENTITY/PROJECT; PROJECT is tracking.project")
    parser.add_argument("--dry-run", action="store_true", help="print the page as JSON, upload nothing")
    arguments = parser.parse_args()
    entity, _, project = arguments.project.rpartition("/")
    if find_spec("wandb_workspaces") is None:
        remedy = "pip install -e .[workspace] -c constraints.txt"
        print(f"error: the package wandb-workspaces is not installed; {remedy}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        print(workspace_as_json(workspace(entity, project)))
        return 0
    import wandb

    try:
        entity = entity or wandb.Api().default_entity or ""
        print(workspace(entity, project).save().url)
    except (wandb.errors.Error, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        print(
            f"error: {arguments.project}: wandb rejected it ({reason}); `wandb login` first.", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
