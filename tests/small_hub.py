"""A Hub of the tests' own: an HTTP server that answers what huggingface_hub's client asks of one to upload
and download models, keeps what arrives, and fails on request.

It speaks the client's plain protocol (git LFS); the client's other one, Xet, is switched off with
HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest

TOKEN = "hf_" + "FourScoreAndSevenYearsAgoOurFathers"[:34]
DROP = "drop"  # the connection ends, with half of the body read and no answer
LFS_SUFFIXES = (".safetensors", ".gguf", ".png", ".bin")


@dataclass
class Repository:
    """One repository: the files of each branch, by path, as (oid, bytes of it)."""

    private: bool
    branches: dict[str, dict[str, tuple[str, bytes]]] = field(default_factory=lambda: {"main": {}})
    commits: list[tuple[str, str]] = field(default_factory=list)  # (branch, message)

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return {path: content for path, (_, content) in self.branches[branch].items()}


@dataclass
class Hub:
    """What the server knows, what was asked of it, and how it is to fail."""

    url: str = ""
    user: str = "somebody"
    role: str = "write"
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of LFS, by sha256
    asked: list[tuple[str, str]] = field(default_factory=list)  # (method, path)
    received: int = 0  # bytes of LFS objects
    # called with method and path; a status or DROP is a failure
    fault: Callable[[str, str], int | str | None] = lambda method, path: None

    def count(self, method: str, part: str) -> int:
        return sum(asked == method and part in path for asked, path in self.asked)

    def fail(self, part: str, fault: int | str, *, times: int = 10**6) -> None:
        """Fail the next `times` requests whose method and path hold `part`."""
        left = [times]

        def next_fault(method: str, path: str) -> int | str | None:
            if part not in f"{method} {path}" or not left[0]:
                return None
            left[0] -= 1
            return fault

        self.fault = next_fault


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The requests of the client's upload and download."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *words: Any) -> None: ...

    def do_GET(self) -> None:
        self.handle_request()

    do_POST = do_PUT = do_HEAD = do_GET

    def handle_request(self) -> None:
        url = urlparse(self.path)
        path = unquote(url.path)
        self.hub.asked.append((self.command, path))
        fault = self.hub.fault(self.command, path)
        if fault == DROP:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            return
        body = self.body()
        if isinstance(fault, int):
            return self.answer({"error": f"it was told to fail with {fault}"}, fault)
        if self.command == "PUT":  # an address that needs no token
            return self.put_object(path.rpartition("/")[2], body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        self.route(path, parse_qs(url.query), body)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if isinstance(content, dict) and "error" in content:
            self.send_header("X-Error-Message", content["error"])
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path == "/api/whoami-v2":
            return self.answer({"name": self.hub.user, "auth": {"accessToken": {"role": self.hub.role}}})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        if "/resolve/" in path:
            return self.resolve(path)
        _, api, kind, owner, name, *rest = path.split("/")
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if (api, kind) != ("api", "models") or repository is None:
            return self.answer({"error": "Repository Not Found"}, 404)
        what, branch = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        if what == "branch":
            return self.branch(repository, branch)
        tree = repository.branches[branch]
        if what == "revision":
            siblings = [{"rfilename": file} for file in tree]
            return self.answer(
                {
                    "id": f"{owner}/{name}",
                    "private": repository.private,
                    "sha": "0" * 40,
                    "siblings": siblings,
                }
            )
        if what == "tree":
            entries = [
                {"type": "file", "path": file, "oid": oid, "size": len(content)}
                for file, (oid, content) in tree.items()
            ]
            return self.answer(entries)
        if what == "preupload":
            return self.preupload(tree, json.loads(body))
        assert what == "commit", path
        self.commit(f"{owner}/{name}", branch, [json.loads(line) for line in body.splitlines()])

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or self.hub.user}/{asked['name']}"
        known = name in self.hub.repositories
        if not known:
            self.hub.repositories[name] = Repository(private=asked["visibility"] == "private")
        self.answer({"url": f"{self.hub.url}/{name}", "name": name}, 409 if known else 200)

    def branch(self, repository: Repository, name: str) -> None:
        known = name in repository.branches
        repository.branches.setdefault(name, dict(repository.branches["main"]))
        self.answer({}, 409 if known else 200)

    def preupload(self, tree: dict[str, tuple[str, bytes]], asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": tree.get(file["path"], (None,))[0],
            }
            for file in asked["files"]
        ]
        self.answer({"files": files})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for entry in asked["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/objects/{entry['oid']}"}}
            objects.append(entry if entry["oid"] in self.hub.objects else {**entry, "actions": upload})
        self.answer({"transfer": "basic", "objects": objects})

    def put_object(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.hub.received += len(body)
        self.answer(b"")

    def commit(self, name: str, branch: str, lines: list[Any]) -> None:
        repository = self.hub.repositories[name]
        tree = repository.branches[branch]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append((branch, value["summary"]))
            elif line["key"] == "file":
                content = base64.b64decode(value["content"])
                tree[value["path"]] = (git_oid(content), content)
            elif line["key"] == "lfsFile":
                tree[value["path"]] = (value["oid"], self.hub.objects[value["oid"]])
            else:
                assert line["key"] == "deletedFile", line
                del tree[value["path"]]
        address = f"{self.hub.url}/{name}/commit/{len(repository.commits)}"
        self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": address})

    def resolve(self, path: str) -> None:
        owner, name, _, branch, *file = path.strip("/").split("/")
        oid, content = self.hub.repositories[f"{owner}/{name}"].branches[branch]["/".join(file)]
        self.answer(content, ETag=f'"{oid}"', X_Repo_Commit="0" * 40)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The server, for as long as the block runs."""
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def small_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Hub]:
    """A running Hub that this process and its children use, with somebody logged in; nobody sleeps before
    another try.
    """
    from types import SimpleNamespace

    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    with serving(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for module in ("huggingface_hub.utils._http", "alignment_lab.export.hub"):
            monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=lambda seconds: None))
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)
        close_session()
        yield hub
        close_session()
