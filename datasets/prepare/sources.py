"""Where the fifteen public datasets come from, and how many images and classes they have.

Layouts, and the addresses of the split files, are those of CoOp's DATASETS.md. Checksums are from
torchvision (MD5), TensorFlow Datasets (SHA-256) and, for ImageNet-A and -R, from the MD5 in common
use. No checksum is known for the files on Google Drive and for ImageNet-Sketch: there the integrity
of the archive and the number of images are checked.

What an address fails to give is taken from a mirror that users of these datasets keep, because some
of the publishers' servers are gone. Its archives were made by others, so that the images and
classes in them are counted before anything of them is used.

Counts are from the papers' table of datasets (Table 10 of HiCroPL). It gives UCF101 1,808
validation images; its split file has 1,898, which agrees with the publishers' lists.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from dassl.data.datasets import DatasetBase

from ..caltech101 import IGNORED, Caltech101
from ..common import PublicDataset
from ..dtd import DescribableTextures
from ..eurosat import EuroSAT
from ..fgvc_aircraft import FGVCAircraft
from ..food101 import Food101
from ..imagenet import ImageNet
from ..imagenet_a import ImageNetA
from ..imagenet_r import ImageNetR
from ..imagenet_sketch import ImageNetSketch
from ..imagenetv2 import ImageNetV2
from ..oxford_flowers import OxfordFlowers
from ..oxford_pets import OxfordPets
from ..stanford_cars import StanfordCars
from ..sun397 import SUN397
from ..ucf101 import UCF101


@dataclass(frozen=True)
class Source:
    """One file to download.

    Attributes:
        file: its name in the dataset's folder.
        url: its address; "" if it has none anymore.
        checksum: its MD5 or SHA-256; "" if none is known.
        unpack: for an archive, {path in it: path in the dataset's folder}. A path that is itself
            an archive ("caltech-101/101_ObjectCategories.tar.gz") is unpacked, and the value names
            its only member.
    """

    file: str
    url: str = ""
    checksum: str = ""
    unpack: Mapping[str, str] = field(default_factory=dict)

    @property
    def gives(self) -> list[str]:
        """Paths in the dataset's folder that this source provides."""
        return list(self.unpack.values()) or [self.file]


@dataclass(frozen=True)
class PublicSet:
    """One dataset.

    Attributes:
        dataset: its class, which defines the names of its folders.
        images: numbers of training, validation and test images in the papers' table.
        classes: number of classes.
        sources: files to download, in the order of use.
        folders: its image folders, relative to the dataset's folder.
        lists: the publishers' text files that list the images in use, each line starting with a
            path or its stem; empty if all images are in use.
        ignored: class folders that are not in use.
        by_hand: where to obtain what has no address if the mirror fails, and what else to do.
    """

    dataset: type[DatasetBase]
    images: tuple[int, int, int]
    classes: int
    sources: tuple[Source, ...]
    folders: tuple[str, ...]
    lists: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()

    @property
    def split_file(self) -> str:
        """The name of CoOp's split file, or ""."""
        return self.dataset.split_file if issubclass(self.dataset, PublicDataset) else ""

    def folder(self, root: str) -> str:
        """Return the dataset's folder below ``root``."""
        return os.path.join(root, self.dataset.dataset_dir)

    @property
    def image_dir(self) -> str:
        """What the paths in the split file are relative to, in the dataset's folder."""
        return self.dataset.image_dir if issubclass(self.dataset, PublicDataset) else ""


def _drive(identifier: str) -> str:
    return f"https://drive.google.com/uc?id={identifier}"


def _split(dataset: type[PublicDataset], identifier: str) -> Source:
    return Source(dataset.split_file, _drive(identifier))


VGG = "https://www.robots.ox.ac.uk/~vgg/data"
HUGGING_FACE = "https://huggingface.co/datasets"
BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
PRINCETON = "https://vision.princeton.edu/projects/2010/SUN"

# By the names of the files in configs/datasets, the largest last.
PUBLIC_SETS = {
    "oxford_pets": PublicSet(
        OxfordPets,
        (2_944, 736, 3_669),
        37,
        (
            Source(
                "images.tar.gz",
                f"{VGG}/pets/data/images.tar.gz",
                "5c4f3ee8e5d25df40f4fd59a7f44e54c",
                {"images": "images"},
            ),
            _split(OxfordPets, "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
            Source(
                "annotations.tar.gz",
                f"{VGG}/pets/data/annotations.tar.gz",
                "95a8c909bbe2e81eed6a22bccdf3f68f",
                {"annotations": "annotations"},
            ),
        ),
        ("images",),
        ("annotations/trainval.txt", "annotations/test.txt"),
    ),
    "oxford_flowers": PublicSet(
        OxfordFlowers,
        (4_093, 1_633, 2_463),
        102,
        (
            Source(
                "102flowers.tgz",
                f"{VGG}/flowers/102/102flowers.tgz",
                "52808999861908f626f3c1f4e79d11fa",
                {"jpg": "jpg"},
            ),
            Source(
                "imagelabels.mat",
                f"{VGG}/flowers/102/imagelabels.mat",
                "e0620be6f572b9609742df49c70aed4d",
            ),
            _split(OxfordFlowers, "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
            Source("cat_to_name.json", _drive("1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0")),
        ),
        ("jpg",),
    ),
    "fgvc_aircraft": PublicSet(
        FGVCAircraft,
        (3_334, 3_333, 3_333),
        100,
        (
            Source(
                "fgvc-aircraft-2013b.tar.gz",
                f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                "d5f68b1b81d6d7831eb9d5c5517074176b5dfbce6bcb43dc14ed1c66a87b8d75",
                {
                    f"fgvc-aircraft-2013b/data/{name}": name
                    for name in (
                        "images",
                        "variants.txt",
                        *(f"images_variant_{part}.txt" for part in ("train", "val", "test")),
                    )
                },
            ),
        ),
        ("images",),
        tuple(f"images_variant_{part}.txt" for part in ("train", "val", "test")),
    ),
    "dtd": PublicSet(
        DescribableTextures,
        (2_820, 1_128, 1_692),
        47,
        (
            Source(
                "dtd-r1.0.1.tar.gz",
                f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz",
                "fff73e5086ae6bdbea199a49dfb8a4c1",
                {f"dtd/{name}": name for name in ("images", "imdb", "labels")},
            ),
            _split(DescribableTextures, "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
        ),
        ("images",),
    ),
    "eurosat": PublicSet(
        EuroSAT,
        (13_500, 5_400, 8_100),
        10,
        (
            Source(
                "EuroSAT.zip",
                f"{HUGGING_FACE}/torchgeo/eurosat/resolve/"
                "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                "c8fa014336c82ac7804f0398fcb19387",
                {"2750": "2750"},
            ),
            _split(EuroSAT, "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
        ),
        ("2750",),
    ),
    "caltech101": PublicSet(
        Caltech101,
        (4_128, 1_649, 2_465),
        100,
        (
            Source(
                "caltech-101.zip",
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                {"caltech-101/101_ObjectCategories.tar.gz": "101_ObjectCategories"},
            ),
            _split(Caltech101, "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
        ),
        ("101_ObjectCategories",),
        ignored=IGNORED,
    ),
    "ucf101": PublicSet(
        UCF101,
        (7_639, 1_898, 3_783),
        101,
        (
            Source(
                "UCF-101-midframes.zip",
                _drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O"),
                unpack={"UCF-101-midframes": "UCF-101-midframes"},
            ),
            _split(UCF101, "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
        ),
        ("UCF-101-midframes",),
    ),
    "food101": PublicSet(
        Food101,
        (50_500, 20_200, 30_300),
        101,
        (
            Source(
                "food-101.tar.gz",
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                "85eeb15f3717b99a5da872d97d918f87",
                {f"food-101/{name}": name for name in ("images", "meta")},
            ),
            _split(Food101, "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        ),
        ("images",),
    ),
    "stanford_cars": PublicSet(
        StanfordCars,
        (6_509, 1_635, 8_041),
        196,
        (
            Source(
                "cars_train.tgz",
                checksum="512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                unpack={"cars_train": "cars_train"},
            ),
            Source(
                "cars_test.tgz",
                checksum="bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                unpack={"cars_test": "cars_test"},
            ),
            _split(StanfordCars, "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
        ),
        ("cars_train", "cars_test"),
        by_hand=(
            "Stanford's server no longer has the images. Mirrors, such as Kaggle's, offer these "
            "archives or the folders in them. If the split file cannot be fetched either, a run "
            "also needs cars_test_annos_withlabels.mat and the folder devkit of car_devkit.tgz.",
        ),
    ),
    "imagenetv2": PublicSet(
        ImageNetV2,
        (0, 0, 10_000),
        1_000,
        (
            Source(
                "imagenetv2-matched-frequency.tar.gz",
                f"{HUGGING_FACE}/vaishaal/ImageNetV2/resolve/main/"
                "imagenetv2-matched-frequency.tar.gz",
                "f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
                {
                    "imagenetv2-matched-frequency-format-val": (
                        "imagenetv2-matched-frequency-format-val"
                    )
                },
            ),
        ),
        ("imagenetv2-matched-frequency-format-val",),
    ),
    "imagenet_a": PublicSet(
        ImageNetA,
        (0, 0, 7_500),
        200,
        (
            Source(
                "imagenet-a.tar",
                f"{BERKELEY}/imagenet-a.tar",
                "c3e55429088dc681f30d81f4726b6595",
                {"imagenet-a": "imagenet-a"},
            ),
        ),
        ("imagenet-a",),
    ),
    "imagenet_r": PublicSet(
        ImageNetR,
        (0, 0, 30_000),
        200,
        (
            Source(
                "imagenet-r.tar",
                f"{BERKELEY}/imagenet-r.tar",
                "a61312130a589d0ca1a8fca1f2bd3337",
                {"imagenet-r": "imagenet-r"},
            ),
        ),
        ("imagenet-r",),
    ),
    "imagenet_sketch": PublicSet(
        ImageNetSketch,
        (0, 0, 50_889),
        1_000,
        (
            Source(
                "ImageNet-Sketch.zip",
                f"{HUGGING_FACE}/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip",
                unpack={"sketch": "images"},
            ),
        ),
        ("images",),
    ),
    "sun397": PublicSet(
        SUN397,
        (15_880, 3_970, 19_850),
        397,
        (
            Source(
                "SUN397.tar.gz",
                f"{PRINCETON}/SUN397.tar.gz",
                "8ca2778205c41d23104230ba66911c7a",
                {"SUN397": "SUN397"},
            ),
            _split(SUN397, "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
            Source(
                "Partitions.zip",
                f"{PRINCETON}/download/Partitions.zip",
                "e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
                {name: name for name in ("ClassName.txt", "Training_01.txt", "Testing_01.txt")},
            ),
        ),
        ("SUN397",),
        ("Training_01.txt", "Testing_01.txt"),
    ),
    "imagenet": PublicSet(
        ImageNet,
        (1_281_167, 0, 50_000),
        1_000,
        (),
        ("images/train", "images/val"),
        by_hand=(
            "ImageNet is available to users with an account who agree to its terms: "
            "https://image-net.org/download-images (ILSVRC2012)",
            "Place these three archives, without unpacking them, in {folder}/images:",
            "  ILSVRC2012_img_train.tar      MD5 1d675b47d978889d74fa0da5fadfb00e",
            "  ILSVRC2012_img_val.tar        MD5 29b22e2961454d5413ddabcf34fc5622",
            "  ILSVRC2012_devkit_t12.tar.gz  MD5 fa75699e90414af021442c21a62c3abf",
            "This command unpacks them into {folder}/images/train/<class>/ and .../val/<class>/:",
            '  python -c "from torchvision.datasets import ImageNet as I; '
            "[I('{folder}/images', part) for part in ('train', 'val')]\"",
            "Existing folders in that layout, or links to them, work as well. CoOp's "
            "classnames.txt, in {folder}, is optional.",
        ),
    ),
}

# A repository of the Hugging Face Hub, at a commit, because what it holds may change. It has a zip
# file for each of these datasets: the dataset's folder in CoOp's layout, with the split file.
MIRROR = "zhengli97/prompt_learning_dataset"
MIRROR_COMMIT = "ceb3112337fb6e1bf71534e355ca5569b63f19a6"
MIRRORED = {
    "oxford_pets": "oxford_pets.zip",
    "oxford_flowers": "oxford_flowers.zip",
    "fgvc_aircraft": "fgvc_aircraft.zip",
    "dtd": "dtd.zip",
    "eurosat": "eurosat.zip",
    "caltech101": "caltech-101.zip",
    "ucf101": "ucf101.zip",
    "food101": "food101.zip",
    "stanford_cars": "stanford_cars.zip",
    "imagenetv2": "imagenetv2.zip",
    "imagenet_a": "imagenet-adversarial.zip",
    "imagenet_r": "imagenet-rendition.zip",
    "imagenet_sketch": "imagenet-sketch.zip",
    "sun397": "sun397.zip",
}

# CoPrompt's files by the names of the datasets' classes; each is {class name: [sentences]}.
DESCRIPTIONS_URL = "https://raw.githubusercontent.com/ShuvenduRoy/CoPrompt/HEAD/gpt_file/{}.json"
DESCRIPTIONS = {
    "Caltech101": "caltech_prompt",
    "DescribableTextures": "dtd_prompt",
    "EuroSAT": "eurosat_prompt",
    "FGVCAircraft": "fgvc_prompt",
    "Food101": "food101_prompt",
    "ImageNet": "imagenet_prompt",
    "ImageNetA": "imagenet_a_prompt",
    "ImageNetR": "imagenet_r_prompt",
    "ImageNetSketch": "imagenet_sketch_prompt",
    "ImageNetV2": "imagenetv2_prompt",
    "OxfordFlowers": "oxford_flowers_prompt",
    "OxfordPets": "oxford_pets_prompt",
    "StanfordCars": "stanford_cars_prompt",
    "SUN397": "sun397_prompt",
    "UCF101": "ucf101_prompt",
}
