"""Classify pictures with a trained run.

    python predict.py output/run photo.jpg folder --classnames cat dog "polar bear" --threshold 0.6

Pictures are named as they come, one line each. Folders are searched at any depth.

Exit codes: 0 done, 1 some pictures could not be classified (each has its line, and stderr says how
many), 2 bad input, or a disk or memory that failed (one line on stderr says what), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys

from dassl.command import Parser, number
from dassl.command import run as run_command
from dassl.errors import UserError

FORMATS = ("table", "json", "jsonl", "csv")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="Classify pictures with a trained run.")
    count = number(int, "a whole number above 0", lambda value: value > 0)
    probability = number(float, "a probability from 0 to 1", lambda value: 0 <= value <= 1)
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, or of a saved classifier")
    add("images", metavar="IMAGE", nargs="+", help="a picture, or a folder of pictures")
    add("--classnames", nargs="+", metavar="NAME", help="classes, instead of those of the training")
    add(
        "--descriptions",
        default="",
        metavar="FILE",
        help="JSON file {class name: [sentences]}, for a method that compares with sentences",
    )
    named = parser.add_mutually_exclusive_group()
    named.add_argument(
        "--top", type=count, default=5, help="number of classes to name for each picture"
    )
    named.add_argument(
        "--coverage",
        type=probability,
        help="name as many as it takes to have the true one among them with this probability; the "
        "run was calibrated for it (python -m inference.calibrate)",
    )
    add("--format", choices=FORMATS, default="table", help="of the output")
    add(
        "--threshold",
        type=probability,
        default=0.0,
        help='answer "none of these" where no class has this probability',
    )
    add("--sort-into", default="", metavar="DIR", help="copy each picture into DIR/<its class>")
    add("--link", action="store_true", help="with --sort-into: make symbolic links, not copies")
    add("--batch-size", type=count, default=64, help="number of pictures computed at once")
    add("--device", help="where to compute, such as cpu or cuda:1; by default a GPU, if any")
    add("--precision", help="fp32, bf16, fp16, amp or auto; by default that of the run")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise ``UserError`` for options without effect, and folders that cannot be used."""
    if args.link and not args.sort_into:
        raise UserError("--link: expected nothing without --sort-into, got --link")
    if not os.path.isdir(args.run):
        raise UserError(f"RUN: expected an existing folder, got '{args.run}'")
    if not args.sort_into:
        return
    target = os.path.realpath(args.sort_into)
    if os.path.exists(target) and not os.path.isdir(target):
        raise UserError(f"--sort-into: expected a folder, got the file '{args.sort_into}'")
    for image in args.images:
        folder = os.path.realpath(image)
        if os.path.isdir(folder) and os.path.commonpath([folder, target]) == folder:
            raise UserError(
                f"--sort-into: expected a folder outside of those to read, got '{args.sort_into}' "
                f"in '{image}'"
            )


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit code.

    Raises:
        UserError: bad input.
    """
    check_options(args)
    from dassl.utils.logger import errors_alone

    with errors_alone():  # the standard output is for the answers
        return classify(args)


def classify(args: argparse.Namespace) -> int:
    """Answer for each picture; return 1 where one could not be classified, else 0."""
    from tqdm import tqdm

    from dassl.utils.descriptions import read_descriptions
    from inference import Classifier
    from inference.output import WRITERS, answer
    from inference.sorting import Sorter

    classifier = Classifier.load(args.run, args.device, args.precision)
    descriptions = read_descriptions(args.descriptions) if args.descriptions else None
    if args.classnames or descriptions:
        classifier.set_classes(args.classnames or classifier.labels, descriptions)
    sorter = Sorter(args.sort_into, classifier.labels, args.link) if args.sort_into else None
    has_bar = sys.stderr.isatty() and not sys.stdout.isatty()
    stream = classifier.stream(args.images, args.top, args.batch_size, args.coverage)
    done = failed = 0
    count = len(classifier.labels)
    with WRITERS[args.format](count if args.coverage else min(args.top, count)) as write:
        for prediction in tqdm(stream, unit="picture", disable=not has_bar):
            label = answer(prediction, args.threshold)
            write(prediction, label)
            if sorter is not None and label is not None:
                sorter.add(prediction.image, label)
            done += 1
            failed += label is None
        if done == 0:
            raise UserError(f"there are no pictures in {', '.join(map(repr, args.images))}")
    if failed:
        print(f"{failed} of {done} pictures could not be classified", file=sys.stderr)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's own without ``argv``, and return the exit code."""
    return run_command(lambda: run(build_parser().parse_intermixed_args(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
