"""What exists only for trainer and dataset files written for the public Dassl.pytorch.

Nothing of ours uses any of it. The public import paths (``dassl.utils.count_num_param``,
``dassl.config.clean_cfg``, ...) lead here. torch is imported where it is used: ``dassl.config``
does without it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from dassl.errors import UserError, check_choice

if TYPE_CHECKING:
    import torch


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


def count_num_param(model: torch.nn.Module | None = None, params: Any = None) -> int:
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
    model: torch.nn.Module,
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
