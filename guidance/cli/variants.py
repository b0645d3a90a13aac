"""`evaluate --vary`: every combination of some options of classifier guidance."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

from ..classifiers.base import Classifier
from ..classifiers.image import GRADIENTS, ImageClassifier
from .sample import looks_of


def _on_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError
    return text == "on"


def _gradient(text: str) -> str:
    if text not in GRADIENTS:
        raise ValueError
    return text


VARIED: dict[str, Callable[[str], Any]] = {
    "gradient": _gradient,
    "looks": int,
    "normalize": _on_off,
    "recurrence": int,
}
HELP = (
    "rows for every combination of these: gradient=cheap,exact looks=0,4 normalize=off,on "
    "recurrence=1,2"
)


def variants(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options with every combination of what --vary lists.

    Raises ValueError for a name or a value that cannot be varied.
    """
    named = [_values(text) for text in args.vary]
    combined = itertools.product(*(values for _, values in named))
    names = [name for name, _ in named]
    return [
        argparse.Namespace(**vars(args) | dict(zip(names, chosen, strict=True)))
        for chosen in combined
    ]


def _values(text: str) -> tuple[str, list[Any]]:
    """ "looks=0,4" -> ("looks", [0, 4])."""
    name, _, listed = text.partition("=")
    try:
        return name, [VARIED[name](value) for value in listed.split(",")]
    except (KeyError, ValueError):
        raise ValueError(f"vary is {text!r}; expected some of {HELP.partition(': ')[2]}.") from None


def of_variant(classifier: Classifier | None, args: argparse.Namespace) -> Classifier | None:
    """The classifier with the gradient and the looks of these options.

    Raises ValueError if they are for a classifier of clean images, and this one is noisy.
    """
    if isinstance(classifier, ImageClassifier):
        gradient = args.gradient or GRADIENTS[0]
        return classifier.with_gradient(gradient).with_looks(looks_of(args))
    if args.gradient or args.looks:
        raise ValueError(
            "--gradient and --looks, also in --vary, are of a classifier of clean images; leave "
            "them out, or add --gradient cheap if --classifier is one."
        )
    return classifier
