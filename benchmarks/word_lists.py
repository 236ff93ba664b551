"""Lists of words as a page to read: Markdown, with the words in blocks of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from word_probes import Lists

from geomhooks.anatomy import BiasWords, HeadWords, RankedWords, SingularWords

__all__ = ["page", "shown"]

TITLES = {
    "keys": "From query to key: words that each head looks for most",
    "values": "From key to value: words that each head's update leads to",
    "updates": "The same of updates alone, without the word that they are added to",
    "query_key": "Singular vectors of query-key forms: queries and keys",
    "value_output": "Singular vectors of value-output maps: what is looked at and what is added",
    "biases": "Words along (+) and against (-) what the biases of queries and keys prefer",
}
SINGULAR_WORDS = 3  # of each side, as the published tables have


def page(title: str, about: str, ranked: RankedWords, blocks: Sequence[Lists], nouns: int) -> str:
    """All lists of a model.

    Args:
        title: of the page.
        about: a paragraph on how the words were looked for.
        ranked: words by the final norm.
        blocks: the words of each block.
        nouns: how many of them are shown.
    """
    lines = [f"# {title}", "", about, "", "## Words that the final norm favours", ""]
    lines += fenced(of_ranks(ranked))
    for lists in blocks:
        lines += [f"## Block {lists.block}", ""]
        for name, heading in TITLES.items():
            found = getattr(lists, name)
            lines += [f"### {heading}", ""]
            if found is None:
                lines += [f"None: {lists.missing[name]}.", ""]
            elif isinstance(found, HeadWords):
                lines += fenced(of_heads(found, nouns))
            elif isinstance(found, SingularWords):
                lines += fenced(of_singular(found))
            else:
                lines += fenced(of_biases(found))
    return "\n".join(lines).rstrip() + "\n"


def fenced(lines: Iterable[str]) -> list[str]:
    """Lines as a block of plain text, in which no sign of a word means anything."""
    return ["```text", *(line.rstrip() for line in lines), "```", ""]


def of_ranks(found: RankedWords) -> Iterator[str]:
    """Two lines for each score, the most and the least favoured; without a bias it has none."""
    table = found.table()
    shifted = bool(found.scores.bias.any())
    for by in (by for by in found.scores._fields if shifted or not by.endswith("bias")):
        for end in ("top", "bottom"):
            rows = [row for row in table if (row["by"], row["end"]) == (by, end)]
            words = "  ".join(f"{shown(row['word'])} {row['score']:.2f}" for row in rows)
            yield f"{by:22s}{end:8s}{words}"


def of_heads(found: HeadWords, nouns: int) -> Iterator[str]:
    """A line for each head and noun, with the length of its update where there is one."""
    for head, lists in enumerate(found.nearest):
        last = found.lengths is not None and head == len(found.nearest) - 1
        yield "all heads" if last else f"head {head}"
        for at, (noun, near) in enumerate(zip(found.words[:nouns], lists, strict=False)):
            length = "" if found.lengths is None else f"{float(found.lengths[head, at]):9.3f}"
            yield f"  {shown(noun):12s}{length}  {listed(near)}"


def of_singular(found: SingularWords) -> Iterator[str]:
    """A line for each singular value."""
    for head, values in enumerate(found.values):
        yield f"head {head}"
        for rank, value in enumerate(values):
            left, right = (
                listed(side[head][rank][:SINGULAR_WORDS]) for side in (found.left, found.right)
            )
            yield f"  {rank:2d}{float(value):10.3f}  {left}  ->  {right}"


def of_biases(found: BiasWords) -> Iterator[str]:
    """A line for each head, side and sign."""
    for row in found.table():
        title = f"head {row['head']} {row['side']} {row['sign']}"
        yield f"{title:16s}{row['length']:9.3f}  {listed(row['nearest'])}"


def listed(words: Iterable[str]) -> str:
    """Words beside each other."""
    return "  ".join(map(shown, words))


def shown(word: str) -> str:
    """A token so that every sign of it is seen, spaces and those without a shape too."""
    marked = (sign if sign.isprintable() else ascii(sign)[1:-1] for sign in word)
    return "".join(marked).replace(" ", "␣") or "''"
