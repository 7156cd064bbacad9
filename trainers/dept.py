"""DePT: Decoupled Prompt Tuning (Zhang et al., CVPR 2024), a wrapper of other methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.config.domains import Float, Text
from dassl.engine import TRAINER_REGISTRY
from dassl.errors import UserError, shown
from dassl.utils import log

from .base import Features, Method
from .classes import trained_rows
from .trainer import MethodTrainer, register_method

HEAD = "linear_probe_proj"


class FiLM(nn.Module):
    """A factor and a shift for each channel; they start as 1 and 0."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * features + self.bias


def fits(method: type[Method]) -> bool:
    """Return whether a method acts on the towers' layers and is trained in ordinary steps."""
    acts = method.layers is not Method.layers
    return acts and method.fit is None and method.step is Method.step


def bases() -> dict[str, type[Method]]:
    """Return the methods that can be wrapped, by name."""
    known = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return {
        name: trainer.method
        for name, trainer in sorted(known.items())
        if issubclass(trainer, MethodTrainer) and fits(trainer.method)
    }


@register_method(
    "DEPT",
    PREC=None,
    BASE=Text("MaPLe", help="the method that is wrapped; its own node has its settings"),
    WEIGHT=Float(0.7, min=0, max=1, help="share of the linear head in losses and predictions"),
    LR_FACTOR=Float(6.5, min=0, help="factor of the learning rate of what DePT adds"),
)
class DePT(Method):
    """A linear head over the classes of training, beside the similarity of another method.

    The method is ``BASE``, and an instance is one of it, too: everything that is not here is its
    own. Its unit features f of an image and t of a text get the length sqrt(s), for CLIP's logit
    scale s, so that inner products are logits, and a FiLM layer each; the head is linear:

        h(x) = W (scale * sqrt(s) x + bias) + b.

    The loss is (1 - w) L_base + w CE(h of f and of t_y), the mean over both kinds of features.
    In a prediction a class that was trained, as its name says, has the logit (1 - w) z + w h,
    with z of the base; any other has z alone. h is shifted so that, in the sum of exponentials
    over the trained classes, it equals z: that alters no prediction among these, and makes
    them comparable with new ones.

    Left open or odd in the released code, and what is done here:

    - Features keep the length there that the towers give them, about 10 in OpenAI's models, as is
      sqrt(s). Kept features, which are of unit length, serve so, too.
    - KgCoOp's distance has its whole weight there: W / (1 - w) here.
    - ``SUBSAMPLE_CLASSES`` and the dataset's name decide there whether all classes are new.
    - Its checkpoints do not name their classes; all count as trained if their number fits.
    """

    rows_by_class = True
    base_scope = ""  # of the base's own checkpoints

    @classmethod
    def of_config(cls, config: Any) -> type[Method]:
        """Return DePT and the base in one.

        Raises:
            UserError: there is no such base, or it cannot be wrapped.
        """
        node, known = config["TRAINER"].get("DEPT"), bases()
        name = node.get("BASE") if isinstance(node, Mapping) else None
        if not (isinstance(name, str) and name in known):
            raise UserError(
                f"TRAINER.DEPT.BASE: expected a method of layers that is trained in ordinary "
                f"steps, one of {', '.join(known)}, got {shown(name)}"
            )
        return wrapped(cls, name)  # type: ignore[arg-type]

    def __new__(cls, cfg: Any = None, *args: Any, **kwargs: Any) -> DePT:
        """Make one of DePT and the base; a copy, which gets no config, is of its own class."""
        kind: Any = cls if cls.wraps else cls.of_config(cfg)
        made: DePT = super().__new__(kind)
        return made

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        super().build(cfg, class_names)
        self.layers_suffice = False  # the head is learned, too
        self.share: float = cfg.TRAINER.DEPT.WEIGHT
        self.lr_factor: float = cfg.TRAINER.DEPT.LR_FACTOR
        width = self.clip.config.embed_dim
        with torch.random.fork_rng(devices=[]):  # the base's training sees none of this
            self.film_lp_img, self.film_lp_text = FiLM(width), FiLM(width)
            self.linear_probe_proj = nn.Linear(width, len(class_names))

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        classes, rows = trained_rows(class_names, self.trained_names).unbind(dim=1)
        self.any_trained = len(rows) > 0
        count = len(class_names)
        head_rows = torch.zeros(count, dtype=torch.long).index_copy(0, classes, rows)
        head_shares = torch.zeros(count).index_fill(0, classes, self.share)
        untrained = torch.full((count,), -torch.inf).index_fill(0, classes, 0.0)
        self.head_rows = head_rows.to(self.device)  # of each class (K,)
        self.head_shares = head_shares.to(self.device)  # 0 for new ones (K,)
        self.untrained = untrained.to(self.device)  # minus infinity for them, 0 for others (K,)

    def head_logits(self, features: Tensor, film: nn.Module) -> Tensor:
        """Return h of unit features (N, d): (N, classes of training), fp32."""
        length = (self.clip.logit_scale.float() / 2).exp()
        return self.linear_probe_proj(film(length * features)).float()

    def logits(self, features: Features) -> Tensor:
        """Return the base's logits, outside of training mixed with those of the head."""
        logits = super().logits(features)
        if self.training or not self.any_trained:
            return logits
        head = self.head_logits(features["image"], self.film_lp_img)[:, self.head_rows]
        total, own = (
            (each + self.untrained).logsumexp(dim=1, keepdim=True) for each in (logits, head)
        )
        return logits + self.head_shares * (head - own + total - logits)

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        terms = super().losses(features, logits, labels)
        text = features["text"]
        if text.dim() == 3:  # texts of each image
            text = text[torch.arange(len(labels), device=labels.device), labels]
        else:
            text = text[labels]
        head = [
            self.head_logits(features["image"], self.film_lp_img),
            self.head_logits(text, self.film_lp_text),
        ]
        loss = F.cross_entropy(torch.cat(head), labels.repeat(2))
        weighted = {name: (1 - self.share) * term for name, term in terms.items()}
        return {**weighted, "loss_head": self.share * loss}

    def param_groups(self, optim_cfg: Any) -> list[dict[str, Any]]:
        """Return the base's groups, and one of what DePT adds."""
        parts = (self.film_lp_img, self.film_lp_text, self.linear_probe_proj)
        added = [tensor for part in parts for tensor in part.parameters()]
        known = set(map(id, added))
        groups = [
            {**group, "params": [tensor for tensor in group["params"] if id(tensor) not in known]}
            for group in super().param_groups(optim_cfg)
        ]
        return [*groups, {"params": added, "lr": self.lr_factor * optim_cfg.LR}]

    def prepare_to_load(self, state: Mapping[str, Any], path: str) -> None:
        """Find out which classes a checkpoint was trained on, and make room for their rows."""
        scope = f"{self.base_scope}." if self.base_scope else ""
        own = {
            name.removeprefix(scope): tensor
            for name, tensor in state.items()
            if name.startswith(scope)
        }
        super().prepare_to_load(own, path)
        weight = state.get(f"{HEAD}.weight")
        if not (isinstance(weight, Tensor) and weight.dim() == 2):
            return  # loading says so
        if not self.trained_names:
            fit = len(weight) == len(self.class_names)
            self.trained_names = list(self.class_names) if fit else []
            log.warning(
                f"'{path}' does not name its classes: {'all' if fit else 'none'} count as trained"
            )
        if len(weight) != self.linear_probe_proj.out_features:
            with torch.random.fork_rng(devices=[]):
                head = nn.Linear(self.clip.config.embed_dim, len(weight))
            self.linear_probe_proj = head.to(self.device)
        self.set_classes(self.class_names)

    def public_copies(self) -> set[str]:
        scope = f"{self.base_scope}." if self.base_scope else ""
        return {scope + name for name in super().public_copies()} | self.copies_of_clip()


@cache
def wrapped(wrapper: Any, name: str) -> type[DePT]:
    """Return the class of a wrapper around a base; its checkpoints are of the whole method."""
    base = TRAINER_REGISTRY.get(name).method
    attributes = {
        "wraps": (name,),
        "config_node": base.config_node,
        "base_scope": base.checkpoint_scope,
        "checkpoint_scope": "",
        "checkpoint_name": "PromptLearner" if base.checkpoint_scope else base.checkpoint_name,
        "public_files": (),
        "__module__": wrapper.__module__,
        "__doc__": wrapper.__doc__,
    }
    return type(wrapper.__name__, (wrapper, base), attributes)
