// A gateway for tests: a real server whose methods are functions.
import type { TestContext } from "node:test";
import type { DescMessage, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import * as pb from "imagetasks/v1";

export type Answer = MessageInitShape<typeof pb.WatchStoreImageTasksResponseSchema>;
export type WatchCall = grpc.ServerWritableStream<pb.WatchStoreImageTasksRequest, Answer>;

/** What the gateway answers with; what is not here is UNIMPLEMENTED. */
export interface Methods {
  describeStoreImageTasks?: (
    request: pb.DescribeStoreImageTasksRequest,
  ) => MessageInitShape<typeof pb.DescribeStoreImageTasksResponseSchema>;
  listTargets?: grpc.handleUnaryCall<
    pb.ListTargetsRequest,
    MessageInitShape<typeof pb.ListTargetsResponseSchema>
  >;
  watchStoreImageTasks?: (call: WatchCall) => void;
}

const { method } = pb.StoreImageTaskService;

/** Serves until the test ends; resolves to the port, or with a path to what to connect to. */
export async function serve(test: TestContext, methods: Methods, address = "127.0.0.1:0"): Promise<string> {
  const server = new grpc.Server();
  const { describeStoreImageTasks, listTargets, watchStoreImageTasks } = methods;
  server.addService(
    {
      describe: { path: path("DescribeStoreImageTasks"), ...unary(method.describeStoreImageTasks) },
      targets: { path: path("ListTargets"), ...unary(method.listTargets) },
      watch: {
        path: path("WatchStoreImageTasks"),
        ...unary(method.watchStoreImageTasks),
        responseStream: true,
      },
    },
    {
      ...(describeStoreImageTasks && {
        describe: (
          call: grpc.ServerUnaryCall<pb.DescribeStoreImageTasksRequest, unknown>,
          answer: grpc.sendUnaryData<unknown>,
        ) => answer(null, describeStoreImageTasks(call.request)),
      }),
      ...(listTargets && { targets: listTargets }),
      ...(watchStoreImageTasks && { watch: watchStoreImageTasks }),
    },
  );
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    );
  });
  test.after(() => server.forceShutdown());
  return address.startsWith("unix:") ? address : `127.0.0.1:${port}`;
}

function path(name: string): string {
  return `/${pb.StoreImageTaskService.typeName}/${name}`;
}

function unary<I extends DescMessage, O extends DescMessage>({ input, output }: { input: I; output: O }) {
  return {
    requestStream: false,
    responseStream: false,
    requestSerialize: (message: MessageShape<I>) => Buffer.from(toBinary(input, message)),
    requestDeserialize: (bytes: Buffer) => fromBinary(input, bytes),
    responseSerialize: (message: MessageInitShape<O>) =>
      Buffer.from(toBinary(output, create(output, message))),
    responseDeserialize: (bytes: Buffer) => fromBinary(output, bytes),
  };
}

export function task(taskId: string, progressPercentage: number) {
  return create(pb.StoreImageTaskResultSchema, {
    taskId,
    account: "prod",
    region: "eu-west-1",
    progressPercentage,
  });
}

export function ended(taskId: string) {
  return create(pb.StoreImageTaskResultSchema, {
    ...task(taskId, 100),
    storeTaskState: pb.StoreTaskState.COMPLETED,
  });
}

export function message(answer: Answer): pb.WatchStoreImageTasksResponse {
  return create(pb.WatchStoreImageTasksResponseSchema, answer);
}

export function started(resumed = false) {
  return message({ event: { case: "started", value: { resumed, heartbeatInterval: { seconds: 10n } } } });
}

/** A group, or with no token the beginning of one. */
export function changes(
  resumeToken: string,
  tasks: pb.StoreImageTaskResult[],
  type = pb.TaskChange_Type.MODIFIED,
) {
  const value = { continued: resumeToken === "", changes: tasks.map((each) => ({ type, task: each })) };
  return message({ ...(resumeToken && { resumeToken }), event: { case: "changes", value } });
}

export function complete(resumeToken: string) {
  const targets = [{ account: "prod", region: "eu-west-1" }];
  return message({ resumeToken, event: { case: "snapshotComplete", value: { targets } } });
}

export function send(call: WatchCall, ...messages: Answer[]): void {
  for (const each of messages) {
    call.write(each);
  }
}

/** Ends with an error that no client gets over. */
export function fail(call: WatchCall, code: grpc.status, details: string): void {
  call.emit("error", { code, details, metadata: new grpc.Metadata() });
}
