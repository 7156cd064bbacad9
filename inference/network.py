"""A classifier as one network, from pixels to probabilities, that needs none of this library."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from clip import Layer
from dassl.data.transforms import InstanceNormalization
from inference.classifier import Classifier
from trainers.base import Method

TOLERANCE = 1e-5  # of a linear adapter, relative to what it returns


class Network(nn.Module):
    """The run's forward pass for fixed classes, and what surrounds it.

    Args:
        classifier: in fp32, on the CPU; it stays as it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier):
        super().__init__()
        settings = classifier.cfg.INPUT
        is_named = "normalize" in settings.TRANSFORMS
        mean, std = (settings.PIXEL_MEAN, settings.PIXEL_STD) if is_named else ([0.0], [1.0])
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.standardizes = "instance_norm" in settings.TRANSFORMS
        self.temperature = classifier.record.temperature
        self.method = copy.deepcopy(classifier.method)
        merge_adapters(self.method)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities (N, K) of pictures (N, R, R, 3), uint8, RGB."""
        images = (pixels.movedim(-1, 1).float() / 255 - self.mean) / self.std
        if self.standardizes:
            images = InstanceNormalization()(images)
        logits = self.method.logits(self.method.features(images))
        return logits, (logits / self.temperature).softmax(dim=1)


@torch.no_grad()
def merge_adapters(method: Method) -> None:
    """Add adapters of the vision tower's attention that are linear, as LoRA is, to its weights.

    Which ones are is found out by trying. Others stay part of the network, as do those of methods
    whose layers depend on the image.
    """
    if method.kept is None:
        return
    towers, classes = method.kept
    blocks = cast(Any, method.clip.visual).transformer.blocks if towers.vision else []
    vision = list(towers.vision)
    for i, (block, layer) in enumerate(zip(blocks, vision, strict=False)):
        if not isinstance(layer, Layer):
            continue
        attention = block.attn
        if layer.qkv is not None and (found := linear(layer.qkv, attention.embed_dim)):
            attention.in_proj_weight += found[0]
            attention.in_proj_bias += found[1]
            layer = replace(layer, qkv=None)
        if layer.out is not None and (found := linear(layer.out, attention.embed_dim)):
            attention.out_proj.weight += found[0]
            attention.out_proj.bias += found[1]
            layer = replace(layer, out=None)
        vision[i] = layer
    method.kept = towers._replace(vision=vision), classes


def linear(adapter: Callable[[Tensor], Tensor], width: int) -> tuple[Tensor, Tensor] | None:
    """Return weight (outputs, width) and bias (outputs,) of an adapter that is linear, or None."""
    bias = adapter(torch.zeros(1, width))[0]
    weight = (adapter(torch.eye(width)) - bias).t()
    x = torch.randn(32, width, generator=torch.Generator().manual_seed(0))
    expected = adapter(x)
    difference = (x @ weight.t() + bias - expected).abs().max()
    return (weight, bias) if difference <= TOLERANCE * expected.abs().max() else None


def program_of(classifier: Classifier) -> ExportedProgram:
    """Trace the network of a classifier, for any number of pictures, without unused tensors.

    Args:
        classifier: as for ``Network``.
    """
    size = classifier.method.clip.preprocess.size
    pixels = torch.zeros(3, size, size, 3, dtype=torch.uint8)
    network = Network(classifier).eval().requires_grad_(False)
    shapes = {"pixels": {0: Dim("pictures")}}
    with torch.no_grad():
        program = torch.export.export(network, (pixels,), dynamic_shapes=shapes, strict=False)
    drop_unused(program)
    return program


def drop_unused(program: ExportedProgram) -> None:
    """Take out the tensors that no operation reads, such as those of the text tower."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = program.graph_signature.input_specs
    for spec in list(specs):
        node = nodes[spec.arg.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and not node.users:
            program.graph.erase_node(node)
            specs.remove(spec)
            program.state_dict.pop(str(spec.target), None)
    program.graph_module.recompile()
