"""`python -m flowcollapse.cli`, the same as `flowcollapse`."""

import sys

from . import main

sys.exit(main())
