"""Local data sets in the form of those that Keras' example programs download.

What is real: the digits that scikit-learn ships (8 by 8 pixels, enlarged to 28 by 28) stand in for MNIST, and the texts
of Python's own help and of the docstrings of NumPy for reviews, news and novels. Stories and sentence pairs are made
from templates, as the originals of the former are.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.clients.keras2.sdist import cache_folder

Array = np.ndarray[Any, Any]
WORDS = re.compile(r"[a-z']+")


# ------------------------------------------------------------------------------------------------------ images
@functools.cache
def digits() -> tuple[Array, Array]:
    """1,797 images of digits, 28 by 28 bytes with a margin of 2, in an order of their own; and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = found.images.astype("float32") * (255 / 16)
    large = np.kron(small, np.ones((1, 3, 3), "float32"))
    images = np.pad(large, ((0, 0), (2, 2), (2, 2))).astype("uint8")
    order = np.random.RandomState(0).permutation(len(images))
    return images[order], found.target[order].astype("uint8")


def write_mnist(path: Path) -> None:
    """mnist.npz: 1,497 digits to train on and 300 to test with."""
    images, labels = digits()
    np.savez(path, x_train=images[:-300], y_train=labels[:-300], x_test=images[-300:], y_test=labels[-300:])


def write_large_mnist(path: Path) -> None:
    """mnist.npz with the sizes of the original, 60,000 and 10,000: the same digits, moved by up to 3 pixels."""
    images, labels = digits()
    chance = np.random.RandomState(7)

    def moved(first: int, last: int, count: int) -> tuple[Array, Array]:
        rows = chance.randint(first, last, count)
        shifts = chance.randint(-3, 4, (count, 2))
        return np.stack([np.roll(images[i], tuple(s), (0, 1)) for i, s in zip(rows, shifts)]), labels[rows]

    (x_train, y_train), (x_test, y_test) = moved(0, 1500, 60_000), moved(1500, len(images), 10_000)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def load_cifar10() -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The digits in two random colors on 32 by 32 pixels, in place of `keras.datasets.cifar10.load_data()`."""
    from keras import backend as K

    images, labels = digits()
    chance = np.random.RandomState(1)
    ink = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None] / 255
    front, back = chance.randint(128, 256, (len(ink), 1, 1, 3)), chance.randint(0, 96, (len(ink), 1, 1, 3))
    colored = (ink * front + (1 - ink) * back).astype("uint8")
    if K.image_data_format() == "channels_first":
        colored = colored.transpose(0, 3, 1, 2)
    column = labels.reshape(-1, 1)
    return (colored[:1500], column[:1500]), (colored[1500:], column[1500:])


# -------------------------------------------------------------------------------------------------------- texts
@functools.cache
def help_topics() -> dict[str, str]:
    """Python's own help on its syntax: about 80 topics, 700,000 characters."""
    from pydoc_data.topics import topics

    return dict(topics)


def _words(text: str) -> list[str]:
    return WORDS.findall(text.lower())


def _pieces(text: str, length: int, step: int) -> list[list[str]]:
    words = _words(text)
    return [words[i : i + length] for i in range(0, max(len(words) - length, 1), step)]


def _encode(pieces: list[list[str]]) -> tuple[list[list[int]], dict[str, int]]:
    """Words as their rank by frequency, from 1 on, as the data sets of Keras have it."""
    ranks = Counter(itertools.chain.from_iterable(pieces)).most_common()
    index = {word: rank for rank, (word, _) in enumerate(ranks, 1)}
    return [[index[word] for word in piece] for piece in pieces], index


@functools.cache
def reviews() -> tuple[list[list[int]], list[int], dict[str, int]]:
    """2,000 pieces of 40 to 160 words with the label 1 where they are from NumPy's docstrings, 0 from Python's help."""
    docs = "\n".join(str(getattr(np, name).__doc__) for name in sorted(np.__all__))
    chance = random.Random(2)
    both: list[tuple[list[str], int]] = []
    for label, text in enumerate(("\n".join(help_topics().values()), docs)):
        pieces = _pieces(text, 160, 60)
        chance.shuffle(pieces)
        both += [(piece[: chance.randint(40, 160)], label) for piece in pieces[:1000]]
    chance.shuffle(both)
    rows, index = _encode([piece for piece, _ in both])
    return rows, [label for _, label in both], index


@functools.cache
def news() -> tuple[list[list[int]], list[int], dict[str, int]]:
    """Pieces of 30 to 60 words from the 46 longest help topics, which are the labels."""
    longest = sorted(help_topics().values(), key=len, reverse=True)[:46]
    chance = random.Random(3)
    both = [(p[: chance.randint(30, 60)], label) for label, text in enumerate(longest) for p in _pieces(text, 60, 30)]
    chance.shuffle(both)
    rows, index = _encode([piece for piece, _ in both])
    return rows, [label for _, label in both], index


def _rows(rows: list[list[int]]) -> Array:
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return array


def write_reviews(path: Path) -> None:
    """imdb.npz."""
    rows, labels, _ = reviews()
    half = len(rows) * 3 // 4
    np.savez(
        path,
        x_train=_rows(rows[:half]),
        y_train=np.array(labels[:half]),
        x_test=_rows(rows[half:]),
        y_test=np.array(labels[half:]),
    )


def write_news(path: Path) -> None:
    """reuters.npz."""
    rows, labels, _ = news()
    np.savez(path, x=_rows(rows), y=np.array(labels))


def write_novel(path: Path) -> None:
    """nietzsche.txt: 60,000 characters of help."""
    path.write_text("\n".join(help_topics().values())[:60_000], encoding="utf-8")


# --------------------------------------------------------------------------------------------- made from templates
PEOPLE = ("Mary", "John", "Sandra", "Daniel")
PLACES = ("bathroom", "hallway", "garden", "office", "kitchen", "bedroom")
VERBS = ("moved to", "went to", "travelled to", "journeyed to")


def _stories(count: int, carrying: bool, chance: random.Random) -> str:
    """Stories in the form of the bAbI tasks 1 (where is a person?) and 2 (where is the thing that one carried?)."""
    lines = []
    for _ in range(count):
        where: dict[str, str] = {}
        number, holder = 0, ""
        for _ in range(5):
            for _ in range(2):
                person, place = chance.choice(PEOPLE), chance.choice(PLACES)
                where[person] = place
                number += 1
                lines.append(f"{number} {person} {chance.choice(VERBS)} the {place}.")
            number += 1
            if carrying and not holder:
                holder = chance.choice(sorted(where))
                lines.append(f"{number} {holder} got the football there.")
                number += 1
            asked = holder if carrying else chance.choice(sorted(where))
            lines.append(f"{number} Where is {'the football' if carrying else asked}? \t{where[asked]}\t1")
    return "\n".join(lines) + "\n"


def write_stories(path: Path) -> None:
    """babi-tasks-v1-2.tar.gz with the two tasks that the examples read."""
    chance = random.Random(4)
    with tarfile.open(path, "w:gz") as tar:
        for size, (task, carrying), part in itertools.product(
            ("en", "en-10k"),
            (("qa1_single-supporting-fact", False), ("qa2_two-supporting-facts", True)),
            ("train", "test"),
        ):
            content = _stories(200 if size == "en" else 400, carrying, chance).encode()
            info = tarfile.TarInfo(f"tasks_1-20_v1-2/{size}/{task}_{part}.txt")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_sentence_pairs(folder: Path) -> None:
    """fra-eng/fra.txt: English and French sentences, side by side."""
    subjects = (("I", "Je"), ("You", "Tu"), ("He", "Il"), ("She", "Elle"))
    verbs = (("see", "vois"), ("know", "connais"), ("want", "veux"), ("take", "prends"))
    things = (("the cat", "le chat"), ("the dog", "le chien"), ("the house", "la maison"), ("the book", "le livre"))
    ends = ((".", "."), (" today.", " aujourd'hui."), (" again.", " encore."), (" now.", " maintenant."))
    pairs = ["\t".join("".join(_spaced(side)) for side in zip(*parts)) for parts in itertools.product(
        subjects, verbs, things, ends
    )]  # fmt: skip
    random.Random(5).shuffle(pairs)
    (folder / "fra-eng").mkdir()
    (folder / "fra-eng" / "fra.txt").write_text("\n".join(pairs) + "\n", encoding="utf-8")


def _spaced(side: tuple[str, ...]) -> list[str]:
    return [side[0], " ", side[1], " ", side[2], side[3]]


def write_newsgroups(folder: Path) -> None:
    """20_newsgroup/ with a folder of numbered files for each of 20 help topics, and glove.6B/ with random vectors."""
    longest = sorted(help_topics().values(), key=len, reverse=True)[:20]
    words: set[str] = set()
    for label, text in enumerate(longest):
        topic = folder / "20_newsgroup" / f"topic.{label:02}"
        topic.mkdir(parents=True)
        for number, piece in enumerate(_pieces(text, 100, 25)):
            words.update(piece)
            (topic / str(number)).write_text(f"Subject: {label}\n\n{' '.join(piece)}\n", encoding="latin-1")
    chance = np.random.RandomState(6)
    (folder / "glove.6B").mkdir()
    with open(folder / "glove.6B" / "glove.6B.100d.txt", "w", encoding="utf-8") as file:
        for word in sorted(words):
            file.write(f"{word} {' '.join(f'{value:.4f}' for value in chance.randn(100))}\n")


# ----------------------------------------------------------------------------------------------------- in place
FILES: dict[str, Callable[[Path], None]] = {
    "mnist.npz": write_mnist,
    "imdb.npz": write_reviews,
    "imdb_word_index.json": lambda path: path.write_text(json.dumps(reviews()[2])) and None,
    "reuters.npz": write_news,
    "reuters_word_index.json": lambda path: path.write_text(json.dumps(news()[2])) and None,
    "nietzsche.txt": write_novel,
    "babi-tasks-v1-2.tar.gz": write_stories,
}
"""By the name that a program asks `get_file` for: what writes the stand-in."""


def local_file(fname: str, *args: Any, **kwargs: Any) -> str:
    """In place of `keras.utils.get_file`: the path of a stand-in, written when it is first asked for.

    Raises:
        FileNotFoundError: there is none for this name.
    """
    if fname not in FILES:
        raise FileNotFoundError(f"{fname}: there is no local data set for this file, and nothing is downloaded")
    folder = cache_folder() / ("large-data" if FILES["mnist.npz"] is write_large_mnist else "data")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / fname
    if not path.exists():
        fresh = folder / f"{random.SystemRandom().getrandbits(32):x}-{fname}"
        FILES[fname](fresh)
        fresh.replace(path)
    return str(path)


def install_data(large: bool = False) -> None:
    """Let Keras take its data sets from here.

    Args:
        large: MNIST has the sizes of the original, for scripts that name them.
    """
    if large:
        FILES["mnist.npz"] = write_large_mnist
    import keras
    from keras.datasets import cifar10, imdb, mnist, reuters
    from keras.utils import data_utils

    for module in (data_utils, keras.utils, imdb, mnist, reuters):
        module.get_file = local_file
    cifar10.load_data = load_cifar10
