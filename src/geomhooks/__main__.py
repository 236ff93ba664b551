"""``python -m geomhooks``."""

import sys

from geomhooks.cli import main

sys.exit(main())
