"""Export a trained run as a network that needs none of this library.

    python -m inference.export output/run --format onnx --int8

The new folder holds the network, from pixels to logits and probabilities, model.json with the class
names and the preprocessing, and classify.py, which classifies pictures with both. The network is
that of the run in fp32, for the class names of the run. Before the folder takes its name, the
network's logits are compared with the run's on all test pictures: where these are not there, on
random ones, or on those of --check.

Exit codes: 0 done, 2 bad input, or logits that differ, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dassl.command import Parser, say
from dassl.command import run as run_command
from dassl.errors import UserError, writing
from dassl.table import print_table

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
INT8_FILE = "model-int8.onnx"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # of logits, relative to a picture's largest one, or to 1
OPSET = 18


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.export", description="Export a trained run.")
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a run, or of a saved classifier")
    add("--format", choices=tuple(FILES), default="onnx", help="of the network")
    add("--output", default="", metavar="DIR", help="a new folder; by default RUN/onnx, RUN/torch")
    add("--int8", action="store_true", help="with onnx: also a network of whole numbers, for CPUs")
    add("--check", default="", metavar="FOLDER", help="pictures to compare logits on")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise ``UserError`` for options and folders that cannot be used, and missing packages."""
    if args.int8 and args.format != "onnx":
        raise UserError(f"--int8: expected --format onnx, got --format {args.format}")
    for name, folder in (("RUN", args.run), ("--check", args.check or ".")):
        if not os.path.isdir(folder):
            raise UserError(f"{name}: expected an existing folder, got '{folder}'")
    if os.path.lexists(args.output):
        raise UserError(f"--output: expected a new folder, got '{args.output}', which is there")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing and args.format == "onnx":
        raise UserError(
            f"--format onnx needs {', '.join(missing)}: pip install -e '.[export]', or take "
            "--format torch"
        )


@contextmanager
def new_folder(path: str) -> Iterator[str]:
    """Yield a folder to write to, which takes the name ``path`` after the block, if at all.

    Raises:
        UserError: it cannot be made.
    """
    from dassl.utils.tools import mkdir_if_missing

    parent, name = os.path.split(os.path.abspath(path))
    mkdir_if_missing(parent)
    with writing(f"'{path}'"):
        made = tempfile.TemporaryDirectory(prefix=f".{name}.tmp-", dir=parent)
    with made:
        folder = os.path.join(made.name, name)
        with writing(f"'{path}'"):
            os.mkdir(folder)
        yield folder
        with writing(f"'{path}'"):
            os.rename(folder, path)


def about(classifier: Any) -> dict[str, Any]:
    """Return what model.json says."""
    from dassl.utils.tools import package_versions
    from inference.compare import preprocessing_of

    config, settings = classifier.record.config, classifier.cfg.INPUT
    normalizes = "normalize" in settings.TRANSFORMS
    return {
        "format": 1,
        "method": config["TRAINER"]["NAME"],
        "backbone": config["MODEL"]["BACKBONE"]["NAME"],
        "labels": classifier.labels,
        "preprocessing": preprocessing_of(classifier),
        "in_the_network": {
            "mean": list(settings.PIXEL_MEAN) if normalizes else None,
            "std": list(settings.PIXEL_STD) if normalizes else None,
            "instance_norm": "instance_norm" in settings.TRANSFORMS,
            "temperature": classifier.record.temperature,
        },
        "versions": package_versions(),
    }


def write_onnx(program: Any, metadata: dict[str, str], path: str) -> None:
    """Write a traced network in ONNX; one of more than 2 GB has its tensors in a file beside it."""
    import torch

    names = ["logits", "probabilities"]
    found = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["pixels"],
        output_names=names,
        opset_version=OPSET,
    )
    assert found is not None
    found.model.metadata_props.update(metadata)
    found.save(path)


def write_int8(source: str, path: str) -> None:
    """Write a copy of an ONNX network whose matrix products are of whole numbers of 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # advice on models that are not prepared
    try:
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)


def export(classifier: Any, folder: str, format: str, int8: bool) -> list[str]:
    """Write all files of an export into a folder and return the names of the networks.

    Args:
        classifier: in fp32, on the CPU.
        folder: an empty one.
        format: onnx or torch.
        int8: whether to write ``INT8_FILE``, too.
    """
    import torch

    from dassl.utils.tools import atomic_write, write_json
    from inference import classify
    from inference.network import program_of

    content = about(classifier)
    metadata = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in content.items()
    }
    program = program_of(classifier)
    names = [FILES[format]]
    path = os.path.join(folder, names[0])
    if format == "torch":
        with atomic_write(path, "wb") as file:
            torch.export.save(program, file, extra_files=metadata)
    else:
        write_onnx(program, metadata, path)
        if int8:
            names.append(INT8_FILE)
            write_int8(path, os.path.join(folder, INT8_FILE))
    write_json(content, os.path.join(folder, "model.json"))
    shutil.copyfile(classify.__file__, os.path.join(folder, "classify.py"))
    return names


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit code.

    Raises:
        UserError: bad input, or logits that differ.
    """
    output = args.output = args.output or os.path.join(args.run, args.format)
    check_options(args)
    from dassl.utils.logger import errors_alone
    from inference.classifier import Classifier
    from inference.classify import network
    from inference.compare import compare, pictures_of

    with errors_alone():
        classifier = Classifier.load(args.run, "cpu", "fp32")
    pictures = pictures_of(args.run, args.check, classifier)
    with new_folder(output) as folder:
        names = export(classifier, folder, args.format, args.int8)
        paths = [os.path.join(folder, name) for name in names]
        found = compare(classifier, [network(path) for path in paths], pictures)
        if not found.difference[0] <= TOLERANCE:
            raise UserError(
                f"'{output}' is not written: on {pictures.what}, logits differ from the run's by "
                f"{found.difference[0]:.1e} of the largest, more than {TOLERANCE:g}"
            )
        sizes = [os.path.getsize(path) / 1e6 for path in paths]
    say(f"Exported to '{output}'; compared with the run in fp32 on {pictures.what}.")
    report(names, sizes, found)
    return 0


def report(names: Sequence[str], sizes: Sequence[float], found: Any) -> None:
    """Print how the networks do, a line for each.

    Args:
        names, sizes: of their files; in MB.
        found: the ``Comparison``.
    """
    header = ["network", "MB", "largest difference", "same class as the run", "accuracy"]
    rows = [
        [name, f"{size:.1f}", f"{difference:.1e}", f"{100 * same:.1f}%"]
        for name, size, difference, same in zip(
            names, sizes, found.difference, found.same, strict=True
        )
    ]
    if found.accuracy is None:
        print_table(header[:-1], rows)
        return
    rows.insert(0, ["the run", "", "", ""])
    accuracies = [f"{100 * accuracy:.1f}%" for accuracy in found.accuracy]
    print_table(header, [[*row, each] for row, each in zip(rows, accuracies, strict=True)])


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's own without ``argv``, and return the exit code."""
    return run_command(lambda: run(build_parser().parse_args(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
