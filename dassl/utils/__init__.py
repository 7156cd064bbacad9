"""Small helpers: errors, registry, logger, meters, JSON and image files, checkpoints."""

from dassl.compat import __getattr__, count_num_param, resume_from_checkpoint
from dassl.errors import LossError, UnknownNameError, UserError, check_choice, nearest
from dassl.utils.logger import Logger, log, log_only, setup_logger
from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.registry import Registry
from dassl.utils.tools import (
    atomic_write,
    check_isfile,
    collect_env_info,
    listdir_nohidden,
    mkdir_if_missing,
    package_versions,
    read_image,
    read_json,
    set_random_seed,
    tolist_if_not,
    write_json,
)
from dassl.utils.torchtools import (
    load_checkpoint,
    load_pretrained_weights,
    save_checkpoint,
    save_torch_file,
)

__all__ = [
    "AverageMeter",
    "Logger",
    "LossError",
    "MetricMeter",
    "Registry",
    "UnknownNameError",
    "UserError",
    "atomic_write",
    "check_choice",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "log",
    "log_only",
    "mkdir_if_missing",
    "nearest",
    "package_versions",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "save_torch_file",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "write_json",
]
