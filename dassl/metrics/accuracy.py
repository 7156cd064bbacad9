"""Top-k accuracy."""

from __future__ import annotations

import torch


def compute_accuracy(
    output: torch.Tensor | tuple[torch.Tensor, ...] | list[torch.Tensor],
    target: torch.Tensor,
    topk: tuple[int, ...] = (1,),
) -> list[torch.Tensor]:
    """Share of samples whose class is among the k highest scores, for each k of ``topk``.

    Args:
        output: scores (n, classes), or a tuple or list whose first entry they are.
        target: labels (n,).
        topk: the values of k.

    Returns:
        A tensor of shape (1,), in percent, for each k.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (n, max k)
    hits = ranked == target.view(-1, 1)
    return [100.0 * hits[:, :k].any(dim=1).float().mean().view(1) for k in topk]
