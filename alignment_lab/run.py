"""One run, top to bottom. What needs no torch comes first, so that a mistake is told before anything heavy starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from . import data, model, provenance
from .artifacts import RunDirectory, publish_directory, write_json
from .errors import UserError
from .eval.answers import measure, samples
from .eval.interval import Measured, before_after
from .meter import Meter, peak_memory_gb
from .progress import shown
from .report.terminal import show_run
from .spec import Experiment, Format, to_yaml
from .tracking import end_tracking

if TYPE_CHECKING:
    from .method import Setting

Row = dict[str, Any]
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def execute(spec: Experiment, run: RunDirectory) -> None:
    """Run the experiment and leave a complete run directory. Raises UserError for a mistake; the directory records any failure."""
    console = Console()
    if run.state().get("state") == "finished" and run.state()["id"] == spec.run_id:
        console.print(f"{run.path}: this experiment is finished; give another directory to run it again.", highlight=False, soft_wrap=True)
        return
    with recorded(spec, run):
        rows = data.load(spec)
        where = model.locate(spec.model)
        console.print(f"{spec.name}  id {spec.run_id}  in {run.path}", highlight=False, soft_wrap=True)
        train(spec, run, rows, where, console)
    from .report.page import write_page  # matplotlib: not needed to answer a mistake

    write_page(run)
    show_run(run, console)


@contextmanager
def recorded(spec: Experiment, run: RunDirectory) -> Iterator[None]:
    """Keep run.json true: running, then finished, or failed with the reason."""
    other = run.state().get("id", spec.run_id)
    if other != spec.run_id:
        raise UserError(f"{run.path}: holds the run {other}, and this is {spec.run_id}; give this experiment a directory of its own.")
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    run.begin(run_id=spec.run_id, spec=to_yaml(spec))
    try:
        yield
    except BaseException as error:
        run.fail(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        end_tracking(spec, failed=True)
        raise
    run.finish()
    end_tracking(spec, failed=False)


def train(spec: Experiment, run: RunDirectory, rows: data.Rows, where: Path, console: Console) -> None:
    """Load, measure, train, measure, save; torch is imported here."""
    meter = Meter()
    with meter("load"):
        from . import training
        from .method import METHODS

        procedure = METHODS[spec.method.name]
        tokenizer = model.load_tokenizer(spec.model, where)
        train_rows, heldout = tokenised(spec, procedure.tokenise, tokenizer, rows)
        available = len(train_rows if spec.method.format is Format.text else rows.train)  # of texts, blocks are the rows
        console.print(counted(train_rows, heldout, available, rows), highlight=False, soft_wrap=True)
        policy, dtype = model.place(model.load_model(spec.model, where, scores=not spec.method.generates), spec)
        setting = settled(spec, run, policy, dtype, tokenizer, train_rows, heldout, available, console)
        content = {"model": setting.weights, "data": rows.digest, "tokenizer": model.tokenizer_digest(tokenizer)}
        write_json(run.provenance_file, {**provenance.collect(), "content": content})
    with meter("reference"):
        trainer = procedure.trainer(setting)
    before = measured(setting, trainer, meter, initial=True)
    with meter("train"):
        training.fit(trainer, spec, run, console)
    after = measured(setting, trainer, meter)
    training.save(policy, tokenizer, run.partial / "model")
    publish_directory(run.partial / "model", run.model)
    run.write_samples(samples(setting.asked, before.answers, after.answers))
    write_json(run.report_file, report(setting, rows, trainer.state.global_step, meter, before_after(before.scores, after.scores)))


def settled(
    spec: Experiment,
    run: RunDirectory,
    policy: Any,
    dtype: Any,
    tokenizer: Any,
    train_rows: list[Row],
    heldout: list[Row],
    available: int,
    console: Console,
) -> Setting:
    """All that a method's trainer is built from. Says how rows are laid out, with the reason where they are padded."""
    from . import estimate, logprobs, reference, training
    from .method import Setting

    longest = max(data.longest(row) for row in [*train_rows, *heldout])
    plan = estimate.plan(
        policy.config.get_text_config(),
        trained=sum(weight.numel() for weight in policy.parameters() if weight.requires_grad),
        width=dtype.itemsize,
        free=model.free_bytes(policy),
        longest=longest,
        cuda=policy.device.type == "cuda",
        tokens=spec.training.micro_tokens,
        checkpointing=spec.training.gradient_checkpointing,
    )
    engine, reason = logprobs.choose(policy, longest, plan.tokens)
    layout = "packed, prompts shared" if engine.packed else f"padded: {reason}"
    kept = "gradient checkpointing" if plan.checkpointing else "no gradient checkpointing"
    console.print(f"engine: {layout}; {plan.tokens} tokens a pass; {dtype}, {kept}".replace("torch.", ""), highlight=False, soft_wrap=True)
    arguments, weights = training.arguments(spec, run, dtype, plan.checkpointing), reference.digest(policy)
    return Setting(spec, policy, tokenizer, train_rows, heldout, available, arguments, engine, dtype, weights, console)


def tokenised(spec: Experiment, tokenise: Any, tokenizer: Any, rows: data.Rows) -> tuple[list[Row], list[Row]]:
    """The rows that this run can see, as token ids; what was left out or cut is counted in `rows`."""
    digest, limit = model.tokenizer_digest(tokenizer), spec.data.max_length
    train_rows, counts = data.cached(tokenise, tokenizer, digest, rows.train[: data.needed(spec)], limit)
    heldout, more = data.cached(tokenise, tokenizer, digest, data.first(rows.heldout, max(spec.eval.rows, spec.eval.generations)), limit)
    counts += more
    rows.truncated = counts.pop("truncated", 0)
    rows.dropped += counts
    if not train_rows:
        raise UserError(f"data.max_length={spec.data.max_length}: no row fits; raise it, or give shorter rows.")
    return train_rows, heldout


def counted(train_rows: list[Row], heldout: list[Row], available: int, rows: data.Rows) -> str:
    """What became of the rows, in a line: nobody should find out from a curve."""
    left_out = "; ".join(f"{count} left out: {reason}" for reason, count in sorted(rows.dropped.items())) or "none left out"
    used = f"{len(train_rows)} of {available} to train on, {len(heldout)} held out"
    return f"rows: {used}; {left_out}; {rows.truncated} cut at data.max_length"


def measured(setting: Setting, trainer: Any, meter: Meter, *, initial: bool = False) -> Measured:
    """Scores and greedy answers of the model as it is now, on the held-out rows."""
    from .generation import answer

    with meter("evaluate"):
        scores = trainer.heldout_scores(initial=initial)
    asked = setting.asked
    with meter("generate"):
        progress = shown("answers before" if initial else "answers after", setting.console)
        answers = answer(
            setting.model, setting.tokenizer, [data.prompt_of(row) for row in asked], setting.spec.eval, setting.dtype, progress
        )
    return Measured({**scores, **measure(answers, asked)}, answers)


def report(setting: Setting, rows: data.Rows, steps: int, meter: Meter, metrics: Row) -> Row:
    """report.json: what the run came to. Tokens are those of the rows, however the engine lays them out."""
    spec = setting.spec
    seen = steps * spec.training.global_batch
    tokens = round(seen * sum(map(data.size, setting.train)) / len(setting.train))
    counts = {
        "train": len(setting.train),
        "available": setting.available,
        "eval": len(data.units(setting.scored)),  # pairs are as many whether they were parted or not
        "dropped": dict(rows.dropped),
        "truncated": rows.truncated,
    }
    seconds = meter.report()
    return {
        "id": spec.run_id,
        "name": spec.name,
        "method": spec.method.name,
        "model": spec.model.name,
        "data": spec.data.name,
        "rows": counts,
        "steps": steps,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": round(tokens / seconds["train"], 1),
        "peak_memory_gb": round(peak_memory_gb(), 2),
        "metrics": metrics,
    }
