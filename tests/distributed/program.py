"""Run by torchrun: every check, one after the other, in the same processes.

To start processes takes longer than the checks do. Each rank notes the outcomes in a file; the
first check that fails ends them all, for then the ranks are no longer at the same place.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from geomhooks import distributed
from tests.distributed import states, wrappers

CHECKS = [*states.CHECKS, *wrappers.CHECKS]


def main() -> None:
    distributed.PIECE = 5000  # so that a message takes many
    dist.init_process_group("gloo", timeout=timedelta(seconds=180))
    noted: dict[str, str] = {}
    check: Callable[[], None] = main
    try:
        for check in CHECKS:
            check()
            noted[check.__name__] = ""
    except BaseException:
        noted[check.__name__] = traceback.format_exc()
        raise
    finally:
        Path(f"{dist.get_rank()}.json").write_text(json.dumps(noted))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
