"""What public trainer and dataset files import is there, and does what it does there.

The imports are recorded here as facts: module by module, the names that occur in public files.
"""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from dassl.data.datasets.dg import DigitsDG
from dassl.engine.ssl import FixMatch
from torch import nn
from yacs.config import CfgNode as CN

import dassl
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import SimpleNet, TrainerXU, build_trainer
from dassl.engine.trainer import SummaryWriter
from dassl.metrics import compute_distance_matrix
from dassl.metrics.distance import cosine_distance, euclidean_squared_distance
from dassl.modeling.backbone import BACKBONE_REGISTRY, Backbone
from dassl.modeling.head import HEAD_REGISTRY
from dassl.modeling.ops.utils import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)
from dassl.optim.radam import AdamW, PlainRAdam, RAdam
from dassl.utils import (
    UserError,
    check_availability,
    init_network_weights,
    open_all_layers,
    open_specified_layers,
)

NAMES = {
    "dassl": "__version__",
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader build_dataset "
    "build_sampler build_transform INTERPOLATION_MODES read_image",
    "dassl.data.datasets": "DATASET_REGISTRY DatasetBase Datum build_dataset",
    "dassl.data.datasets.base_dataset": "DatasetBase Datum",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.datasets.da": "OfficeHome DomainNet Office31 VisDA17 office_home",
    "dassl.data.datasets.dg": "PACS VLCS OfficeHomeDG DigitsDG DomainNet CIFAR10C",
    "dassl.data.datasets.dg.pacs": "PACS",
    "dassl.data.datasets.dg.wilds.wilds_base": "WILDSBase",
    "dassl.data.datasets.ssl": "CIFAR10 CIFAR100 STL10 SVHN",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler",
    "dassl.data.transforms": "INTERPOLATION_MODES build_transform Cutout "
    "Random2DTranslation GaussianNoise InstanceNormalization RandAugment RandAugmentFixMatch",
    "dassl.data.transforms.transforms": "INTERPOLATION_MODES build_transform "
    "Random2DTranslation InstanceNormalization Cutout GaussianNoise Compose Resize Normalize "
    "ToTensor CenterCrop RandomResizedCrop RandomHorizontalFlip SVHNPolicy CIFAR10Policy "
    "ImageNetPolicy",
    "dassl.engine": "TRAINER_REGISTRY build_trainer TrainerX TrainerXU TrainerBase SimpleTrainer "
    "SimpleNet Vanilla FixMatch",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.engine.da": "DANN MCD SourceOnly",
    "dassl.engine.dg": "Vanilla CrossGrad DDAIG",
    "dassl.engine.dg.vanilla": "Vanilla",
    "dassl.engine.ssl": "FixMatch MixMatch EntMin",
    "dassl.engine.trainer": "TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet SummaryWriter "
    "MetricMeter AverageMeter tolist_if_not count_num_param load_checkpoint save_checkpoint "
    "mkdir_if_missing resume_from_checkpoint load_pretrained_weights build_evaluator "
    "build_optimizer build_lr_scheduler build_backbone build_head DataManager OrderedDict",
    "dassl.evaluation": "EVALUATOR_REGISTRY build_evaluator EvaluatorBase Classification",
    "dassl.evaluation.build": "EVALUATOR_REGISTRY build_evaluator",
    "dassl.evaluation.evaluator": "EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy compute_distance_matrix",
    "dassl.metrics.accuracy": "compute_accuracy",
    "dassl.metrics.distance": "compute_distance_matrix euclidean_squared_distance cosine_distance",
    "dassl.modeling": "build_backbone build_head build_network BACKBONE_REGISTRY HEAD_REGISTRY "
    "NETWORK_REGISTRY",
    "dassl.modeling.backbone": "BACKBONE_REGISTRY Backbone build_backbone resnet18 resnet50",
    "dassl.modeling.head": "HEAD_REGISTRY build_head mlp",
    "dassl.modeling.network": "NETWORK_REGISTRY build_network",
    "dassl.modeling.ops": "mixup MixStyle ReverseGrad cross_entropy deactivate_mixstyle "
    "run_with_mixstyle utils",
    "dassl.modeling.ops.mixstyle": "MixStyle run_with_mixstyle",
    "dassl.modeling.ops.utils": "create_onehot sigmoid_rampup linear_rampup ema_model_update "
    "sharpen_prob reverse_index shuffle_index",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.lr_scheduler": "build_lr_scheduler ConstantWarmupScheduler LinearWarmupScheduler "
    "CosineAnnealingLR",
    "dassl.optim.optimizer": "build_optimizer",
    "dassl.optim.radam": "RAdam PlainRAdam AdamW",
    "dassl.utils": "MetricMeter AverageMeter Registry setup_logger Logger set_random_seed "
    "collect_env_info load_checkpoint save_checkpoint load_pretrained_weights "
    "resume_from_checkpoint open_all_layers open_specified_layers count_num_param "
    "init_network_weights mkdir_if_missing check_isfile read_json write_json download_url "
    "read_image listdir_nohidden check_availability get_most_similar_str_to_a_from_b tolist_if_not",
    "dassl.utils.logger": "Logger setup_logger",
    "dassl.utils.meters": "AverageMeter MetricMeter",
    "dassl.utils.registry": "Registry",
    "dassl.utils.tools": "mkdir_if_missing read_image set_random_seed listdir_nohidden "
    "tolist_if_not collect_env_info check_isfile read_json write_json",
    "dassl.utils.torchtools": "load_pretrained_weights load_checkpoint save_checkpoint "
    "resume_from_checkpoint count_num_param init_network_weights open_all_layers partial",
}


@pytest.mark.parametrize("module", NAMES)
def test_the_names_that_public_files_import_are_there(module):
    place = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(place, name)] == []


@pytest.mark.parametrize("module", ["dassl.engine.trainer", "dassl.utils", "dassl.data.transforms"])
def test_a_mistyped_name_is_an_error_at_import(module):
    with pytest.raises(ImportError, match="cannot import name 'TrainerZ'"):
        exec(f"from {module} import TrainerZ")


@pytest.mark.parametrize("module", ["dassl.engine.dgx", "dassl.data.datasets.pacs", "dassl.model"])
def test_a_mistyped_module_is_an_error_at_import(module):
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{module}'"):
        importlib.import_module(module)


def test_names_from_elsewhere_are_the_real_ones():
    from torch.utils import tensorboard
    from torchvision import transforms as T

    from dassl.data.transforms.transforms import INTERPOLATION_MODES, Compose
    from dassl.engine import trainer
    from dassl.utils import AverageMeter

    assert SummaryWriter is tensorboard.SummaryWriter and Compose is T.Compose
    assert trainer.AverageMeter is AverageMeter
    assert INTERPOLATION_MODES["bicubic"] is T.InterpolationMode.BICUBIC
    assert dassl.__version__ == "0.6.3"


# What is not here ---------------------------------------------------------------------------------


def refused(use) -> str:
    with pytest.raises(UserError) as caught:
        use()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_here_fails_at_use_with_one_line_that_names_it():
    class Mine(FixMatch):  # no error yet
        pass

    end = " is not part of this toolbox, which is for supervised few-shot learning"
    assert refused(lambda: DigitsDG.read_data("data", ["mnist"], "train")) == (
        "dassl.data.datasets.dg.DigitsDG" + end
    )
    pacs = importlib.import_module("dassl.data.datasets.dg.pacs")
    assert refused(lambda: pacs.PACS(get_cfg_default())) == (
        "dassl.data.datasets.dg.pacs.PACS" + end
    )
    assert refused(lambda: DigitsDG(get_cfg_default())) == "dassl.data.datasets.dg.DigitsDG" + end
    assert refused(lambda: Mine(get_cfg_default())) == "dassl.engine.ssl.FixMatch" + end
    assert refused(lambda: TrainerXU(get_cfg_default())) == "dassl.TrainerXU" + end


def test_a_trainer_on_unlabeled_images_is_refused_before_any_work(tmp_path, monkeypatch):
    from dassl.engine import TRAINER_REGISTRY

    class SelfTraining(TrainerXU):
        pass

    monkeypatch.setitem(TRAINER_REGISTRY._objects, "SelfTraining", SelfTraining)
    monkeypatch.setitem(DATASET_REGISTRY._objects, "AnyDataset", type("AnyDataset", (), {}))
    cfg = get_cfg_default()
    cfg.TRAINER.NAME, cfg.DATASET.NAME = "SelfTraining", "AnyDataset"
    cfg.DATASET.ROOT = str(tmp_path)
    assert refused(lambda: build_trainer(cfg)).startswith("dassl.TrainerXU is not part of")


# dassl.modeling -----------------------------------------------------------------------------------


def test_a_backbone_and_a_head_that_a_file_registers_make_a_simple_net(monkeypatch):
    class Flat(Backbone):
        def __init__(self, pretrained):
            super().__init__()
            assert pretrained is False
            self._out_features = 12

        def forward(self, x):
            return x.flatten(1)

    def narrow(in_features, hidden_layers, activation, bn, dropout):
        layer = nn.Linear(in_features, hidden_layers[-1])
        layer.out_features = hidden_layers[-1]
        return layer

    monkeypatch.setitem(BACKBONE_REGISTRY._objects, "flat", Flat)
    monkeypatch.setitem(HEAD_REGISTRY._objects, "narrow", narrow)
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "flat", False
    images = torch.randn(5, 3, 2, 2)
    net = SimpleNet(cfg, cfg.MODEL, 4)
    logits, features = net(images, return_feature=True)
    assert torch.equal(features, images.flatten(1)) and net.fdim == 12
    assert torch.equal(logits, net(images)) and logits.shape == (5, 4)
    assert torch.equal(SimpleNet(cfg, cfg.MODEL, 0)(images), features)
    cfg.MODEL.HEAD.NAME, cfg.MODEL.HEAD.HIDDEN_LAYERS = "narrow", (7,)
    net = SimpleNet(cfg, cfg.MODEL, 4)
    expected = net.classifier(net.head(features))
    assert net.fdim == 7 and torch.equal(net(images), expected)


def test_a_simple_net_of_a_backbone_that_nobody_registered_names_it():
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME = "resnet18"
    assert refused(lambda: SimpleNet(cfg, cfg.MODEL, 4)) == (
        "unknown backbone 'resnet18'; known: none"
    )


# dassl.modeling.ops.utils -------------------------------------------------------------------------


def test_probabilities_and_one_hot():
    p = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    expected = torch.tensor([[0.36 / 0.52, 0.16 / 0.52], [0.81 / 0.82, 0.01 / 0.82]])
    torch.testing.assert_close(sharpen_prob(p), expected)
    torch.testing.assert_close(sharpen_prob(p, 1), p)
    assert create_onehot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert create_onehot(torch.tensor([2, 0]), 3).dtype == torch.float32


def test_order_of_images_and_labels():
    data, label = torch.arange(12.0).view(6, 2), torch.arange(6)
    assert reverse_index(data, label)[1].tolist() == [5, 4, 3, 2, 1, 0]
    assert torch.equal(reverse_index(data, label)[0], data[[5, 4, 3, 2, 1, 0]])
    torch.manual_seed(3)
    order = torch.randperm(6)
    torch.manual_seed(3)
    shuffled = shuffle_index(data, label)
    assert torch.equal(shuffled[0], data[order]) and torch.equal(shuffled[1], order)


@pytest.mark.parametrize("current", [-1, 0, 1.5, 3, 6, 9])
def test_ramp_ups(current):
    share = min(max(current / 6, 0), 1)
    assert linear_rampup(current, 6) == pytest.approx(share)
    assert sigmoid_rampup(current, 6) == pytest.approx(math.exp(-5 * (1 - share) ** 2))
    assert refused(lambda: linear_rampup(current, 0)).startswith("rampup_length: expected")


def test_moving_average_of_a_model():
    model, average = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [
        0.9 * a + 0.1 * p for a, p in zip(average.parameters(), model.parameters(), strict=True)
    ]
    ema_model_update(model, average, 0.9)
    for parameter, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)


# dassl.metrics.distance ---------------------------------------------------------------------------


def test_distances():
    a, b = torch.randn(4, 7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    squared = torch.stack([torch.stack([((x - y) ** 2).sum() for y in b]) for x in a])
    cosine = torch.stack([torch.stack([1 - x @ y / (x.norm() * y.norm()) for y in b]) for x in a])
    torch.testing.assert_close(euclidean_squared_distance(a, b), squared)
    torch.testing.assert_close(cosine_distance(a, b), cosine)
    torch.testing.assert_close(compute_distance_matrix(a, b), squared)
    torch.testing.assert_close(compute_distance_matrix(a, b, "cosine"), cosine)
    assert refused(lambda: compute_distance_matrix(a, b, "hamming")).startswith(
        "metric: expected one of euclidean, cosine, got 'hamming'"
    )
    assert refused(lambda: compute_distance_matrix(a, b[:, :5])) == (
        "distance: expected shapes (n, d) and (m, d), got (4, 7) and (3, 5)"
    )


# dassl.optim.radam --------------------------------------------------------------------------------


def steps(optimizer, count=8, **settings):
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optim = optimizer([weight], lr=0.1, **settings)
    for _ in range(count):
        optim.zero_grad()
        (weight**3).sum().backward()
        optim.step()
    return weight.detach()


def rectified_adam(count, lr=0.1, decay=0.0, betas=(0.9, 0.999), eps=1e-8):
    """Compute RAdam (Liu et al., 2020, algorithm 2), the decay taken off the weights."""
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    longest = 2 / (1 - betas[1]) - 1
    for t in range(1, count + 1):
        gradient = 3 * weight**2
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        length = longest - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
        step = m / (1 - betas[0] ** t)
        if length >= 5:
            top = (length - 4) * (length - 2) * longest
            factor = math.sqrt(top / ((longest - 4) * (longest - 2) * length))
            step = factor * step * math.sqrt(1 - betas[1] ** t) / (v.sqrt() + eps)
        weight = weight - lr * decay * weight - lr * step
    return weight


@pytest.mark.parametrize("optimizer", [RAdam, PlainRAdam])
def test_rectified_adam(optimizer):
    torch.testing.assert_close(steps(optimizer), rectified_adam(8))
    torch.testing.assert_close(steps(optimizer, weight_decay=0.1), rectified_adam(8, decay=0.1))
    assert "degenerated_to_sgd" in refused(lambda: steps(optimizer, degenerated_to_sgd=False))


def test_adamw_has_no_decay_by_default():
    torch.testing.assert_close(steps(AdamW), steps(torch.optim.Adam))
    decayed = steps(torch.optim.AdamW, weight_decay=0.3)
    torch.testing.assert_close(steps(AdamW, weight_decay=0.3), decayed)
    assert refused(lambda: steps(AdamW, warmup=5)).startswith("warmup: expected 0")


# dassl.utils --------------------------------------------------------------------------------------


def test_layers_are_opened_and_closed():
    model = nn.Sequential()
    model.add_module("body", nn.Linear(2, 2))
    model.add_module("head", nn.Linear(2, 2))
    open_specified_layers(model, "head")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert (model.body.training, model.head.training) == (False, True)
    assert "neck" in refused(lambda: open_specified_layers(model, ["neck"]))
    open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters()) and model.body.training


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_weights_are_drawn_with_the_deviation_of_their_kind(init_type):
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.LayerNorm(64))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 3.0)
    init_network_weights(model, init_type, gain=0.5)
    linear, batch_norm, layer_norm = model
    deviation = {
        "normal": 0.5,
        "xavier": 0.5 * math.sqrt(2 / 128),
        "kaiming": math.sqrt(2 / 64),
        "orthogonal": 0.5 / 8,
    }[init_type]
    assert linear.weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert (linear.bias == 0).all()
    assert (batch_norm.weight == 1).all() and (batch_norm.bias == 0).all()
    assert (layer_norm.weight == 3).all()


def test_availability():
    from dassl.utils import get_most_similar_str_to_a_from_b

    check_availability("sgd", ["adam", "sgd"])
    assert "did you mean 'sgd'?" in refused(lambda: check_availability("sdg", ["adam", "sgd"]))
    assert get_most_similar_str_to_a_from_b("sgdd", ["adam", "sgd"]) == "sgd"
    assert get_most_similar_str_to_a_from_b("sgd", []) is None


# A public train.py --------------------------------------------------------------------------------


def test_the_setup_of_a_public_train_py_works(tmp_path):
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CN()
    cfg.TRAINER.COOP.N_CTX = 16
    cfg.TRAINER.COOP.CTX_INIT = ""
    cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.TRAINER.NAMES_TO_UPDATE = ["prompt_learner", "film"]
    cfg.OPTIM_VNET = CN()
    cfg.OPTIM_VNET.STEPSIZE = (-1,)
    path = tmp_path / "coop.yaml"
    path.write_text("TRAINER:\n  COOP:\n    N_CTX: 4\nINPUT:\n  SIZE: (32, 32)\n")
    cfg.merge_from_file(str(path))
    cfg.DATASET.ROOT = "data"
    cfg.merge_from_list(["TRAINER.COOP.CTX_INIT", "a photo of a", "DATASET.NUM_SHOTS", "16"])
    cfg.freeze()
    assert (cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.CTX_INIT) == (4, "a photo of a")
    assert cfg.DATASET.NUM_SHOTS == 16 and cfg.INPUT.SIZE == (32, 32)
    assert cfg.OPTIM_VNET.STEPSIZE == (-1,) and cfg.clone() == cfg
