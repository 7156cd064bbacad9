"""The service: right answers in any company, limits, and bad uploads that stop nothing."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi_offline")

from fastapi.testclient import TestClient

from inference import Classifier, serve
from inference.batching import Batcher
from inference.output import answer, record_of
from inference.service import Limits, build_app
from tests.inference.runs import Runs

ROOT = Path(__file__).parents[2]
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=ab"}
FILE = b'--ab\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n'
LIMITS = Limits(bytes=2**20, pictures=3, requests=20, batch=4)


def picture(seed: int) -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def client(runs: Runs):
    with TestClient(build_app(Classifier.from_run(runs.trained("VPT")), LIMITS)) as client:
        yield client


def expected(classifier, names, data, top=5, threshold=0.0):
    records = []
    for name, each in zip(names, classifier.predict(data, top=top), strict=True):
        records.append({**record_of(each, answer(each, threshold)), "image": name})
    return records


def assert_same(found, wanted):
    for each, other in zip(found, wanted, strict=True):
        shares = [entry.pop("probability") for entry in each["top"] + other["top"]]
        assert shares[: len(shares) // 2] == pytest.approx(shares[len(shares) // 2 :], abs=1e-5)
        assert each.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-5)
        assert each == other


def test_a_form_and_json_get_the_classifiers_answer(client, classifier):
    data = [picture(1), picture(2)]
    files = [("images", ("a.png", data[0])), ("images", ("b c.png", data[1]))]
    found = client.post("/predict", files=files, data={"top": "1"})
    assert found.status_code == 200
    wanted = expected(classifier, ["a.png", "b c.png"], data, top=1)
    assert_same(found.json()["predictions"], wanted)
    found = client.post("/predict?threshold=1", json={"images": [*map(text, data)], "top": 1})
    wanted = expected(classifier, ["#0", "#1"], data, top=1, threshold=1.0)
    assert {each["label"] for each in wanted} == {"none of these"}
    assert_same(found.json()["predictions"], wanted)
    found = client.post("/predict?top=1", json={"images": [text(data[0])], "top": 10**30})
    assert len(found.json()["predictions"][0]["top"]) == 2  # the body has precedence


def test_a_broken_picture_among_others_has_an_error_of_its_own(client, classifier):
    files = [("images", (f"{i}", each)) for i, each in enumerate((picture(1), b"x", picture(2)))]
    found = client.post("/predict", files=files)
    assert found.status_code == 200
    first, broken, last = found.json()["predictions"]
    assert_same([first, last], expected(classifier, ["0", "2"], [picture(1), picture(2)]))
    assert broken["label"] is broken["probability"] is None and broken["top"] == []
    assert broken["error"].startswith("image '1' is unreadable or truncated")


def test_what_it_tells_about_itself(client):
    assert client.get("/health").json() == {
        **{"status": "ok", "method": "VPT", "requests": 0},
        "backbone": client.get("/health").json()["backbone"],
    }
    assert client.get("/classes").json() == {"classes": ["red", "green"]}
    assert client.get("/nothing").json() == {"error": "Not Found"}
    assert client.get("/predict").status_code == 405
    page = client.get("/docs").text
    for path in re.findall(r'(?:href|src)="([^"]+)"', page):  # nothing is loaded from elsewhere
        assert path.startswith("/") and client.get(path).status_code == 200
    operation = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert set(operation["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    for content in operation["requestBody"]["content"].values():
        properties = content["schema"]["properties"]
        assert set(properties) == {"images", "top", "threshold"}
        assert all(each["description"] for each in properties.values())


def image_file(kind: str, size: tuple[int, int], mode: str = "1") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", b"0" * 10**6)
    return buffer.getvalue()


UPLOADS = {
    "bomb": (lambda: image_file("png", (12_000, 12_000)), "more than INPUT.MAX_PIXELS"),
    "narrow": (lambda: image_file("png", (1, 600_000), "L"), "is too narrow"),
    "empty": (bytes, "unreadable or truncated"),
    "text": (lambda: b"hello", "its format is none of BMP"),
    "zip": (archive, "its format is none of BMP"),
    "cut": (lambda: picture(1)[:80], "unreadable or truncated"),
    "eps": (lambda: image_file("eps", (8, 8), "L"), "its format is none of BMP"),
    "path": (lambda: b"/etc/passwd", "its format is none of BMP"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_a_request_of_bad_pictures_alone_is_422(client, name):
    make, message = UPLOADS[name]
    files = [("images", ("a\x1b\u202e.png", make()))]
    form = client.post("/predict", files=files)
    json_ = client.post("/predict", json={"images": [text(make())] * 2})
    for found in (form, json_):
        assert found.status_code == 422 and set(found.json()) == {"error"}
        error = found.json()["error"]
        assert message in error and not set(error) & set("\n\x1b\u202e")
    assert json_.json()["error"].endswith("(nor can the other 1)")
    assert client.post("/predict", json={"images": [text(picture(1))]}).status_code == 200


REQUESTS = [
    (b"", {}, 415, "Content-Type: expected application/json or multipart/form-data, got ''"),
    (b"x", {"content-type": "image/png"}, 415, "got 'image/png'"),
    (b"{}", {**JSON, "content-encoding": "gzip"}, 415, "Content-Encoding: expected none"),
    (b"{", JSON, 400, "request: Invalid JSON"),
    (b"\xff\xfe", JSON, 400, "request: Invalid JSON"),
    (b"[" * 100_000, JSON, 400, "recursion limit"),
    (b"[]", JSON, 422, "request: Input should be an object, got []"),
    (b"{}", JSON, 422, "images: Field required"),
    (b'{"images": []}', JSON, 422, "images: List should have at least 1 item"),
    (b'{"images": "/etc/passwd"}', JSON, 422, "images: Input should be a valid"),
    (b'{"images": [3]}', JSON, 422, "images.0: Input should be a valid string, got 3"),
    (b'{"images": ["%%"]}', JSON, 422, "image '#0': expected base64 text, got another"),
    (b'{"images": ["x"], "top": 0}', JSON, 422, "top: Input should be greater"),
    (b'{"images": ["x"], "top": true}', JSON, 422, "top: Input should be a valid integer"),
    (b'{"images": ["x"], "threshold": NaN}', JSON, 422, "threshold: Input should be a finite"),
    (b'{"images": ["x"], "classnames": []}', JSON, 422, "classnames: Extra inputs"),
    (b'{"images": ["x", "x", "x", "x"]}', JSON, 413, "images: expected at most 3, got more"),
    (b"x" * (2**20 + 1), JSON, 413, "request: expected at most 1048576 bytes, got more"),
    (b"{}", {**JSON, "content-length": "9" * 5000}, 400, "Content-Length: expected a number"),
    (b"x", {"content-type": "multipart/form-data"}, 400, "request: "),
    (b"x", FORM, 400, "request: "),
    (b"", FORM, 400, "request: expected a form that ends with its boundary"),
    (FILE + b"abc", FORM, 400, "request: expected a form that ends with its boundary"),
    (b"--ab--\r\n", FORM, 422, "images: expected at least one file, got none"),
    (FILE.replace(b'"x"', b'"' + b"x" * 10**5 + b'"'), FORM, 400, "Maximum header size"),
    ((FILE + b"a\r\n") * 4 + b"--ab--\r\n", FORM, 413, "images: expected at most 3, got more"),
    (
        FILE.replace(b"images", b"file") + b"a\r\n--ab--\r\n",
        FORM,
        422,
        "file: expected images for files, got file",
    ),
    (
        FILE.replace(b'; filename="x"', b"") + b"a\r\n--ab--\r\n",
        FORM,
        422,
        "images: expected files",
    ),
]


@pytest.mark.parametrize("body, headers, status, message", REQUESTS)
def test_a_bad_request_gets_one_line(client, body, headers, status, message):
    found = client.post("/predict", content=body, headers=headers)
    assert found.status_code == status and set(found.json()) == {"error"}
    assert message in found.json()["error"] and "\n" not in found.json()["error"]
    assert len(found.json()["error"]) < 1000


@pytest.mark.parametrize("query", ["top=0", "top=x", "threshold=nan", "threshold=2", "tpo=1"])
def test_a_bad_query_gets_one_line(client, query):
    found = client.post(f"/predict?{query}", json={"images": [text(picture(1))]})
    assert found.status_code == 422
    assert found.json()["error"].startswith(f"{query.split('=')[0]}: ")


def test_a_body_without_a_length_is_counted_as_it_comes(client):
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(64):
            sent += 2**18
            yield b"x" * 2**18

    found = client.post("/predict", content=chunks(), headers=JSON)
    assert found.status_code == 413


def test_requests_at_the_same_time_share_batches_and_get_their_own_answers(classifier):
    sizes: list[int] = []
    both = threading.Barrier(2)
    logits = classifier.logits

    def counted(pictures):
        if not sizes:
            both.wait(60)  # until all others wait
        sizes.append(len(pictures))
        return logits(pictures)

    data = [picture(i) for i in range(9)]
    wanted = [expected(classifier, ["#0"], [each]) for each in data]
    classifier.logits = counted
    with TestClient(build_app(classifier, LIMITS)) as client, ThreadPoolExecutor(9) as pool:
        futures = [
            pool.submit(client.post, "/predict", json={"images": [text(each)]}) for each in data
        ]
        while client.get("/health").json()["requests"] < 9:
            pass
        both.wait(60)
        for future, each in zip(futures, wanted, strict=True):
            assert_same(future.result(60).json()["predictions"], each)
    assert sum(sizes) == 9 and max(sizes) <= 4 and len(sizes) < 9


def test_a_full_service_and_a_late_answer_are_503(classifier):
    go = threading.Event()
    logits = classifier.logits
    classifier.logits = lambda pictures: logits(pictures) if go.wait(60) else None
    body = {"images": [text(picture(1))]}
    app = build_app(classifier, Limits(requests=1, seconds=1.0))
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.post, "/predict", json=body)
        while client.get("/health").json()["requests"] < 1:
            pass
        full = client.post("/predict", json=body)
        late = late.result(60)
        go.set()
        assert "busy; try again" in full.json()["error"]
        assert "no answer within 1 seconds" in late.json()["error"]
        for found in (full, late):
            assert (found.status_code, found.headers["retry-after"]) == (503, "1")
        assert client.post("/predict", json=body).status_code == 200


def test_a_fault_of_the_model_is_one_500_and_the_service_goes_on(classifier, caplog):
    logits, faults = classifier.logits, [RuntimeError("no memory")]

    def failing(pictures):
        if faults:
            raise faults.pop()
        return logits(pictures)

    classifier.logits = failing
    body = {"images": [text(picture(1))]}
    with TestClient(build_app(classifier, LIMITS), raise_server_exceptions=False) as client:
        found = client.post("/predict", json=body)
        assert found.status_code == 500 and "log says why" in found.json()["error"]
        assert client.post("/predict", json=body).status_code == 200


def test_a_batcher_leaves_out_what_was_cancelled_and_ends_with_all_answered():
    started, go = threading.Event(), threading.Event()
    seen: list[list[float]] = []

    def compute(pictures):
        started.set()
        go.wait(60)
        seen.append(pictures.tolist())
        return 2 * pictures

    batcher = Batcher(compute, 3)
    futures: list[Future] = [batcher.submit(torch.tensor(0.0))]
    started.wait(60)
    futures += [batcher.submit(torch.tensor(float(i))) for i in range(1, 6)]
    assert futures[2].cancel()
    go.set()
    batcher.close()
    assert [each.result(0).item() for i, each in enumerate(futures) if i != 2] == [0, 2, 6, 8, 10]
    assert seen == [[0.0], [1.0, 3.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--port", "70000"], "argument --port: expected a port from 0 to 65535, got '70000'"),
        (["--port", "http"], "argument --port: expected a port from 0 to 65535, got 'http'"),
        (["--batch-size", "0"], "argument --batch-size: expected a whole number above 0, got '0'"),
        (["--timeout", "nan"], "argument --timeout: expected a number of seconds above 0"),
        (
            ["--host", "no such host"],
            "--host: expected an address of this machine, got 'no such host'",
        ),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1 port 8000: Cannot assign requested"),
        (["--host", "a" * 300], "--host: expected an address of this machine, got 'aaa"),
        (["--port", "0", "--device", "tpu9"], "device: expected one of this machine, got 'tpu9'"),
        (["--nonsense"], "unrecognized arguments: --nonsense; see python -m inference.serve"),
    ],
)
def test_bad_arguments_are_one_line(runs: Runs, capsys, argv, message):
    run = str(runs.trained("VPT"))
    capsys.readouterr()
    assert serve.main([run, *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    assert message in captured.err and captured.err.count("\n") == 1


def test_a_port_that_is_taken_an_unknown_run_and_a_missing_package(tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main([str(tmp_path), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    assert serve.main(["none"]) == 2
    assert capsys.readouterr().err == "error: RUN: expected an existing folder, got 'none'\n"
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: uvicorn not installed: pip install -e '.[serve]'\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_once_what_it_has_begun_is_answered(runs: Runs, number):
    command = [sys.executable, "-m", "inference.serve", str(runs.trained("VPT")), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            line = process.stdout.readline()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+),", line)[1])
            with socket.create_connection(("127.0.0.1", port)) as other:
                other.sendall(b"POST /predict HTTP/1.1\r\nContent-Type: application/json\r\n")
                other.sendall(b"Host: a\r\nContent-Length: 9\r\n\r\n{")  # and is gone
            huge = http.client.HTTPConnection("127.0.0.1", port)
            huge.request("GET", "/health", headers={"X": "y" * 10**6})
            assert huge.getresponse().status == 400
            body = json.dumps({"images": [text(picture(1))]}).encode()
            begun = http.client.HTTPConnection("127.0.0.1", port)
            begun.putrequest("POST", "/predict")
            begun.putheader("Content-Type", "application/json")
            begun.putheader("Content-Length", str(len(body)))
            begun.endheaders(body[:50])
            asking = http.client.HTTPConnection("127.0.0.1", port)
            count = 0
            while count != 1:
                asking.request("GET", "/health")
                count = json.loads(asking.getresponse().read())["requests"]
            process.send_signal(number)
            while asking.sock.recv(1):  # the idle connection is closed
                pass
            begun.send(body[50:])
            answered = begun.getresponse()
            assert answered.status == 200
            assert len(json.loads(answered.read())["predictions"]) == 1
            assert process.wait(60) == 0
            assert process.stdout.read() == "stopped\n"
            assert "Traceback" not in process.stderr.read()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        finally:
            process.kill()
