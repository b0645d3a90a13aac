"""Hyperparameters of the ADM networks. A checkpoint's tensors must agree with them.

Source: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3
and appendix I (the "ablated diffusion model", ADM).
"""

from __future__ import annotations

from dataclasses import dataclass

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


@dataclass(frozen=True, kw_only=True)
class ADMLayout:
    """The common hyperparameters of the U-Net and the half-U-Net classifier.

    `attention_levels` counts resolutions from 0 (full size); guided-diffusion lists downsampling
    factors, 2 ** level, instead. Heads: `num_head_channels` is used if it is given, otherwise every
    attention block has `num_heads` heads. `norm_groups` is 32 in guided-diffusion; narrow networks
    need fewer groups, because a group of one channel loses the mean of this channel.
    """

    in_channels: int = 3
    model_channels: int
    out_channels: int
    num_res_blocks: int
    channel_mult: tuple[float, ...]
    attention_levels: tuple[int, ...] = ()
    image_size: int | None = None
    num_heads: int = 1
    num_head_channels: int | None = 64
    new_attention_order: bool = False
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    dropout: float = 0.0
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if self.num_res_blocks < 1 or not self.channel_mult:
            raise ValueError(
                f"num_res_blocks is {self.num_res_blocks} and channel_mult {self.channel_mult}; "
                "a network needs at least one of each."
            )
        if self.norm_groups < 1:
            raise ValueError(f"norm_groups is {self.norm_groups}; it must be at least 1.")
        for level, channels in enumerate(self.level_channels):
            if channels <= 0 or channels % self.norm_groups:
                raise ValueError(
                    f"channel_mult gives {channels} channels at level {level}; "
                    f"the group norms need a positive multiple of {self.norm_groups}."
                )
        outside = [n for n in self.attention_levels if not 0 <= n < len(self.channel_mult)]
        if outside:
            raise ValueError(
                f"attention_levels holds {outside[0]}, but the {len(self.channel_mult)} levels of "
                f"channel_mult are counted from 0 to {len(self.channel_mult) - 1}."
            )
        heads = self.num_heads if self.num_head_channels is None else self.num_head_channels
        if heads < 1:
            raise ValueError(
                f"num_heads is {self.num_heads} and num_head_channels {self.num_head_channels}; "
                "what is given must be at least 1."
            )
        attended = {self.level_channels[level] for level in (*self.attention_levels, -1)}
        for channels in attended:
            if channels % heads:
                name = "num_head_channels" if self.num_head_channels else "num_heads"
                raise ValueError(
                    f"{channels} channels cannot be split evenly by {name} {heads}; "
                    "choose a divisor."
                )

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each resolution level, finest first."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def class_count(self) -> int:
        """Number of classes."""
        raise NotImplementedError

    @property
    def embed_channels(self) -> int:
        """Width of the time (and class) embedding."""
        return 4 * self.model_channels

    def head_channels(self, channels: int) -> int:
        """Channels per attention head in a block of `channels` channels."""
        if self.num_head_channels is None:
            return channels // self.num_heads
        return self.num_head_channels


@dataclass(frozen=True, kw_only=True)
class UNetLayout(ADMLayout):
    """The diffusion U-Net. `num_classes`: rows of the class embedding, None without class input.

    `null_class` is the row for "no label" in a model trained with label dropout (OpenAI's models
    have none).
    """

    num_classes: int | None = None
    null_class: int | None = None
    image_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        single, double = self.image_channels, 2 * self.image_channels
        if self.in_channels not in (single, double) or self.out_channels not in (single, double):
            raise ValueError(
                f"A model of {single}-channel images takes {single} or {double} channels and gives "
                f"{single} or {double}; these are {self.in_channels} and {self.out_channels}."
            )
        if self.null_class is not None and not 0 <= self.null_class < (self.num_classes or 0):
            raise ValueError(
                f"null_class is {self.null_class}, which is none of the {self.num_classes or 0} "
                "rows of num_classes."
            )

    @property
    def class_count(self) -> int:
        """Number of classes without the null class; 0 for an unconditional model."""
        return (self.num_classes or 0) - (self.null_class is not None)

    @property
    def learned_variance(self) -> bool:
        """Whether the second half of the output channels is the variance."""
        return self.out_channels == 2 * self.image_channels

    @property
    def upsampler(self) -> bool:
        """Whether the input has a low-resolution image in addition to x_t."""
        return self.in_channels == 2 * self.image_channels


@dataclass(frozen=True, kw_only=True)
class ClassifierLayout(ADMLayout):
    """The half-U-Net classifier; `out_channels` is the number of classes."""

    pool: str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in POOLS:
            raise ValueError(f"pool is {self.pool!r}; expected one of {', '.join(POOLS)}.")
        if self.pool == "attention" and self.image_size is None:
            raise ValueError("pool 'attention' needs image_size, the side of its input in pixels.")

    @property
    def class_count(self) -> int:
        """Number of classes, one per output."""
        return self.out_channels
