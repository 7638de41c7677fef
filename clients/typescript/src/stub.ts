import { PassThrough } from "node:stream";
import type {
  DescMessage,
  DescMethod,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { Code, fromError, ImageTasksError } from "./errors.js";
import * as pb from "./gen/imagetasks/v1/store_image_tasks_pb.js";

/** How a call is made. */
export interface CallOptions {
  /** Ends the call, also at the gateway; the call fails with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** The deadline; 0 is none. */
  timeoutMs?: number | undefined;
}

/** How a bare call is made, and what it brings beside its answer. */
export interface BareCallOptions extends CallOptions {
  /** More metadata to send; keys that end in "-bin" have bytes. */
  metadata?: Readonly<Record<string, string | Uint8Array>> | undefined;
  /** Called with the metadata that the answer begins with. */
  onHeader?: ((metadata: grpc.Metadata) => void) | undefined;
  /** Called with the metadata that the answer ends with. */
  onTrailer?: ((metadata: grpc.Metadata) => void) | undefined;
}

const { method } = pb.StoreImageTaskService;
// Messages of a stream. More keep memory while a loop is slow; fewer are lost sooner when an error ends the stream.
const READ_AHEAD = 256;

/** Bare calls, one for each method of the contract. */
export class Stub {
  readonly #client: grpc.Client;
  readonly #token: (() => string | Promise<string>) | undefined;
  readonly #closing = new AbortController();

  constructor(client: grpc.Client, token?: () => string | Promise<string>) {
    this.#client = client;
    this.#token = token;
  }

  /** Comes when the connection is closed. */
  get closed(): AbortSignal {
    return this.#closing.signal;
  }

  close(): void {
    this.#closing.abort(new ImageTasksError(Code.CANCELLED, "the client is closed"));
    this.#client.close();
  }

  describeStoreImageTasks(
    request: MessageInitShape<typeof pb.DescribeStoreImageTasksRequestSchema>,
    options?: BareCallOptions,
  ): Promise<pb.DescribeStoreImageTasksResponse> {
    return this.#unary(method.describeStoreImageTasks, request, options);
  }

  streamStoreImageTasks(
    request: MessageInitShape<typeof pb.StreamStoreImageTasksRequestSchema>,
    options?: BareCallOptions,
  ): AsyncGenerator<pb.StreamStoreImageTasksResponse, void> {
    return this.#streaming(method.streamStoreImageTasks, request, options);
  }

  watchStoreImageTasks(
    request: MessageInitShape<typeof pb.WatchStoreImageTasksRequestSchema>,
    options?: BareCallOptions,
  ): AsyncGenerator<pb.WatchStoreImageTasksResponse, void> {
    return this.#streaming(method.watchStoreImageTasks, request, options);
  }

  waitStoreImageTasks(
    request: MessageInitShape<typeof pb.WaitStoreImageTasksRequestSchema>,
    options?: BareCallOptions,
  ): Promise<pb.WaitStoreImageTasksResponse> {
    return this.#unary(method.waitStoreImageTasks, request, options);
  }

  listTargets(
    request: MessageInitShape<typeof pb.ListTargetsRequestSchema>,
    options?: BareCallOptions,
  ): Promise<pb.ListTargetsResponse> {
    return this.#unary(method.listTargets, request, options);
  }

  async #unary<I extends DescMessage, O extends DescMessage>(
    of: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: BareCallOptions = {},
  ): Promise<MessageShape<O>> {
    const metadata = await this.#metadata(options);
    this.#signals(options).forEach(throwIfAborted);
    return new Promise((resolve, reject) => {
      const call = this.#client.makeUnaryRequest<MessageShape<I>, MessageShape<O>>(
        path(of),
        encoder(of.input),
        decoder(of.output),
        create(of.input, request),
        metadata,
        callOptions(options),
        (error, answer) => {
          release();
          if (error) {
            // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- a signal's reason is its sender's
            reject(this.#failure(error, options));
          } else {
            // eslint-disable-next-line @typescript-eslint/no-non-null-assertion -- one of the two is there
            resolve(answer!);
          }
        },
      );
      const release = this.#attend(call, options);
    });
  }

  async *#streaming<I extends DescMessage, O extends DescMessage>(
    of: DescMethodServerStreaming<I, O>,
    request: MessageInitShape<I>,
    options: BareCallOptions = {},
  ): AsyncGenerator<MessageShape<O>, void> {
    const metadata = await this.#metadata(options);
    this.#signals(options).forEach(throwIfAborted);
    const call = this.#client.makeServerStreamRequest<MessageShape<I>, MessageShape<O>>(
      path(of),
      encoder(of.input),
      decoder(of.output),
      create(of.input, request),
      metadata,
      callOptions(options),
    );
    const release = this.#attend(call, options);
    let failure: Error | undefined;
    call.on("error", (error) => (failure = error));
    // grpc-js throws away what has not been read when an error comes: so it is read before the loop asks for it.
    const ahead = call.pipe(new PassThrough({ objectMode: true, highWaterMark: READ_AHEAD }));
    try {
      for await (const message of ahead) {
        this.#signals(options).forEach(throwIfAborted);
        yield message as MessageShape<O>;
      }
      if (failure) {
        throw this.#failure(failure, options);
      }
    } finally {
      release();
      call.cancel();
    }
  }

  async #metadata(options: BareCallOptions): Promise<grpc.Metadata> {
    const metadata = new grpc.Metadata();
    for (const [key, value] of Object.entries(options.metadata ?? {})) {
      metadata.add(key, typeof value === "string" ? value : Buffer.from(value));
    }
    if (this.#token) {
      const token = await this.#token();
      try {
        metadata.set("authorization", `Bearer ${token}`);
      } catch {
        // grpc-js would tell it to whoever reads the log.
        throw new Error("imagetasks: the token has characters that no header can have");
      }
    }
    return metadata;
  }

  #signals(options: CallOptions): AbortSignal[] {
    return options.signal ? [this.closed, options.signal] : [this.closed];
  }

  /** Cancels the call when a signal comes, until what it returns is called. */
  #attend(
    call: grpc.ClientUnaryCall | grpc.ClientReadableStream<unknown>,
    options: BareCallOptions,
  ): () => void {
    const signals = this.#signals(options);
    const cancel = () => call.cancel();
    for (const signal of signals) {
      signal.addEventListener("abort", cancel);
    }
    call.on("metadata", (metadata) => options.onHeader?.(metadata));
    call.on("status", (status) => options.onTrailer?.(status.metadata));
    return () => {
      for (const signal of signals) {
        signal.removeEventListener("abort", cancel);
      }
    };
  }

  #failure(error: unknown, options: CallOptions): unknown {
    const ended = this.#signals(options).find((signal) => signal.aborted);
    return ended ? ended.reason : fromError(error);
  }
}

function throwIfAborted(signal: AbortSignal): void {
  signal.throwIfAborted();
}

function path(of: DescMethod): string {
  return `/${of.parent.typeName}/${of.name}`;
}

function encoder<D extends DescMessage>(schema: D): (message: MessageShape<D>) => Buffer {
  return (message) => Buffer.from(toBinary(schema, message));
}

function decoder<D extends DescMessage>(schema: D): (bytes: Buffer) => MessageShape<D> {
  return (bytes) => fromBinary(schema, bytes);
}

function callOptions({ timeoutMs }: CallOptions): grpc.CallOptions {
  return timeoutMs ? { deadline: Date.now() + timeoutMs } : {};
}
