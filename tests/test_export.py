"""What is exported computes what was trained: merged, cast, reloaded, described; and no mistake costs more
than a sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from small_exports import export, refused
from small_saves import (
    ADAPTERS,
    file_digests,
    finished_run,
    in_this_process,
    quantized,
    tiny_model,
    trained_adapter,
)
from small_tokenizers import other_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment_lab.checkpoints import verify
from alignment_lab.checkpoints.verify.plain_loading import load_adapter, load_base
from alignment_lab.config import Quantization
from alignment_lab.export import merge
from alignment_lab.export.gguf import convert, plan_conversion
from alignment_lab.models.embedded import embedded_weights
from alignment_lab.runtime.errors import UserError

__all__ = ["in_this_process", "refused"]  # fixtures
PROMPTS = [list(range(100, 140)), list(range(500, 900, 3))]
ROUNDING = 2e-4  # of logits of some tens, float32: a sum in another order


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def a_run(composed, base, tmp_path):
    """`a_run("parallel=lora")`: a finished run of that experiment, with an adapter or full weights that were
    trained."""

    def make(*overrides: str, kind: str | None = None, name: str = "run", **report):
        origin = ["model=hub", f"model.path={base}"] if kind else ["model=tiny"]
        spec = composed([*origin, "parallel.device=cpu", *overrides])
        scores = not spec.method.generates
        model = tmp_path / f"{name}-model"
        if kind:
            options = verify.LoadOptions(quantization=spec.parallel.quantization)
            trained_adapter(base, model, kind, options, score_head=scores)
        else:
            tiny_model(model, score_head=scores)
        return finished_run(tmp_path / name, spec, model, other_tokenizer("chatml"), **report)

    return make


def output_difference(one, other) -> float:
    outputs = (merge.model_outputs(model, PROMPTS) for model in (one, other))
    return max(difference.largest for difference in merge.compare_outputs(*outputs))


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_merged_adapter_computes_what_the_adapter_does(kind, scores, base, tmp_path):
    trained = trained_adapter(base, tmp_path / kind, kind, score_head=scores)
    merged = merge.merge_adapter(tmp_path / kind, verify.LoadOptions())
    assert output_difference(trained, merged) <= ROUNDING
    assert output_difference(trained, load_base(tmp_path / kind, verify.LoadOptions())) > 1
    assert not any("lora" in name for name in merged.state_dict())


@quantized
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("lora", "nf4"), ("dora", "nf4"), ("rslora", "nf4"), ("lora", "int8"), ("rslora", "int8")],
)
def test_an_adapter_on_quantized_weights_is_merged_into_what_they_stand_for(
    kind, name, scores, base, tmp_path
):
    """4-bit layers multiply by the dequantized weights, so that merging changes roundings only.

    8-bit layers round activations as well.

    DoRA's magnitudes are of the weights that it was trained on; into the original ones it would not merge
    either.
    """
    options = verify.LoadOptions(quantization=Quantization[name])
    trained = trained_adapter(base, tmp_path / "adapter", kind, options, score_head=scores)
    right = output_difference(trained, merge.merge_adapter(tmp_path / "adapter", options))
    wrong = output_difference(
        trained,
        load_adapter(
            load_base(tmp_path / "adapter", verify.LoadOptions()), tmp_path / "adapter"
        ).merge_and_unload(),
    )
    print(f"{name} {kind} scores={scores}: dequantized {right:.3g}, original {wrong:.3g}")
    assert right <= ROUNDING if name == "nf4" else right < wrong
    assert wrong > 100 * ROUNDING


@quantized
def test_a_base_that_was_held_in_bfloat16_is_rounded_before_it_is_merged(base, tmp_path):
    """The run says what it held: weights in bfloat16, computed with in bfloat16, 8 bits of each product."""
    options = verify.LoadOptions(dtype="bfloat16", compute="bfloat16", quantization=Quantization.nf4)
    trained = trained_adapter(base, tmp_path / "adapter", "lora", options)
    merged = merge.merge_adapter(tmp_path / "adapter", options)
    assert merged.dtype is torch.float32
    scale = float(verify.probe_outputs(trained).abs().max())
    assert output_difference(trained, merged) <= 0.05 * scale


def test_full_weights_are_copied_and_the_run_stays_as_it_was(a_run, in_this_process, capsys):
    run = a_run()
    before = file_digests(run.path)
    export(run.path)
    out = run.path / "export"
    after = file_digests(run.path)
    assert {name: value for name, value in after.items() if not name.startswith("export/")} == before
    model = {
        name.removeprefix("model/"): value for name, value in before.items() if name.startswith("model/")
    }
    assert {
        name: value for name, value in file_digests(out).items() if name not in ("README.md", "export.json")
    } == model
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith(
        "full weights in float32, copied unchanged\nverified: a fresh process loads it"
    )
    assert output.out.endswith(" MB\n")
    export(run.path)  # again: an export may be written over


def test_full_weights_are_cast(a_run, in_this_process, tmp_path, capsys):
    run = a_run()
    export(run.path, "--dtype", "bfloat16", "--out", tmp_path / "half")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert model.dtype is torch.bfloat16
    assert "difference from the trained model, 2 real prompts: logits differ by" in capsys.readouterr().out
    cast, _ = merge.load_merged(run.model, verify.LoadOptions(), "bfloat16", [])
    assert output_difference(cast, model) == 0  # the angles of positions are float32 in both
    facts = json.loads((tmp_path / "half" / "export.json").read_text())
    assert facts["dtype"] == "bfloat16" and 0 < facts["drift"][0]["largest"] < 1


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_becomes_a_plain_model(kind, a_run, in_this_process, tmp_path):
    run = a_run("parallel=lora", f"parallel.adapter={kind}", kind=kind)
    export(run.path, "--out", tmp_path / "out")
    trained = verify.load_saved(run.model, verify.LoadOptions())
    assert output_difference(trained, AutoModelForCausalLM.from_pretrained(tmp_path / "out")) <= ROUNDING
    assert not list((tmp_path / "out").glob("adapter*"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run.model).chat_template
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.eos_token_id in ends


LOADED_ELSEWHERE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
ids, base, adapter, merged = torch.tensor([eval(sys.argv[1])]), *sys.argv[2:5]
models = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
models = models, AutoModelForCausalLM.from_pretrained(merged).eval()
assert "alignment_lab" not in sys.modules
with torch.no_grad():
    torch.save([model(input_ids=ids).logits for model in models], sys.argv[5])
"""


@pytest.mark.slow
def test_adapter_and_merged_model_are_the_trained_model_without_the_lab(
    a_run, in_this_process, base, tmp_path
):
    """Plain peft and plain transformers, in a process that never imported the lab: the same logits."""
    run = a_run("parallel=lora", kind="lora")
    export(run.path, "--adapter", "--out", tmp_path / "adapter")
    export(run.path, "--max-shard-size", "200KB", "--out", tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == base.name
    )  # no path of this machine
    prompt, logits = list(range(100, 140)), tmp_path / "logits.pt"
    folders = [str(folder) for folder in (base, tmp_path / "adapter", tmp_path / "merged", logits)]
    command = [sys.executable, "-P", "-c", LOADED_ELSEWHERE, str(prompt), *folders]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    with torch.no_grad():
        trained = verify.load_saved(run.model, verify.LoadOptions())(input_ids=torch.tensor([prompt])).logits
    for loaded in torch.load(logits):
        assert float((loaded - trained).abs().max()) <= ROUNDING


CONVERTER = """
import argparse, json, pathlib
from gguf import GGUFWriter
parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
for option in ("--outfile", "--outtype", "--model-name"):
    parser.add_argument(option, required=True)
options = parser.parse_args()
assert (options.folder / "model.safetensors").is_file()
import numpy, {module}
writer = GGUFWriter(options.outfile, "llama")
writer.add_chat_template((options.folder / "chat_template.jinja").read_text())
writer.add_tensor("output.weight", numpy.zeros((32, 32), numpy.float32))
for write in ("header", "kv_data", "tensors"):
    getattr(writer, f"write_{{write}}_to_file")()
writer.close()
"""


def test_a_gguf_file_is_made_by_llama_cpps_converter(
    a_run, in_this_process, tmp_path, capsys, refused, monkeypatch
):
    """Which is found before anything is loaded; what it lacks is said, and nothing is left behind."""
    run, out = a_run("name=my model"), tmp_path / "out"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(run.path, "--gguf").startswith(
        "--gguf=bf16: llama.cpp's converter is not installed: there is no convert_hf_to_gguf.py in PATH; get"
    )
    assert refused(run.path, "--gguf", "tiny").startswith("--gguf=tiny: is no type of GGUF; give one of f32,")
    assert refused(run.path, "--gguf", "Q4_K_M").startswith(
        "--gguf=q4_k_m: needs llama-quantize of llama.cpp"
    )
    assert refused(run.path, "--llama-cpp", tmp_path).endswith("has no effect alone; add --gguf.")
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(CONVERTER.format(module="no_such_module"))
    with pytest.raises(UserError) as failed:
        convert(run.model, "x", plan_conversion("F16", tmp_path))
    assert str(failed.value) == (
        "--gguf=f16: convert_hf_to_gguf.py failed (it needs the Python module no_such_module); "
        "pip install no_such_module."
    )
    script.write_text(CONVERTER.format(module="json"))
    export(run.path, "--gguf", "f16", "--llama-cpp", tmp_path, "--out", out)
    assert (out / "my-model-f16.gguf").stat().st_size > 4096
    assert "my-model-f16.gguf: 1 tensors, 0.0 MB, with the chat template" in capsys.readouterr().out
    assert "my-model-f16.gguf" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--adapter"], "trained every weight, and has none; leave it out."),
        (["--max-shard-size", "big"], "--max-shard-size=big: is no size; give one such as 2GB or 500MB."),
    ],
)
def test_options_that_do_not_fit_the_weights_are_refused(options, says, a_run, refused):
    assert says in refused(a_run().path, *options)


def test_an_adapter_alone_is_neither_cast_nor_converted(a_run, refused):
    run = a_run("parallel=lora", kind="lora")
    for option, value in {"dtype": "float32", "max-shard-size": "1GB", "gguf": "f16"}.items():
        assert refused(run.path, "--adapter", f"--{option}", value) == (
            f"--{option}={value}: is about merged weights; leave --adapter or it out."
        )


@quantized
def test_an_adapter_on_4_bits_becomes_a_plain_model_in_a_process_of_its_own(a_run, tmp_path, capfd):
    run = a_run("parallel=qlora", kind="lora")
    export(run.path, "--out", tmp_path / "out")
    output = capfd.readouterr().out
    assert output.startswith(
        "the adapter (lora, rank 4, alpha 8) was trained on nf4 weights and is merged into the dequantized "
        "ones; weights in float32\n"
    )
    trained = verify.load_saved(run.model, verify.LoadOptions(quantization=Quantization.nf4))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert output_difference(trained, model) <= ROUNDING
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize("kind", [None, "lora", "dora"])
def test_a_reward_model_keeps_its_head_and_knows_its_padding(kind, a_run, in_this_process, tmp_path):
    run = a_run("method=reward", *(["parallel=lora", f"parallel.adapter={kind}"] if kind else []), kind=kind)
    export(run.path, "--out", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert output_difference(verify.load_saved(run.model, verify.LoadOptions()), model) <= ROUNDING
    assert model.config.num_labels == 1
    # the tiny model's; of an adapter's base the tokenizer's own, which is the same
    assert model.config.pad_token_id == 2
    assert "pipeline_tag: text-classification" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_what_the_run_was(a_run, in_this_process, tmp_path):
    run = a_run("method=dpo", "beta=0.07", "parallel=lora", "name=dpo-tiny", kind="lora")
    after = {"value": 0.4, "ci95": [0.3, 0.5], "n": 80}
    entry = {"id": "e1", "measures": ["winrate"], "ended": "2026-01-01"}
    entry["model"] = {
        "is_initial": False,
        "step": None,
        "metrics": {"winrate": after},
        "notes": ["judge: bad"],
    }
    run.evaluations.mkdir()
    (run.evaluations / "e1.json").write_text(json.dumps(entry))
    export(run.path, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignment-lab", "dpo"],
    }
    for text in (
        "# dpo-tiny\n",
        "| method | dpo, sft_weight 0.0, beta 0.07",
        "| adapter | lora, rank 4, alpha 8, on every linear layer |",
        "| seen | 20 steps, 12,345 tokens; 512 rows to train on, 64 held out |",
        "| eval_rewards/accuracies | 0.50 [0.40, 0.60] | 0.75 [0.65, 0.85] | 64 |",
        "| eval_loss | 0.50 [0.40, 0.60] | – | 64 |",
        f"at commit {'0' * 40} with changes; `PATH` stands for folders of the machine:\n\n"
        "```\npython3 train.py method=dpo 'data.path=my rows.jsonl'\n```",
        "| embedded | rows that come with alignment_lab |  | – | – | apache-2.0 |",
        "  beta: 0.07\n",  # of the spec
        "| hardware | not recorded |",
        "## Evaluated: winrate",
        "| winrate | – | 0.40 [0.30, 0.50] | 80 |",
        "- judge: bad\n",
        "- Measured on 64 held-out rows of its own data",
        "- the adapter (lora, rank 4, alpha 8) is merged into its base; weights in float32",
        "verified: a fresh process loads it",
        'AutoModelForCausalLM.from_pretrained("out")',
    ):
        assert text in card, card
    assert "None" not in card


def test_the_license_of_the_base_is_passed_on(a_run, in_this_process, base, tmp_path):
    """That of the embedded model is known.

    Another base says it in its own card, if it lies beside the weights.
    """
    run = a_run("model=embedded")
    export(run.path, "--out", tmp_path / "one")
    head = yaml.safe_load((tmp_path / "one" / "README.md").read_text().split("---\n")[1])
    assert (head["base_model"], head["license"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    own = tmp_path / "base"
    own.mkdir()
    for file in base.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    (own / "README.md").write_text("---\nlicense: llama3.1\n---\n# A model\n")
    run = a_run("model=hub", f"model.path={own}", name="other")
    export(run.path, "--out", tmp_path / "two")
    assert "license: llama3.1" in (tmp_path / "two" / "README.md").read_text()
    assert "base_model:" not in (tmp_path / "two" / "README.md").read_text()  # a folder is none to the Hub


def test_the_base_is_the_one_that_was_trained_on(a_run, in_this_process, base, tmp_path, refused, capsys):
    """Whatever adapter_config.json says: spec.yaml and provenance.json know it. Other weights there are
    refused; where the user gives them they are told, in export.json and on the card too.
    """
    own = tmp_path / "own"
    shutil.copytree(base, own)
    run = a_run("parallel=lora", f"model.path={own}", kind="lora")
    trained = verify.load_saved(run.model, verify.LoadOptions())
    file = run.model / "adapter_config.json"
    other = tiny_model(tmp_path / "other", tied=False)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(other)}))
    export(run.path)
    assert output_difference(trained, AutoModelForCausalLM.from_pretrained(run.path / "export")) <= ROUNDING
    weights = file_digests(own)["model.safetensors"]
    provenance = json.loads(run.provenance_file.read_text())
    run.provenance_file.write_text(
        json.dumps(provenance | {"files": {"model": {"model.safetensors": weights}}})
    )
    export(run.path)
    own.rename(tmp_path / "moved")
    assert refused(run.path).endswith(
        f"the weights under this adapter are not in {own} (no config.json there); "
        "say where they are: --base=FOLDER."
    )
    export(run.path, "--base", tmp_path / "moved")
    shutil.copytree(other, own)
    assert "are not those that the run was trained on (provenance.json" in refused(run.path)
    capsys.readouterr()
    export(run.path, "--base", other)
    told = "merged into them the adapter is another model"
    assert told in capsys.readouterr().out and told in (run.path / "export" / "README.md").read_text()


def test_mistakes_are_sentences(a_run, in_this_process, tmp_path, refused):
    run = a_run()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    assert refused(tmp_path / "none").endswith(
        "is no run (no run.json and spec.yaml in it); give the output directory that train.py printed."
    )
    assert (
        refused(run.path, "--out", tmp_path / "full")
        == f"--out={tmp_path / 'full'}: exists and is no export; give another folder."
    )
    assert refused(run.path, "--revision", "v2") == "--revision=v2: is about the Hub; add --push=org/name."
    assert refused(run.path, "--base", tmp_path).startswith(f"--base={tmp_path}: holds no model")
    taken = tmp_path / "full" / "thesis.txt"
    assert refused(run.path, "--out", taken / "below").startswith(
        f"--out={taken / 'below'}: could not be written ("
    )
    run.model.rename(tmp_path / "away")
    assert "has no model yet, its state is finished" in refused(run.path)
    assert not (run.path / "export").exists()


def test_weights_that_are_not_finite_are_not_exported(a_run, in_this_process, refused):
    from safetensors.torch import load_file, save_file

    run = a_run("parallel=lora", kind="lora")
    file = run.model / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, file)
    assert "this adapter cannot be merged" in refused(run.path)
    assert sorted(path.name for path in run.path.iterdir() if "export" in path.name) == []


def test_a_push_without_a_login_is_refused_before_any_work(a_run, run_command, tmp_path):
    run = a_run()
    ended = run_command(
        str(run.path),
        "--push",
        "org/name",
        script=["-m", "alignment_lab.export"],
        HF_HOME=str(tmp_path / "hf"),
        HF_TOKEN="",
    )
    assert ended.code == 2
    assert ended.errors == [
        "error: --push=org/name: nobody is logged in to the Hub here; run `hf auth login`, or set HF_TOKEN.",
    ]
    assert not {"torch", "transformers", "peft"} & ended.imported


@pytest.mark.slow
@quantized
def test_the_embedded_model_under_an_adapter_on_4_bits(composed, tokenizer, tmp_path, capfd):
    """Logits of 135 million weights: merged into the dequantized ones they differ by roundings, into the
    original ones by nats."""
    options = verify.LoadOptions(quantization=Quantization.nf4)
    trained = trained_adapter(embedded_weights(), tmp_path / "adapter", "lora", options)
    run = finished_run(
        tmp_path / "run", composed(["model=embedded", "parallel=qlora"]), tmp_path / "adapter", tokenizer
    )
    export(run.path)
    print(capfd.readouterr().out, file=sys.stderr)
    model = AutoModelForCausalLM.from_pretrained(run.path / "export")
    right = output_difference(trained, model)
    wrong = output_difference(
        trained, load_adapter(load_base(run.model, verify.LoadOptions()), run.model).merge_and_unload()
    )
    print(f"dequantized {right:.3g}, original {wrong:.3g}", file=sys.stderr)
    assert right < 0.01 < wrong / 100
