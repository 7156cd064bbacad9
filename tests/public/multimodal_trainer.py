"""A trainer in the style of MaPLe's: prompts in several layers, those of images made from texts'.

MaPLe's own file hands its prompts to blocks of a changed CLIP (``design_details``). Here it runs
the text blocks itself, and gives the images' prompts to the hook of the vision tower.
"""

import copy

import torch
import torch.nn as nn
from torch.cuda.amp import GradScaler, autocast
from torch.nn import functional as F

from clip import clip
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights
from tests.public.context_trainer import fetch_clip, load_weights

_tokenizer = _Tokenizer()


class TextEncoder(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, prompts, ids, deeper_prompts):
        x = prompts + self.positional_embedding.type(self.dtype)
        x = x.permute(1, 0, 2)
        for layer, block in enumerate(self.transformer.resblocks):
            if 1 <= layer <= len(deeper_prompts):
                deep = deeper_prompts[layer - 1]
                n_ctx = len(deep)
                deep = deep.unsqueeze(1).expand(-1, x.shape[1], -1)
                x = torch.cat([x[:1], deep, x[1 + n_ctx :]], dim=0)
            x = block(x)
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype)
        return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.text_projection


class MultiModalPromptLearner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        n_ctx = cfg.TRAINER.MAPLE.N_CTX
        depth = cfg.TRAINER.MAPLE.PROMPT_DEPTH
        words = cfg.TRAINER.MAPLE.CTX_INIT.replace("_", " ")
        dtype = clip_model.dtype
        width = clip_model.ln_final.weight.shape[0]
        vision_width = clip_model.visual.ln_pre.weight.shape[0]
        assert depth >= 1, "For MaPLe, PROMPT_DEPTH should be >= 1"
        assert cfg.INPUT.SIZE[0] == clip_model.visual.input_resolution
        with torch.no_grad():
            embedding = clip_model.token_embedding(clip.tokenize(words)).type(dtype)
        self.ctx = nn.Parameter(embedding[0, 1 : 1 + n_ctx, :])
        self.proj = nn.Linear(width, vision_width)
        self.compound_prompts_text = nn.ParameterList(
            [nn.Parameter(torch.empty(n_ctx, width)) for _ in range(depth - 1)]
        )
        for prompts in self.compound_prompts_text:
            nn.init.normal_(prompts, std=0.02)
        layer = nn.Linear(width, vision_width)
        self.compound_prompt_projections = nn.ModuleList(
            [copy.deepcopy(layer) for _ in range(depth - 1)]
        )

        names = [name.replace("_", " ") for name in classnames]
        self.name_lens = [len(_tokenizer.encode(name)) for name in names]
        self.ids = torch.cat([clip.tokenize(f"{words} {name}.") for name in names])
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.ids).type(dtype)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :])

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.ids), -1, -1)
        prompts = torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)
        vision = [
            layer(text)
            for layer, text in zip(
                self.compound_prompt_projections, self.compound_prompts_text, strict=True
            )
        ]
        return prompts, self.proj(self.ctx), self.compound_prompts_text, vision


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.prompt_learner = MultiModalPromptLearner(cfg, classnames, clip_model)
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def forward(self, image, label=None):
        prompts, shared_ctx, deep_text, deep_vision = self.prompt_learner()
        text_features = self.text_encoder(prompts, self.prompt_learner.ids, deep_text)
        image_features = self.image_encoder(image.type(self.dtype), [shared_ctx, *deep_vision])
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        if self.prompt_learner.training:
            return F.cross_entropy(logits, label)
        return logits


@TRAINER_REGISTRY.register()
class PublicMaPLe(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.MAPLE.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        clip_model = fetch_clip(cfg)
        if cfg.TRAINER.MAPLE.PREC in ["fp32", "amp"]:
            clip_model.float()
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, clip_model)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_("VPT" in name)
        enabled = {name for name, param in self.model.named_parameters() if param.requires_grad}
        print(f"Parameters to be updated: {enabled}")
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("MultiModalPromptLearner", self.model, self.optim, self.sched)
        self.scaler = GradScaler() if cfg.TRAINER.MAPLE.PREC == "amp" else None
        if torch.cuda.device_count() > 1:
            self.model = nn.DataParallel(self.model)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if self.cfg.TRAINER.MAPLE.PREC == "amp":
            with autocast():
                loss = self.model(image, label)
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            loss = self.model(image, label)
            self.optim.zero_grad()
            loss.backward()
            self.optim.step()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        load_weights(self, directory, epoch)
