"""What the embedded datasets share: how they are stored, drawn and named."""

from .dataset import DrawnByPeople, EmbeddedDataset, Example, SceneDataset

__all__ = ["DrawnByPeople", "EmbeddedDataset", "Example", "SceneDataset"]
