"""Folders of tiny random CLIP and SigLIP models, as transformers writes them, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "photo", "of", "cat", "dog", "zebra", "the", "small", "big", "3", "digit"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TOKENS = 12  # the most that the text tower reads
TOWER = {"hidden_size": 32, "intermediate_size": 48}
TOWER |= {"num_hidden_layers": 2, "num_attention_heads": 2}


def write_zero_shot(folder: Path, kind: str, seed: int = 0, side: int = 32) -> Any:
    """Writes the folder of a "clip" or "siglip" model, and returns the model."""
    import transformers

    text = TOWER | {"vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": TOKENS}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = TOWER | {"image_size": side, "patch_size": 8}
    torch.manual_seed(seed)
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=24, logit_scale_init_value=3.0
        )
        model = transformers.CLIPModel(config)
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side)
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config)
        model.logit_scale.data.fill_(2.0)
        model.logit_bias.data.fill_(-1.5)
        processor = transformers.SiglipImageProcessor(size={"height": side, "width": side})
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim > 1:  # the initial ones are so small that all texts look alike
            weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    write_tokenizer(folder, "<s> $A </s>" if kind == "clip" else "$A </s>")
    return model


def write_tokenizer(folder: Path, row: str) -> None:
    """One token a word; row: the special tokens around the words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    numbers = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, numbers[name]) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=row, special_tokens=special)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(
        folder
    )
