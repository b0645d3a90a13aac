"""The timesteps that a run uses (Nichol & Dhariwal 2021, section 4)."""

from __future__ import annotations


def respaced_timesteps(respacing: str, total: int = 1000) -> list[int]:
    """Ascending timesteps for "250" (even stride), "ddim25" (whole stride), "10,15,20" (sections).

    Sections split 0..total-1 into equal parts and take this many steps from each. Raises ValueError
    if the text has none of these forms or needs more steps than there are.
    """
    text = respacing.strip().lower()
    if text.startswith("ddim"):
        return _whole_stride(respacing, text.removeprefix("ddim"), total)
    counts = [_count(respacing, part) for part in text.split(",")]
    base, extra = divmod(total, len(counts))
    steps: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        size = base + (index < extra)
        if count > size:
            raise ValueError(
                f"respacing is {respacing!r}, but {count} steps do not fit into a section of "
                f"{size} timesteps; ask for at most {size}."
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        steps += [start + round(stride * step) for step in range(count)]
        start += size
    return sorted(set(steps))


def _whole_stride(respacing: str, number: str, total: int) -> list[int]:
    count = _count(respacing, number)
    for stride in range(1, total + 1):
        if len(range(0, total, stride)) == count:
            return list(range(0, total, stride))
    raise ValueError(
        f"respacing is {respacing!r}, but no whole stride through {total} timesteps gives "
        f"{count} steps; try ddim25, ddim50, ddim100 or plain {count}."
    )


def _count(respacing: str, number: str) -> int:
    if not number.strip().isdecimal() or int(number) < 1:
        raise ValueError(
            f'respacing is {respacing!r}; expected a count ("250"), "ddim" and a count ("ddim25"), '
            'or counts per section ("10,15,20").'
        )
    return int(number)
