"""``python -m imagetasks_sandbox`` is ``imagetasks-sandbox``."""

import sys

from imagetasks_sandbox.main import main

sys.exit(main())
