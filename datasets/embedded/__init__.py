"""What the embedded datasets share: how they are stored, drawn and named."""

from .dataset import EmbeddedDataset, Example

__all__ = ["EmbeddedDataset", "Example"]
