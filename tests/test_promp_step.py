"""What benchmarks/promp_step.py compares computes the same."""

import torch

from benchmarks.promp_step import PlainProMPT
from tests.trainers.tiny import NAMES, TEMPLATES, settings, tiny_clip
from trainers.promp import ProMPT


def test_the_plain_path_gives_the_same_loss_and_gradients():
    clip_model = tiny_clip()
    results = []
    for method in (ProMPT, PlainProMPT):
        torch.manual_seed(2)
        cfg, _ = settings(ProMPT, PROMPT_DEPTH_VISION=3)
        model = method(cfg, clip_model, NAMES, TEMPLATES)
        _, terms = model(torch.randn(2, 3, 16, 16), torch.tensor([1, 0]))
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.prompt_learner.parameters())])
    shared, plain = results
    assert len(shared) > 5
    for one, other in zip(shared, plain, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=1e-5 * float(one.detach().abs().max())
        )
