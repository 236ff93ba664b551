"""Run by torchrun on two ranks: the Trainers of both libraries, in the same processes."""

from __future__ import annotations

from geomhooks.integrations import ranks
from tests.distributed.program import main
from tests.integrations import ranks_huggingface, ranks_lightning

CHECKS = [*ranks_huggingface.CHECKS, *ranks_lightning.CHECKS]

if __name__ == "__main__":
    ranks.SECONDS = 60.0  # a rank that does not come is known sooner
    main(CHECKS)
