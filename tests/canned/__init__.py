"""An EC2 of canned XML, in a process of its own: for tests and benchmarks that want a world of their making.

It answers DescribeStoreImageTasks and DescribeRegions of EC2, GetCallerIdentity and AssumeRole of STS, from
a JSON world posted to it; see `world`. It fails as told (`faults`), and throttles as EC2 does (`throttle`).
`launch` runs it as a child; `python -m canned` runs it by hand, with
this package's parent on the path.
"""
