// Waits for store tasks to end, then reacts to each: it runs a command, or calls a hook.
//
//   node dist/examples/wait-and-react.js --exec 'echo "$IMAGETASKS_AMI_ID: $IMAGETASKS_STATE"' ami-0123456789abcdef0
//   node dist/examples/wait-and-react.js --hook http://127.0.0.1:8080/stored
//
// With image ids it waits until all their tasks have ended and exits with 0 if none failed, else with 1.
// Without, it is a service: it follows all tasks and reacts to each that ends, until it is interrupted. A
// restart of the gateway, or a lost connection, neither loses an end nor tells one twice.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { parseArgs } from "node:util";
import { toJsonString } from "@bufbuild/protobuf";
import type { Client } from "imagetasks";
import { connect } from "imagetasks";
import type { StoreImageTaskResult } from "imagetasks/v1";
import {
  StoreImageTaskResultSchema,
  StoreTaskState,
  WaitStoreImageTasksResponse_Reason,
} from "imagetasks/v1";

// A hook that does not answer must not keep the next one waiting for ever.
const HOOK_TIMEOUT_MS = 10_000;

const { values: options, positionals: imageIds } = parseArgs({
  allowPositionals: true,
  options: {
    endpoint: { type: "string" }, // host:port, https://host:port or unix:path; else IMAGETASKS_ENDPOINT
    region: { type: "string" }, // only tasks of this Region
    timeout: { type: "string" }, // seconds; with image ids: give up after this time
    exec: { type: "string" }, // shell command; the task is in IMAGETASKS_AMI_ID, _STATE and so on, as below
    hook: { type: "string" }, // URL to POST the task to, as JSON
  },
});
const selector = { imageIds, regions: options.region ? [options.region] : [] };
const leaving = new AbortController();
for (const name of ["SIGINT", "SIGTERM"]) {
  process.once(name, () => leaving.abort());
}

async function wait(client: Client): Promise<void> {
  const timeoutMs = options.timeout === undefined ? undefined : Number(options.timeout) * 1000;
  const response = await client.wait(selector, {
    waitForAppearance: true,
    timeoutMs,
    signal: leaving.signal,
  });
  if (!response.done) {
    throw new Error(`not all have ended: ${WaitStoreImageTasksResponse_Reason[response.reason]}`);
  }
  const failed: unknown[] = [];
  for (const task of response.storeImageTaskResults) {
    await react(task).catch((error: unknown) => failed.push(error));
    if (task.storeTaskState === StoreTaskState.FAILED) {
      failed.push(new Error(`${ami(task)} failed: ${task.storeTaskFailureReason ?? ""}`));
    }
  }
  if (failed.length > 0) {
    throw new Error(failed.map(text).join("\n"));
  }
}

async function follow(client: Client): Promise<void> {
  for await (const change of client.watch(selector, { signal: leaving.signal })) {
    if (change.hasEnded) {
      // One that fails is no reason to miss the next.
      await react(change.task).catch((error: unknown) => console.error(text(error)));
    }
  }
}

async function react(task: StoreImageTaskResult): Promise<void> {
  console.error(`${ami(task)} in ${task.account} ${task.region}: ${task.ec2StoreTaskState ?? ""}`);
  if (options.exec) {
    await run(options.exec, task);
  }
  if (options.hook) {
    await post(options.hook, task);
  }
}

async function run(command: string, task: StoreImageTaskResult): Promise<void> {
  const env = {
    ...process.env,
    IMAGETASKS_AMI_ID: task.amiId,
    IMAGETASKS_STATE: task.ec2StoreTaskState,
    IMAGETASKS_ACCOUNT: task.account,
    IMAGETASKS_REGION: task.region,
    IMAGETASKS_BUCKET: task.bucket,
    IMAGETASKS_KEY: task.s3ObjectKey,
    // Empty where EC2 sent none, which is not 0.
    IMAGETASKS_PERCENTAGE: task.progressPercentage?.toString() ?? "",
    IMAGETASKS_FAILURE: task.storeTaskFailureReason ?? "",
  };
  const [code] = (await once(spawn("sh", ["-c", command], { stdio: "inherit", env }), "exit")) as [
    number | null,
  ];
  if (code !== 0) {
    throw new Error(`the command for ${ami(task)} ended with ${code ?? "a signal"}`);
  }
}

async function post(url: string, task: StoreImageTaskResult): Promise<void> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: toJsonString(StoreImageTaskResultSchema, task, { useProtoFieldName: true }),
    signal: AbortSignal.timeout(HOOK_TIMEOUT_MS),
  });
  if (!response.ok) {
    throw new Error(`the hook for ${ami(task)} answers ${response.status}`);
  }
}

function ami(task: StoreImageTaskResult): string {
  return task.amiId ?? "";
}

function text(error: unknown): string {
  return error instanceof Error && error.name === "Error" ? error.message : String(error);
}

const client = connect({ endpoint: options.endpoint });
try {
  await (imageIds.length > 0 ? wait(client) : follow(client));
} catch (error) {
  console.error(`wait-and-react: ${text(error)}`);
  process.exitCode = 1;
} finally {
  client.close();
}
