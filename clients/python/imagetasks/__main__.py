"""`python -m imagetasks`: the command line."""

import sys

from imagetasks.cli import main

sys.exit(main())
