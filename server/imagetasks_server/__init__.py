"""The gateway: gRPC in front, Amazon EC2 behind."""
