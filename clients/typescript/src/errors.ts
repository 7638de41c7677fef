import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { fromBinary } from "@bufbuild/protobuf";
import type { Any } from "@bufbuild/protobuf/wkt";
import { anyUnpack, durationMs } from "@bufbuild/protobuf/wkt";
import type { ServiceError } from "@grpc/grpc-js";
import { status as Code } from "@grpc/grpc-js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import type { Status } from "./gen/google/rpc/status_pb.js";
import { StatusSchema } from "./gen/google/rpc/status_pb.js";
import type { TargetFailures_Failure } from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import { TargetFailuresSchema } from "./gen/imagetasks/v1/store_image_tasks_pb.js";

export { Code };

const DOMAIN = "imagetasks";

/** What a call failed with. Its `message` is the text for people. */
export class ImageTasksError extends Error {
  override readonly name = "ImageTasksError";
  /** gRPC's. */
  readonly code: Code;
  /**
   * A name of ErrorReason without its prefix, as "AWS_THROTTLED"; empty if the error did not come from the
   * gateway, as when no connection could be made.
   */
  readonly reason: string = "";
  /** The gateway's name of the account at fault, else empty. */
  readonly account: string = "";
  /** The Region at fault, else empty. */
  readonly region: string = "";
  /** AWS's own, as "RequestLimitExceeded", else empty. */
  readonly awsErrorCode: string = "";
  /** Names the request to AWS. */
  readonly awsRequestId: string = "";
  /** Milliseconds to wait before asking again; undefined if the gateway did not say. */
  readonly retryDelayMs: number | undefined;
  /** Those of the request at fault. */
  readonly fields: readonly string[];
  /** Not empty if all of several targets failed. */
  readonly targetFailures: readonly TargetFailures_Failure[];
  /** All that came with it, also what this version does not know. */
  readonly details: readonly Any[];

  constructor(code: Code, message: string, details: readonly Any[] = [], options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.details = details;
    const info = this.#find(ErrorInfoSchema, (each) => each.domain === DOMAIN);
    if (info) {
      this.reason = info.reason;
      this.account = info.metadata.account ?? "";
      this.region = info.metadata.region ?? "";
      this.awsErrorCode = info.metadata.awsErrorCode ?? "";
      this.awsRequestId = info.metadata.awsRequestId ?? "";
    }
    const retry = this.#find(RetryInfoSchema);
    this.retryDelayMs = retry && (retry.retryDelay ? durationMs(retry.retryDelay) : 0);
    this.fields = this.#find(BadRequestSchema)?.fieldViolations.map((each) => each.field) ?? [];
    this.targetFailures = this.#find(TargetFailuresSchema)?.failures ?? [];
  }

  /** Whether the same call may succeed a while later, with nothing changed by anybody. */
  get isPassing(): boolean {
    switch (this.code) {
      case Code.UNAVAILABLE:
      case Code.CANCELLED:
      case Code.DEADLINE_EXCEEDED:
      case Code.ABORTED:
        return true;
      case Code.RESOURCE_EXHAUSTED:
        // Without a reason it is this side's own limit on a message, which the next one exceeds too.
        return this.reason !== "";
      case Code.INTERNAL:
      case Code.UNKNOWN:
        // A proxy has cut the call; the gateway, with a reason, means a fault that stays.
        return this.reason === "";
      default:
        return false;
    }
  }

  /** The reason, or the code, and the text. */
  override toString(): string {
    return `${this.reason || Code[this.code]}: ${this.message}`;
  }

  #find<D extends DescMessage>(
    schema: D,
    suits?: (found: MessageShape<D>) => boolean,
  ): MessageShape<D> | undefined {
    for (const packed of this.details) {
      try {
        const found = anyUnpack(packed, schema);
        if (found && (!suits || suits(found))) {
          return found;
        }
      } catch {
        // Damaged: code and text are left.
      }
    }
    return undefined;
  }
}

/** The error that a failed call stands for. */
export function fromError(error: unknown): ImageTasksError {
  if (error instanceof ImageTasksError) {
    return error;
  }
  if (!isServiceError(error)) {
    return new ImageTasksError(Code.UNKNOWN, String(error), [], { cause: error });
  }
  return new ImageTasksError(error.code, error.details, detailsOf(error), { cause: error });
}

/** The error that the status of a TargetOutcome or of a TargetState stands for. */
export function fromStatus(status: Status): ImageTasksError {
  // eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- the wire's number is gRPC's
  return new ImageTasksError(status.code, status.message, status.details);
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

function detailsOf(error: ServiceError): Any[] {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  try {
    return packed instanceof Uint8Array ? fromBinary(StatusSchema, packed).details : [];
  } catch {
    return []; // damaged
  }
}
