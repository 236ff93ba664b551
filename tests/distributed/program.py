"""Run by torchrun: every check, one after the other, in the same processes.

To start processes takes longer than the checks do. Each rank notes the outcomes in a file; the
first check that fails ends them all, for then the ranks are no longer at the same place.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from geomhooks import distributed
from tests.distributed import pieces, pipelines, reaching, states, wrappers

PARTS = (states, wrappers, reaching, pieces, pipelines)
CHECKS = [check for part in PARTS for check in part.CHECKS]


def main(checks: Sequence[Callable[[], None]] = CHECKS) -> None:
    distributed.PIECE = 5000  # so that a message takes many
    dist.init_process_group("gloo", timeout=timedelta(seconds=180))
    noted: dict[str, str] = {}
    name = "main"
    try:
        for check in checks:
            name = check.__name__
            check()
            noted[name] = ""
    except BaseException:
        noted[name] = traceback.format_exc()
        raise
    finally:
        Path(f"{dist.get_rank()}.json").write_text(json.dumps(noted))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
