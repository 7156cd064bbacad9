"""What ViT-Mini-2 is trained with: captions, vectors of words, shared rows and the loss."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import clip
from benchmarks.vit_mini import train
from benchmarks.vit_mini.captions import Captions
from benchmarks.vit_mini.train import contrastive_loss, share_rows
from benchmarks.vit_mini.words import token_vectors
from clip.model import CLIP
from datasets.embedded.figures import GLYPHS
from datasets.embedded.sheets import Concept
from datasets.embedded.wording import NUMBERS

BIRD, DUCK, DOG, CAKE = range(4)
CONCEPTS = [
    Concept("bird", ("animal", "feather"), "animals-nature", "animal-bird"),
    Concept("duck", ("animal", "bird"), "animals-nature", "animal-bird"),
    Concept("dog", ("animal", "pet"), "animals-nature", "animal-mammal"),
    Concept("birthday cake", (), "food-drink", "food-sweet"),
]


@pytest.fixture(scope="module")
def captions() -> Captions:
    return Captions(CONCEPTS)


def made(captions: Captions, thing: int, number: int) -> list[tuple[str, set[int]]]:
    """Make captions of a thing: each one's text, and the things of which it is true."""
    random = Random(thing)
    pairs = [captions.caption(random, thing) for _ in range(number)]
    return [(text, set(captions.true[fact].nonzero()[0].tolist())) for text, fact in pairs]


def test_a_caption_is_true_of_its_thing(captions: Captions) -> None:
    for thing in range(len(captions.things)):
        assert all(thing in true for _, true in made(captions, thing, 8))


def test_a_name_that_is_a_word_of_another_thing_is_true_of_it_too(captions: Captions) -> None:
    named = {i: set(captions.true[i].nonzero()[0].tolist()) for i in range(len(captions.things))}
    assert named.pop(BIRD) == {BIRD, DUCK}
    assert all(true == {thing} for thing, true in named.items())


def test_a_word_is_true_of_all_things_that_have_it(captions: Captions) -> None:
    def true_of(thing: int, word: str) -> list[frozenset[int]]:
        """List the different sets of things of which captions with this word, not the name, are."""
        texts = made(captions, thing, 300)
        name = CONCEPTS[thing].name
        return [*{frozenset(true) for text, true in texts if word in text and name not in text}]

    assert true_of(DOG, "animal") == [{BIRD, DUCK, DOG}]
    assert true_of(DOG, "pet") == true_of(DOG, "mammal") == [{DOG}]
    assert true_of(DUCK, "bird") == [{BIRD, DUCK}]
    assert {frozenset(true) for text, true in made(captions, DOG, 300) if "dog" in text} == {
        frozenset({DOG})
    }
    assert all("birthday cake" in text for text, _ in made(captions, CAKE, 50))  # it has no words


def test_what_is_said_of_a_shape_is_true_of_all_that_share_it(captions: Captions) -> None:
    first, last = len(CONCEPTS), len(captions.things) - len(GLYPHS)
    shapes = {thing: set(captions.things[thing]) for thing in range(first, last)}
    words = set().union(*shapes.values())
    numbers = set()
    for shape, parts in shapes.items():
        for text, true in made(captions, shape, 4):
            said = words & set(re.findall(r"\w+", text))
            assert said <= parts and all(said <= shapes[other] for other in true)
            numbers.add(len(true))
    # 8 colors, 4 textures and 8 shapes; one, two or three of them are said
    assert numbers == {1, 4, 8, 4 * 8, 8 * 8}


def test_a_character_is_called_by_its_names(captions: Captions) -> None:
    for number, character in enumerate(GLYPHS, start=len(captions.things) - len(GLYPHS)):
        names = {character, *([NUMBERS[int(character)]] if character.isdigit() else [])}
        for text, true in made(captions, number, 4):
            assert names & set(re.findall(r"\w+", text)) and true == {number}


def test_no_caption_has_filler_words(captions: Captions) -> None:
    texts = [text for thing in range(len(captions.things)) for text, _ in made(captions, thing, 8)]
    assert len(texts) > 2000
    assert not [text for text in texts if re.search(r"\b(\w+)( \1)+\b", text, re.IGNORECASE)]


def test_a_seed_fixes_the_captions(captions: Captions) -> None:
    random, again, other = Random(1), Random(1), Random(2)
    things = [number % len(captions.things) for number in range(400)]
    first = [captions.caption(random, thing) for thing in things]
    fresh = Captions(CONCEPTS)
    assert first == [fresh.caption(again, thing) for thing in things]
    assert first != [captions.caption(other, thing) for thing in things]


def test_a_token_has_the_vector_of_its_word_and_a_part_the_mean() -> None:
    vocabulary = ["cat</w>", "ca", "cat", "ts</w>", "dog</w>", "x", "<|startoftext|>"]
    cat, cats, dog = np.eye(3, 8, dtype=np.float32)
    found = token_vectors(vocabulary, ["cat", "cats", "dog"], np.stack([cat, cats, dog]))
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(7), abs=1e-6)
    assert (found[0] == cat).all() and (found[4] == dog).all()
    assert found[1] == pytest.approx(cat)  # "cats" is no token
    longer = token_vectors([*vocabulary, "cats</w>"], ["cat", "cats"], np.stack([cat, cats]))
    assert longer[1] == pytest.approx((cat + cats) / np.sqrt(2))
    assert longer[2] == pytest.approx(cats) and longer[3] == pytest.approx(cats)
    assert np.abs(longer[4:7] @ np.stack([cat, cats]).T).max() < 1 and (found[5:] != 0).all()


def test_seen_tokens_keep_their_embeddings_and_others_have_the_nearest() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8], [0.8, -0.6]])
    seen = torch.tensor([False, False, True, True, False])
    kept, rows = share_rows(torch.arange(5.0)[:, None], vectors, seen)
    assert kept[:, 0].tolist() == [2, 3]  # the seen ones
    assert rows.tolist() == [1, 1, 0, 1, 1]


def test_seen_tokens_of_equal_vectors_have_rows_of_their_own() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    kept, rows = share_rows(torch.arange(3.0)[:, None], vectors, torch.tensor([True, False, True]))
    assert kept[:, 0].tolist() == [0, 2]
    assert rows.tolist() == [0, 0, 1]


def test_a_saved_model_loads_with_the_embeddings_of_all_tokens(tmp_path) -> None:
    config = replace(train.CONFIG, vision_layers=1, text_layers=1)
    model = CLIP(replace(config, vocab_size=1))
    vectors = F.normalize(torch.randn(config.vocab_size, 8), dim=-1)
    embedding = train.WordEmbedding(vectors, config.text_width)
    model.token_embedding = embedding
    seen = torch.zeros(config.vocab_size, dtype=torch.bool)
    seen[1000:1090] = True
    train.save(model, embedding, seen, tmp_path / "weights.pt")
    loaded = clip.load_model(str(tmp_path / "weights.pt"))
    assert loaded.config == config
    known = torch.arange(1000, 1090)
    own = embedding(known).half().float()
    assert torch.equal(loaded.token_embedding.weight[known], own)
    table = torch.load(tmp_path / "weights.pt", weights_only=True)["token_embedding.weight"]
    assert table.shape == (90, 128) and table.dtype == torch.float16
    nearest = (vectors[30_000] @ vectors[known].T).argmax()
    assert torch.equal(loaded.token_embedding.weight[30_000], own[nearest])


def test_the_loss_is_clip_s_where_each_caption_has_one_picture() -> None:
    images, texts, scale = torch.randn(6, 8), torch.randn(4, 8), torch.tensor(5.0)
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    true = torch.eye(6, 4, dtype=torch.bool)  # the last two pictures have no caption
    own = torch.arange(4)
    expected = (F.cross_entropy(logits[:4], own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, scale, true), expected)


def test_true_pairs_are_not_compared_with_each_other() -> None:
    images, scale = F.normalize(torch.randn(3, 8), dim=-1), torch.tensor(5.0)
    texts = torch.cat([images[:1], images[:1], images[2:]])  # the first picture has two captions
    true = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    once = contrastive_loss(images, texts[1:], scale, true[:, 1:])
    per_picture, per_text = (
        5 - torch.logsumexp(5 * pairs, -1)
        for pairs in (
            torch.stack([(images[0] @ texts[1:].T), (images[2] @ texts[[1, 2]].T).flip(0)]),
            torch.stack([images @ images[0], (images @ images[2]).flip(0)]),
        )
    )
    torch.testing.assert_close(once, -(per_picture.mean() + per_text.mean()) / 2)
