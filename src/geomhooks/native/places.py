"""Choosing the rows of a table."""

from __future__ import annotations

import numpy as np

from geomhooks.native.compiling import compiled

__all__ = ["place"]

LAST = np.iinfo(np.int64).max  # the priority of a row that holds nothing


@compiled("void(i8[::1], i8[::1], b1[::1], i8[::1], i8[::1], i8[::1], b1[::1])")
def place(key, priority, valid, keys, priorities, slot, fresh):
    """Choose rows for keys: see ``Table.place``.

    Args:
        key: (M,).
        priority: (M,).
        valid: (M,).
        keys: (K + 1,) of the table, changed.
        priorities: (K + 1,) of the table, changed.
        slot: (M,) is written.
        fresh: (M,) is written.
    """
    number, size = len(key), len(keys) - 1
    newcomers, new = np.empty(number, np.int64), 0
    for i in range(number):
        slot[i], fresh[i] = size, False
        if not valid[i]:
            continue
        for row in range(size):
            if keys[row] == key[i]:
                slot[i] = row
                priorities[row] = priority[i]
                break
        if slot[i] == size:
            newcomers[new] = i
            new += 1
    # The i-th best newcomer faces the i-th worst row, and takes its place if it is better.
    order = newcomers[:new][np.argsort(priority[newcomers[:new]])]
    faced = np.zeros(size, np.bool_)
    for i in order[: min(new, size)]:
        worst = -1
        for row in range(size):
            if not faced[row] and (worst < 0 or priorities[row] > priorities[worst]):
                worst = row
                if priorities[row] == LAST:
                    break
        if priority[i] >= priorities[worst]:
            break
        faced[worst] = fresh[i] = True
        slot[i] = worst
    for i in range(number):
        if slot[i] < size and not fresh[i] and faced[slot[i]]:
            slot[i] = size  # a held row that lost its place in this very call
    for i in range(number):
        if fresh[i]:
            keys[slot[i]], priorities[slot[i]] = key[i], priority[i]
