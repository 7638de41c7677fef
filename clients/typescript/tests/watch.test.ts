import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { WireType } from "@bufbuild/protobuf/wire";
import type { ConnectOptions } from "imagetasks";
import { Code, connect, ImageTasksError } from "imagetasks";
import * as pb from "imagetasks/v1";
import { REMEMBERED, STEADY_MS, Watched } from "../src/watched.js";
import type { WatchCall } from "./gateway.js";
import { changes, complete, ended, fail, send, serve, started, task } from "./gateway.js";

function watched(): Watched {
  return new Watched(create(pb.TaskSelectorSchema));
}

async function client(
  context: TestContext,
  watchStoreImageTasks: (call: WatchCall) => void,
  token?: ConnectOptions["token"],
) {
  const made = connect({ endpoint: await serve(context, { watchStoreImageTasks }), token });
  context.after(() => made.close());
  return made;
}

test("only a steady stream starts the pauses again", () => {
  for (const [lasted, failures] of [
    [STEADY_MS - 1, 4],
    [STEADY_MS, 1],
  ] as const) {
    const state = watched();
    state.pauses.failures = 3;
    state.received(started(), 1000);
    state.interrupted(undefined, 1000 + lasted);
    assert.equal(state.pauses.failures, failures);
  }
});

test("it remembers so many ended tasks and no more", () => {
  const state = watched();
  state.received(started(), 0);
  state.received(complete("0"), 0);
  for (let number = 0; number < REMEMBERED + 10; number += 1) {
    state.received(changes("1", [ended(`${number}`)]), 0);
    state.received(changes("1", [ended(`${number}`)], pb.TaskChange_Type.REMOVED), 0);
  }
  assert.equal(state.gone.size, REMEMBERED);
  assert.deepEqual([state.gone.has("9"), state.gone.has("10")], [false, true]);
});

test("a token alone is no news, and tasks that differ in what is unknown are", () => {
  const state = watched();
  state.received(started(), 0);
  state.received(changes("", [task("a", 1)]), 0);
  assert.equal(state.received(complete("one"), 0).length, 1);
  assert.deepEqual(state.received(changes("two", [task("a", 1)]), 0), []);
  const later = task("a", 1);
  later.$unknown = [{ no: 99, wireType: WireType.Varint, data: new Uint8Array([1]) }];
  assert.equal(state.received(changes("three", [later]), 0).length, 1);
});

test("a loop that is left goes on where it was", async (context) => {
  const tokens: string[] = [];
  const gateway = await client(context, (call) => {
    tokens.push(call.request.resumeToken);
    if (tokens.length === 1) {
      send(call, started(), changes("", [task("a", 1), task("b", 2), task("c", 3)]), complete("one"));
    } else {
      send(call, started(true), changes("two", [task("a", 50)]));
    }
  });
  const watch = gateway.watch();
  const seen: string[] = [];
  while (seen.length < 4) {
    for await (const change of watch) {
      seen.push(change.task.taskId);
      if (seen.length !== 2) {
        break;
      }
    }
  }
  assert.deepEqual(seen, ["a", "b", "c", "a"]);
  assert.equal(watch.tasks.size, 3);
  assert.deepEqual(tokens, ["", "one"]);
});

for (const how of ["signal", "close"] as const) {
  test(`a watch ends quietly, and at the gateway, by ${how}`, async (context) => {
    let leftAtGateway: Promise<unknown> | undefined;
    const gateway = await client(context, (call) => {
      leftAtGateway = new Promise((resolve) => call.on("cancelled", resolve));
      send(call, started(), changes("", [task("a", 1)]), complete("one"));
    });
    const leaving = new AbortController();
    const watch = gateway.watch({}, { signal: leaving.signal });
    let count = 0;
    for await (const change of watch) {
      assert.equal(change.task.taskId, "a");
      count += 1;
      assert.equal(watch.isCaughtUp, true);
      if (how === "signal") {
        leaving.abort();
      } else {
        gateway.close();
      }
    }
    assert.equal(count, 1);
    await leftAtGateway;
    assert.deepEqual([watch.isCaughtUp, watch.lastError], [false, undefined]);
  });
}

test("it ends while it pauses, and tells what it pauses for", async (context) => {
  const leaving = new AbortController();
  const gateway = await client(context, (call) => fail(call, Code.ABORTED, "not now"));
  const watch = gateway.watch({}, { signal: leaving.signal });
  const looking = setInterval(() => watch.lastError && leaving.abort());
  context.after(() => clearInterval(looking));
  for await (const change of watch) {
    assert.fail(`told of ${change.task.taskId}`);
  }
  assert.equal(watch.lastError?.code, Code.ABORTED);
});

for (const how of ["the end", "an error"] as const) {
  test(`a slow reader is told everything that was sent before ${how}`, async (context) => {
    let calls = 0;
    const gateway = await client(context, (call) => {
      calls += 1;
      if (calls === 1) {
        send(call, started(), complete("one"));
        for (let number = 1; number <= 200; number += 1) {
          send(call, changes("more", [task("a", number)]));
        }
        if (how === "the end") {
          call.end();
          return;
        }
      }
      fail(call, Code.NOT_FOUND, "the end");
    });
    const seen: (number | undefined)[] = [];
    const all = async () => {
      for await (const change of gateway.watch()) {
        seen.push(change.task.progressPercentage);
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    };
    await assert.rejects(all, (error) => error instanceof ImageTasksError && error.code === Code.NOT_FOUND);
    assert.deepEqual(
      seen,
      Array.from({ length: 200 }, (_, index) => index + 1),
    );
  });
}

test("a token that cannot be had is raised", async (context) => {
  const gateway = await client(
    context,
    () => assert.fail("it was asked"),
    () => {
      throw new Error("no key");
    },
  );
  const watch = gateway.watch();
  await assert.rejects(watch[Symbol.asyncIterator]().next(), /^Error: no key$/);
  await assert.rejects(gateway.wait(), /^Error: no key$/);
});

test("a token that no header can have is raised", async (context) => {
  const gateway = await client(context, () => assert.fail("it was asked"), "two\nlines");
  await assert.rejects(
    gateway.watch()[Symbol.asyncIterator]().next(),
    /^Error: imagetasks: the token has characters that no header can have$/,
  );
});
