"""A page in the browser that shows a trained run at work.

    python -m inference.demo output/run

Pictures are dropped on the page and classified; their class names can be edited there. Whoever has
the page open has class names of their own. It is for this machine alone unless --host says
otherwise, needs no network, and the pictures are deleted when it is stopped.

Exit codes: 2 bad input (one line on stderr says what), 130 stopped by Ctrl+C.
"""

from __future__ import annotations

import argparse
import base64
import errno
import html
import io
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from dassl.command import Parser, number, say
from dassl.command import run as run_command
from dassl.errors import UserError, shown
from dassl.utils.tools import ImageError
from inference import Classifier, Prediction
from inference.attention import attention_maps, overlay
from inference.output import answer, record_of
from inference.pictures import decoded

SIDE = 320  # pixels of the pictures on the page
MOST_PICTURES = 32  # on the page at once
MOST_BARS = 8  # of a picture
KEPT = 32  # class names, of all who have the page open, whose features are kept
HOUR = 3600

STYLE = Path(__file__).with_name("demo.css")


@dataclass(frozen=True)
class Seen:
    """What the page shows of a picture.

    Attributes:
        prediction: for the most probable classes.
        picture: the square that the model takes, as a data URI; "" where it cannot be read.
        attention: the same with what is attended to; "" where there is no such thing.
    """

    prediction: Prediction
    picture: str = ""
    attention: str = ""


def names_in(text: str) -> tuple[str, ...]:
    """Return the class names of a text with one in each line."""
    return tuple(name for line in text.splitlines() if (name := line.strip()))


def look(classifier: Classifier, paths: Sequence[str]) -> list[Seen]:
    """Classify pictures; one that cannot be read has its error.

    Raises:
        UserError: there are too many.
    """
    if len(paths) > MOST_PICTURES:
        raise UserError(f"pictures: expected at most {MOST_PICTURES} at once, got {len(paths)}")
    seen = []
    for path in paths:
        name = os.path.basename(path)
        try:
            picture = decoded(Path(path).read_bytes(), name, classifier.cfg)
        except ImageError as error:
            seen.append(Seen(Prediction(name, error=str(error))))
        else:
            seen.append(_seen(classifier, name, picture))
    return seen


def _seen(classifier: Classifier, name: str, picture: Image.Image) -> Seen:
    (prediction,) = classifier.predict(picture, MOST_BARS, progress=False)
    maps = attention_maps(classifier.method, classifier.preprocess(picture)[None])
    square = middle(picture)
    return Seen(
        replace(prediction, image=name),
        data_uri(square),
        "" if maps is None else data_uri(overlay(square, maps[0])),
    )


def middle(picture: Image.Image) -> Image.Image:
    """Cut out the square that models take of a picture, at the page's size."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def cards(seen: Sequence[Seen], threshold: float) -> str:
    """Return pictures, bars and errors as HTML."""
    return f'<div class="cards">{"".join(card(each, threshold) for each in seen)}</div>'


def card(seen: Seen, threshold: float) -> str:
    prediction = seen.prediction
    name, label = html.escape(prediction.image), answer(prediction, threshold)
    if label is None:
        error = html.escape(prediction.error)
        return f'<article class="card"><p class="problem" role="alert">{error}</p></article>'
    figures = figure(seen.picture, name)
    if seen.attention:
        figures += figure(seen.attention, "attention")
    bars = "".join(
        f'<li><span class="label">{html.escape(each)}</span>'
        f'<span class="track"><span class="bar" style="width:{100 * p:.1f}%"></span></span>'
        f'<span class="share">{100 * p:.1f}%</span></li>'
        for each, p in zip(prediction.labels, prediction.probabilities, strict=True)
    )
    is_known = label == prediction.label
    return (
        f'<article class="card {"known" if is_known else "unknown"}">'
        f'<div class="figures">{figures}</div>'
        f'<div class="answer"><h3>{html.escape(label)}</h3><ol>{bars}</ol></div></article>'
    )


def figure(uri: str, caption: str) -> str:
    """Return a picture as HTML; the caption is escaped already."""
    image = f'<img src="{uri}" alt="{caption}" width="{SIDE}" height="{SIDE}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def problem(text: str) -> str:
    """Return an error as HTML, "" for none."""
    return f'<p class="problem" role="alert">{html.escape(text)}</p>' if text else ""


def as_json(seen: Sequence[Seen], threshold: float) -> str:
    """Return what ``predict.py --format json`` writes, indented; "" for no picture."""
    records = [record_of(each.prediction, answer(each.prediction, threshold)) for each in seen]
    return json.dumps(records, ensure_ascii=False, indent=2) if records else ""


def title_of(classifier: Classifier) -> str:
    config = classifier.record.config
    return f"{config['TRAINER']['NAME']} on {config['DATASET']['NAME']}"


def about(classifier: Classifier) -> str:
    """Say what the page shows, as HTML."""
    line = f"The frozen CLIP is {classifier.record.config['MODEL']['BACKBONE']['NAME']}."
    if isinstance(classifier.method.clip.config.vision_layers, tuple):
        line += " It is a ResNet, which has no attention to show."
    return f"<h1>{html.escape(title_of(classifier))}</h1><p>{html.escape(line)}</p>"


def build_page(classifier: Classifier) -> Any:
    """Build the page, gradio's ``Blocks``."""
    import gradio as gr

    own_names = "\n".join(classifier.labels)
    with_classes = lru_cache(KEPT)(classifier.with_classes)

    def look_at(paths: list[str] | None, text: str) -> tuple[Any, str]:
        try:
            chosen = classifier if text == own_names else with_classes(names_in(text))
            return look(chosen, paths or []), ""
        except UserError as error:
            return gr.skip(), problem(str(error))

    def show(seen: list[Seen], threshold: float) -> tuple[str, str]:
        return cards(seen, threshold), as_json(seen, threshold)

    title = title_of(classifier)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        seen = gr.State([], time_to_live=HOUR)
        gr.HTML(about(classifier))
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                pictures = gr.File(file_count="multiple", label="Pictures", height=160)
                names = gr.Textbox(
                    own_names,
                    label="Class names, one in each line",
                    info="" if classifier.sets_classes else "This method serves only these.",
                    lines=4,
                    max_lines=12,
                    interactive=classifier.sets_classes,
                    elem_id="names",
                )
                use = gr.Button("Use these names", visible=classifier.sets_classes)
                error = gr.HTML(elem_id="error")
                threshold = gr.Slider(
                    0,
                    1,
                    0,
                    step=0.01,
                    label='Threshold ("none of these")',
                    elem_id="threshold",
                )
            with gr.Column(scale=3, min_width=280):
                results = gr.HTML(elem_id="results")
                code = gr.Code(
                    language="json",
                    label="The same as JSON",
                    interactive=False,
                    max_lines=16,
                    wrap_lines=True,
                    elem_id="json",
                )
        quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
        shown, cards_and_code = [seen, threshold], [results, code]
        gr.on(
            [pictures.change, use.click, names.submit],
            look_at,
            [pictures, names],
            [seen, error],
            trigger_mode="always_last",
            **quiet,
        ).then(show, shown, cards_and_code, **quiet)
        threshold.change(show, shown, cards_and_code, trigger_mode="always_last", **quiet)
    return page


def server_of(page: Any) -> Any:
    """Return uvicorn's server of a page; ``run(sockets=[...])`` serves it until it is stopped."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    own = ["system-ui", "sans-serif"]  # gradio's themes load theirs from the network
    theme = gr.themes.Default(font=own, font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        footer_links=[],
        max_file_size="50mb",
        ssr_mode=False,
        show_error=False,
        theme=theme,
        css=STYLE.read_text(encoding="utf-8"),
    )
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the host is not an address of this machine, or the port is not free.
    """
    if not host:  # all addresses, to the system
        raise UserError("--host: expected an address of this machine, got ''")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        place = f"--host: expected an address of this machine, got {shown(host)}"
        if getattr(error, "errno", None) in (errno.EACCES, errno.EADDRINUSE):
            place = f"--port: expected one that is free on {host}, got {port}"
        raise UserError(f"{place}: {reason}") from error


def check_gradio() -> None:
    """Raise ``UserError`` where gradio cannot be imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the page needs gradio: pip install -e '.[demo]' ({' '.join(str(error).split())})"
        ) from error


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m inference.demo", description="Show a trained run at work, in the browser."
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, or of a saved classifier")
    port = number(int, "a whole number from 0 to 65535", lambda value: 0 <= value <= 65535)
    add("--port", type=port, default=7860, help="where the page is; 0 takes any that is free")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in")
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is stopped.

    Raises:
        UserError: bad input, or gradio is missing.
    """
    if not os.path.isdir(args.run):
        raise UserError(f"RUN: expected an existing folder, got '{args.run}'")
    check_gradio()
    with (
        listen(args.host, args.port) as listener,
        TemporaryDirectory(prefix="demo-") as uploads,
    ):
        os.environ["GRADIO_TEMP_DIR"] = uploads
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the pictures would stay
        server = server_of(build_page(Classifier.load(args.run)))
        host = f"[{args.host}]" if ":" in args.host else args.host
        say(f"Open http://{host}:{listener.getsockname()[1]}/ in a browser; Ctrl+C ends it.")
        server.run(sockets=[listener])
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's own without ``argv``, and return the exit code."""
    return run_command(lambda: run(build_parser().parse_args(argv)), "stopped")


if __name__ == "__main__":
    sys.exit(main())
