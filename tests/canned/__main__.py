"""`python -m canned`: serve until stdin ends, so also when the parent dies."""

import argparse
import asyncio
import sys

from aiohttp import web

from canned import rules
from canned.server import application
from canned.world import World


async def _serve(host: str, port: int, page_size: int) -> None:
    # A caller who has left is not answered: an answer that hangs would stay for ever.
    runner = web.AppRunner(application(World(), page_size), access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        sys.stdout.write(f"http://{host}:{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.buffer.read)
    finally:
        await runner.cleanup()


def main() -> None:
    """Prints the endpoint as the first line."""
    parser = argparse.ArgumentParser(prog="canned", description="An EC2 of canned XML.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one (%(default)s)")
    parser.add_argument(
        "--page-size", type=int, default=rules.PAGE_SIZE, help="the page without MaxResults (%(default)s)"
    )
    options = parser.parse_args()
    asyncio.run(_serve("127.0.0.1", options.port, options.page_size))


if __name__ == "__main__":
    main()
