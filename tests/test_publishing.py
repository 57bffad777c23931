"""What is uploaded is what was exported, whole, private and once; it names nothing of this machine; and
whatever the Hub does, the export stays and the user is told how to go on. The Hub is one of the tests' own,
its client the real one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from small_exports import export, refused
from small_hub import DROP, TOKEN, Repository, small_hub
from small_saves import file_digests, finished_run, in_this_process, tiny_model, trained_adapter
from small_tokenizers import other_tokenizer

from alignment_lab.actions import run_action
from alignment_lab.actions.uploads import check_uploads
from alignment_lab.checkpoints import verify
from alignment_lab.export import hub
from alignment_lab.export.run_uploads import RunUploads
from alignment_lab.runtime.anonymity import anonymize
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.run_directory import RunDirectory

__all__ = ["in_this_process", "refused", "small_hub"]  # fixtures
NAME = "org/aligned"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def a_run(composed, base, tmp_path, in_this_process):
    """A finished run with an adapter, started in a folder and by a user whose names are unlike any word."""

    def make(*overrides: str, folder: Path = tmp_path / "zelda" / "run", kind: str | None = "lora"):
        spec = composed(
            [
                "model=hub",
                f"model.path={base}",
                *(["parallel=lora"] if kind else []),
                "name=dpo-tiny",
                *overrides,
            ]
        )
        if kind:
            trained_adapter(base, tmp_path / "model", kind, verify.LoadOptions())
        else:
            tiny_model(tmp_path / "model")
        return finished_run(folder, spec, tmp_path / "model", other_tokenizer("chatml"))

    return make


def test_an_upload_is_the_export_private_and_sent_once(a_run, small_hub, capsys):
    """Again, nothing is sent; after a change of one file it alone is. What lies beside the export stays
    here.
    """
    run = a_run()
    export(run.path, "--push", NAME, "--max-shard-size", "200KB")
    out, repository = run.path / "export", small_hub.repositories[NAME]
    assert repository.private and repository.commits == [("main", f"dpo-tiny, run {run.state()['id']}")]
    assert repository.files() == {name: (out / name).read_bytes() for name in file_digests(out)}
    assert {"model.safetensors.index.json", "chat_template.jinja", "generation_config.json"} <= set(
        repository.files()
    )
    assert capsys.readouterr().out.endswith("/commit/1\n")
    received = small_hub.received
    (out / "notes.txt").write_text("mine")
    export(run.path, "--push", NAME, "--max-shard-size", "200KB")
    assert small_hub.received == received and len(repository.commits) == 1
    assert "is this export already, and is uploaded as it is" in capsys.readouterr().out
    assert "notes.txt" not in repository.files()


def test_what_cannot_be_uploaded_is_refused_before_any_work(a_run, small_hub, refused, monkeypatch):
    run, push = a_run(), f"--push={NAME}"
    small_hub.role = "read"
    assert refused(run.path, push).startswith(
        f"{push}: the token of somebody may only read; run `hf auth login`"
    )
    small_hub.role = "write"
    small_hub.repositories[NAME] = Repository(private=False)
    assert refused(run.path, push).startswith(f"{push}: this repository is public; add --public")
    assert refused(run.path, "--push=a/b/c") == "--push=a/b/c: is no name of a repository; give org/name."
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert refused(run.path, push) == (
        f"{push}: the Hub does not accept the token (401); run `hf auth login`, or set HF_TOKEN."
    )
    small_hub.fail("whoami", DROP)
    assert refused(run.path, push).startswith(f"{push}: the Hub cannot be reached, or the connection broke (")
    monkeypatch.setenv("HF_TOKEN", "")
    assert refused(run.path, push).startswith(f"{push}: nobody is logged in to the Hub here; run `hf auth")
    assert not (run.path / "export").exists() and not small_hub.objects


@pytest.fixture
def sent(small_hub, tmp_path):
    """`sent()`: upload a folder of some files, and give what was told; raises what the user would read."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        (folder / f"model-{number}.safetensors").write_bytes(bytes(range(10 * number, 200)))
    (folder / "README.md").write_text("---\ntags: []\n---\n")
    (folder / "config.json").write_text("{}")

    def upload() -> list[str]:
        told: list[str] = []
        files = [file.name for file in folder.iterdir()]
        hub.upload(folder, files, hub.Target(NAME), message="all of it", notify=told.append)
        assert small_hub.repositories[NAME].files() == {name: (folder / name).read_bytes() for name in files}
        return told

    return upload


@pytest.mark.parametrize("fault", [503, DROP])
@pytest.mark.parametrize(
    "part", ["/repos/create", "/preupload", "/objects/batch", "PUT /objects", "/commit/main"]
)
def test_a_failure_that_passes_is_tried_again(part, fault, sent, small_hub):
    small_hub.fail(part, fault, times=2)
    told = sent()
    assert all(line.endswith(("again in 5 s", "again in 10 s")) for line in told)
    assert small_hub.received == sum(map(len, small_hub.objects.values()))  # each object once


@pytest.mark.parametrize("fault", [500, DROP])
def test_an_upload_that_broke_off_goes_on_where_it_ended(fault, sent, small_hub):
    """One of several files does not arrive, whatever is tried: the user reads how to go on, and the same
    upload sends that file alone.
    """
    blocked: list[str] = []

    def block_the_first(method, path):
        if method == "PUT" and not blocked:
            blocked.append(path)
        return fault if path in blocked else None

    small_hub.fault = block_the_first
    with pytest.raises(hub.HubError, match=f"--push={NAME}: the Hub .*; what arrived there stays, and"):
        sent()
    assert not small_hub.repositories[NAME].commits
    assert small_hub.count("POST", "/preupload/main") == hub.ATTEMPTS
    assert len(small_hub.objects) == 2
    small_hub.fault = lambda method, path: None
    small_hub.asked.clear()
    sent()
    assert small_hub.count("PUT", "/objects/") == 1 and small_hub.count("PUT", blocked[0]) == 1


def test_weights_of_an_earlier_upload_do_not_stay_beside_the_new_ones(sent, small_hub):
    """They would be loaded with them; what somebody else put there stays."""
    sent()
    repository = small_hub.repositories[NAME]
    others = ("model-9.safetensors", "adapter_config.json", "model.safetensors.index.json", "thesis.pdf")
    for name in others:
        repository.branches["main"][name] = ("0", b"")
    with pytest.raises(AssertionError):  # of the fixture: more is there than what was sent
        sent()
    assert [name for name in others if name in repository.files()] == ["thesis.pdf"]


@pytest.mark.parametrize(
    ("part", "status", "says"),
    [
        (
            "/commit/main",
            403,
            "this token may not write to it (403); run `hf auth login`, or set",
        ),
        ("/preupload", 400, "the Hub refused it ("),
        ("/preupload", 401, "the Hub does not accept the token (401); run `hf auth login`"),
    ],
)
def test_a_refusal_is_not_tried_again(part, status, says, sent, small_hub):
    small_hub.fail(part, status)
    with pytest.raises(hub.HubError) as refused:
        sent()
    assert str(refused.value).startswith(f"--push={NAME}: {says}")
    assert small_hub.count("POST", "/api/repos/create") == 1


def test_a_name_alone_is_the_users_own_and_a_cell_of_a_sweep_has_a_branch(a_run, small_hub, tmp_path):
    """Public where that is asked for; a branch that is named goes before that of the cell."""
    run = a_run("method=dpo", "beta=0.5", folder=tmp_path / "sweep" / "beta=0.5,seed=1", kind=None)
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    export(run.path, "--push", "aligned", "--public")
    export(run.path, "--push", "aligned", "--public", "--revision", "v2")
    repository = small_hub.repositories["somebody/aligned"]
    assert not repository.private and set(repository.branches) == {"main", "beta=0.5,seed=1", "v2"}
    assert not repository.files() and "beta 0.5" in repository.files("v2")["README.md"].decode()
    for branch in ("beta=0.5,seed=1", "v2"):
        place = f'from_pretrained("somebody/aligned", revision="{branch}")'
        assert place in repository.files(branch)["README.md"].decode()


# ---- what is uploaded names nothing of this machine


@pytest.fixture
def zelda(monkeypatch, tmp_path):
    """A user with a home of her own."""
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, "zelda")
    monkeypatch.setenv("HOME", str(tmp_path / "zelda"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(None, [], id="full", marks=pytest.mark.slow),
        pytest.param("lora", [], id="merged", marks=pytest.mark.slow),
        pytest.param("lora", ["--adapter"], id="adapter"),
    ],
)
def test_nothing_that_is_uploaded_names_this_machine(kind, options, a_run, small_hub, zelda, base, tmp_path):
    """No token, no path, no user: in no file, whatever the command, the settings and the libraries wrote."""
    rows = tmp_path / "zelda" / "my rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (rows.parent / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    run = a_run("data=local", f"data.path='{rows}'", "tracking.tags=[zelda]", kind=kind)
    for config in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        if (file := run.model / config).is_file():
            file.write_text(json.dumps(json.loads(file.read_text()) | {"_name_or_path": str(run.path / "x")}))
    provenance = json.loads(run.provenance_file.read_text())
    words = [f"data.path={rows}", f"+hub_token={TOKEN}", f"hydra.run.dir={run.path}"]
    provenance |= {"command": [sys.executable, "train.py", *words], "directory": str(tmp_path)}
    run.provenance_file.write_text(json.dumps(provenance))
    export(run.path, "--push", NAME, *options)
    for name, content in small_hub.repositories[NAME].files().items():
        for secret in (TOKEN, "zelda", str(tmp_path), str(base), str(Path.cwd()), sys.prefix):
            assert secret.encode() not in content, (name, secret)
    card = small_hub.repositories[NAME].files()["README.md"].decode()
    assert "'data.path=PATH/my rows.jsonl' '+hub_token=***HF_TOKEN***' hydra.run.dir=PATH/run" in card
    assert "| local | my rows.jsonl, a local file or folder | train |" in card and "| cc-by-4.0 |" in card


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("data.path=~/rows.jsonl", "data.path=PATH/rows.jsonl"),
        ("[/data/a.json,/data/b c.json]", "[PATH/a.json,PATH/b c.json]"),
        ("of /opt/models/base: moved", "of PATH/base: moved"),
        ("file:///opt/x.txt", "PATH/x.txt"),
        ("https://example.org/a/b, </s>, 3 / 4, and/or", "https://example.org/a/b, </s>, 3 / 4, and/or"),
        ("zelda@host, Zeldas, ../zelda/rows", "***@host, Zeldas, ../***/rows"),
        ("org/zelda-model by zelda", "org/zelda-model by ***"),
    ],
)
def test_paths_and_names_are_taken_out_and_words_stay(text, left, zelda):
    assert anonymize(text, keep=["org/zelda-model"]) == left


# ---- a run that uploads itself


def test_a_checkpoint_is_uploaded_as_it_lies_there(a_run, small_hub, tmp_path):
    """Its weights, tokenizer and card, without the optimizer's state; the checkpoint itself stays as it is,
    and one upload at a time is made.
    """
    run = a_run()
    folder = run.checkpoints / "checkpoint-8"
    shutil.copytree(run.model, folder)
    for name in ("optimizer-00001.safetensors", "rng_state_0.pth", "trainer_state.json", "manifest.json"):
        (folder / name).write_text("{}")
    before = file_digests(run.path)
    uploads = RunUploads(run, hub.Target(NAME), "dpo-tiny")
    uploads.start_checkpoint(8)
    uploads.start_checkpoint(9)
    assert uploads.wait(lambda: False) == {"url": f"{small_hub.url}/{NAME}/commit/1"}
    uploads.stop()
    assert uploads.saves[0]["skipped"] == "the upload before it was not done" and len(uploads.saves) == 1
    repository = small_hub.repositories[NAME]
    assert repository.private and set(repository.files()) == {file.name for file in run.model.iterdir()} | {
        "README.md"
    }
    assert repository.commits == [("main", f"dpo-tiny, run {run.state()['id']}, step 8")]
    card = repository.files()["README.md"].decode()
    assert "alone, as they were saved at step 8" in card and "from peft import PeftModel" in card
    after = {name: digest for name, digest in file_digests(run.path).items() if name != "run.json"}
    assert after == {name: digest for name, digest in before.items() if name != "run.json"}


TINY = [
    *("model=tiny", "method=sft", "parallel=lora", "parallel.device=cpu", "tracking=local"),
    *("eval.rows=4", "eval.generations=0"),
    *("training.max_steps=3", "training.global_batch=2", "training.save_steps=1"),
]
PUSH = ["training.push_to_hub=true", f"training.hub_model_id={NAME}"]


@pytest.mark.slow
def test_a_run_uploads_its_model_and_no_failure_harms_it(
    composed, small_hub, in_this_process, tmp_path, capsys
):
    """The same run either way, and the same numbers as without: what became of the upload is told at the
    end and in report.json.
    """
    without, uploaded, failed = (RunDirectory(tmp_path / name) for name in ("without", "uploaded", "failed"))
    run_action(composed(TINY), without)
    run_action(composed([*TINY, *PUSH]), uploaded)
    assert f"uploaded: {small_hub.url}/{NAME}/commit/" in capsys.readouterr().out
    small_hub.fail("/commit/", 403)
    run_action(composed([*TINY, *PUSH, "training.hub_revision=v2"]), failed)
    told = capsys.readouterr().out
    assert f"not uploaded: training.hub_model_id={NAME}: this token may not write to it (403); " in told
    go_on = f"alignment_lab.export {failed.path} --push {NAME} --adapter --revision v2"
    assert go_on in told.replace("\n", " ")
    small_hub.fault = lambda method, path: None
    for run in (uploaded, failed):
        assert run.state()["state"] == "finished" and not run.partial.exists()
        assert run.state()["id"] == without.state()["id"]
        for name in ("adapter_model.safetensors", "tokenizer.json"):
            assert (run.model / name).read_bytes() == (without.model / name).read_bytes()
    files = small_hub.repositories[NAME].files()
    assert files["adapter_model.safetensors"] == (uploaded.model / "adapter_model.safetensors").read_bytes()
    assert "| eval_loss |" in files["README.md"].decode() and "curves.png" in files
    recorded = uploaded.report()["push_to_hub"]
    assert recorded["url"].startswith(small_hub.url)
    assert {save["step"] for save in recorded["saves"]} == {1, 2}
    assert "403" in failed.report()["push_to_hub"]["error"]
    export(failed.path, "--push", NAME, "--adapter", "--revision", "v2")
    assert "adapter_model.safetensors" in small_hub.repositories[NAME].files("v2")


def test_a_run_that_could_never_be_uploaded_is_refused_before_it_starts(composed, small_hub, tmp_path):
    """While a Hub that is not reached now is told of, and trained without."""
    spec, run = composed([*TINY, *PUSH]), RunDirectory(tmp_path / "run")
    assert check_uploads(spec, run) is None
    small_hub.fail("whoami", DROP)
    assert "the run goes on, and its upload is tried at the end" in check_uploads(spec, run)
    small_hub.fault, small_hub.role = lambda method, path: None, "read"
    with pytest.raises(UserError, match=f"training.hub_model_id={NAME}: the token of somebody may only read"):
        check_uploads(spec, run)
