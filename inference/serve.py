"""Serve a trained run over HTTP.

    python -m inference.serve output/run --port 8000
    curl -F images=@photo.jpg http://127.0.0.1:8000/predict

It listens on this machine alone unless --host says otherwise; /docs describes all requests. SIGTERM
or Ctrl-C ends it once what it has accepted is answered.

Exit codes: 0 ended by a signal, 2 bad input, 130 interrupted before it served.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from importlib.util import find_spec
from typing import Any

from dassl.command import Parser, number, say
from dassl.command import run as run_command
from dassl.errors import UserError

PACKAGES = ("fastapi", "fastapi_offline", "python_multipart", "uvicorn")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.serve", description="Serve a trained run over HTTP.")
    count = number(int, "a whole number above 0", lambda value: value > 0)
    port = number(int, "a port from 0 to 65535", lambda value: 0 <= value <= 65535)
    seconds = number(float, "a number of seconds above 0", lambda value: 0 < value <= 86400)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, or of a saved classifier")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: of all networks")
    add("--port", type=port, default=8000, help="0 takes one that is free")
    add("--batch-size", type=count, default=32, help="pictures computed at once")
    add("--max-mb", type=count, default=16, help="megabytes (2**20 bytes) of a request")
    add("--max-pictures", type=count, default=32, help="pictures of a request")
    add("--max-requests", type=count, default=64, help="requests at a time; others get 503")
    add("--timeout", type=seconds, default=30.0, help="seconds to receive, and to answer, each")
    add("--device", help="where to compute, such as cpu or cuda:1; by default a GPU, if any")
    add("--precision", help="fp32, bf16, fp16, amp or auto; by default that of the run")
    return parser


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: that is not possible.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host: expected an address of this machine, got '{host}'") from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"cannot listen on {host} port {port}: {reason}") from error


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for, until a signal, and return the exit code.

    Raises:
        UserError: bad input.
    """
    if not os.path.isdir(args.run):
        raise UserError(f"RUN: expected an existing folder, got '{args.run}'")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install -e '.[serve]'")
    from dassl.utils.logger import errors_alone

    with listening(args.host, args.port) as listener, errors_alone():  # before the model is loaded
        serve(args, listener)
    return 0


def serve(args: argparse.Namespace, listener: socket.socket) -> None:
    """Load the classifier and answer requests until a signal."""
    import logging

    import uvicorn

    from inference import Classifier
    from inference.service import Limits, build_app

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its errors are answered
    classifier = Classifier.load(args.run, args.device, args.precision)
    limits = Limits(
        bytes=args.max_mb * 2**20,
        pictures=args.max_pictures,
        requests=args.max_requests,
        seconds=args.timeout,
        batch=args.batch_size,
    )
    config = uvicorn.Config(
        build_app(classifier, limits),
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=int(2 * args.timeout) + 1,
    )
    server = uvicorn.Server(config)

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    # uvicorn's own take their place while it runs; then it raises the signal again
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    host, port = listener.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    say(f"serving {args.run} on http://{place}, described on http://{place}/docs")
    server.run([listener])
    say("stopped")


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's own without ``argv``, and return the exit code."""
    return run_command(lambda: run(build_parser().parse_args(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
