import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { promisify } from "node:util";
import { connect } from "imagetasks";
import { serve } from "./gateway.js";

const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
const [, program = ""] = /```ts\n(.*?)```/s.exec(readme) ?? [];

async function run(endpoint: string) {
  const place = new URL("readme-program.mjs", import.meta.url);
  writeFileSync(place, program.replace("127.0.0.1:50051", endpoint));
  try {
    return await promisify(execFile)(process.execPath, [place.pathname]);
  } finally {
    rmSync(place);
  }
}

test("the README's program lists tasks", async (context) => {
  const endpoint = await serve(context, {
    describeStoreImageTasks: (request) => ({
      storeImageTaskResults: [
        {
          amiId: request.filters[0]?.values[0] === "InProgress" ? "ami-0000000000000000a" : "",
          progressPercentage: 45,
          account: "prod",
          region: "eu-central-1",
        },
      ],
    }),
  });
  assert.deepEqual(await run(endpoint), {
    stdout: "prod eu-central-1 ami-0000000000000000a 45\n",
    stderr: "",
  });
});

test("the README's program handles an error", async (context) => {
  const endpoint = await serve(context, {});
  assert.deepEqual(await run(endpoint), {
    stdout: "",
    stderr: "UNIMPLEMENTED: The server does not implement the method describe\n",
  });
});

test("the README's calls are there", () => {
  const client = connect({ endpoint: "127.0.0.1:1" });
  const named = [...readme.matchAll(/`client\.(\w+)/g)].map(([, name]) => name as keyof typeof client);
  assert.ok(named.length > 5);
  for (const name of named) {
    assert.ok(name in client, name);
  }
  client.close();
});
