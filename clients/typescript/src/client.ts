import type { MessageInitShape } from "@bufbuild/protobuf";
import { clone, create } from "@bufbuild/protobuf";
import type {
  DescribeStoreImageTasksResponse,
  StoreImageTaskResult,
  StreamStoreImageTasksRequestSchema,
  StreamStoreImageTasksResponse,
  TaskSelectorSchema,
  WaitStoreImageTasksResponse,
} from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import { DescribeStoreImageTasksRequestSchema } from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import type { CallOptions, Stub } from "./stub.js";
import type { WaitOptions } from "./wait.js";
import { wait } from "./wait.js";
import { Watch } from "./watch.js";

/** Asks one gateway; `connect` makes it. What it fails with is an ImageTasksError, or its signal's reason. */
export class Client {
  /** Makes bare calls, for what has no method here. */
  readonly stub: Stub;
  readonly #timeoutMs: number;

  constructor(stub: Stub, timeoutMs: number) {
    this.stub = stub;
    this.#timeoutMs = timeoutMs;
  }

  /** Ends the connection. Calls that still run fail with CANCELLED; watches end. */
  close(): void {
    this.stub.close();
  }

  /**
   * Lists the tasks of all targets, newest first, page by page; each page is asked for when the one before
   * has been used. Targets that fail are in each page's targetOutcomes.
   */
  async *describe(
    request: MessageInitShape<typeof DescribeStoreImageTasksRequestSchema> = {},
    options: CallOptions = {},
  ): AsyncGenerator<DescribeStoreImageTasksResponse, void> {
    const schema = DescribeStoreImageTasksRequestSchema;
    const asked = clone(schema, create(schema, request));
    for (;;) {
      const page = await this.stub.describeStoreImageTasks(asked, this.#limited(options));
      yield page;
      if (!page.nextToken) {
        return;
      }
      asked.nextToken = page.nextToken;
    }
  }

  /** Lists as `describe` does, task by task. */
  async *tasks(
    request: MessageInitShape<typeof DescribeStoreImageTasksRequestSchema> = {},
    options: CallOptions = {},
  ): AsyncGenerator<StoreImageTaskResult, void> {
    for await (const page of this.describe(request, options)) {
      yield* page.storeImageTaskResults;
    }
  }

  /**
   * Sends each page as its target answers, an outcome for each target, and a summary last. A failed target is
   * an outcome, no error. Leaving the loop ends the call at the gateway.
   */
  stream(
    request: MessageInitShape<typeof StreamStoreImageTasksRequestSchema> = {},
    options: CallOptions = {},
  ): AsyncGenerator<StreamStoreImageTasksResponse, void> {
    return this.stub.streamStoreImageTasks(request, this.#limited(options));
  }

  /** Follows the selected tasks: a snapshot, then every change, until the loop is left or the signal comes. */
  watch(
    selector: MessageInitShape<typeof TaskSelectorSchema> = {},
    options: { signal?: AbortSignal } = {},
  ): Watch {
    return new Watch(this.stub, selector, options.signal);
  }

  /**
   * Resolves when every selected task has ended, or with the reason why it returns earlier. It asks again when
   * the connection is lost or the gateway stops. Look at `done` and at each task's state: a failed task has
   * ended too.
   */
  wait(
    selector: MessageInitShape<typeof TaskSelectorSchema> = {},
    options: WaitOptions = {},
  ): Promise<WaitStoreImageTasksResponse> {
    return wait(this.stub, selector, options);
  }

  #limited(options: CallOptions): CallOptions {
    return { ...options, timeoutMs: options.timeoutMs ?? this.#timeoutMs };
  }
}
