"""Following next_token gives every task of the answering targets exactly once, newest first.

Two replicas that share nothing answer the pages in any order, while targets fail and recover and tasks
start, progress and end between the pages.
"""

from collections.abc import Iterator

from fake_ec2 import FakeEc2, FakeWorld, aws_error
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import VirtualClock, run

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.assembly import assemble
from imagetasks_server.config import BudgetSettings, Settings
from imagetasks_server.errors import Error
from imagetasks_server.selection import Order, order_of
from imagetasks_server.service import Call, Service

WORLD = {"main": ("eu-central-1", "us-east-1"), "other": ("eu-central-1",)}
SETTINGS = Settings(
    accounts=[{"name": name} for name in WORLD],
    budget=BudgetSettings(capacity=1e6, refill=1e6, initial=1e6),
)
MAX_PAGES = 60


def replica(world: FakeWorld, clock: VirtualClock) -> Service:
    """A gateway process of its own over the world."""
    return assemble(SETTINGS, world.accounts, clock).service


async def page_of(
    service: Service, request: pb.DescribeStoreImageTasksRequest, clock: VirtualClock
) -> "Page":
    message = await service.describe_store_image_tasks(request, Call(clock() + 60))
    return pb.DescribeStoreImageTasksResponse.FromString(message)


Page = pb.DescribeStoreImageTasksResponse
STARTS = st.one_of(st.none(), st.sampled_from([10.0, 20.0, 30.0]), st.floats(1, 1000))


def add(ec2: FakeEc2, age: float | None, number: int) -> None:
    task = ec2.add(age=age or 0.0, bucket=f"bucket-{number}")
    if age is None:
        task.started = None


def listed_now(world: FakeWorld) -> dict[tuple[str, str], set[str]]:
    """What each target has, by bucket: the tests give each task a bucket of its own."""
    return {
        (ec2.target.account, ec2.target.region): {task.bucket or "" for task in ec2.listed()}
        for ec2 in world.all()
    }


@settings(max_examples=250)
@given(st.data())
def test_each_task_of_the_answering_targets_comes_once_newest_first(data: st.DataObject) -> None:
    async def scenario(clock: VirtualClock) -> None:
        world = FakeWorld(clock, WORLD, page_size=data.draw(st.integers(1, 4)))
        numbers = iter(range(10_000))
        for ec2 in world.all():
            for age in data.draw(st.lists(STARTS, max_size=8)):
                add(ec2, age, next(numbers))
        replicas = [replica(world, clock), replica(world, clock)]
        request = pb.DescribeStoreImageTasksRequest(forbid_stale=data.draw(st.booleans()))
        if data.draw(st.booleans()):
            request.max_age.CopyFrom(Duration(seconds=data.draw(st.sampled_from([0, 3]))))
        existed = listed_now(world)

        rows: list[pb.StoreImageTaskResult] = []
        out: set[tuple[str, str]] = set()
        for _ in range(MAX_PAGES):
            move(world, data, numbers)
            clock.advance(data.draw(st.sampled_from([0.0, 1.0, 10.0])))
            request.max_results = data.draw(st.integers(1, 6))
            try:
                page = await page_of(data.draw(st.sampled_from(replicas)), request, clock)
            except Error:
                # All failed: the page can be asked for again once something answers.
                for ec2 in world.all():
                    ec2.recover()
                if not request.next_token:
                    existed = listed_now(world)
                continue
            rows.extend(page.store_image_task_results)
            out = check_outcomes(page, out)
            request.next_token = page.next_token
            if not page.HasField("next_token"):
                check_rows(rows, existed, out)
                return
        raise AssertionError("the listing does not end")

    run(scenario)


def move(world: FakeWorld, data: st.DataObject, numbers: Iterator[int]) -> None:
    """Something happens between two pages."""
    for ec2 in world.all():
        what = data.draw(st.sampled_from(["nothing", "fails", "recovers", "starts", "progresses", "ends"]))
        if what == "fails":
            ec2.fail(aws_error("InternalError", status=500), times=None)
        elif what == "recovers":
            ec2.recover()
        elif what == "starts":
            add(ec2, 0.0, next(numbers))
        elif ec2.tasks and what in {"progresses", "ends"}:
            task = data.draw(st.sampled_from(ec2.tasks))
            if what == "ends":
                ec2.end(task, failed=data.draw(st.sampled_from([None, "AccessDenied"])))
            elif task.state == "InProgress":
                ec2.progress(task, min(100, (task.percentage or 0) + 10))


def check_outcomes(page: Page, out: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Every target has its outcome, and who is out stays out."""
    outcomes = {(each.target.account, each.target.region): each for each in page.target_outcomes}
    assert len(outcomes) == len(page.target_outcomes) == 3
    now_out = {key for key, outcome in outcomes.items() if outcome.source == pb.SOURCE_NONE}
    assert out <= now_out
    for key in now_out:
        assert outcomes[key].status.code
    for task in page.store_image_task_results:
        assert (task.account, task.region) not in now_out
    return now_out


def check_rows(
    rows: list[pb.StoreImageTaskResult], existed: dict[tuple[str, str], set[str]], out: set[tuple[str, str]]
) -> None:
    orders: list[Order] = [order_of(task) for task in rows]
    assert orders == sorted(set(orders))
    for key, buckets in existed.items():
        if key not in out:
            assert buckets <= {task.bucket for task in rows if (task.account, task.region) == key}


async def sizes(service: Service, clock: VirtualClock) -> list[int]:
    """Tasks in each page of a listing without max_results."""
    found = []
    request = pb.DescribeStoreImageTasksRequest()
    while True:
        page = await page_of(service, request, clock)
        found.append(len(page.store_image_task_results))
        if not page.HasField("next_token"):
            return found
        request.next_token = page.next_token


def test_without_max_results_a_page_ends_at_a_thousand_tasks() -> None:
    async def scenario(clock: VirtualClock) -> None:
        world = FakeWorld(clock)
        world.ec2().add_ended(2100)
        assert await sizes(replica(world, clock), clock) == [1000, 1000, 100]

    run(scenario)


def test_without_max_results_a_page_ends_at_two_mebibytes_but_is_never_empty() -> None:
    async def scenario(clock: VirtualClock) -> None:
        world = FakeWorld(clock)
        for task in world.ec2().add_ended(5):
            task.reason = "x" * 1024 * 1024
        world.ec2().add(age=1, reason="x" * 3 * 1024 * 1024)
        assert await sizes(replica(world, clock), clock) == [1, 1, 1, 1, 1, 1]

    run(scenario)


def test_further_pages_cause_no_reads_on_the_same_replica_even_at_max_age_zero() -> None:
    async def scenario(clock: VirtualClock) -> None:
        world = FakeWorld(clock)
        world.ec2().add_ended(10)
        service = replica(world, clock)
        request = pb.DescribeStoreImageTasksRequest(max_results=2)
        request.max_age.SetInParent()
        for _ in range(5):
            page = await page_of(service, request, clock)
            request.next_token = page.next_token
            clock.advance(100)
        assert world.ec2().lists == 1

    run(scenario)


def test_equal_questions_get_the_very_same_bytes_until_a_view_moves() -> None:
    async def scenario(clock: VirtualClock) -> None:
        world = FakeWorld(clock, WORLD)
        tasks = world.ec2().add_ended(10)
        service = replica(world, clock)
        request = pb.DescribeStoreImageTasksRequest(max_results=3)
        call = Call(clock() + 60)
        await service.describe_store_image_tasks(request, call)
        cached = await service.describe_store_image_tasks(request, call)
        clock.advance(1)
        assert await service.describe_store_image_tasks(request, call) is cached
        tasks[0].reason = "news"
        clock.advance(10)
        await service.describe_store_image_tasks(request, call)
        assert (await service.describe_store_image_tasks(request, call)) is not cached

    run(scenario)
