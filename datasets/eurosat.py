"""EuroSAT: ten kinds of land seen from a satellite."""

from __future__ import annotations

from dassl.data.datasets import DATASET_REGISTRY

from .common import PublicDataset, Splits, read_and_split_data

CLASS_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


@DATASET_REGISTRY.register()
class EuroSAT(PublicDataset):
    """``2750/<kind>/*.jpg``."""

    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    templates = ["a centered satellite photo of {}."]

    def make_split(self) -> Splits:
        return read_and_split_data(self.image_dir, new_cnames=CLASS_NAMES)
