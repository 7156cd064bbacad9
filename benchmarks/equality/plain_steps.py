"""Each method's training step, computed plainly: one image, one class, 77 tokens at a time.

Eight methods are those of ``benchmarks.plain``; of the others the features are computed by the
functions that their tests compare with, and losses and what is done with gradients are put
together here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import plain
from benchmarks.cost.measure import plain_method
from clip import tokenize
from dassl.json_file import read_json
from tests.plain import image_feature, plain_logits, text_feature, unit
from tests.trainers.tiny import NAMES, TEMPLATES, class_ids

Tensors = dict[str, Tensor]


def functions(name: str) -> Any:
    """Return the module of a test, for the plain functions in it."""
    return import_module(f"tests.trainers.test_{name}")


class Step:
    """A method's step on tensors of its own.

    Args:
        method: where these tensors are; nothing else of it computes.
    """

    def __init__(self, method: Any):
        self.method, self.clip, self.settings = method, method.clip, method.settings
        self.p: Tensors = method.learned()

    def own(self) -> Tensors:
        """Return the learned tensors under the names that they have in a checkpoint."""
        return self.method.get_submodule(self.method.checkpoint_scope).state_dict(keep_vars=True)

    def compute(self, images: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and loss."""
        raise NotImplementedError

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(self.p.values())))

    def take(self, images: Any, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Take one step of training."""
        loss = self.compute(images, labels)[1]
        for tensor, gradient in zip(self.p.values(), self.gradients(loss), strict=True):
            tensor.grad = gradient
        optimizer.step()

    def after_epoch(self, epoch: int, n_epochs: int) -> None: ...

    # What several need
    def texts(self, pattern: str) -> Tensor:
        """Return features (K, d), of any length, of the classes without prompts."""
        return torch.stack([text_feature(self.clip, ids, [], []) for ids in class_ids(pattern)])

    def images(self, images: Tensor) -> Tensor:
        return unit(torch.stack([image_feature(self.clip, image, []) for image in images]))


class OfBenchmarks(Step):
    """One of the methods of ``benchmarks.plain``."""

    def __init__(self, method: Any):
        super().__init__(method)
        self.reference = plain_method(method).train()
        self.p = dict(self.reference.p)

    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.reference(images)
        return found["logits"], self.reference.loss(found, labels)


class PromptSRC(OfBenchmarks):
    """Its final tensors are a sum over epochs, with the weights of a normalized Gaussian."""

    def after_epoch(self, epoch: int, n_epochs: int) -> None:
        s = self.settings
        density = np.exp(-0.5 * ((np.arange(1, n_epochs + 1) - s.GPA_MEAN) / s.GPA_STD) ** 2)
        weight = float(density[epoch] / density.sum())
        if epoch == 0:
            self.sums = {name: torch.zeros_like(tensor) for name, tensor in self.p.items()}
        for name, tensor in self.p.items():
            self.sums[name] += weight * tensor.detach()
            if epoch + 1 == n_epochs:
                tensor.data.copy_(self.sums[name])


class VPT(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        deeper = [self.p[name] for name in sorted(self.p) if name.endswith("VPT_shallow")]
        vision = [self.p["image_encoder.VPT"], *deeper]
        logits = plain_logits(self.clip, images, list(self.texts("a photo of a {}.")), vision)
        return logits, F.cross_entropy(logits, labels)


class ProGrad(Step):
    """The component of the gradient that conflicts with the frozen logits' is left out."""

    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        words = "X X X a photo of a"
        logits, frozen = functions("prograd").plain_prograd(self.method, self.clip, images, words)
        target = frozen.softmax(1)
        self.distance = -(target * logits.log_softmax(1)).sum(1).mean()
        self.loss = F.cross_entropy(logits, labels)
        return logits, self.loss + self.distance

    def gradients(self, loss: Tensor) -> list[Tensor]:
        ctx = list(self.p.values())
        (known,) = torch.autograd.grad(self.distance, ctx, retain_graph=True)
        (gradient,) = torch.autograd.grad(self.loss, ctx)
        direction = known / known.norm()
        along = (gradient * direction).sum().clamp(max=0)
        return [gradient - self.method.loss.LAMBDA * along * direction]


class ProDA(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        known, s = functions("proda"), self.settings
        ctx, scale = self.p["prompt_learner.ctx"], self.clip.logit_scale.exp()
        drawn = sorted(torch.randperm(s.N_PROMPT)[: s.PROMPT_BS].tolist())
        weights = known.plain_weights(self.clip, ctx, drawn)
        image, mu = self.images(images), weights.mean(0)
        bound = known.bound_of(mu, known.covariance(weights), image, labels, scale)
        ids = class_ids("X X X.", NAMES[:1])[0]
        nameless = [unit(text_feature(self.clip, ids, [1, 2, 3], [own])) for own in ctx]
        cosines = [abs(a @ b) for i, a in enumerate(nameless) for b in nameless[:i]]
        return scale * image @ mu.t(), bound + s.ALPHA * sum(cosines) / len(cosines)


class LAMM(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        known, s = functions("lamm"), self.settings
        tokens = self.p["prompt_learner.token_classes"]
        texts = known.plain_texts(self.clip, NAMES, dict(zip(NAMES, tokens, strict=True)))
        frozen = known.plain_texts(self.clip, NAMES, {})
        logits, target = (plain_logits(self.clip, images, each) for each in (texts, frozen))
        start = [self.clip.token_embedding(i[1 : 1 + tokens.shape[1]]) for i in class_ids("{}")]
        squares = (tokens - torch.stack(start)).square().sum()
        cosines = torch.stack([unit(a) @ unit(b) for a, b in zip(texts, frozen, strict=True)])
        known_to = -((logits / s.T).softmax(1) * (target / s.T).log_softmax(1)).sum(1).mean()
        loss = F.cross_entropy(logits, labels) + s.TOKEN_LOSS_WEIGHT * squares  # of one shot
        loss = loss + s.FEATURE_LOSS_WEIGHT * (1 - cosines[labels]).mean()
        return logits, loss + s.LOGIT_LOSS_WEIGHT * s.T**2 * known_to


class TCP(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, distance = functions("tcp").plain_tcp(self.clip, self.own(), images)
        return logits, F.cross_entropy(logits, labels) + self.settings.W * distance


class MetaPrompt(Step):
    """An ordinary step, then the meta step of the text prompts on two halves of the classes."""

    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        prompts = self.p.values()
        logits, losses = functions("metaprompt").plain_losses(self.clip, *prompts, images, labels)
        return logits, sum(losses)

    def take(self, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
        super().take(images, labels, optimizer)
        order, middle = torch.randperm(len(NAMES)).tolist(), (len(NAMES) + 1) // 2
        text, vision = self.p.values()
        start, total, vision.grad = text.detach().clone(), torch.zeros_like(text), None
        halves = order[:middle], order[middle:]
        if all(any(label in half for label in labels.tolist()) for half in halves):
            for here, there in (halves[::-1], halves):
                if len(there) > 1:
                    text.grad = self.on_half(here, images, labels)
                    optimizer.step()
                    total += self.on_half(there, images, labels)
                    text.data.copy_(start)
        text.data -= optimizer.param_groups[0]["lr"] * self.settings.META_STEP * total

    def on_half(self, half: list[int], images: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient of the text prompts on some of the classes and their images."""
        text = next(iter(self.p.values()))
        mine = [i for i, label in enumerate(labels.tolist()) if label in half]
        texts = functions("metaprompt").plain_texts(self.clip, text, [NAMES[k] for k in half])
        logits = self.clip.logit_scale.exp() * self.images(images[mine]) @ texts.t()
        targets = torch.tensor([half.index(int(labels[i])) for i in mine])
        if len(half) == 1:
            return torch.zeros_like(text)  # of a cross-entropy over one class
        return torch.autograd.grad(F.cross_entropy(logits, targets), text)[0]


class ProVP(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        prompts = self.p["prompt_learner.prompt_embeddings"]
        image, text = functions("provp").plain_features(self.clip, prompts, images)
        logits = self.clip.logit_scale.exp() * image @ text.t()
        again = image @ self.images(images).t()
        loss = F.cross_entropy(again, torch.arange(len(images)))
        return logits, F.cross_entropy(logits, labels) + self.method.weight * loss


class CoPrompt(Step):
    def compute(self, images: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        image, text = functions("coprompt").plain_features(self.clip, self.p, images[0])
        logits = self.clip.logit_scale.exp() * image @ text.t()
        sentences = read_json(self.method.description_file)
        drawn = torch.randint(2, ())
        ids = tokenize([sentences[name.replace("_", " ")][drawn] for name in NAMES])
        frozen = unit(torch.stack([text_feature(self.clip, each, [], []) for each in ids]))
        apart = [1 - (image * self.images(images[1])).sum(1), 1 - (text * frozen).sum(1)]
        loss = sum(each.mean() for each in apart)
        return logits, F.cross_entropy(logits, labels) + self.method.weight * loss


class HISF(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        known = functions("hisf")
        found = known.plain_hisf(self.method, self.clip, images, NAMES)
        return found[0], known.plain_loss(self.method, self.clip, labels, *found)


class MMA(Step):
    """The adapters learn as if their scale were 1."""

    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = functions("mma").plain_mma_logits(self.clip, self.own(), images)
        return logits, F.cross_entropy(logits, labels)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return super().gradients(loss / self.settings.ADAPTER_SCALE)


class MMRL(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        s, scale = self.settings, self.clip.logit_scale.exp()
        first, second, texts = functions("mmrl").plain_features(self.clip, self.p, images)
        one, two = scale * first @ texts.t(), scale * second @ texts.t()
        frozen = unit(self.texts(TEMPLATES[0]))
        apart = (
            (1 - (first * self.images(images)).sum(1)).mean() + 1 - (texts * frozen).sum(1).mean()
        )
        shares = s.ALPHA, 1 - s.ALPHA
        losses = [F.cross_entropy(each, labels) for each in (one, two)]
        loss = shares[0] * losses[0] + shares[1] * losses[1] + s.REG_WEIGHT * apart
        return shares[0] * one + shares[1] * two, loss


class CLIPLoRA(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = functions("cliplora").plain_lora_logits(self.clip, self.own(), images)
        return logits, F.cross_entropy(logits, labels)


class CLIPAdapter(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        known = functions("clip_adapter").plain_clip_adapter_logits
        p = {name.removeprefix("adapter."): tensor for name, tensor in self.p.items()}
        logits = known(self.clip, p, images, self.settings.RATIO)
        return logits, F.cross_entropy(logits, labels)


class TaskRes(Step):
    def compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        (residuals,) = self.p.values()
        texts = self.texts(TEMPLATES[0]) + self.settings.RESIDUAL_SCALE * residuals
        logits = plain_logits(self.clip, images, list(texts))
        return logits, F.cross_entropy(logits, labels)


STEPS: dict[str, type[Step]] = {
    **{name: OfBenchmarks for name in plain.METHODS},
    **{
        kind.__name__: kind
        for kind in (
            *(VPT, PromptSRC, ProGrad, ProDA, LAMM, TCP, MetaPrompt, ProVP, CoPrompt, HISF),
            *(MMA, MMRL, CLIPLoRA, CLIPAdapter, TaskRes),
        )
    },
}
