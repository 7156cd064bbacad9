"""ProMPT: Progressive Multi-modal conditional Prompt Tuning (Qiu et al., ICMR 2024)."""

from __future__ import annotations

import json
import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, PromptTokens
from dassl.config import register_defaults
from dassl.config.domains import Bool, Float, Int, Words
from dassl.distributed import gather
from dassl.engine.recorders import RECORDER_REGISTRY, Recorder
from dassl.utils import atomic_write, log

from .base import Batch, Features, Method, Towers
from .context import Context, chosen_words, context_from_words, count_tokens, random_prompts
from .settings import MOST_PROMPTS, check_unread, check_vit
from .trainer import register_method

REDUCTION = 16  # of the generators' hidden layer, d -> d/16
TEMPLATE = "a photo of a {}."  # of the initialization (section 3.3), with CLIP's period
EVOLUTION_FILE = "evolution.jsonl"
TOP = 5  # classes of each step that the file names

register_defaults(
    "TEST", {"SAVE_EVOLUTION": Bool(False, help="as evolution in RECORD: save evolution.jsonl")}
)


class Generator(nn.Module):
    """G_1..G_J of section 3.4: Linear-ReLU-Linear, weights shared, biases of both linears not.

    The paper says only that biases belong to a layer; both are taken.  They start as
    ``nn.Linear`` starts them.
    """

    def __init__(self, width_in: int, width_out: int, n_layers: int):
        super().__init__()
        hidden = max(1, width_in // REDUCTION)
        layers = [
            (nn.Linear(width_in, hidden), nn.Linear(hidden, width_out)) for _ in range(n_layers)
        ]
        self.weight1, self.weight2 = layers[0][0].weight, layers[0][1].weight
        self.bias1 = nn.Parameter(torch.stack([first.bias.data for first, _ in layers]))
        self.bias2 = nn.Parameter(torch.stack([second.bias.data for _, second in layers]))

    def forward(self, features: Tensor) -> list[Tensor]:
        """Map features (..., d) to (..., width_out) for each of the J layers."""
        hidden = F.linear(features, self.weight1)
        return [
            F.linear(F.relu(hidden + bias1), self.weight2, bias2)
            for bias1, bias2 in zip(self.bias1, self.bias2, strict=True)
        ]


class ProgressivePromptLearner(nn.Module):
    """The learnable context P^0 (b, d_t) and the generators G_V and G_T, where there are any.

    Args:
        settings: ``TRAINER.PROMPT``.
        context: start of P^0.
        clip_model: says the widths.
    """

    def __init__(self, settings: Any, context: Context, clip_model: CLIP):
        super().__init__()
        config = clip_model.config
        self.ctx = nn.Parameter(context.start(config.text_width))
        self.vision_generator: Generator | None = None
        self.text_generator: Generator | None = None
        if settings.VISION_GENERATOR:
            self.vision_generator = Generator(
                config.embed_dim, config.vision_width, settings.PROMPT_DEPTH_VISION
            )
        if settings.TEXT_GENERATOR:
            self.text_generator = Generator(config.embed_dim, config.text_width, 1)


def padded_context(clip_model: CLIP, setting: str | bool, n_prompts: int) -> Context:
    """Start from the words of a CTX_INIT, with randomly started "X" for missing ones."""
    words = chosen_words(setting)
    missing = n_prompts - count_tokens(words)
    if not words or missing <= 0:
        return context_from_words(clip_model, words, n_prompts)
    init = context_from_words(clip_model, words, n_prompts - missing).init
    assert init is not None
    random = random_prompts(missing, init.shape[1]).data.to(init.device)
    return Context(" ".join([words, *["X"] * missing]), n_prompts, torch.cat([init, random]))


@register_method(
    "PROMPT",
    ITERATIONS=Int(2, min=0, max=100, help="N; 0 is zero-shot CLIP"),
    N_CTX_VISION=Int(
        8, min=1, max=MOST_PROMPTS, help="a: text features that the filter keeps, vision prompts"
    ),
    N_CTX_TEXT=Int(5, min=1, max=MOST_PROMPTS, help="b: context tokens"),
    CTX_INIT=Words("a photo of a", help="words that P^0 starts from"),
    PROMPT_DEPTH_VISION=Int(9, min=1, help="J: first vision layers that have prompts"),
    LAMBD=Float(1.0, min=0, help="factor of the loss of each earlier iteration"),
    VISION_GENERATOR=Bool(True, help="G_V, which makes vision prompts of text features"),
    TEXT_GENERATOR=Bool(True, help="G_T, which makes text prompts of image features"),
    FEATURE_FILTER=Bool(True, help="F; without it all text features make vision prompts"),
)
class ProMPT(Method):
    """Text features make vision prompts, image features make text prompts, N times over.

    With no iterations (Table 5's "-Iter") this is zero-shot CLIP and learns nothing.

    What the paper leaves open:
    - O^0 of eq. 8, which the initialization (section 3.3) does not have, is 0: O^1 = G_V(Z^0).
    - Section 3.4 speaks of prompts O_0 at the input, which eq. 8 does not make, and of others in
      later layers.  Eq. 9 wins: O_j enters at layer j = 1..J, in place of what the layer before
      returned for the prompts; layers after J pass on what they have.
    - P^0 of eq. 10 is the context that is learned.  Z^0 does not depend on it: it is frozen CLIP's,
      with the template of section 3.3.
    - Generators read unit features, as CoCoOp's meta-net does, so that what they start from does
      not depend on the scale of a backbone's features.
    - The filtered features are in order of decreasing probability; the i-th makes the i-th vision
      prompt.  With fewer than a classes there are as many prompts as classes.
    - G_T makes one vector for each image, which all b tokens are shifted by, as in CoCoOp.
    - The recurrence is part of the graph: gradients of L_n reach all earlier iterations.
    - Without G_V eq. 8 leaves O^n = O^0, nothing: no vision prompts.  Without G_T eq. 10 leaves
      P^n = P^0, a context that is learned and the same for all images.
    - Without the filter all K text features, in the order of the classes, make vision prompts.
    - Where CTX_INIT has more tokens than b, those left over stay between prompts and class name;
      where it has fewer, the rest start from normal(0, 0.02).
    """

    prompt_learner: Any

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        layers, depth = check_vit(clip_model), settings.PROMPT_DEPTH_VISION
        node = "TRAINER.PROMPT"
        Int(min=1, max=layers).check(f"{node}.PROMPT_DEPTH_VISION", depth)
        if settings.ITERATIONS == 0:
            parts = {"VISION_GENERATOR": True, "TEXT_GENERATOR": True}
            check_unread(node, settings, "ITERATIONS 0", **parts, FEATURE_FILTER=True)
        if not settings.VISION_GENERATOR:
            check_unread(node, settings, "VISION_GENERATOR False", FEATURE_FILTER=True)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        settings = self.settings
        self.context = padded_context(self.clip, settings.CTX_INIT, settings.N_CTX_TEXT)
        if settings.ITERATIONS > 0:
            self.prompt_learner = ProgressivePromptLearner(settings, self.context, self.clip)
        self.conditional = settings.ITERATIONS > 0 and settings.TEXT_GENERATOR

    def tokenize_classes(self, class_names: Sequence[str]) -> PromptTokens:
        words, n_prompts, _ = self.context
        n_words = count_tokens(chosen_words(self.settings.CTX_INIT))
        key = "CTX_INIT" if n_words > n_prompts else "N_CTX_TEXT"
        return self.prompt_tokens(class_names, words, n_prompts, key=key)

    def set_classes(self, class_names: Sequence[str]) -> None:
        super().set_classes(class_names)
        self.frozen_text = self.template_features([TEMPLATE])  # Z^0 (eq. 7): (K, d)

    def layers(self, condition: Tensor | None = None) -> Towers:
        """Return P^0, the same for all images: all there is without G_T."""
        return Towers([self.prompt_learner.ctx] if self.settings.ITERATIONS > 0 else [])

    def features(self, batch: Batch) -> Features:
        """Evolve: ``steps`` has logits (B, N + 1, K) of the initialization and each iteration.

        Their softmax over the classes is p^0..p^N (eq. 5, 12).
        """
        images = self.views(batch)[0]
        image = self.encode_image(images)  # x^0, eq. 6
        text = self.frozen_text
        steps = [self.clip.similarity(image, text)]
        # Without G_T the texts of all images and iterations are the same.
        fixed = None if self.conditional else self.fixed_or_new()[1]["text"]
        context: Tensor | None = None  # P^n, where it depends on the image: (B, 1, b, d_t)
        vision: list[Tensor] = []  # O^n of the layers 1..J, each (B, a, d_v)
        for _ in range(self.settings.ITERATIONS):
            learner = self.prompt_learner
            if learner.vision_generator is not None:
                generated = learner.vision_generator(self.filtered(text, steps[-1]))
                if vision:
                    generated = [g + o for g, o in zip(generated, vision, strict=True)]
                vision = generated  # eq. 8
                image = self.encode_image(images, vision)  # eq. 9
            if fixed is not None:
                text = fixed
            else:
                (shift,) = learner.text_generator(image)
                # eq. 10
                context = (learner.ctx if context is None else context) + shift[:, None, None]
                text = self.encode_text([context])  # eq. 11
            steps.append(self.clip.similarity(image, text))
        if self.conditional:
            text = gather(text)
        return {"image": gather(image), "text": text, "steps": gather(torch.stack(steps, dim=1))}

    def filtered(self, text: Tensor, logits: Tensor) -> Tensor:
        """Keep the a most probable of the text features (K, d) or (B, K, d): (B, a, d)."""
        text = text.expand(logits.shape[0], -1, -1)
        if not self.settings.FEATURE_FILTER:
            return text
        top = logits.topk(min(self.settings.N_CTX_VISION, logits.shape[1]), dim=1).indices
        return text.gather(1, top[:, :, None].expand(-1, -1, text.shape[-1]))

    def logits(self, features: Features) -> Tensor:
        """Return those of iteration N."""
        return features["steps"][:, -1]

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return lambda^(N-n) L_n (eq. 13, 14)."""
        terms, last = {}, self.settings.ITERATIONS
        for n in range(1, last + 1):
            loss = super().losses(features, features["steps"][:, n], labels)["loss_ce"]
            terms[f"loss_iteration{n}"] = self.settings.LAMBD ** (last - n) * loss
        return terms


@RECORDER_REGISTRY.register("evolution")
class EvolutionRecorder(Recorder):
    """Keeps what Figures 6 and 7 are drawn from as evolution.jsonl.

    A line for each image, in the order of the test, as ``evolution_record`` gives it.
    """

    trainers = ("ProMPT",)
    file = EVOLUTION_FILE
    reads = ("steps",)

    def __init__(self, trainer: Any):
        super().__init__(trainer)
        self.lines: list[str] = []

    def batch(self, batch: Mapping[str, Any], output: Tensor) -> None:
        steps = self.trainer.features["steps"].float().cpu()
        for path, label, logits in zip(
            batch["impath"], batch["label"].tolist(), steps, strict=True
        ):
            record = evolution_record(path, label, logits, self.trainer.lab2cname)
            self.lines.append(json.dumps(record, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        path = osp.join(self.trainer.output_dir, self.file)
        with atomic_write(path) as file:
            file.writelines(self.lines)
        log.info(f"Evolution is saved to {path}")


def evolution_record(
    path: str, label: int, steps: Tensor, class_names: Mapping[int, str]
) -> dict[str, Any]:
    """Describe what an image was taken for after the initialization and each iteration.

    Args:
        path: of the image.
        label: of its class.
        steps: logits (N + 1, K).
        class_names: by label.

    Returns:
        path, label, class_name and steps; each step has top, the five most probable classes (all,
        where there are fewer) from the first to the last as [label, class name, probability], and
        true, the probability of the image's own class. Probabilities (p^0..p^N of eq. 5, 12) have
        six significant digits.
    """
    probabilities = steps.softmax(dim=1)
    # stable, so that of equals the first is on top, as in the accuracy
    order = steps.argsort(dim=1, descending=True, stable=True)[:, :TOP]
    return {
        "path": path,
        "label": label,
        "class_name": class_names[label],
        "steps": [
            {
                "top": [[k, class_names[k], six_digits(row[k])] for k in top.tolist()],
                "true": six_digits(row[label]),
            }
            for row, top in zip(probabilities, order, strict=True)
        ],
    }


def six_digits(value: Tensor) -> float:
    return float(f"{value.item():.6g}")
