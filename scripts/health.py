"""The image's health check: exits 0 if the gateway in this container says that it serves.

Asks over plaintext where `IMAGETASKS_LISTEN` says, on loopback if that is every address.
"""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 3.0
SERVICE = "imagetasks.v1.StoreImageTaskService"


def main() -> int:
    """The command; returns the exit code."""
    listen = os.environ.get("IMAGETASKS_LISTEN", "127.0.0.1:50051")
    for every, loopback in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")):
        if listen.startswith(every):
            listen = loopback + listen.removeprefix(every)
    with grpc.insecure_channel(listen, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=SECONDS)
        except grpc.RpcError as error:
            sys.stderr.write(f"{listen}: {error.code().name}: {error.details()}\n")
            return 1
    sys.stdout.write(f"{health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}\n")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
