"""The model card of a classifier."""

from __future__ import annotations

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

{temperature}

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


def figures_of(results: dict[str, Any]) -> list[str]:
    """Return lines with the figures of the final evaluation; accuracy has a 95% Wilson interval."""
    lines = []
    total, correct = results.get("total"), results.get("correct")
    if isinstance(total, int) and isinstance(correct, int) and 0 <= correct <= total and total > 0:
        low, high = binomtest(correct, total).proportion_ci(method="wilson")
        lines.append(
            f"- accuracy: {100 * correct / total:.1f}% of {total} {results.get('split')} pictures "
            f"(95% interval {100 * low:.1f}% to {100 * high:.1f}%)"
        )
    for name, form in (("macro_f1", "{:.1f}%"), ("nll", "{:.3f}"), ("ece", "{:.3f}")):
        if isinstance(results.get(name), (int, float)):
            lines.append(f"- {name}: {form.format(results[name])}")
    return lines


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
    config, results = record.config, record.results
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
    t = record.temperature
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
        figures="\n".join(figures_of(results)) or "The run was not evaluated.",
        temperature="Probabilities are not calibrated: their temperature is 1."
        if t == 1
        else f"Probabilities are calibrated: logits are divided by the temperature {t:.4g}.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
