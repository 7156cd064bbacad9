"""A trainer in the style of ProMetaR's: a second network, with an optimizer of its own, learns how
much of the regularization's gradient to take, from the loss after a step with it.

torch's fast attention has no second derivative, neither in OpenAI's blocks nor here; its plain one
does.
"""

import torch
import torch.nn as nn
from torch.autograd import grad
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from tests.public.context_trainer import TextEncoder, fetch_clip, load_weights


class VNet(nn.Module):
    def __init__(self, cfg, clip_model):
        super().__init__()
        settings = cfg.TRAINER.PROMETAR
        vision = clip_model.visual.ln_pre.weight.shape[0] * settings.N_CTX_VISION
        text = clip_model.ln_final.weight.shape[0] * settings.N_CTX_TEXT
        self.rate = settings.DIM_RATE
        self.gates = nn.ModuleDict(
            {
                "prompt_learner|ctx": nn.Linear(2 * text, text // self.rate, bias=False),
                "VPT": nn.Linear(2 * vision, vision // self.rate, bias=False),
            }
        )

    def forward(self, gradient, regularizer, name):
        pair = torch.cat((gradient, regularizer)).reshape(1, -1)
        gate = torch.sigmoid(self.gates[name.replace(".", "|")](pair))
        gate = gate.repeat_interleave(self.rate, -1).reshape(gradient.shape)
        return gradient + gate * regularizer


class VLPromptLearner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        n_ctx = cfg.TRAINER.PROMETAR.N_CTX_TEXT
        words = " ".join("a photo of a".split()[:n_ctx])
        with torch.no_grad():
            embedding = clip_model.token_embedding(clip.tokenize(words)).type(clip_model.dtype)
        self.ctx = nn.Parameter(embedding[0, 1 : 1 + n_ctx])
        names = [name.replace("_", " ") for name in classnames]
        self.ids = torch.cat([clip.tokenize(f"{words} {name}.") for name in names])
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.ids).type(clip_model.dtype)
            texts = clip.tokenize([f"a photo of a {name}." for name in names])
            self.fixed_embeddings = F.normalize(clip_model.encode_text(texts), dim=-1)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :])

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.ids), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.prompt_learner = VLPromptLearner(cfg, classnames, clip_model)
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype
        width = clip_model.visual.ln_pre.weight.shape[0]
        self.VPT = nn.Parameter(0.02 * torch.randn(cfg.TRAINER.PROMETAR.N_CTX_VISION, width))

    def forward(self, image, label=None):
        learner = self.prompt_learner
        text_features = F.normalize(self.text_encoder(learner(), learner.ids), dim=-1)
        image_features = F.normalize(self.image_encoder(image.type(self.dtype), [self.VPT]), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        if not learner.training:
            return logits
        with torch.no_grad():
            image_zs = F.normalize(self.image_encoder(image.type(self.dtype)), dim=-1)
        reg_text = 25 * F.l1_loss(text_features, learner.fixed_embeddings)
        reg_image = 10 * F.l1_loss(image_features, image_zs)
        return F.cross_entropy(logits, label), reg_text, reg_image, logits


@TRAINER_REGISTRY.register()
class PublicProMetaR(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.PROMETAR.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        clip_model = fetch_clip(cfg).float()
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, clip_model)
        self.vnet = VNet(cfg, clip_model)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_("VPT" in name)
        self.model.to(self.device)
        self.vnet.to(self.device)
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("VLPromptLearner", self.model, self.optim, self.sched)
        self.optim_vnet = build_optimizer(self.vnet, cfg.OPTIM_VNET)
        self.sched_vnet = build_lr_scheduler(self.optim_vnet, cfg.OPTIM_VNET)
        self.adapt_lr = cfg.TRAINER.PROMETAR.ADAPT_LR

    @sdpa_kernel(SDPBackend.MATH)
    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        half = len(image) // 2
        params = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        loss, reg_text, reg_image, _ = self.model(image[:half], label[:half])
        gradients = grad(loss, params.values(), create_graph=True)
        regularizers = grad(reg_text + reg_image, params.values(), create_graph=True)
        task_params = {
            name: param - self.adapt_lr * self.vnet(gradient, regularizer, name)
            for (name, param), gradient, regularizer in zip(
                params.items(), gradients, regularizers, strict=True
            )
        }
        query = (image[half:], label[half:])
        loss, _, _, logits = functional_call(self.model, task_params, query)
        self.optim.zero_grad()
        self.optim_vnet.zero_grad()
        loss.backward()
        self.optim.step()
        self.optim_vnet.step()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
            self.sched_vnet.step()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, query[1])[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        load_weights(self, directory, epoch)
