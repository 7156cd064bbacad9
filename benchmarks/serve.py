"""Load test of ``python -m inference.serve``: many clients at once, and no answer lost.

    python -m benchmarks.serve output/run data/digits/images --clients 50 --seconds 60

Starts the service on a free port of this machine, asks it from several clients at once, each with a
connection of its own and a picture a request, in turn as a form and as JSON, and ends it by
SIGTERM. Each picture has the answer of ``Classifier.predict``, computed beforehand; each form has a
name of its own, which the answer must repeat.

Prints requests a second, latencies and how many answers were lost or wrong; exit code 1 if any was.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np

from dassl.command import Parser, number
from dassl.command import run as run_command
from dassl.errors import UserError
from inference import Classifier
from inference.pictures import pictures_in

TOLERANCE = 1e-4  # of probabilities, which depend on the batch in their last bits
MOST_PICTURES = 200
BOUNDARY = "boundary-of-a-load-test"


def as_form(data: bytes, name: str) -> tuple[bytes, str]:
    """Return the body of a request, and its type."""
    head = f'Content-Disposition: form-data; name="images"; filename="{name}"'
    body = f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, f"multipart/form-data; boundary={BOUNDARY}"


def as_json(data: bytes) -> tuple[bytes, str]:
    """Return the body of a request, and its type."""
    return json.dumps({"images": [base64.b64encode(data).decode()]}).encode(), "application/json"


class Load:
    """What the clients ask for, and what they get.

    Args:
        port: of the service.
        pictures: files of pictures.
        answers: for each the probability of each class.
    """

    def __init__(self, port: int, pictures: list[bytes], answers: list[dict[str, float]]) -> None:
        self.port, self.pictures, self.answers = port, pictures, answers
        self.seconds: list[float] = []
        self.outcomes: Counter[str] = Counter()
        self.is_over = threading.Event()

    def ask(self, client: int) -> None:
        """Ask until the time is over."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        count = 0
        while not self.is_over.is_set():
            place = (client * 31 + count) % len(self.pictures)
            name = f"{client}-{count}.png" if count % 2 == 0 else "#0"
            data = self.pictures[place]
            body, kind = as_form(data, name) if count % 2 == 0 else as_json(data)
            start = time.perf_counter()
            try:
                connection.request("POST", "/predict?top=1000000", body, {"Content-Type": kind})
                response = connection.getresponse()
                content = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.outcomes[f"lost: {type(error).__name__}"] += 1
                connection.close()
            else:
                self.seconds.append(time.perf_counter() - start)
                is_right = response.status == 200 and self.is_right(content, name, place)
                self.outcomes["right" if is_right else f"wrong: {response.status}"] += 1
            count += 1
        connection.close()

    def is_right(self, content: Any, name: str, place: int) -> bool:
        """Return whether an answer is the one for a picture, and for nothing else."""
        (found,) = content["predictions"]
        expected = self.answers[place]
        shares = {each["label"]: each["probability"] for each in found["top"]}
        return (
            found["image"] == name
            and shares.keys() == expected.keys()
            and all(abs(shares[label] - expected[label]) < TOLERANCE for label in expected)
        )


def run(args: argparse.Namespace) -> int:
    paths = [path for path, _ in islice(pictures_in(args.images), MOST_PICTURES)]
    predictions = Classifier.load(args.run).predict(paths, top=10**6, progress=False)
    sound = [(each.image, each) for each in predictions if not each.error]
    if not sound:
        raise UserError("IMAGE: expected pictures, got none that can be read")
    pictures = []
    for path, _ in sound:
        with open(path, "rb") as file:
            pictures.append(file.read())
    answers = [dict(zip(each.labels, each.probabilities, strict=True)) for _, each in sound]
    command = [sys.executable, "-m", "inference.serve", args.run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+),", process.stdout.readline())
        if found is None:
            return process.wait() or 1
        load = Load(int(found[1]), pictures, answers)
        threads = [threading.Thread(target=load.ask, args=(i,)) for i in range(args.clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        time.sleep(args.seconds)
        load.is_over.set()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - start
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    total = sum(load.outcomes.values())
    print(f"{args.clients} clients, {elapsed:.1f} s, {len(pictures)} pictures, {total} requests")
    print(f"requests a second: {total / elapsed:.1f}")
    if load.seconds:
        shares = 1000 * np.percentile(load.seconds, [50, 95, 99])
        print("latency p50 {:.0f} ms, p95 {:.0f} ms, p99 {:.0f} ms".format(*shares))
    print("answers:", ", ".join(f"{name} {count}" for name, count in load.outcomes.most_common()))
    print(f"exit code of the service: {code}")
    return 0 if load.outcomes["right"] == total > 0 and code == 0 else 1


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's own without ``argv``, and return the exit code."""
    parser = Parser(prog="python -m benchmarks.serve", description=(__doc__ or "").splitlines()[0])
    count = number(int, "a whole number from 1 to 1000", lambda value: 0 < value <= 1000)
    parser.add_argument("run", metavar="RUN", help="folder of a run, or of a saved classifier")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a picture, or a folder")
    parser.add_argument("--clients", type=count, default=50)
    parser.add_argument("--seconds", type=count, default=60)
    return run_command(lambda: run(parser.parse_args(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
