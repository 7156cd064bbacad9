"""A training step that a GPU is handed as one CUDA graph.

At a batch of 4, launching the thousands of kernels of a step one by one takes longer than computing
them. A graph is recorded once and launched as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dassl.engine.optimize import Update, change, compute_gradients
from dassl.utils import log

from .base import Batch, Method


class Gradients(Update):
    """In place of an update: gradients are computed, and nothing is changed by them."""

    def on_sum(self, losses: Iterable[Tensor]) -> None:
        compute_gradients(losses, [self.optimizer], self.scaler)


class StepGraph:
    """Takes the training steps of a method; called as its ``step`` is.

    The first step of an epoch is computed as ever, which also makes what later ones only read. The
    second one records the forward pass, the losses and the gradients, which are replayed from then
    on. A batch of another shape, or with kept image features, is computed as ever.

    Attributes:
        obstacle: why this method's steps are never recorded; "" where they are.
    """

    def __init__(self, model: Method):
        self.model = model
        self.obstacle = ""
        if type(model).step is not Method.step:
            self.refuse("has a training step of its own")
        self.start_epoch()

    def refuse(self, why: str) -> None:
        self.obstacle = why
        name = type(self.model).__name__
        log.info(f"MODEL.CUDA_GRAPH: expected False for {name}, which {why}: it has no effect")

    def start_epoch(self) -> None:
        """Forget what was recorded: an evaluation may have put other tensors in place of some."""
        self.graph: torch.cuda.CUDAGraph | None = None
        self.n_steps = 0

    def __call__(
        self, batch: Batch, labels: Tensor, update: Update
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one training step; see ``Method.step``."""
        self.n_steps += 1
        given = [*self.model.views(batch), labels]
        if self.n_steps == 2 and not self.obstacle:
            self.record(given, update)
        if self.graph is None or not self.fits(given):
            return self.model.step(batch, labels, update)
        for own, tensor in zip(self.inputs, given, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        change([update.optimizer], update.scaler)
        logits, terms = self.outputs
        return logits.clone(), {name: term.clone() for name, term in terms.items()}

    def fits(self, given: list[Any]) -> bool:
        """Return whether a batch has the shapes of the recorded one."""
        return [tensor.shape for tensor in given] == [own.shape for own in self.inputs]

    def record(self, given: list[Any], update: Update) -> None:
        """Record a step, without taking it."""
        if not all(isinstance(tensor, Tensor) for tensor in given):
            return
        self.inputs = [tensor.clone() for tensor in given]
        *views, labels = self.inputs
        gradients = Gradients(update.optimizer, update.scaler, update.parts)
        graph, drawn = torch.cuda.CUDAGraph(), torch.get_rng_state()
        try:
            # other threads, such as the one that pins batches, may call the device meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                batch = views if len(views) > 1 else views[0]
                logits, terms = self.model.step(batch, labels, gradients)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # it waits for the device, or copies from the CPU
            torch.set_rng_state(drawn)
            self.refuse(f"cannot be recorded ({str(error).splitlines()[0]})")
            return
        if not torch.equal(drawn, torch.get_rng_state()):
            torch.set_rng_state(drawn)
            self.refuse("draws on the CPU in each step")
            return
        self.graph = graph
        self.outputs = logits.detach(), {name: term.detach() for name, term in terms.items()}
