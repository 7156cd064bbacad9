"""A trainer in the style of DePT's: a loop, an optimizer, a writer and a loader of its own."""

import datetime
import os
import os.path as osp
import time

import torch
from torch import nn
from torch.nn import functional as F

from dassl.data import DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.transforms.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.trainer import AverageMeter, MetricMeter, SummaryWriter
from dassl.engine.trainer import TrainerX as TrainerX_
from dassl.optim import build_lr_scheduler
from dassl.optim.radam import RAdam
from dassl.utils import mkdir_if_missing
from tests.public.context_trainer import Net as Net_
from tests.public.context_trainer import fetch_clip, load_weights


def build_optimizer(model, optim_cfg):
    """Build RAdam with a higher rate for the layers of NEW_LAYERS; return it and the rates."""
    assert optim_cfg.NAME == "radam" and optim_cfg.STAGED_LR
    lr = optim_cfg.LR * optim_cfg.LR_EXP
    base_lr = lr * optim_cfg.BASE_LR_MULT / optim_cfg.LR_EXP
    base, new = [], []
    for name, child in model.named_children():
        is_new = any(layer in name for layer in optim_cfg.NEW_LAYERS)
        (new if is_new else base).extend(child.parameters())
    groups = [{"params": base, "lr": base_lr}, {"params": new}]
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    return RAdam(groups, lr=lr, weight_decay=optim_cfg.WEIGHT_DECAY, betas=betas), (base_lr, lr)


class TrainerX(TrainerX_):
    def run_epoch(self):
        self.set_model_mode("train")
        losses = MetricMeter()
        batch_time = AverageMeter()
        data_time = AverageMeter()
        loader = self.train_loader_x
        self.num_batches = len(loader)
        end = time.time()
        for self.batch_idx, batch in enumerate(loader):
            data_time.update(time.time() - end)
            loss_summary = self.forward_backward(batch)
            batch_time.update(time.time() - end)
            losses.update(loss_summary)
            left = self.num_batches - self.batch_idx - 1
            left += (self.max_epoch - self.epoch - 1) * self.num_batches
            eta = datetime.timedelta(seconds=int(batch_time.avg * left))
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] "
                f"batch [{self.batch_idx + 1}/{self.num_batches}] time {batch_time.val:.3f} "
                f"data {data_time.val:.3f} {losses} lr {self.get_current_lr():.4e} eta {eta}"
            )
            n_iter = self.epoch * self.num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar("train/" + name, meter.avg, n_iter)
            end = time.time()


class TwoViews(DatasetWrapper):
    def __getitem__(self, idx):
        output = super().__getitem__(idx)
        output["img_flipped"] = output["img"].flip(-1)
        return output


class FiLM(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return self.scale * x + self.bias


class CustomCLIP(Net_):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__(cfg, classnames, clip_model)
        assert cfg.DATASET.SUBSAMPLE_CLASSES == "base" and cfg.TRAINER.FILM.LINEAR_PROBE
        self.lp_cfg = cfg.TRAINER.LINEAR_PROBE
        width = clip_model.text_projection.size(1)
        self.film_lp_img = FiLM(width)
        self.film_lp_text = FiLM(width)
        self.linear_probe_proj = nn.Linear(width, len(classnames)).type(self.dtype)

    def forward_feats(self, img):
        text_feats = self.text_encoder(self.prompt_learner(), self.prompt_learner.ids)
        return text_feats, self.image_encoder(img.type(self.dtype))

    def forward(self, img, labels=None):
        text_feats, img_feats = self.forward_feats(img)
        cosines = F.normalize(img_feats, dim=-1) @ F.normalize(text_feats, dim=-1).t()
        logits = self.logit_scale.exp() * cosines
        img_feats, text_feats = self.film_lp_img(img_feats), self.film_lp_text(text_feats)
        weight = self.lp_cfg.WEIGHT
        if self.prompt_learner.training:
            feats = torch.cat([text_feats[labels], img_feats])
            logits_lp = self.linear_probe_proj(feats)
            loss_lp = F.cross_entropy(logits_lp, torch.cat([labels, labels]))
            return (1 - weight) * F.cross_entropy(logits, labels) + weight * loss_lp
        logits_lp = self.linear_probe_proj(img_feats)
        if not self.lp_cfg.TEST_TIME_FUSION:
            return logits_lp
        return (1 - weight) * logits + weight * logits_lp


@TRAINER_REGISTRY.register()
class PublicDePT(TrainerX):
    def build_model(self):
        cfg = self.cfg
        clip_model = fetch_clip(cfg).float()
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, clip_model)
        for name, param in self.model.named_parameters():
            param.requires_grad_(any(part in name for part in cfg.TRAINER.NAMES_TO_UPDATE))
        self.model.to(self.device)
        self.optim, rates = build_optimizer(self.model, cfg.OPTIM)
        print(f"Learning rates: {rates}")
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("PromptLearner", self.model, self.optim, self.sched)
        self.scaler = None

    def before_train(self):
        super().before_train()
        folder = osp.join(self.output_dir, "dept")
        mkdir_if_missing(folder)
        self.own_writer = SummaryWriter(log_dir=folder)

    def after_epoch(self):
        super().after_epoch()
        scale = self.model.film_lp_img.scale
        self.own_writer.add_histogram("film/scale", scale.detach().cpu(), self.epoch)

    def after_train(self):
        super().after_train()
        self.own_writer.close()
        self.dump_features()

    @torch.no_grad()
    def dump_features(self):
        cfg = self.cfg
        loader = build_data_loader(
            cfg,
            sampler_type="SequentialSampler",
            data_source=self.dm.dataset.train_x,
            batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=build_transform(cfg, is_train=False),
            is_train=False,
            dataset_wrapper=TwoViews,
        )
        self.set_model_mode("eval")
        feats, labels = [], []
        for batch in loader:
            for key in ("img", "img_flipped"):
                feats.append(self.model.forward_feats(batch[key].to(self.device))[1].cpu())
                labels.append(batch["label"])
        dump = {"features": torch.cat(feats), "labels": torch.cat(labels)}
        torch.save(dump, osp.join(self.output_dir, "features.pt"))

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
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
        if epoch is not None and epoch < 0:  # the last one
            files = os.listdir(osp.join(directory, "PromptLearner"))
            epoch = max(int(file.split("-")[-1]) for file in files if file != "checkpoint")
        load_weights(self, directory, epoch)
