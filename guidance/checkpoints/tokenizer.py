"""The tokenizer of a CLIP, SigLIP or SigLIP 2 folder: lines of text to token numbers."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import CheckpointError, one_line
from .folder import SAFELY, read_json, refuse_code, refused_as, transformers_for

# What a tokenizer is read from: the file of tokenizers, those of CLIP and those of sentencepiece.
FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
CONFIG = "tokenizer_config.json"
SIGLIP = "SiglipTokenizer"  # of SigLIP; SigLIP 2 has Gemma's


def tokenized(folder: Path, texts: Sequence[str], longest: int, siglip: bool) -> dict[str, Tensor]:
    """input_ids (texts, tokens), for CLIP with attention_mask, as the model was trained.

    longest: the most tokens that the text tower reads. SigLIP was trained on lower case, padded on
    the right to this length, without a mask (transformers' documentation of SigLIP and SigLIP 2).
    Raises CheckpointError for a tokenizer that cannot be read, ValueError for a text that is too
    long.
    """
    config = read_json(folder, CONFIG) or {}
    refuse_code(folder, config)
    tokenizer = _tokenizer(folder)
    if siglip:
        first = str(config.get("tokenizer_class", "")).startswith(SIGLIP)
        texts = [_canonical(text, first) for text in texts]
    with refused_as(f"The tokenizer of {folder.name} cannot be used", Exception):
        if siglip:
            tokenizer.padding_side = "right"
        counts = [len(tokenizer(text)["input_ids"]) for text in texts]
        if max(counts) <= longest:
            padding = {"padding": "max_length", "max_length": longest} if siglip else {}
            wanted = {"return_tensors": "pt", "return_attention_mask": True, "padding": True}
            found = tokenizer(list(texts), **wanted | padding)
            names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
            return {name: found[name] for name in names}
    length, text = max(zip(counts, texts, strict=True))
    raise ValueError(
        f"{text[:60]!r} has {length} tokens, but {folder.name} reads at most {longest}; shorten "
        "this line of classes, or template."
    )


def _tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of the folder."""
    transformers = transformers_for(folder)
    found = [name for name in FILES if (folder / name).is_file()]
    if not found:
        raise CheckpointError(
            f"{folder.name} has no tokenizer ({FILES[0]}), which its words need; download that "
            "file, too."
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), **SAFELY)
    except ImportError as error:  # of sentencepiece or protobuf
        if found[0] != FILES[0]:
            raise CheckpointError(
                f"{folder.name} has a tokenizer ({found[0]}) that needs another package "
                f"({_missing(error)}); install that, or download {FILES[0]} too, which needs none."
            ) from error
    except Exception as error:
        raise _unreadable(folder, error) from error
    try:
        return transformers.PreTrainedTokenizerFast.from_pretrained(str(folder), **SAFELY)
    except Exception as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The tokenizer of {folder.name} cannot be read ({one_line(error)}); download its files "
        "again."
    )


def _missing(error: ImportError) -> str:
    """The packages of sentencepiece's tokenizers that the error names."""
    names = [name for name in ("sentencepiece", "protobuf") if name in str(error).lower()]
    return " and ".join(names) or one_line(error)


def _canonical(text: str, first: bool) -> str:
    """The text as SigLIP was trained: lower case, and the first SigLIP's without punctuation."""
    text = text.lower()
    if first:
        text = text.translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.split())
