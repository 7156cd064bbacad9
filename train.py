"""Train or evaluate one method on one dataset.

    python train.py --trainer CoOp --root data --output-dir output/run --seed 1 \\
        --dataset-config-file configs/datasets/shapes.yaml \\
        --config-file configs/trainers/CoOp/vit_mini.yaml DATASET.NUM_SHOTS 16

Settings come from the dataset's file, then the method's, then the options, then the KEY VALUE
pairs at the end; the later wins. The same command resumes a run that was stopped. ``torchrun`` in
the place of ``python`` makes it one run of several processes (docs/several-gpus.md).

Exit codes: 0 done, 2 bad input, an output folder that another process uses, or a disk, memory or
process that failed (one line on stderr says what), 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import (
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from types import FrameType
from typing import Any

from dassl.command import Parser
from dassl.command import run as run_command
from dassl.errors import UserError, machine_fault


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Train or evaluate a prompt-learning method on a dataset.",
        epilog="The same command resumes a run that was stopped.",
    )
    add = parser.add_argument
    add("--root", default="", help="folder that holds the datasets (DATASET.ROOT)")
    add("--output-dir", default="", help="folder of the run (OUTPUT_DIR)")
    add("--resume", default="", help="folder of a stopped run to resume, if it is another one")
    add("--seed", type=int, help="random seed; a negative one leaves everything random")
    add("--source-domains", nargs="+", help="training domains, for datasets with several")
    add("--target-domains", nargs="+", help="test domains, for datasets with several")
    add("--transforms", nargs="+", help="names of image transforms (INPUT.TRANSFORMS)")
    add("--config-file", default="", help="config file of the method")
    add("--dataset-config-file", default="", help="config file of the dataset")
    add("--trainer", default="", help="name of the method (TRAINER.NAME)")
    add("--backbone", default="", help="name or weights file of the CLIP (MODEL.BACKBONE.NAME)")
    add("--head", default="", help="name of the head (MODEL.HEAD.NAME)")
    add("--eval-only", action="store_true", help="evaluate and do not train")
    add("--model-dir", default="", help="with --eval-only: output folder of the run to load")
    add("--load-epoch", type=int, help="with --eval-only: the epoch to load, not the best or last")
    add("--no-train", action="store_true", help="build everything and do not train")
    add("--skip-finished", action="store_true", help="do nothing if the run has its results")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that override config keys")
    return parser


def chosen_trainer(args: argparse.Namespace) -> str:
    """Name the trainer of the command line, whose own keys and defaults the config has."""
    from dassl.config import trainer_in_file

    pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    for name in (pairs.get("TRAINER.NAME", "").strip("'\""), args.trainer):
        if name:
            return name
    return trainer_in_file(args.config_file) or trainer_in_file(args.dataset_config_file)


def setup_cfg(args: argparse.Namespace) -> Any:
    """Return the config of the command line, frozen.

    Raises:
        UserError: a file or a key is wrong.
    """
    # both register themselves and the defaults of their config keys
    import datasets  # noqa: F401
    import trainers  # noqa: F401
    from dassl.config import get_cfg_default, merge_from_file, merge_from_list, set_key
    from trainers.trainer import follow_backbone, follow_wrapped, resolve_precision

    cfg = get_cfg_default(chosen_trainer(args))
    for path in (args.dataset_config_file, args.config_file):
        if path:
            merge_from_file(cfg, path)
    options = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "SEED": args.seed,
        "DATASET.SOURCE_DOMAINS": args.source_domains and tuple(args.source_domains),
        "DATASET.TARGET_DOMAINS": args.target_domains and tuple(args.target_domains),
        "INPUT.TRANSFORMS": args.transforms and tuple(args.transforms),
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    for key, value in options.items():
        if value not in (None, ""):
            set_key(cfg, key, value)
    merge_from_list(cfg, args.opts)
    follow_wrapped(cfg)
    follow_backbone(cfg)
    cfg.freeze()
    return resolve_precision(cfg)


def check_options(args: argparse.Namespace, cfg: Any) -> None:
    """Raise ``UserError`` for options without effect, and folders to read that do not exist."""
    from dassl.engine.build import is_unread

    for key, value in zip(args.opts[::2], args.opts[1::2], strict=True):
        if is_unread(key, cfg):  # files may set what several methods read, each its own
            name = cfg.TRAINER.NAME
            raise UserError(f"{key}: expected no value, as {name} does not read it, got {value}")
    for name, folder in (("--resume", cfg.RESUME), ("--model-dir", args.model_dir)):
        if folder and not os.path.isdir(folder):
            raise UserError(f"{name}: the folder '{folder}' does not exist")
    if args.eval_only:
        others = {"--resume": cfg.RESUME, "--no-train": args.no_train}
    else:
        others = {"--model-dir": args.model_dir, "--load-epoch": args.load_epoch}
    for name, value in others.items():
        if value not in ("", None, False):
            where = "with" if args.eval_only else "without"
            raise UserError(f"{name}: expected nothing {where} --eval-only, got {value!r}")
    if args.load_epoch is not None and not (args.model_dir and args.load_epoch > 0):
        raise UserError(
            f"--load-epoch: expected an epoch from 1 of a --model-dir, got {args.load_epoch}"
        )


def check_evaluation(args: argparse.Namespace, cfg: Any, trainer: Any) -> None:
    """Raise ``UserError`` where a method that must be trained is to be evaluated untrained."""
    loads = args.model_dir or cfg.MODEL.INIT_WEIGHTS
    if not loads and any(map(trainer.learned_state_dict, trainer.get_model_names())):
        raise UserError(
            f"--model-dir: expected the folder of a run of {cfg.TRAINER.NAME}, which must be "
            "trained before it is evaluated, got ''"
        )


def print_args(args: argparse.Namespace, cfg: Any) -> None:
    from dassl.utils import log

    log.info("***************\n** Arguments **\n***************")
    for name, value in sorted(vars(args).items()):
        log.info(f"{name}: {value}")
    log.info("************\n** Config **\n************")
    log.info(str(cfg))


def run(args: argparse.Namespace, held: ExitStack) -> None:
    """Do what the command line asks for; the output folder's lock is left to ``held``.

    Raises:
        UserError: bad input.
    """
    from dassl import distributed

    distributed.start()
    cfg = setup_cfg(args)
    from dassl.config import to_dict
    from dassl.engine import build_trainer, check_cfg, resume, run_folder, same_run
    from dassl.utils import collect_env_info, log, set_random_seed, setup_logger
    from dassl.utils.logger import errors_alone

    distributed.prepare(cfg, trains=not args.eval_only)
    is_first = distributed.is_first()
    held.enter_context(nullcontext() if is_first else errors_alone())
    check_cfg(cfg)
    check_options(args, cfg)
    if is_first:
        held.enter_context(run_folder.locked(cfg.OUTPUT_DIR))
    distributed.wait_for_all()
    if not args.no_train:
        same_run.check_output(cfg.OUTPUT_DIR, to_dict(cfg), evaluates=args.eval_only)
    if args.skip_finished and os.path.isfile(f"{cfg.OUTPUT_DIR}/{run_folder.RESULTS_FILE}"):
        log.info(f"skipped, finished before: {cfg.OUTPUT_DIR}")
        distributed.end()
        return

    import torch

    if cfg.SEED >= 0:
        log.info(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    resume.share_random_state()
    if is_first:
        setup_logger(cfg.OUTPUT_DIR)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    print_args(args, cfg)
    log.info(f"** System info **\n{collect_env_info()}\n")

    trainer = build_trainer(cfg)
    try:
        if args.eval_only:
            check_evaluation(args, cfg, trainer)
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
            trainer.test()
        elif not args.no_train:
            trainer.train()
    finally:
        trainer.close_writer()
    distributed.end()


@contextmanager
def process_state() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, and restore afterward what a run changes in the process."""

    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a loader's process that has not begun yet
            os._exit(128 + number)
        # Who stops a whole job tells the loader's processes, too. That they end is no error then.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt

    stdout = sys.stdout
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, interrupt) if in_main_thread else None
    try:
        yield
    finally:
        if sys.stdout is not stdout:
            sys.stdout.close()  # the log file; the console stays open
            sys.stdout = stdout
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.backends.cudnn.benchmark = False


def report(message: str) -> None:
    """Write one line to stderr and to the log file, if they can be written.

    Of several processes the first one to come here does: when one ends, the others have to.
    """
    distributed: Any = sys.modules.get("dassl.distributed")
    if distributed is not None and distributed.count() > 1:
        for number in (signal.SIGTERM, signal.SIGINT):  # torchrun's, which stops the others
            signal.signal(number, signal.SIG_IGN)
        if not distributed.speaks():
            return
    logger: Any = sys.modules.get("dassl.utils.logger")  # an interrupted import is not repeated
    if logger is not None:
        with suppress(UserError):
            logger.log_only(message)
    with suppress(OSError):
        print(message, file=sys.stderr)


def is_repeating() -> bool:
    """Return whether another process that torchrun started has the same arguments and tells."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


@contextmanager
def muted() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def main(argv: list[str] | None = None) -> int:
    """Run a command line, the process's own without ``argv``, and return the exit code."""
    try:
        with muted() if is_repeating() else nullcontext():
            args = build_parser().parse_args(argv)
    except SystemExit as stop:  # --help, or a bad argument that argparse has reported
        return int(stop.code or 0)
    # the lock is released last, when the log file is closed
    with ExitStack() as held, process_state():
        try:
            run(args, held)
            sys.stdout.flush()  # a full disk or a closed pipe shows only now
        except KeyboardInterrupt:
            report("interrupted; the same command resumes from the last saved epoch")
            return 130
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else machine_fault(error)
            if not reason:
                raise
            report(f"error: {reason}")
            return 2
    return 0


def command() -> int:
    """Run the process's command line; return the exit code."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(command())
