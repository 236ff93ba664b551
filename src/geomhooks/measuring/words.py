"""What token ids say, those that a tokenizer does not know among them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

__all__ = ["spell", "text_of"]


def spell(tokenizer: Any, ids: list[int]) -> list[str]:
    """The token of each id, or such as "#123" where the tokenizer has none."""
    return [_token(tokenizer, token) or f"#{token}" for token in ids]


def text_of(tokenizer: Any, ids: list[int], *, marks: bool = True) -> str:
    """The text of ids, with such as "#123" for those that the tokenizer does not know.

    Args:
        tokenizer: of transformers.
        ids: of tokens.
        marks: whether to show the marks of the model, such as those of beginning and end.
    """
    parts = []
    for known, some in groupby(ids, lambda token: _token(tokenizer, token) is not None):
        if known:
            text = tokenizer.decode(
                list(some), clean_up_tokenization_spaces=False, skip_special_tokens=not marks
            )
            parts.append(str(text))
        else:
            parts += [f"#{token}" for token in some]
    return parts[0] if len(parts) == 1 else " ".join(part for part in parts if part)


def _token(tokenizer: Any, token: int) -> str | None:
    if token < 0:
        return None
    try:
        found = tokenizer.convert_ids_to_tokens(token)
    except (IndexError, KeyError, OverflowError, TypeError):  # slow tokenizers have many ways
        return None
    return None if found in (None, "") else str(found)
