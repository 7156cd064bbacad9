"""ProDA: Prompt Distribution Learning (Lu et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clip import CLIP, PromptTokens
from dassl.config.domains import Float, Int

from .base import Features, Method, Towers
from .context import ContextLearner, context_from_words
from .settings import MOST_PROMPTS
from .trainer import register_method

POSITIONS = ("front", "middle", "end")  # of the class name among the tokens, prompt by prompt


@register_method(
    "PRODA",
    N_CTX=Int(16, min=1, max=MOST_PROMPTS, help="context tokens of a prompt"),
    N_PROMPT=Int(32, min=2, max=1000, help="number of prompts"),
    PROMPT_BS=Int(4, min=1, help="prompts that a training step draws"),
    ALPHA=Float(0.1, min=0, help="weight of the semantic orthogonality"),
)
class ProDA(Method):
    """Many prompts, whose text features are samples of a Gaussian over the classifier's weights.

    The towers are frozen; ``ctx`` (N, m, d_t) holds N prompts of m tokens, normal(0, 0.02). The
    class name stands in front of the tokens of the first quarter of the prompts, in the middle of
    those of the second, behind those of the others. The unit features w_k of prompt after prompt
    are samples of the weights of all classes together: a Gaussian with means mu_k and covariances
    S_jk. The expected cross-entropy under it has the upper bound

        -log exp(s z.mu_y) / sum_j exp(s z.mu_j + s^2/2 z'A_jy z),
        A_jy = S_jj + S_yy - S_jy - S_yj,

    for a unit image feature z with label y and the logit scale s. z'A_jy z is the variance over
    the prompts of z.(w_j - w_y), which takes no d x d matrix. Semantic orthogonality adds ``ALPHA``
    times the mean absolute cosine between the features of different prompts without a class name.
    The prediction is s z.mu_k, with mu_k the mean over all N prompts, not renormalized.

    There is no released code of the paper; names of keys and tensors, their start, the positions
    and the prompts without a class name ("<tokens>.") are those of the copies of one implementation
    in other repositories, whose checkpoints load. Decided here:

    - N, m, ``PROMPT_BS`` and ``ALPHA`` are those of the copies, not compared with the paper's.
    - A step draws its ``PROMPT_BS`` prompts anew, mu_k and S_jk are over these alone, and the
      orthogonality is over all N; the copies go through a random order of all prompts.
    - S_jk divides by the number of prompts, as a Gaussian fitted to them by maximum likelihood.
    - The covariance is whole, as in the equation. The copies keep of it what is between equal
      dimensions of the features, which bounds another Gaussian, and divide by the number plus 1.
    """

    checkpoint_name = checkpoint_scope = "prompt_learner"

    @classmethod
    def check_settings(cls, settings: Any, clip_model: CLIP) -> None:
        Int(min=1, max=settings.N_PROMPT).check("TRAINER.PRODA.PROMPT_BS", settings.PROMPT_BS)

    def build(self, cfg: Any, class_names: Sequence[str]) -> None:
        self.context = context_from_words(self.clip, "", self.settings.N_CTX)
        ctx = self.context.start(self.clip.config.text_width, self.settings.N_PROMPT)
        self.prompt_learner = ContextLearner(ctx)

    def tokenize_classes(self, class_names: Sequence[str]) -> list[PromptTokens]:
        """Tokenize the class names at each of ``POSITIONS``, then the prompt without a name."""
        words, n_prompts, _ = self.context
        named = [self.prompt_tokens(class_names, words, n_prompts, p, "N_CTX") for p in POSITIONS]
        return [*named, self.prompt_tokens([""], words, n_prompts)]

    def layers(self, condition: Tensor | None = None) -> Towers:
        return Towers(text=[self.prompt_learner.ctx[:, None]])

    def class_features(self, towers: Towers) -> Features:
        """Return ``text`` (K, d), the mean weights; in training of the prompts that are drawn.

        Training also needs ``prompts``, unit features (PROMPT_BS, K, d) of these, and
        ``nameless``, those (N, d) of all prompts without a class name.
        """
        (ctx,) = towers.text
        assert isinstance(ctx, Tensor)
        *named, nameless = self.tokens
        chosen = list(range(len(ctx)))
        if self.training:
            chosen = torch.randperm(len(ctx))[: self.settings.PROMPT_BS].tolist()
        quarter = len(ctx) // 4
        places = (range(quarter), range(quarter, 2 * quarter), range(2 * quarter, len(ctx)))
        parts = [[i for i in chosen if i in place] for place in places]
        prompts = torch.cat(
            [
                # a list would be copied to the device while everything waits
                self.encode_text(
                    [ctx[torch.tensor(part).to(ctx.device, non_blocking=True)]], tokens
                )
                for tokens, part in zip(named, parts, strict=True)
                if part
            ]
        )
        if not self.training:
            return {"text": prompts.mean(dim=0)}
        without_name = self.encode_text([ctx], nameless)[:, 0]
        return {"text": prompts.mean(dim=0), "prompts": prompts, "nameless": without_name}

    def logits(self, features: Features) -> Tensor:
        """Return s z.mu (B, K): the mean of the prompts' logits, not a cosine."""
        return super().logits(features) * features["text"].norm(dim=-1)

    def losses(self, features: Features, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the upper bound of the expected cross-entropy and the semantic orthogonality."""
        image, nameless = features["image"], features["nameless"]
        of_prompts = torch.stack([self.clip.similarity(image, w) for w in features["prompts"]])
        gaps = of_prompts - of_prompts.take_along_dim(labels[None, :, None], dim=2)
        bound = logits + gaps.var(dim=0, correction=0) / 2
        cosines = (nameless @ nameless.t()).abs()
        others = cosines.sum() - cosines.diagonal().sum()
        orthogonality = others / (len(cosines) * (len(cosines) - 1))
        terms = super().losses(features, bound, labels)
        return {**terms, "loss_so": self.settings.ALPHA * orthogonality}

    def public_copies(self) -> set[str]:
        return {"token_prefix", "token_suffix", "nc_token_prefix", "nc_token_suffix"}
