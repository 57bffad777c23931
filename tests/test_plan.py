"""`action=plan`: what it prints, how fast, and that the command it advises works."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console

from alignment_lab import data, estimate
from alignment_lab.actions import plan, workload
from alignment_lab.data import Splits, tokenization
from alignment_lab.estimate import DEVICES
from alignment_lab.runtime.errors import UserError


@pytest.fixture
def printed(composed, capsys):
    """`printed("model=mistral-7b")`: the lines of the plan in eighty columns, with its rows read or not."""

    def show(overrides: str = "", *, read: bool = True) -> list[str]:
        spec = composed([*overrides.split(), "action=plan"])
        plan.show_plan(spec, data.load_rows(spec) if read else None, Console(width=80))
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return show


def cells(lines: list[str], label: str) -> list[str]:
    """The words after a label, in the first line that starts with it."""
    line = next(line for line in lines if line.strip().startswith(label))
    return line.strip().removeprefix(label).split()


def pair(prompt: str, chosen: str, rejected: str):
    def message(role, content):
        return [{"role": role, "content": content}]

    return {
        "prompt": message("user", prompt),
        "chosen": message("assistant", chosen),
        "rejected": message("assistant", rejected),
    }


# ---- what is printed


def test_every_kind_of_device_has_its_column(printed):
    """ZeRO-3 over 8: 16 x 7.24 / 8 = 14.5 GB of states fit 24 GB; on one device of 80 GB 116 GB do not."""
    lines = printed("model=mistral-7b parallel=zero3")
    assert " ".join(cells(lines, "model")) == "mistral-7b: 7.24 B parameters, 6.98 B of them in 32 layers"
    assert cells(lines, "weights") == ["14.5", "14.5", "14.5", "14.5", "14.5", "29.0"]
    assert cells(lines, "optimizer")[:5] == ["86.9"] * 5
    assert cells(lines, "fits") == ["no", "no", "no", "no", "yes", "no"]
    eight = lines[lines.index("parallel=zero3: GB on each of 8 devices") :]
    assert cells(eight, "weights") == ["1.8"] * 5  # no machine has eight of this one's processors
    assert cells(eight, "fits") == ["yes"] * 5


def test_items_that_are_0_are_left_out_and_all_add_up(printed):
    lines = printed("model=mistral-7b parallel=qlora")
    assert not any(line.strip().startswith(("gradients", "optimizer")) for line in lines)
    start, end = (
        next(number for number, line in enumerate(lines) if line.strip().startswith(word))
        for word in ("weights", "total")
    )
    items = [float(line.split()[-6]) for line in lines[start:end] if line.strip()]
    assert sum(items) == pytest.approx(float(cells(lines, "total")[0]), abs=0.06 * len(items))


def test_rows_tokens_and_steps(printed):
    lines = printed("model=mistral-7b parallel=zero3 training.max_steps=10 training.global_batch=16")
    assert cells(lines, "data")[:2] == ["1,024", "rows,"]
    assert any("estimated at 4" in line for line in lines)
    assert cells(lines, "steps")[:5] == ["10,", "each", "of", "16", "rows,"]
    assert any("64 an epoch" in line for line in lines)


def test_without_the_data_half_of_the_limit_is_assumed(printed):
    lines = printed(
        "model=mistral-7b parallel=zero3 data=hub data.path=org/name data.max_length=512", read=False
    )
    assert "unknown number of rows, 256 tokens each, 128 of them scored" in " ".join(
        cells(lines, "data") + lines
    )
    assert "cannot be read here" in " ".join(" ".join(lines).split())
    assert any(line.strip().startswith("1,000 rows, at least") for line in lines)
    assert cells(printed("data=hub data.path=org/name training.max_steps=5", read=False), "steps")[0] == "5,"


def test_a_plan_for_one_device(printed):
    lines = printed(
        "model=mistral-7b parallel=zero3 parallel.processes=2 training.global_batch=8 plan.device=h100"
    )
    assert cells(lines, "fits") == ["yes"]
    assert sum(line.startswith("parallel=zero3: GB on") for line in lines) == 1


def test_an_unknown_device_is_refused_with_the_known_names(printed):
    names = ", ".join(DEVICES)
    with pytest.raises(
        UserError, match=rf"^plan\.device=gtx: no such device is known; give one of {names}\.$"
    ):
        printed("plan.device=gtx")


def test_a_model_without_a_shape_is_refused_with_the_remedy(printed):
    with pytest.raises(
        UserError,
        match=r"^action=plan: the shape of model=hub is not known here; "
        r"give a directory .*model=llama-3\.1-8b\.$",
    ):
        printed("model=hub model.path=org/name")


def test_auto_prints_its_choice_and_the_reason(printed):
    lines = printed("model=mistral-7b parallel=auto plan.device=a100")
    assert " ".join(lines).startswith(
        "parallel=auto is lora on 1 x a100 (80 GB): training all weights would not fit"
    )
    assert "parallel=lora: GB on one device" in lines


def test_no_line_is_wider_than_the_terminal_but_the_command(printed):
    lines = printed("model=llama-3.1-8b parallel=fsdp_qlora")
    assert max(map(len, lines[:-3])) <= 80


# ---- what is advised


def advised(lines: list[str]) -> list[str]:
    """The overrides of the last line's command."""
    words = lines[-1].split()
    assert words[:2] == ["python", "train.py"]
    return words[2:]


@pytest.mark.parametrize(
    "overrides",
    ["model=mistral-7b parallel=zero3", "model=llama-3.1-8b", "model=smollm2-1.7b parallel=ddp", ""],
)
def test_the_advice_composes_and_fits(overrides, printed, composed):
    lines = printed(overrides)
    spec = composed(advised(lines))
    count, name = lines[-2].partition(": ")[2].split(" (")[0].split(" x ")
    assert estimate.estimate_memory(spec, spec.parallel, DEVICES[name], int(count)).fits
    assert composed(overrides.split()).model == spec.model


def test_the_advice_keeps_what_was_written_and_replaces_the_preset(printed, monkeypatch):
    overrides = (
        "model=mistral-7b method=ipo parallel=zero3 parallel.rank=64 training.max_steps=5 plan.device=rtx4090"
    )
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides.split(), "action=plan", "name=a b"])
    assert (
        printed(overrides)[-1]
        == "    python train.py model=mistral-7b method=ipo parallel.rank=64 training.max_steps=5 'name=a b' "
        "parallel=lora"
    )


def test_the_advice_is_for_the_number_of_devices_that_is_set(printed):
    lines = printed("model=mistral-7b parallel=zero3 parallel.processes=8 plan.device=rtx4090")
    assert advised(lines)[-2:] == ["parallel=zero3", "parallel.processes=8"]


def test_no_preset_fits(printed, monkeypatch):
    monkeypatch.setitem(DEVICES, "toy", estimate.Device("toy", 2, 1))
    assert printed("model=mistral-7b plan.device=toy")[-1].startswith("No preset fits")


# ---- rows to tokens


def estimated(composed, rows, overrides=()):
    return workload.estimate_workload(composed(list(overrides)), Splits(rows, [], ""))[0]


def test_characters_to_tokens_by_hand(composed):
    """Four characters a token and five tokens around a message: 40 are 15 tokens, 400 are 105, 80 are 25."""
    load = estimated(composed, [pair("p" * 40, "c" * 400, "r" * 80)])
    assert (load.rows, load.tokens_per_row, load.scored_per_row) == (1, 15 + 105 + 25, 105 + 25)


def test_the_longest_rows_bound_a_pass(composed):
    """A quarter more than the estimate: 145 gives 182, 145 + 85 in a step 288, 130 + 50 scored 225."""
    rows = [pair("p" * 40, "c" * 400, "r" * 80), pair("p" * 120, "c" * 80, "r" * 80), pair("p", "c", "r")]
    load = estimated(composed, rows, ["training.global_batch=2"])
    assert (load.longest_row, load.max_step_tokens, load.max_step_scored) == (182, 288, 225)


def test_a_plan_reads_the_rows(printed, write_rows):
    path = write_rows([{"prompt": "p" * 40, "chosen": "c" * 400, "rejected": "r" * 80}] * 20)
    overrides = (
        "data=local data.max_length=1024 training.micro_tokens=16 training.global_batch=2 plan.device=h100"
    )
    assert cells(printed(f"{overrides} data.path={path}"), "tokens a pass") == ["182"]
    assert cells(
        printed("data=hub data.path=org/name " + overrides.partition(" ")[2], read=False), "tokens a pass"
    ) == ["2,048"]


def test_a_completion_is_truncated_and_a_prompt_without_room_is_left_out(composed):
    rows = [pair("p" * 40, "c" * 4000, "r" * 80), pair("p" * 4000, "c", "r")]
    load = estimated(composed, rows, ["data.max_length=100"])
    assert (load.rows, load.tokens_per_row, load.scored_per_row) == (1, 15 + 85 + 25, 85 + 25)


def test_the_assistants_turns_of_a_conversation_are_scored(composed):
    row = {"messages": [{"role": "user", "content": "u" * 40}, {"role": "assistant", "content": "a" * 60}]}
    load = estimated(composed, [row], ["method=sft"])
    assert (load.tokens_per_row, load.scored_per_row) == (15 + 20, 20)
    assert estimated(composed, [row], ["method=sft", "data.max_length=14"]).tokens_per_row == 14


def test_texts_fill_blocks(composed, write_rows):
    """10 texts of 400 characters are 1000 tokens: 10 blocks of 100."""
    path = write_rows([{"text": "t" * 400}] * 10)
    load = estimated(
        composed,
        [{"text": "t" * 400}] * 10,
        ["method=cpt", "data=local", f"data.path={path}", "data.max_length=100"],
    )
    assert (load.rows, load.tokens_per_row, load.scored_per_row) == (10, 100, 100)


@pytest.mark.parametrize("method", ["dpo", "sft", "kto"])
def test_the_embedded_rows_are_estimated_within_a_factor(method, composed, tokenizer):
    """Short rows under a template with a system prompt are hard: the estimate is 0.6 to 0.9 of the tokens."""
    tokenize = {
        "dpo": tokenization.tokenize_pairs,
        "sft": tokenization.tokenize_conversations,
        "kto": tokenization.tokenize_unpaired,
    }[method]
    spec = composed([f"method={method}"])
    rows = data.load_rows(spec)
    tokenized = tokenize(tokenizer, rows.train, spec.data.max_length).rows
    mean = sum(map(data.count_tokens, tokenized)) / len(tokenized)
    assert 0.55 < workload.estimate_workload(spec, rows)[0].tokens_per_row / mean < 1.2


# ---- how it answers


def test_the_command_answers_at_once_without_torch_and_leaves_nothing(run_command, tmp_path):
    """Imports no torch; leaves no file."""
    ended = run_command("method=dpo", "model=mistral-7b", "parallel=zero3", "action=plan")
    assert (ended.code, ended.errors) == (0, [])
    assert ended.output.splitlines()[-1].startswith(
        "    python train.py method=dpo model=mistral-7b parallel="
    )
    assert not {"torch", "transformers", "datasets", "deepspeed", "bitsandbytes"} & ended.imported
    assert not list((tmp_path / "here").iterdir())


def test_a_run_that_does_not_fit_is_refused_at_once(run_command):
    ended = run_command("method=dpo", "model=llama-3.1-8b", "parallel=ddp", "parallel.device=cpu")
    (error,) = ended.errors
    assert ended.code == 2
    assert error.startswith(
        "error: model=llama-3.1-8b parallel=ddp: an accelerator is not to be used, "
        "it needs about 130 GB of memory and "
    )
    assert not {"torch", "transformers"} & ended.imported
