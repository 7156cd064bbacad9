"""The model card of a classifier."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from scipy.stats import binomtest

from clip.clip import OPEN_CLIP
from inference.record import Record

# Repositories of OpenAI's models on the Hugging Face Hub.
OPENAI = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
MOST_NAMED = 50  # class names in a card

TEXT = """\
# {method} on {dataset}

A classifier of pictures: {method} around the frozen CLIP `{backbone}`, trained on {dataset}{shots}.
It tells {count} classes apart: {labels}.
{other}

## Figures

{figures}

{meaning}

## How to use

```python
from inference import Classifier

classifier = Classifier.from_pretrained("{repository}")
for prediction in classifier.predict(["picture.jpg"]):
    print(prediction.image, prediction.label, prediction.probability)
```

It holds no weights of CLIP: `{backbone}` is loaded by that name.
"""


def base_model(backbone: str) -> str | None:
    """Return the Hub's repository of a backbone, None where it has none that is known."""
    if not backbone.startswith(OPEN_CLIP):
        return OPENAI.get(backbone)
    import open_clip

    name, _, tag = backbone.removeprefix(OPEN_CLIP).partition("/")
    return open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "").strip("/") or None


def figures_of(
    results: dict[str, Any], temperature: float, calibrated: Container[str]
) -> list[str]:
    """Return lines with figures; accuracy has a 95% Wilson interval.

    Args:
        results: of the final evaluation.
        temperature: of the classifier.
        calibrated: names of the figures at this temperature.
    """
    lines = []
    changed = {"nll", "ece"} if temperature != 1 else set()
    total, correct = results.get("total"), results.get("correct")
    if isinstance(total, int) and isinstance(correct, int) and 0 <= correct <= total and total > 0:
        low, high = binomtest(correct, total).proportion_ci(method="wilson")
        lines.append(
            f"- accuracy: {100 * correct / total:.1f}% of {total} {results.get('split')} pictures "
            f"(95% interval {100 * low:.1f}% to {100 * high:.1f}%)"
        )
    for name, form in (("macro_f1", "{:.1f}%"), ("nll", "{:.3f}"), ("ece", "{:.3f}")):
        if isinstance(results.get(name), (int, float)):
            before = " before calibration" if name in changed and name not in calibrated else ""
            lines.append(f"- {name}{before}: {form.format(results[name])}")
    return lines


def meaning_of(record: Record) -> str:
    """Say what the probabilities mean."""
    calibration = record.calibration
    if calibration.temperature == 1:
        text = "Probabilities are not calibrated: their temperature is 1."
    else:
        text = (
            "Probabilities are calibrated for the classes of the training: logits are divided by "
            f"the temperature {calibration.temperature:.4g}."
        )
    if calibration.thresholds and record.has_own_classes:
        shares = ", ".join(f"{coverage:g}" for coverage in sorted(calibration.thresholds))
        text += (
            "\n`classifier.predict(..., coverage=share)` names as many classes as it takes to have "
            f"the true one among them for this share of pictures: {shares}."
        )
    return text


def model_card(
    record: Record, sets_classes: bool, repository: str = "FOLDER", license: str = "mit"
) -> ModelCard:
    """Write the card.

    Args:
        record: of the classifier.
        sets_classes: whether other class names can be set.
        repository: what to load the classifier from, in the example.
        license: of what was learned, as the Hub names it.
    """
    config, t = record.config, record.temperature
    calibrated = record.calibration.test if record.results.get("split") == "test" else {}
    results = {**record.results, **calibrated}
    method, dataset = config["TRAINER"]["NAME"], config["DATASET"]["NAME"]
    backbone, shots = config["MODEL"]["BACKBONE"]["NAME"], config["DATASET"]["NUM_SHOTS"]
    metrics = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=name,
            metric_value=results[name],
        )
        for name in ("accuracy", "ece")
        if isinstance(results.get(name), (int, float))
    ]
    data = ModelCardData(
        license=license,
        base_model=base_model(backbone),
        datasets=[dataset],
        pipeline_tag="zero-shot-image-classification" if sets_classes else "image-classification",
        tags=["clip", "few-shot", method.lower()],
        model_name=f"{method} on {dataset}",
        eval_results=metrics or None,
    )
    named = ", ".join(record.labels[:MOST_NAMED])
    text = TEXT.format(
        method=method,
        dataset=dataset,
        backbone=backbone,
        repository=repository,
        shots=f", {shots} shots" if shots > 0 else "",
        count=len(record.labels),
        labels=named + (", ..." if len(record.labels) > MOST_NAMED else ""),
        other="`classifier.set_classes([...])` names other ones."
        if sets_classes
        else "What it has learned serves only these.",
        figures="\n".join(figures_of(results, t, calibrated)) or "The run was not evaluated.",
        meaning=meaning_of(record),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
