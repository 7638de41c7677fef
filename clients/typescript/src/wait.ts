import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { ImageTasksError } from "./errors.js";
import type {
  TaskSelectorSchema,
  WaitStoreImageTasksResponse,
} from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import { WaitStoreImageTasksResponse_Reason as Reason } from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import { Pauses, sleep } from "./pauses.js";
import type { CallOptions, Stub } from "./stub.js";

// One call at most: what stands between may cut a longer one.
const SLICE_MS = 300_000;
// What the gateway has to answer in, after the time it was told.
const GRACE_MS = 10_000;
// After this the gateway has waited: to ask again at once is no rush.
const LONG_MS = 1_000;

/** How long, and for what. */
export interface WaitOptions extends CallOptions {
  /** Waits for a task to appear while nothing matches, in place of the answer NOTHING_MATCHES. */
  waitForAppearance?: boolean | undefined;
  /** The time after which the answer is TIMEOUT; undefined: no limit but the signal. */
  timeoutMs?: number | undefined;
}

export async function wait(
  stub: Stub,
  selector: MessageInitShape<typeof TaskSelectorSchema>,
  { waitForAppearance = false, timeoutMs = Number.POSITIVE_INFINITY, signal }: WaitOptions,
): Promise<WaitStoreImageTasksResponse> {
  const signals = signal ? [stub.closed, signal] : [stub.closed];
  const pauses = new Pauses();
  const until = performance.now() + timeoutMs;
  for (;;) {
    const asked = performance.now();
    const slice = Math.ceil(Math.max(0, Math.min(SLICE_MS, until - asked)));
    const request = { selector, waitForAppearance, timeout: durationFromMs(slice) };
    let pause: number;
    try {
      const response = await stub.waitStoreImageTasks(request, { signal, timeoutMs: slice + GRACE_MS });
      const now = performance.now();
      const isOver = response.reason !== Reason.TIMEOUT && response.reason !== Reason.DRAINING;
      if (isOver || now >= until) {
        return response;
      }
      if (response.reason === Reason.TIMEOUT && now - asked >= LONG_MS) {
        pauses.reset();
        pause = 0;
      } else {
        pause = pauses.next();
        if (now + pause >= until) {
          return response;
        }
      }
    } catch (error) {
      if (signals.some((each) => each.aborted) || !(error instanceof ImageTasksError)) {
        throw error;
      }
      pause = pauses.next(error);
      if (!error.isPassing || performance.now() + pause >= until) {
        throw error;
      }
    }
    if (!(await sleep(pause, signals))) {
      throw signals.find((each) => each.aborted)?.reason;
    }
  }
}
