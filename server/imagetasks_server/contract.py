"""The service, as the contract describes it."""

from typing import Final

from google.protobuf.descriptor import ServiceDescriptor

from imagetasks.v1 import store_image_tasks_pb2 as pb

SERVICE: Final[ServiceDescriptor] = pb.DESCRIPTOR.services_by_name["StoreImageTaskService"]
