// The TypeScript client's runner of the conformance suite; docs/adding-a-language.md has its protocol.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import type { Metadata } from "@grpc/grpc-js";
import type { BareCallOptions, Change, Client } from "imagetasks";
import { Code, connect, ImageTasksError } from "imagetasks";
import * as pb from "imagetasks/v1";

interface Command {
  endpoint: string;
  ca: string | null;
  certificate: string | null;
  key: string | null;
  call: string;
  request: string;
  token?: string;
  timeout?: number;
  metadata?: Record<string, string>;
  cancel_after?: number;
  cancel_after_seconds?: number;
}
type Observation = Record<string, unknown>;
// What the last line has besides.
type Last = Observation;

async function run(command: Command): Promise<void> {
  const client = connect({
    endpoint: `${command.ca ? "https" : "http"}://${command.endpoint}`,
    token: command.token,
    tls: command.ca ? tls(command, command.ca) : undefined,
    timeoutMs: milliseconds(command.timeout),
  });
  const leaving = new AbortController();
  const seconds = command.cancel_after_seconds;
  const timer = seconds ? setTimeout(() => leaving.abort(), seconds * 1000) : undefined;
  const last: Last = {};
  let ended: Observation = { event: "end" };
  let left = command.cancel_after;
  try {
    for await (const said of observations(client, command, leaving.signal, last)) {
      tell(said);
      left = left && left - 1;
      if (left === 0) {
        break;
      }
    }
  } catch (error) {
    if (!leaving.signal.aborted) {
      ended = errorTold(error);
    }
  } finally {
    clearTimeout(timer);
    client.close();
  }
  tell(left === 0 || leaving.signal.aborted ? { event: "cancelled", ...last } : { ...ended, ...last });
}

function tls({ certificate, key }: Command, ca: string) {
  const pair = certificate && key ? { cert: readFileSync(certificate), key: readFileSync(key) } : {};
  return { ca: readFileSync(ca), ...pair };
}

async function* observations(client: Client, command: Command, signal: AbortSignal, last: Last) {
  const bytes = Buffer.from(command.request, "base64");
  const timeoutMs = milliseconds(command.timeout);
  const of = <D extends DescMessage>(schema: D): MessageShape<D> => fromBinary(schema, bytes);
  const bare: BareCallOptions = { signal, timeoutMs, metadata: metadata(command), ...listening(last) };
  switch (command.call) {
    case "describe": {
      const answer = await client.stub.describeStoreImageTasks(
        of(pb.DescribeStoreImageTasksRequestSchema),
        bare,
      );
      yield messageTold(pb.DescribeStoreImageTasksResponseSchema, answer, answer.storeImageTaskResults);
      break;
    }
    case "targets": {
      const answer = await client.stub.listTargets(of(pb.ListTargetsRequestSchema), bare);
      yield messageTold(pb.ListTargetsResponseSchema, answer);
      break;
    }
    case "raw_watch":
      for await (const message of client.stub.watchStoreImageTasks(
        of(pb.WatchStoreImageTasksRequestSchema),
        bare,
      )) {
        const changes = message.event.case === "changes" ? message.event.value.changes : [];
        yield messageTold(
          pb.WatchStoreImageTasksResponseSchema,
          message,
          changes.flatMap((each) => each.task ?? []),
        );
      }
      break;
    case "raw_wait": {
      const answer = await client.stub.waitStoreImageTasks(of(pb.WaitStoreImageTasksRequestSchema), bare);
      yield messageTold(pb.WaitStoreImageTasksResponseSchema, answer, answer.storeImageTaskResults);
      break;
    }
    case "list":
      for await (const page of client.describe(of(pb.DescribeStoreImageTasksRequestSchema), { signal })) {
        yield messageTold(pb.DescribeStoreImageTasksResponseSchema, page, page.storeImageTaskResults);
      }
      break;
    case "stream":
      for await (const message of client.stream(of(pb.StreamStoreImageTasksRequestSchema), { signal })) {
        const page = message.event.case === "page" ? message.event.value : undefined;
        yield messageTold(pb.StreamStoreImageTasksResponseSchema, message, page?.storeImageTaskResults);
      }
      break;
    case "watch": {
      const watch = client.watch(of(pb.WatchStoreImageTasksRequestSchema).selector, { signal });
      try {
        for await (const change of watch) {
          yield changeTold(change);
        }
      } finally {
        const held = [...watch.tasks.values()].sort((a, b) => (a.taskId < b.taskId ? -1 : 1));
        Object.assign(last, { held: held.map(taskTold), stale: [...watch.stale.keys()].sort() });
      }
      break;
    }
    case "wait": {
      const { selector, waitForAppearance } = of(pb.WaitStoreImageTasksRequestSchema);
      const answer = await client.wait(selector, { waitForAppearance, timeoutMs, signal });
      yield messageTold(pb.WaitStoreImageTasksResponseSchema, answer, answer.storeImageTaskResults);
      break;
    }
    default:
      throw new Error(`no such call: ${command.call}`);
  }
}

function metadata(command: Command): Record<string, string | Uint8Array> {
  const given = Object.entries(command.metadata ?? {});
  return Object.fromEntries(
    given.map(([key, value]) => [key, key.endsWith("-bin") ? Buffer.from(value, "base64") : value]),
  );
}

/** Puts what a bare call receives into its last line. */
function listening(last: Last): BareCallOptions {
  const take = (received: Metadata) => {
    const said = Object.keys(received.getMap()).filter((key) => key.startsWith("x-conformance-"));
    const values = said.map((key) => [key, received.get(key).at(-1)?.toString("base64")]);
    last.metadata = { ...(last.metadata ?? {}), ...Object.fromEntries(values) };
  };
  return { onHeader: take, onTrailer: take };
}

function messageTold<D extends DescMessage>(
  schema: D,
  message: MessageShape<D>,
  tasks: pb.StoreImageTaskResult[] = [],
) {
  const bytes = Buffer.from(toBinary(schema, message)).toString("base64");
  return { event: "message", bytes, tasks: tasks.map(taskTold) };
}

function taskTold(task: pb.StoreImageTaskResult): Observation {
  return {
    task_id: task.taskId,
    ami_id: task.amiId ?? null,
    percentage: task.progressPercentage ?? null,
    state: task.storeTaskState,
    ec2_state: task.ec2StoreTaskState ?? null,
    failure: task.storeTaskFailureReason ?? null,
  };
}

function changeTold(change: Change): Observation {
  return {
    event: "change",
    type: pb.TaskChange_Type[change.type],
    task: taskTold(change.task),
    before: change.before ? taskTold(change.before) : null,
    first: change.isFirst,
    ended: change.hasEnded,
    removal_reason: pb.TaskChange_RemovalReason[change.removalReason],
  };
}

function errorTold(error: unknown): Observation {
  if (!(error instanceof ImageTasksError)) {
    throw error;
  }
  return {
    event: "error",
    code: Code[error.code],
    message: error.message,
    reason: error.reason,
    account: error.account,
    region: error.region,
    aws_error_code: error.awsErrorCode,
    aws_request_id: error.awsRequestId,
    retry_delay: error.retryDelayMs === undefined ? null : error.retryDelayMs / 1000,
    fields: error.fields,
    target_failures: error.targetFailures.map(({ account, region, code, reason }) => ({
      account,
      region,
      code,
      reason,
    })),
  };
}

function milliseconds(seconds: number | undefined): number | undefined {
  return seconds === undefined ? undefined : seconds * 1000;
}

function tell(said: Observation): void {
  process.stdout.write(`${JSON.stringify(said)}\n`);
}

for await (const line of createInterface({ input: process.stdin })) {
  await run(JSON.parse(line) as Command);
}
