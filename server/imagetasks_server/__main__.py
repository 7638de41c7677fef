"""`python -m imagetasks_server`."""

import sys

from imagetasks_server.main import main

sys.exit(main())
