"""Write the pictures and words that the repository ships for the sets of emoji.

    python -m benchmarks.vit_mini.sheets --work WORK

makes ``datasets/embedded/sheets/<style>.png``, sprites side by side, and
``datasets/embedded/concepts.json``, the names and words of the classes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

import datasets.embedded
from benchmarks.vit_mini.collect import FONTS_OF_GLYPHS, concepts, render_fonts, render_style
from dassl.command import Parser
from datasets.embedded.drawing import SPRITE_SIZE
from datasets.embedded.sheets import COLUMNS, SHEETS

# The classes of each set, by Unicode's names.
SETS = {
    "emoji": (
        "rose, sunflower, cactus, palm tree, mushroom, mountain, volcano, house, castle, "
        "tent, roller coaster, locomotive, bus, ambulance, fire engine, tractor, motorcycle, "
        "bicycle, skateboard, stop sign, anchor, sailboat, canoe, airplane, helicopter, "
        "rocket, flying saucer, watch, alarm clock, crescent moon, ringed planet, rainbow, "
        "umbrella, snowflake, snowman, fire, balloon, wrapped gift, trophy, soccer ball, "
        "basketball, american football, boxing glove, ice skate, bullseye, kite, game die, "
        "teddy bear, yarn, glasses, necktie, t-shirt, jeans, backpack, crown, ring, bell, "
        "trumpet, guitar, violin, drum, laptop, television, camera, light bulb, envelope, "
        "pencil, scissors, key, hammer, axe, shield, ladder, microscope, telescope, pill, "
        "door, bed, chair, toilet"
    ),
    "animals": (
        "monkey, dog, wolf, fox, cat, lion, tiger, horse, zebra, deer, ox, cow, pig, goat, "
        "camel, giraffe, elephant, hippopotamus, mouse, rabbit, hedgehog, bat, koala, panda, "
        "kangaroo, rooster, baby chick, penguin, eagle, duck, owl, peacock, parrot, frog, "
        "crocodile, turtle, snake, whale, dolphin, tropical fish, shark, octopus, crab, "
        "snail, butterfly, honeybee, lady beetle, spider"
    ),
    "food": (
        "grapes, watermelon, lemon, banana, pineapple, red apple, pear, peach, cherries, "
        "strawberry, tomato, avocado, eggplant, potato, carrot, ear of corn, hot pepper, "
        "cucumber, broccoli, garlic, onion, bread, croissant, pretzel, waffle, cheese wedge, "
        "bacon, hamburger, french fries, pizza, hot dog, sandwich, taco, egg, popcorn, "
        "spaghetti, sushi, ice cream, doughnut, cookie, birthday cake, cupcake, pie, "
        "lollipop, teapot, wine glass, cocktail glass, beer mug"
    ),
    "faces": (
        "grinning face, face with tears of joy, upside-down face, melting face, winking face, "
        "smiling face with halo, smiling face with hearts, smiling face with heart-eyes, face "
        "blowing a kiss, kissing face, face with tongue, zany face, shushing face, thinking "
        "face, zipper-mouth face, neutral face, face with rolling eyes, grimacing face, "
        "sleeping face, face with medical mask, nauseated face, sneezing face, hot face, cold "
        "face, exploding head, cowboy hat face, partying face, smiling face with sunglasses, "
        "nerd face, worried face, flushed face, crying face, loudly crying face, face "
        "screaming in fear, yawning face, enraged face, smiling face with horns, clown face, "
        "ghost, robot"
    ),
}


def interleaved(names: list[str]) -> list[str]:
    """Put every other name in the first half, so that both halves are of the same kinds."""
    return names[::2] + names[1::2]


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the training")
    args = parser.parse_args()
    packages, here = args.work / "packages", Path(datasets.embedded.__file__).parent
    everything = concepts(packages)
    classes = list(everything.values())
    index_of = {concept.name: index for index, concept in enumerate(classes)}
    sets = {name: interleaved(names.split(", ")) for name, names in SETS.items()}
    order = [index_of[name] for names in sets.values() for name in names]
    described = {
        name: [classes[index_of[n]]._asdict() for n in names] for name, names in sets.items()
    }
    (here / "concepts.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    (here / "sheets").mkdir(exist_ok=True)
    for style in SHEETS:
        sprites, indices = render_style(style, packages, everything)
        sprite_of = dict(zip(indices, sprites, strict=True))
        rows = -(-len(order) // COLUMNS)
        sheet = np.zeros((rows * SPRITE_SIZE, COLUMNS * SPRITE_SIZE, 4), np.uint8)
        for place, index in enumerate(order):
            top, left = (SPRITE_SIZE * part for part in divmod(place, COLUMNS))
            sheet[top : top + SPRITE_SIZE, left : left + SPRITE_SIZE] = sprite_of[index]
        Image.fromarray(sheet).save(here / "sheets" / f"{style}.png", optimize=True)
    outlines = render_fonts(FONTS_OF_GLYPHS, packages)
    sheet = np.concatenate([np.concatenate(list(font), axis=1) for font in outlines])
    Image.fromarray(sheet).save(here / "sheets" / "glyphs.png", optimize=True)


if __name__ == "__main__":
    main()
