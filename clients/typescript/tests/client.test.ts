import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import type { ServiceError } from "@grpc/grpc-js";
import * as grpc from "@grpc/grpc-js";
import { Code, connect, ImageTasksError } from "imagetasks";
import * as pb from "imagetasks/v1";
import { parseEndpoint } from "../src/connect.js";
import { fromError } from "../src/errors.js";
import { Pauses, sleep } from "../src/pauses.js";
import { serve } from "./gateway.js";

test("endpoints", () => {
  const where = (target: string, tls: boolean, local: boolean) => ({ target, tls, local });
  for (const [text, expected] of [
    ["127.0.0.1:5", where("127.0.0.1:5", false, true)],
    ["localhost", where("localhost:50051", false, true)],
    ["gateway:80", where("gateway:80", false, false)],
    ["http://gateway", where("gateway:80", false, false)],
    ["https://gateway/", where("gateway:443", true, false)],
    ["https://gateway:443", where("gateway:443", true, false)],
    ["https://[::1]:9443", where("[::1]:9443", true, true)],
    ["127.example.org", where("127.example.org:50051", false, false)],
    ["unix:/run/gateway", where("unix:/run/gateway", false, true)],
    ["ipv4:127.0.0.1:5,127.0.0.2:6", where("ipv4:127.0.0.1:5,127.0.0.2:6", false, true)],
    ["ipv4:127.0.0.1:5,192.0.2.1:5", where("ipv4:127.0.0.1:5,192.0.2.1:5", false, false)],
    ["ipv6:[::1]:5", where("ipv6:[::1]:5", false, true)],
  ] as const) {
    assert.deepEqual(parseEndpoint(text), expected, text);
  }
  for (const text of [
    "ftp://gateway",
    "https://",
    "gateway:x",
    "http://gateway/path",
    "http://gateway?a=b",
    "http://gateway#a",
    "http://me@gateway",
    "http://a://b",
    "ipv4:",
    "ipv4:127.0.0.1",
    "ipv4:127.0.0.1:7,",
    "ipv4:127.0.0.1:70000",
    "ipv4:gateway:7",
    "ipv4:[::1]:7",
    "ipv6:127.0.0.1:7",
  ]) {
    assert.throws(() => parseEndpoint(text), /^Error: imagetasks: endpoint/, text);
  }
});

test("the environment's endpoint is taken if none is given", (context) => {
  const before = process.env.IMAGETASKS_ENDPOINT;
  context.after(() => {
    if (before === undefined) {
      delete process.env.IMAGETASKS_ENDPOINT;
    } else {
      process.env.IMAGETASKS_ENDPOINT = before;
    }
  });
  process.env.IMAGETASKS_ENDPOINT = "https://elsewhere:1";
  assert.equal(parseEndpoint().target, "elsewhere:1");
  delete process.env.IMAGETASKS_ENDPOINT;
  assert.equal(parseEndpoint().target, "127.0.0.1:50051");
});

test("secrets stay off plaintext", () => {
  assert.throws(() => connect({ endpoint: "gateway:50051", token: "secret" }), /plaintext/);
  assert.throws(() => connect({ endpoint: "127.0.0.1:50051", tls: { ca: "pem" } }), /need TLS/);
  assert.throws(() => connect({ endpoint: "https://gateway", tls: { ca: "no pem" } }), /no certificate/);
});

test("a unix socket, and a token that is asked for anew", async (context) => {
  const directory = mkdtempSync(join(tmpdir(), "imagetasks-"));
  context.after(() => rmSync(directory, { recursive: true }));
  const tokens: unknown[] = [];
  const endpoint = await serve(
    context,
    {
      listTargets: (call, answer) => {
        tokens.push(...call.metadata.get("authorization"));
        answer(null, {});
      },
    },
    `unix:${join(directory, "gateway")}`,
  );
  let asked = 0;
  const client = connect({ endpoint, token: () => Promise.resolve(`token-${++asked}`) });
  context.after(() => client.close());
  await client.stub.listTargets({});
  await client.stub.listTargets({});
  assert.deepEqual(tokens, ["Bearer token-1", "Bearer token-2"]);
});

test("several gateways take turns", async (context) => {
  const asked = { a: 0, b: 0 };
  const endpoints = await Promise.all(
    (["a", "b"] as const).map((name) =>
      serve(context, {
        listTargets: (_, answer) => {
          asked[name] += 1;
          answer(null, {});
        },
      }),
    ),
  );
  const client = connect({ endpoint: `ipv4:${endpoints.join()}` });
  context.after(() => client.close());
  const patience = AbortSignal.timeout(10_000);
  while (!asked.a || !asked.b) {
    await client.stub.listTargets({}, { signal: patience });
  }
  const before = { ...asked };
  for (let call = 0; call < 4; call++) {
    await client.stub.listTargets({});
  }
  assert.deepEqual(asked, { a: before.a + 2, b: before.b + 2 });
});

test("a request is left as it was", async (context) => {
  const endpoint = await serve(context, {
    describeStoreImageTasks: (request) => (request.nextToken ? {} : { nextToken: "one" }),
  });
  const client = connect({ endpoint });
  context.after(() => client.close());
  const request = create(pb.DescribeStoreImageTasksRequestSchema, { regions: ["eu-west-1"] });
  for (let round = 0; round < 2; round += 1) {
    const tokens: (string | undefined)[] = [];
    for await (const page of client.describe(request)) {
      tokens.push(page.nextToken);
    }
    assert.deepEqual(tokens, ["one", undefined]);
  }
  assert.equal(request.nextToken, undefined);
});

test("a timeout that is not given leaves the client's own", { timeout: 30_000 }, async (context) => {
  // A channel that closes while it connects leaves its connection, which must not keep this process.
  const mute = createServer((socket) => socket.unref()).listen(0, "127.0.0.1");
  context.after(() => mute.close());
  await once(mute, "listening");
  const { port } = mute.address() as AddressInfo;
  const client = connect({ endpoint: `127.0.0.1:${port}`, timeoutMs: 1 });
  context.after(() => client.close());
  const isLate = (error: unknown) =>
    error instanceof ImageTasksError && error.code === Code.DEADLINE_EXCEEDED;
  await assert.rejects(client.describe({}, { timeoutMs: undefined }).next(), isLate);
  await assert.rejects(client.stream({}, { timeoutMs: undefined }).next(), isLate);
});

test("an abort has its reason, before the call and during it", async (context) => {
  const arrived = new Promise<grpc.ServerUnaryCall<unknown, unknown>>((resolve) => {
    void serve(context, { listTargets: resolve }).then((endpoint) => asked(endpoint));
  });
  const leaving = new AbortController();
  const calls: Promise<unknown>[] = [];
  const asked = (endpoint: string) => {
    const client = connect({ endpoint });
    context.after(() => client.close());
    calls.push(client.stub.listTargets({}, { signal: leaving.signal }));
    const early = client.stub.listTargets({}, { signal: AbortSignal.abort(new Error("too early")) });
    calls.push(assert.rejects(early, /too early/));
  };
  const call = await arrived;
  const left = new Promise((resolve) => call.on("cancelled", resolve));
  leaving.abort(new Error("enough"));
  await assert.rejects(Promise.all(calls), /^Error: enough$/);
  await left;
});

test("closing fails what runs, and what comes later", async (context) => {
  const endpoint = await serve(context, { listTargets: () => client.close() });
  const client = connect({ endpoint });
  const isClosed = (error: unknown) => error instanceof ImageTasksError && error.code === Code.CANCELLED;
  await assert.rejects(client.stub.listTargets({}), isClosed);
  await assert.rejects(client.stub.listTargets({}), isClosed);
  await assert.rejects(client.wait(), isClosed);
});

test("pauses double up to a limit", () => {
  for (const random of [0, 1]) {
    const pauses = new Pauses(() => random);
    for (const most of [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]) {
      assert.equal(pauses.next(), (most * (1 + random)) / 2);
    }
    pauses.reset();
    const told = Object.assign(new ImageTasksError(Code.UNAVAILABLE, ""), { retryDelayMs: 60_000 });
    assert.equal(pauses.next(told), 60_000 + (500 * (1 + random)) / 2);
  }
});

test("a pause ends when a signal comes, or has come", async () => {
  const leaving = new AbortController();
  const slept = sleep(3_600_000, [new AbortController().signal, leaving.signal]);
  leaving.abort();
  assert.equal(await slept, false);
  assert.equal(await sleep(3_600_000, [leaving.signal]), false);
  assert.equal(await sleep(0, []), true);
});

test("an error says what it is, and what it was made from", () => {
  const cause: ServiceError = Object.assign(new Error("around"), {
    code: Code.RESOURCE_EXHAUSTED,
    details: "spent",
    metadata: new grpc.Metadata(),
  });
  const error = fromError(cause);
  assert.equal(String(error), "RESOURCE_EXHAUSTED: spent");
  assert.equal(error.cause, cause);
  assert.equal(fromError(error), error);
  assert.equal(String(fromError("no status")), "UNKNOWN: no status");
});
