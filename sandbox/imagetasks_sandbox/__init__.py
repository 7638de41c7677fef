"""imagetasks-sandbox: an EC2 on loopback to try store image tasks on.

moto's server answers EC2, S3 and STS; this package adds the three actions moto lacks (CreateStoreImageTask,
DescribeStoreImageTasks, CreateRestoreImageTask) on moto's own AMIs and buckets. It is a program, not a
library: only ``launch`` is meant to be imported by others.
"""
