"""Downloading a tokenizer, from a hub of our own on this machine."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "download_hf_assets.py"
FILES = {
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": json.dumps({"bos_token": "<s>"}).encode(),
}
SHA = "0" * 40
MEMBER, OUTSIDER = "hf_member", "hf_outsider"


class Hub(BaseHTTPRequestHandler):
    """Repositories open/model (no tokenizer_config.json in open/bare) and gated/model."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        api = parts[0] == "api"  # api/models/OWNER/MODEL/..., else OWNER/MODEL/resolve/SHA/NAME
        owner, model = parts[2:4] if api else parts[:2]
        files = {n: f for n, f in FILES.items() if (model, n) != ("bare", "tokenizer_config.json")}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if owner == "broken":
            self._refuse(503, None)
        elif owner not in ("open", "gated"):
            self._refuse(401, "RepoNotFound")
        elif api and "tree" in parts:
            names = [*files, "model.safetensors"]  # the last is not to be asked for
            listed = [{"type": "file", "path": n, "size": 9, "oid": n} for n in names]
            self._send(json.dumps(listed).encode(), body=body)
        elif api:  # anybody sees what a gated repository holds
            info = {"id": f"{owner}/{model}", "sha": SHA, "siblings": []}
            self._send(json.dumps(info).encode(), body=body)
        elif owner == "gated" and token != MEMBER:
            self._refuse(403 if token else 401, "GatedRepo")
        elif parts[-1] not in files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(files[parts[-1]], body=body, etag=parts[-1])

    def _send(self, data: bytes, *, body: bool, etag: str = "") -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def download(
    endpoint: str, tmp_path: Path, *flags: str, token: str | None = None
) -> tuple[int, str]:
    """Exit status, and the last line that was printed."""
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment.pop("HF_TOKEN", None)
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub")}
    if token:
        environment["HF_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--to", str(tmp_path / "to"), *flags],
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]


def test_a_tokenizer_is_downloaded_with_a_token(hub: str, tmp_path: Path) -> None:
    code, _ = download(hub, tmp_path, "--repo", "gated/model", token=MEMBER)
    assert code == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()}
    assert written == FILES


def test_a_token_can_be_passed_by_flag(hub: str, tmp_path: Path) -> None:
    flags = ("--repo", "gated/model", "--hf-token", MEMBER)
    assert download(hub, tmp_path, *flags, token=OUTSIDER)[0] == 0


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("gated/model", None, "is gated and there is no token: .* set HF_TOKEN"),
        ("gated/model", OUTSIDER, "is gated, and the account of your token has no access"),
        ("missing/model", OUTSIDER, "missing/model: not found; .* check --hf-token"),
        ("missing/model", None, "missing/model: not found; .* set HF_TOKEN"),
        ("open/bare", None, "open/bare: has no tokenizer_config.json"),
        ("not a repo", None, "write OWNER/MODEL"),
        ("broken/model", None, "the hub (answers 503|cannot be reached)"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(
    hub: str, tmp_path: Path, repo: str, token: str | None, message: str
) -> None:
    code, line = download(hub, tmp_path, "--repo", repo, token=token)
    assert code == 2
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not (tmp_path / "to").exists()


def test_no_network_is_told(tmp_path: Path) -> None:
    # Port 9 of this machine: nobody listens.
    code, line = download("http://127.0.0.1:9", tmp_path, "--repo", "open/model")
    assert (code, "the hub cannot be reached" in line) == (2, True), line


def test_nothing_is_overwritten_without_force(hub: str, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    mine = tmp_path / "to" / "tokenizer.json"
    mine.write_bytes(b"mine")
    code, line = download(hub, tmp_path, "--repo", "open/model")
    assert (code, mine.read_bytes()) == (2, b"mine")
    assert "--force" in line
    assert download(hub, tmp_path, "--repo", "open/model", "--force")[0] == 0
    assert mine.read_bytes() == FILES["tokenizer.json"]
