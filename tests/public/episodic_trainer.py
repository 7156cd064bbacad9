"""A trainer in the style of MetaPrompt's: it calls CLIP's blocks, and learns on halves of classes.

Each step first learns on the whole batch; then it steps on one half of the classes, takes the
gradient on the other half from there, and applies that to the prompts from before.
"""

import random

import torch
import torch.nn as nn
from torch import autograd
from torch.nn import functional as F

from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights
from tests.public.context_trainer import fetch_clip, load_weights


class VisionEncoder(nn.Module):
    def __init__(self, cfg, clip_model):
        super().__init__()
        visual = clip_model.visual
        self.ln_pre = visual.ln_pre
        self.transformer = visual.transformer.resblocks
        self.ln_post = visual.ln_post
        self.proj = visual.proj
        self.n_pro = cfg.TRAINER.META.N_PRO
        self.layer_p = cfg.TRAINER.META.LAYERS

    def forward(self, x, ctx_v):
        x = self.ln_pre(torch.cat([x, ctx_v[:, 0]], dim=1))
        x = x.permute(1, 0, 2)
        for i in range(len(self.transformer)):
            if 1 <= i < self.layer_p:
                x = torch.cat([x[: -self.n_pro], ctx_v[:, i].permute(1, 0, 2)], dim=0)
            x = self.transformer[i](x)
        return self.ln_post(x.permute(1, 0, 2)[:, 0]) @ self.proj


class VisionPromptLearner(nn.Module):
    def __init__(self, cfg, clip_model):
        super().__init__()
        self.dtype = clip_model.dtype
        self.conv1 = clip_model.visual.conv1
        self.class_embedding = clip_model.visual.class_embedding
        self.positional_embedding = clip_model.visual.positional_embedding
        width = clip_model.visual.ln_pre.weight.shape[0]
        start = torch.empty(cfg.TRAINER.META.LAYERS, cfg.TRAINER.META.N_PRO, width)
        nn.init.normal_(start, std=0.02)
        self.ctx = nn.Parameter(start)

    def forward(self, x):
        ctx = self.ctx.unsqueeze(0).expand(len(x), -1, -1, -1)
        x = self.conv1(x.type(self.dtype))
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        first = self.class_embedding.to(x.dtype) + torch.zeros_like(x[:, :1])
        x = torch.cat([first, x], dim=1) + self.positional_embedding.type(self.dtype)
        return x, ctx


class TextEncoder(nn.Module):
    def __init__(self, cfg, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer.resblocks
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype
        self.n_ctx = cfg.TRAINER.META.N_CTX
        self.layer_p = cfg.TRAINER.META.LAYERS

    def forward(self, prompts, ids, ctx_t):
        x = prompts + self.positional_embedding.type(self.dtype)
        x = x.permute(1, 0, 2)
        for i in range(len(self.transformer)):
            if 1 <= i < self.layer_p:
                ctx = ctx_t[:, i].permute(1, 0, 2)
                x = torch.cat([x[:1], ctx, x[1 + self.n_ctx :]], dim=0)
            x = self.transformer[i](x)
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype)
        return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.text_projection


class PromptLearner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        n_ctx = cfg.TRAINER.META.N_CTX
        width = clip_model.ln_final.weight.shape[0]
        assert cfg.INPUT.SIZE[0] == clip_model.visual.input_resolution
        start = torch.empty(cfg.TRAINER.META.LAYERS, n_ctx, width, dtype=clip_model.dtype)
        nn.init.normal_(start, std=0.02)
        self.ctx = nn.Parameter(start)
        texts = [" ".join(["X"] * n_ctx) + f" {name.replace('_', ' ')}." for name in classnames]
        self.ids = torch.cat([clip.tokenize(text) for text in texts])
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.ids).type(clip_model.dtype)
        self.token_prefix = embedding[:, :1]
        self.token_suffix = embedding[:, 1 + n_ctx :]

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.ids), -1, -1, -1)
        return torch.cat([self.token_prefix, ctx[:, 0], self.token_suffix], dim=1), ctx


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        for p in clip_model.parameters():
            p.requires_grad = False
        self.prompt_learner = PromptLearner(cfg, classnames, clip_model)
        self.vision_prompt_learner = VisionPromptLearner(cfg, clip_model)
        self.image_encoder = VisionEncoder(cfg, clip_model)
        self.text_encoder = TextEncoder(cfg, clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype
        self.model = clip_model
        with torch.no_grad():
            texts = clip.tokenize([f"a photo of a {name}" for name in classnames])
            features = clip_model.encode_text(texts)
            self.text_features_zs = features / features.norm(dim=-1, keepdim=True)

    def forward(self, image, classes=None):
        classes = slice(None) if classes is None else classes
        with torch.no_grad():
            image_zs = F.normalize(self.model.encode_image(image.type(self.dtype)), dim=-1)
        x, ctx_v = self.vision_prompt_learner(image)
        image_features = F.normalize(self.image_encoder(x, ctx_v), dim=-1)
        prompts, ctx_t = self.prompt_learner()
        ids = self.prompt_learner.ids[classes]
        text_features = F.normalize(
            self.text_encoder(prompts[classes], ids, ctx_t[classes]), dim=-1
        )
        scale = self.logit_scale.exp()
        logits_i = scale * image_features @ self.text_features_zs[classes].t()
        logits_t = scale * image_zs @ text_features.t()
        logits = 0.5 * (logits_i + logits_t)
        return (logits, logits_i, logits_t) if self.training else logits


@TRAINER_REGISTRY.register()
class PublicMetaPrompt(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.META.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        clip_model = fetch_clip(cfg).to(self.device)
        clip_model.float()
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, clip_model)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        outputs = self.model(image)
        self.model_backward_and_update(sum(F.cross_entropy(logits, label) for logits in outputs))
        summary = {"acc": compute_accuracy(outputs[0], label)[0].item()}

        classes = list(range(self.num_classes))
        random.shuffle(classes)
        half = (len(classes) + 1) // 2
        halves = classes[:half], classes[half:]
        ctx = self.model.prompt_learner.ctx
        self.model.vision_prompt_learner.ctx.requires_grad_(False)
        start, gradients = ctx.detach().clone(), []
        for others, own in (halves, halves[::-1]):
            self.model_backward_and_update(self.half_loss(image, label, others))
            loss = self.half_loss(image, label, own)
            gradients += autograd.grad(loss, ctx)
            ctx.data = start.clone()
        for gradient in gradients:
            ctx.data -= self.get_current_lr() * gradient * self.cfg.TRAINER.META.META_STEP
        self.model.vision_prompt_learner.ctx.requires_grad_(True)

        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), **summary}

    def half_loss(self, image, label, classes):
        chosen = [row for row, value in enumerate(label.tolist()) if value in classes]
        labels = torch.tensor([classes.index(value) for value in label[chosen].tolist()])
        logits = self.model(image[chosen], classes)[2]
        return F.cross_entropy(logits, labels.to(self.device))

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        load_weights(self, directory, epoch)
