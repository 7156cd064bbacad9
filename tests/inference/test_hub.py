"""Classifiers on the Hub, which is a server of this process here."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import numpy as np
import pytest

from dassl.errors import UserError
from inference import Classifier

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files and their download ask for."""

    files: dict[str, bytes] = {}
    is_broken = False

    def log_message(self, *args: object) -> None:
        pass

    def answer(
        self, code: int, content: object = "", headers: dict[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.is_broken:
            self.answer(403, {"error": "no rights"})
        elif self.path == "/api/repos/create":
            self.answer(200, {"url": "https://huggingface.co/me/colors", "name": "me/colors"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": name, **answer} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                200,
                {
                    "commitUrl": f"https://huggingface.co/me/colors/commit/{COMMIT}",
                    "commitOid": COMMIT,
                },
            )
        else:
            self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/me/colors/resolve/") and name in self.files:
            content = self.files[name]
            tag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
        elif self.path.startswith("/api/models/me/colors/revision/"):  # older clients ask
            self.answer(200, {"id": "me/colors", "xetEnabled": False, "siblings": []})
        else:
            self.answer(404, {"error": "nothing here"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    # what HF_ENDPOINT sets where it is there before the import
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(Hub, "files", {})
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_pushed_comes_back_and_stays_for_offline_use(hub, classifier, tmp_path):
    cache = {"cache_dir": tmp_path / "cache"}
    classifier.set_classes(["one", "two", "three"])
    assert "me/colors" in classifier.push_to_hub("me/colors", token="hf_x")
    assert set(Hub.files) >= {"config.json", "model.safetensors", "README.md"}
    assert b'Classifier.from_pretrained("me/colors")' in Hub.files["README.md"]
    picture = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    expected = classifier.predict(picture)
    assert (
        Classifier.from_pretrained("me/colors", token=False, **cache).predict(picture) == expected
    )
    Hub.files.clear()
    offline = Classifier.from_pretrained("me/colors", local_files_only=True, **cache)
    assert offline.predict(picture) == expected


def test_a_hub_that_refuses_is_one_line(hub, classifier, monkeypatch, tmp_path):
    monkeypatch.setattr(Hub, "is_broken", True)
    with pytest.raises(UserError, match="^cannot upload to 'me/colors': ") as caught:
        classifier.push_to_hub("me/colors", token="hf_x")
    assert "\n" not in str(caught.value)
    for name, options in (
        ("me/nothing", {}),
        ("me/colors", {"local_files_only": True}),
        ("not a/name/at all", {}),
        (str(tmp_path / "missing"), {}),
    ):
        with pytest.raises(UserError, match="which is no folder, from the Hub: ") as caught:
            Classifier.from_pretrained(name, token=False, cache_dir=tmp_path, **options)
        assert "\n" not in str(caught.value)
