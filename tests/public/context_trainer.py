"""A trainer as researchers write it for the public toolbox; it uses only `dassl` and `clip`."""

import os.path as osp

import torch
import torch.nn as nn
from torch.nn import functional as F

from clip import clip
from clip.simple_tokenizer import SimpleTokenizer as _Tokenizer
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights

_tokenizer = _Tokenizer()


def fetch_clip(cfg):
    model_path = clip._download(clip._MODELS[cfg.MODEL.BACKBONE.NAME])
    try:
        archive = torch.jit.load(model_path, map_location="cpu").eval()
        state_dict = archive.state_dict()
    except RuntimeError:
        state_dict = torch.load(model_path, map_location="cpu")
    return clip.build_model(state_dict)


def load_weights(trainer, directory, epoch):
    if not directory:
        print("Note that load_model() is skipped as no pretrained model is given")
        return
    model_file = "model-best.pth.tar" if epoch is None else "model.pth.tar-" + str(epoch)
    for name in trainer.get_model_names():
        model_path = osp.join(directory, name, model_file)
        if not osp.exists(model_path):
            raise FileNotFoundError(f'Model not found at "{model_path}"')
        state_dict = load_checkpoint(model_path)["state_dict"]
        for key in list(state_dict):
            if key.endswith(("token_prefix", "token_suffix")):
                del state_dict[key]
        trainer._models[name].load_state_dict(state_dict, strict=False)


class TextEncoder(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, embedded, ids):
        x = embedded + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype)
        return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.text_projection


class Learner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        n_ctx = cfg.TRAINER.PUBLICSTYLE.N_CTX
        width = clip_model.ln_final.weight.shape[0]
        assert cfg.INPUT.SIZE[0] == clip_model.visual.input_resolution
        start = torch.empty(n_ctx, width, dtype=clip_model.dtype)
        nn.init.normal_(start, std=0.02)
        self.ctx = nn.Parameter(start)
        names = [name.replace("_", " ") for name in classnames]
        self.name_lens = [len(_tokenizer.encode(name)) for name in names]
        texts = [" ".join(["X"] * n_ctx) + " " + name + "." for name in names]
        self.ids = torch.cat([clip.tokenize(text) for text in texts])
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.ids).type(clip_model.dtype)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :])

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.ids), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class Net(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.prompt_learner = Learner(cfg, classnames, clip_model)
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def forward(self, image):
        v = F.normalize(self.image_encoder(image.type(self.dtype)), dim=-1)
        t = F.normalize(self.text_encoder(self.prompt_learner(), self.prompt_learner.ids), dim=-1)
        return self.logit_scale.exp() * v @ t.t()


@TRAINER_REGISTRY.register()
class PublicStyle(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.PUBLICSTYLE.PREC in ["fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        clip_model = fetch_clip(cfg)
        clip_model.float()
        self.model = Net(cfg, self.dm.dataset.classnames, clip_model)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return summary

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        load_weights(self, directory, epoch)
