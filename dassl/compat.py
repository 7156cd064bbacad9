"""What exists only for trainer and dataset files written for the public Dassl.pytorch.

Nothing of ours uses any of it. The public import paths (``dassl.utils.count_num_param``,
``dassl.config.clean_cfg``, ...) lead here. torch is imported where it is used: ``dassl.config``
does without it. Classes that derive from one of torch's are where their public path leads:
``dassl.modeling`` and ``dassl.optim.radam``.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from dassl.errors import UserError, check_choice

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Names ------------------------------------------------------------------------------------------
# The public toolbox's modules re-export much of each other, and public files make use of that:
# where each such name is here.
_PLACES = {
    name: place
    for place, names in {
        "dassl.compat": (
            *("check_availability", "count_num_param", "download_url"),
            *("get_most_similar_str_to_a_from_b", "init_network_weights", "open_all_layers"),
            *("open_specified_layers", "resume_from_checkpoint"),
        ),
        "dassl.utils": (
            *("AverageMeter", "MetricMeter", "check_isfile", "collect_env_info"),
            *("listdir_nohidden", "load_checkpoint", "load_pretrained_weights"),
            *("mkdir_if_missing", "read_image", "read_json", "save_checkpoint"),
            *("set_random_seed", "setup_logger", "tolist_if_not", "write_json"),
        ),
        "dassl.data": ("DataManager", "DatasetWrapper", "build_data_loader"),
        "dassl.data.samplers": ("build_sampler",),
        "dassl.evaluation": ("build_evaluator",),
        "dassl.optim": ("build_lr_scheduler", "build_optimizer"),
        "dassl.modeling": ("SimpleNet", "build_backbone", "build_head", "build_network"),
        "torch.utils.tensorboard": ("SummaryWriter",),
        "functools": ("partial",),
        "torchvision.transforms": (
            *("CenterCrop", "ColorJitter", "Compose", "GaussianBlur", "Normalize"),
            *("RandomApply", "RandomCrop", "RandomGrayscale", "RandomHorizontalFlip"),
            *("RandomResizedCrop", "Resize", "ToTensor"),
        ),
    }.items()
    for name in names
}
# Trainers and transforms that the public modules re-export and that are not here.
_ABSENT = (
    *("TrainerXU", "AdaBN", "ADDA", "CDAC", "DAEL", "DANN", "M3SDA", "MCD", "MME"),
    *("SelfEnsembling", "SourceOnly", "CrossGrad", "DAELDG", "DDAIG", "DomainMix", "Vanilla"),
    *("EntMin", "FixMatch", "MeanTeacher", "MixMatch", "SupBaseline"),
    *("CIFAR10Policy", "ImageNetPolicy", "SVHNPolicy"),
    *("RandAugment", "RandAugment2", "RandAugmentFixMatch"),
)


def __getattr__(name: str) -> Any:
    """Find a name that public files import; modules of the toolbox take this as their own.

    What has to be imported for it is imported then. A name that is not part of this toolbox is an
    ``Absent`` class.
    """
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    if name == "INTERPOLATION_MODES":
        from torchvision.transforms import InterpolationMode

        from dassl.data.transforms import INTERPOLATION_NAMES

        return {mode: InterpolationMode(mode) for mode in INTERPOLATION_NAMES}
    if name in _ABSENT:
        return _absent(f"dassl.{name}")
    raise AttributeError(f"the toolbox has no {name!r} here")


class Absent(type):
    """The type of a class that the public toolbox has and this one does not.

    Importing and subclassing it are not yet errors, as public files import much that they do not
    use; calling it, or reading an attribute of it, is a ``UserError``.
    """

    public_name: str

    def _error(cls) -> UserError:
        return UserError(
            f"{cls.public_name} is not part of this toolbox, which is for supervised few-shot "
            "learning"
        )

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise cls._error()

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks a class for
            raise AttributeError(name)
        raise cls._error()


def _absent(public_name: str) -> Absent:
    short = public_name.rpartition(".")[2]
    return Absent(short, (), {"public_name": public_name})


def absent_names(module: str) -> Callable[[str], Absent]:
    """Return the ``__getattr__`` of a public module of which nothing else is here.

    It gives an ``Absent`` for every name, so that importing never fails and using does.
    """

    def get(name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return _absent(f"{module}.{name}")

    return get


class _AbsentModules(MetaPathFinder, Loader):
    """Makes the modules of packages that are not here, asked when no file has been found.

    They are those of domain adaptation, domain generalization and semi-supervised learning.
    """

    packages = (
        *(f"dassl.data.datasets.{kind}." for kind in ("da", "dg", "ssl")),
        *(f"dassl.engine.{kind}." for kind in ("da", "dg", "ssl")),
        "dassl.modeling.ops.",
    )

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if not f"{fullname}.".startswith(self.packages):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__getattr__"] = absent_names(module.__name__)


sys.meta_path.append(_AbsentModules())


# Config, data -----------------------------------------------------------------------------------


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop the ``TRAINER`` nodes of all trainers but ``trainer``, for a short print-out."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)


class PublicDataManager:
    """The attributes of a ``DataManager`` that only public files read.

    Attributes:
        train_loader_u: None; this toolbox does not use unlabeled training images.
    """

    train_loader_u: Any = None
    _num_source_domains = 0

    @property
    def num_source_domains(self) -> int:
        return self._num_source_domains


def data_attributes(manager: PublicDataManager) -> dict[str, Any]:
    """Return the attributes of a ``DataManager`` that public files read of the trainer."""
    return {
        "train_loader_u": manager.train_loader_u,
        "num_source_domains": manager.num_source_domains,
    }


class PublicDatasetMethods:
    """The methods of a ``DatasetBase`` that only public files call."""

    domains: Sequence[str] = ()

    def check_input_domains(
        self, source_domains: Sequence[str], target_domains: Sequence[str]
    ) -> None:
        """Raise ``UserError`` where a domain is not one of ``domains``."""
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Raise ``UserError`` where a domain is not one of ``domains``."""
        for domain in input_domains:
            check_choice(f"domain of {type(self).__name__}", domain, self.domains)

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive to ``dst`` and unpack it into the same folder.

        Args:
            url: where it is, on Google Drive or elsewhere.
            dst: path of the archive.
            from_gdrive: not used; the address says which.

        Raises:
            UserError: the address cannot be reached, the archive is damaged, or has members that
                would land outside of the folder.
        """
        from dassl.utils.download import download, extract_archive
        from dassl.utils.logger import log

        download(url, dst)
        extract_archive(dst, os.path.dirname(dst) or ".")
        log.info(f"File extracted to {os.path.dirname(dst)}")


# dassl.utils ------------------------------------------------------------------------------------


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Raise ``UserError`` where ``requested`` is not in ``available``."""
    check_choice("requested", requested, available)


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """Return the text of ``b`` that is most like ``a``; None where there is none."""
    return max(b, key=lambda text: SequenceMatcher(None, a, text).ratio(), default=None)


def download_url(url: str, dst: str) -> None:
    """Download a file to ``dst``; ``UserError`` where the address cannot be reached."""
    from dassl.utils.download import download

    download(url, dst)


def open_all_layers(model: nn.Module) -> None:
    """Put the model into train mode and let all parameters learn."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Sequence[str]) -> None:
    """Let only these children of the model learn; the others are frozen, in eval mode.

    Raises:
        UserError: the model has no such child.
    """
    model = getattr(model, "module", model)  # of a DataParallel
    names = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    for name in names:
        check_choice("open_layers", name, children)
    for name, child in children.items():
        child.train(name in names)
        child.requires_grad_(name in names)


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Draw the weights of convolutions and linear layers; set norms to 1 and biases to 0.

    Args:
        model: the model.
        init_type: "normal" (deviation ``gain``), "xavier", "kaiming" or "orthogonal".
        gain: of the draw; "kaiming" has none.

    Raises:
        UserError: another ``init_type``.
    """
    from torch import nn

    draws: dict[str, Callable[[Tensor], Any]] = {
        "normal": partial(nn.init.normal_, std=gain),
        "xavier": partial(nn.init.xavier_normal_, gain=gain),
        "kaiming": nn.init.kaiming_normal_,
        "orthogonal": partial(nn.init.orthogonal_, gain=gain),
    }
    check_choice("init_type", init_type, draws)
    for module in model.modules():
        kind = type(module).__name__
        is_norm = "BatchNorm" in kind or "InstanceNorm" in kind
        if not is_norm and "Conv" not in kind and "Linear" not in kind:
            continue
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is not None:
            (nn.init.ones_ if is_norm else draws[init_type])(weight)
        if bias is not None:
            nn.init.zeros_(bias)


def count_num_param(model: nn.Module | None = None, params: Any = None) -> int:
    """Count the values in the parameters of a model, or in ``params``.

    ``params`` is an iterable of tensors, or of an optimizer's groups (dicts with "params").
    """
    if model is not None:
        params = model.parameters()
    total = 0
    for item in params:
        total += count_num_param(params=item["params"]) if isinstance(item, dict) else item.numel()
    return total


def resume_from_checkpoint(
    fdir: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> int:
    """Load the checkpoint that ``fdir``/checkpoint names into model, optimizer and scheduler.

    Returns:
        The number of epochs done.

    Raises:
        UserError: there is no such file, it is corrupt, or the weights do not fit.
    """
    from dassl.utils.logger import log
    from dassl.utils.torchtools import NotRead, load_checkpoint

    try:
        with open(os.path.join(fdir, "checkpoint"), encoding="utf-8") as file:
            path = os.path.join(fdir, file.readline().strip())
    except OSError as error:
        raise UserError(f"no checkpoint to resume in '{fdir}'") from error
    log.info(f'Loading checkpoint from "{path}"')
    checkpoint = load_checkpoint(path)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint '{path}' does not fit: {reason}") from error
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        if any(isinstance(value, NotRead) for value in checkpoint["scheduler"].values()):
            raise UserError(f"checkpoint '{path}': the public toolbox's schedule cannot be resumed")
        scheduler.load_state_dict(checkpoint["scheduler"])
    log.info(f"Previous epoch: {checkpoint['epoch']}")
    return int(checkpoint["epoch"])


# dassl.metrics.distance -------------------------------------------------------------------------


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Return ||a_i - b_j||^2 (n, m) of the rows of (n, d) and (m, d)."""
    squares = input1.pow(2).sum(dim=1)[:, None] + input2.pow(2).sum(dim=1)
    return squares - 2 * input1 @ input2.t()


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Return 1 - cos(a_i, b_j) (n, m) of the rows of (n, d) and (m, d)."""
    from torch.nn.functional import normalize

    return 1 - normalize(input1) @ normalize(input2).t()


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the distances (n, m) of the rows of (n, d) and (m, d).

    Args:
        input1, input2: the rows.
        metric: "euclidean" (squared) or "cosine".

    Raises:
        UserError: another metric, or shapes that do not fit.
    """
    distances = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}
    check_choice("metric", metric, distances)
    if (input1.dim(), input2.dim()) != (2, 2) or input1.shape[1] != input2.shape[1]:
        shapes = f"{tuple(input1.shape)} and {tuple(input2.shape)}"
        raise UserError(f"distance: expected shapes (n, d) and (m, d), got {shapes}")
    return distances[metric](input1, input2)


# dassl.modeling.ops.utils -----------------------------------------------------------------------


def sharpen_prob(p: Tensor, temperature: float = 2) -> Tensor:
    """Return p_ij^T / sum_k p_ik^T of probabilities (n, classes)."""
    powers = p.pow(temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def reverse_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and labels, last first."""
    return data.flip(0), label.flip(0)


def shuffle_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and labels in one random order."""
    import torch

    order = torch.randperm(len(data))
    return data[order], label[order]


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """Return (n, classes) with a 1 at each label (n,), as floats on the CPU."""
    from torch.nn.functional import one_hot

    return one_hot(label.detach().cpu(), num_classes).float()


def _share(current: float, rampup_length: float) -> float:
    if rampup_length <= 0:
        raise UserError(f"rampup_length: expected a number above 0, got {rampup_length}")
    return min(max(current / rampup_length, 0.0), 1.0)


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """Return exp(-5 (1 - t)^2) for t = current / rampup_length, cut off at 0 and 1."""
    return math.exp(-5.0 * (1.0 - _share(current, rampup_length)) ** 2)


def linear_rampup(current: float, rampup_length: float) -> float:
    """Return t = current / rampup_length, cut off at 0 and 1."""
    return _share(current, rampup_length)


def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Set each parameter of ``ema_model`` to alpha * itself + (1 - alpha) * the model's."""
    for average, parameter in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.data.lerp_(parameter.data, 1 - alpha)
