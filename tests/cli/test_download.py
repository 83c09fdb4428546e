"""download, against a small copy of the Hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

from prefkd import catalog

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"safe",
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"further format",
    "original/consolidated.00.pth": b"pickle",
    "consolidated.safetensors": b"once more",
}
# What the Hub answers for the repositories of an owner: status and header X-Error-Code.
REFUSALS = {
    "missing": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "forbidden": (403, ""),
    "expired": (401, ""),
    "down": (418, ""),  # a status for which the client does not wait and ask again
}


class Hub(BaseHTTPRequestHandler):
    """Holds the same FILES in every repository, apart from those whose owner it refuses."""

    tokens: list[str | None]

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        type(self).tokens.append(self.headers["Authorization"])
        path = self.path.partition("?")[0].removeprefix("/api/models").strip("/")
        owner, _, rest = path.partition("/")
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if owner in REFUSALS:
            status, code = REFUSALS[owner]
            headers = {"X-Error-Code": code}
            if owner == "expired":
                headers["X-Error-Message"] = "Invalid credentials in Authorization header"
            return self.reply(status, b"", headers)
        if "/revision/" in rest and not rest.endswith((COMMIT, "/main")):
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if name:
            etag = hashlib.sha1(FILES[name]).hexdigest()
            return self.reply(200, FILES[name] if with_body else None, {"ETag": etag, "X-Repo-Commit": COMMIT}, name)
        if "/tree/" in rest:
            listing = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in FILES.items()]
            return self.reply(200, json.dumps(listing).encode())
        siblings = [{"rfilename": file} for file in FILES]
        self.reply(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())

    def reply(self, status: int, body: bytes | None, headers: dict[str, str] | None = None, name: str = "") -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(FILES[name] if body is None else body)))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.tokens = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def download(server: ThreadingHTTPServer, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`prefkd download` in a process of its own, since huggingface_hub reads its settings when it is imported."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(Path("hf").resolve())}
    return subprocess.run(
        [sys.executable, "-m", "prefkd", "download", *arguments],
        capture_output=True,
        text=True,
        env=inherited | settings | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
    )


def names(folder: str) -> set[str]:
    found = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if path.parts[0] != ".cache"}


def test_everything_but_pickles_and_further_formats(hub, folder):
    ended = download(hub, "owner/name")
    assert ended.returncode == 0, ended.stderr
    assert names("models/name") == {"config.json", "model.safetensors"}
    assert "wrote models/name: 2 files, " in ended.stdout
    assert "next: " in ended.stdout
    assert Hub.tokens and set(Hub.tokens) == {None}


def test_own_folder_and_patterns(hub, folder):
    ended = download(hub, "owner/name", "--output-dir", "here", "--ignore-patterns", "*.safetensors", "*.gguf")
    assert names("here") == {name for name in FILES if not name.endswith((".safetensors", ".gguf"))}
    assert "no *.safetensors" in ended.stdout


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_token(place, hub, folder):
    if place == ".env":
        Path(".env").write_text("HF_TOKEN=hf_secret\n")
    ended = download(hub, "owner/name", **({"HF_TOKEN": "hf_secret"} if place == "environment" else {}))
    assert ended.returncode == 0
    assert "Bearer hf_secret" in Hub.tokens
    assert "hf_secret" not in ended.stdout + ended.stderr
    written = [path for path in Path().rglob("*") if path.is_file() and path.name != ".env"]
    assert not any(b"hf_secret" in path.read_bytes() for path in written)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["missing/name"], "missing/name: not on the Hub, or private; "),
        (["gated/name"], "gated/name: gated; accept its terms at https://huggingface.co/gated/name, "),
        (["forbidden/name"], "forbidden/name: the Hub refuses the token (403); "),
        (["expired/name"], "expired/name: the Hub refuses the token (401); "),
        (["down/name"], "down/name: the Hub answers with error 418; "),
        (["owner/name", "--revision", "v9"], "owner/name: has no revision v9; "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_refusals(arguments, line, hub, folder):
    ended = download(hub, *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {line}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("way", ["no server", "offline"])
def test_unreachable_hub_is_no_success_with_a_half_filled_folder(way, hub, folder):
    assert download(hub, "owner/name").returncode == 0
    Path("models/name/model.safetensors").unlink()
    if way == "no server":
        hub.shutdown()
        hub.server_close()
    ended = download(hub, "owner/name", **({"HF_HUB_OFFLINE": "1"} if way == "offline" else {}))
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: owner/name: the Hub cannot be reached; ")


def test_folder_that_cannot_be_made(hub, folder):
    ended = download(hub, "owner/name", "--output-dir", "toy.py/model")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: toy.py/model: not a directory; ")
    assert ended.stderr.count("\n") == 1


def test_interrupt(prefkd, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", interrupted)
    ended = prefkd("download", "owner/name")
    assert (ended.code, ended.err) == (130, "error: interrupted; the same command resumes where this one stopped\n")


def test_demo_names_the_run_that_uses_it(prefkd, monkeypatch, tmp_path):
    (tmp_path / "configs" / "demo").mkdir(parents=True)
    (tmp_path / "configs" / "demo" / "toy.yaml").write_text("recipe: toy\nstudent:\n  path: models/demo-student\n")
    monkeypatch.setattr(catalog, "CONFIGS", tmp_path / "configs")
    demo = ModuleType("prefkd.demo")
    demo.make_demo_models = lambda folder, from_hub: [folder / "demo-teacher", folder / "demo-student"]
    monkeypatch.setitem(sys.modules, "prefkd.demo", demo)
    assert prefkd("download", "demo").out.splitlines() == [
        "models/demo-teacher is ready",
        "models/demo-student is ready",
        "next: prefkd run toy --config demo/toy",
    ]
