"""What the fake can do that the sandbox cannot be made to do; what both do is in test_contract."""

import asyncio

import pytest
from fake_ec2 import FakeEc2, aws_error, image
from virtual import VirtualClock, run, settle

from imagetasks_server.errors import Error, Exhausted
from imagetasks_server.upstream import PageExpired, Query


async def walk(ec2: FakeEc2) -> list[str]:
    token, seen = None, []
    while True:
        page = await ec2.read_page(Query(), token)
        seen += [task.ami_id for task in page.tasks]
        token = page.next_token
        if token is None:
            return seen


def test_a_task_started_between_two_pages_pushes_one_onto_the_next_page_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock, page_size=2)
        for number in range(4):
            ec2.add(image(number), age=100 - number)
        ec2.between = lambda call: ec2.add(image(9)) and None if call.token == "0 from 2" else None
        assert await walk(ec2) == [image(n) for n in (3, 2, 2, 1, 0)]

    run(scenario)


def test_tokens_of_a_place_show_every_task_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock, page_size=2, steady_tokens=True)
        tasks = [ec2.add(image(number), age=100 - number) for number in range(5)]
        ec2.between = lambda call: ec2.remove(tasks[3]) if call.token and tasks[3] in ec2.tasks else None
        assert await walk(ec2) == [image(n) for n in (4, 3, 2, 1, 0)]

    run(scenario)


def test_expired_tokens_are_refused() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock, page_size=1)
        ec2.add()
        ec2.add()
        page = await ec2.read_page(Query())
        ec2.expire_tokens()
        with pytest.raises(PageExpired):
            await ec2.read_page(Query(), page.next_token)

    run(scenario)


def test_faults_come_as_often_as_scripted_and_say_where() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        ec2.fail(aws_error("RequestLimitExceeded", status=503), times=2)
        for _ in range(2):
            with pytest.raises(Exhausted) as caught:
                await ec2.read_page(Query())
            assert (caught.value.account, caught.value.region) == ("main", "eu-central-1")
        await ec2.read_page(Query())
        ec2.fail(aws_error("InternalError", status=500), times=None)
        for _ in range(3):
            with pytest.raises(Error):
                await ec2.read_page(Query())
        ec2.recover()
        await ec2.read_page(Query())
        assert len(ec2.calls) == 7

    run(scenario)


def test_a_hanging_call_goes_on_when_it_is_released() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        hold = ec2.hang()
        first, second = (asyncio.create_task(ec2.read_page(Query())) for _ in range(2))
        await hold.reached()
        await settle()
        assert (hold.waiting, ec2.most_at_once) == (2, 2)
        second.cancel()
        await settle()
        assert (hold.waiting, ec2.cancelled) == (1, 1)
        hold.release()
        assert await first

    run(scenario)


def test_what_is_older_than_31_days_is_not_listed() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ec2 = FakeEc2(clock)
        ec2.add(image(1), age=30 * 86400)
        await asyncio.sleep(2 * 86400)
        ec2.add(image(2))
        assert await walk(ec2) == [image(2)]

    run(scenario)
