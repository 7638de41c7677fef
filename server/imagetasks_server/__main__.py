"""The command `imagetasks-server`, also as `python -m imagetasks_server`."""

import os
import sys


def main() -> int:
    """What must stand before gRPC is imported, then `main`'s own; returns the exit status."""
    # C-core reads it when it is loaded. Its lines would stand among ours, one for each handshake that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from imagetasks_server.main import main  # noqa: PLC0415  # after that

    return main()


if __name__ == "__main__":
    sys.exit(main())
