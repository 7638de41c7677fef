"""Botocore's parsing of answers, but for the one that counts: its body is handed on as it came.

Only of a marked call (`attempts`): who asks the same beside, as the doctor, gets botocore's dicts.
"""

from typing import Any, Final

from aiobotocore.parsers import AioEC2QueryParser, AioResponseParserFactory

from imagetasks_server.attempts import is_one_call
from imagetasks_server.aws_models import parse_time

BODY: Final = "Body"
_RESULT: Final = "DescribeStoreImageTasksResult"
_OK: Final = 200
_SERVER_ERROR: Final = 500


class ParserFactory(AioResponseParserFactory):  # type: ignore[misc]  # aiobotocore is untyped
    """Makes parsers; a marked DescribeStoreImageTasks that succeeded has its bytes under `BODY`."""

    def __init__(self) -> None:
        super().__init__()
        self.set_parser_defaults(timestamp_parser=parse_time)

    def create_parser(self, protocol_name: str) -> Any:
        """A parser of this protocol's answers."""
        if protocol_name == "ec2":
            return _EC2Parser(**self._defaults)
        return super().create_parser(protocol_name)


class _EC2Parser(AioEC2QueryParser):  # type: ignore[misc]
    def _do_parse(self, response: dict[str, Any], shape: Any) -> dict[str, Any]:
        if is_one_call() and shape is not None and shape.name == _RESULT and response["status_code"] == _OK:
            return {BODY: response["body"]}
        return super()._do_parse(response, shape)  # type: ignore[no-any-return]

    def _is_generic_error_response(self, response: dict[str, Any]) -> bool:
        # Botocore knows only those that begin with "<html>". A load balancer on the way has words of its own,
        # and what fails behind it may well pass.
        not_ec2s = b"<Code>" not in response["body"]
        return not_ec2s if response["status_code"] >= _SERVER_ERROR else False
