"""What the state of the default statistics takes, written out; ``scale.py`` holds it to the bytes.

With d the width, T positions, K contexts kept, O open, in numbers of eight bytes but where said:

    PosCtx, a site         position sums and their differences       d (2 T + 1) + T
                           open contexts                             (d + 1) (O + 1)
                           kept contexts, four bytes an entry        (d / 2 + 1) (K + 1)
                           mean of the contexts, and two squares     d + 2
    Sphere, a site         F features by position: count, sum, sum   5 F T + F, and F of one byte
                           of squares, least, greatest; shift
                           directions: two kinds, two groups         6 d + 8
                           two histograms of 202 bins; not finite    406
    a site                 shift, and forwards                       d + 1, and 1 of one byte
    a token stream         open contexts, positions in four bytes    (T / 2 + 3) (O + 1)
                           kept contexts                             (T / 2 + 3) (K + 1)
                           design of the fit                         (T + 1) (T + 3) + T
                           counts                                    10

F is 4 at a block's input, 8 at a block's output, 10 at the last block's.
"""

from __future__ import annotations

__all__ = ["expected_bytes", "pos_ctx_bytes", "sphere_bytes", "stream_bytes"]

STATE, BLOCK, LAST = 4, 8, 10  # features of Sphere


def pos_ctx_bytes(width: int, positions: int, kept: int, unfinished: int) -> int:
    """``PosCtx`` at one site."""
    by_position = width * (2 * positions + 1) + positions
    waiting = (width + 1) * (unfinished + 1)
    return 8 * (by_position + waiting + width + 2) + (4 * width + 8) * (kept + 1)


def sphere_bytes(width: int, positions: int, features: int) -> int:
    """``Sphere`` at one site."""
    moments = 8 * (5 * features * positions + features) + features
    return moments + 8 * (6 * width + 8) + 8 * 406


def stream_bytes(positions: int, kept: int, unfinished: int) -> int:
    """What all sites of a token stream share."""
    tables = (4 * positions + 24) * (unfinished + 1 + kept + 1)
    return tables + 8 * ((positions + 1) * (positions + 3) + positions + 10)


def expected_bytes(width: int, blocks: int, positions: int, kept: int, unfinished: int) -> int:
    """Both statistics at every block, and at the input of the first."""
    features = [STATE, *[BLOCK] * (blocks - 1), LAST]
    sites = sum(
        pos_ctx_bytes(width, positions, kept, unfinished)
        + sphere_bytes(width, positions, one)
        + 8 * (width + 1)
        + 1
        for one in features
    )
    return sites + stream_bytes(positions, kept, unfinished)
