"""What a state of leaders says, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geomhooks.results import Result
from geomhooks.statistics.base import Site
from geomhooks.statistics.leader_conditions import conditions, facts_of, is_own_form
from geomhooks.statistics.leader_features import GRAPH, LEADING, OF_TOKENS, described
from geomhooks.statistics.leader_layers import OF_LAYERS
from geomhooks.statistics.leader_words import describe_words

__all__ = ["describe_leaders"]


def describe_leaders(state: Mapping[str, Any], most: int, without: bool) -> dict[str, Any]:
    """The results at one site, by name.

    Args:
        state: of the site.
        most: how many words to have the counts of.
        without: without tokens at position 0.
    """
    site: Site = state["site"]
    row = slice(1, 2) if without else slice(0, 1)
    layer = {
        name: Result(**{key: value[0] for key, value in result.items()})
        for name, result in described(state["layer"], OF_LAYERS, row).items()
    }
    if not site.heads:
        return {"cluster_count": layer["cluster_count"]}
    lost = state["left_out"].value
    leading = described(state["leading"], LEADING, row)
    heads = {
        name: Result(**{key: value[:-1] for key, value in result.items()})
        for name, result in leading.items()
    }
    heads |= described(state["graph"], GRAPH, row)
    heads |= described(state["tokens"], OF_TOKENS, slice(0, 1 if without else 2))
    any_head = {
        name: Result(**{key: value[-1] for key, value in result.items()})
        for name, result in leading.items()
    }
    seen = state["seen"].summary(row)
    facts = facts_of(state["conditions"]["value"])
    found = heads | layer
    found |= {
        "seen": Result(
            outside=Result(**{key: value[0] for key, value in seen.items()}),
            norm_decreased=Result(**{key: value[1:] for key, value in seen.items()}),
            own_form=is_own_form(facts),
        ),
        "any_head": Result(**any_head),
        "mean_heads": Result(**{name: one["mean"].nanmean() for name, one in heads.items()}),
        "words": describe_words(state, most, without),
        "left_out": lost[0] if without else lost.sum(),
    }
    if not without:
        found["conditions"] = conditions(facts, site.width, state["conditions"]["known"])
    return found
