import type { MessageInitShape } from "@bufbuild/protobuf";
import { create } from "@bufbuild/protobuf";
import type { Change, Stale } from "./change.js";
import { ImageTasksError } from "./errors.js";
import type { StoreImageTaskResult } from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import { TaskSelectorSchema } from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import { sleep } from "./pauses.js";
import type { Stub } from "./stub.js";
import { Watched } from "./watched.js";

/**
 * Holds the selected tasks and tells every change; `client.watch` makes one. Nothing is asked before the loop.
 *
 * It keeps itself alive: when the connection is lost, the gateway restarts or falls silent, it goes on where
 * it was, and tells only what has changed meanwhile. It fails with an ImageTasksError that trying again cannot
 * mend: a malformed selector, an unknown account, no permission. A second loop goes on where the first was
 * left; one at a time.
 */
export class Watch implements AsyncIterable<Change> {
  readonly #stub: Stub;
  readonly #signals: readonly AbortSignal[];
  readonly #watched: Watched;
  // An iterator, for it keeps its place when a loop is left.
  #ready: Iterator<Change> = [][Symbol.iterator]();
  #pause = 0;
  #lastError: ImageTasksError | undefined;

  constructor(stub: Stub, selector: MessageInitShape<typeof TaskSelectorSchema>, signal?: AbortSignal) {
    this.#stub = stub;
    this.#signals = signal ? [stub.closed, signal] : [stub.closed];
    this.#watched = new Watched(create(TaskSelectorSchema, selector));
  }

  /**
   * Those held, by taskId: what all changes so far amount to. A group of changes is applied at once, before
   * its first is told.
   */
  get tasks(): Map<string, StoreImageTaskResult> {
    return this.#watched.tasks;
  }

  /** The targets that cannot be read now, by "account/region"; the Region of a whole account is empty. */
  get stale(): ReadonlyMap<string, Stale> {
    return new Map(this.#watched.stale);
  }

  /** Whether it is connected and has heard of every target. */
  get isCaughtUp(): boolean {
    return this.#watched.isCaughtUp;
  }

  /** What the newest interruption was for; undefined: the gateway closed the stream, or fell silent. */
  get lastError(): ImageTasksError | undefined {
    return this.#lastError;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Change, void> {
    for (;;) {
      yield* this.#told();
      if (!(await sleep(this.#pause, this.#signals))) {
        return;
      }
      let failure: ImageTasksError | undefined;
      let isLeft = true;
      try {
        yield* this.#follow();
        isLeft = this.#isEnded;
      } catch (error) {
        isLeft = this.#isEnded;
        if (!isLeft) {
          if (!(error instanceof ImageTasksError)) {
            throw error; // no call's, but the application's: it has no token
          }
          failure = error;
        }
      } finally {
        this.#lastError = failure;
        const pause = this.#watched.interrupted(failure, performance.now());
        this.#pause = isLeft ? 0 : pause; // leaving is not the gateway's fault
      }
      if (isLeft) {
        return;
      }
    }
  }

  get #isEnded(): boolean {
    return this.#signals.some((signal) => signal.aborted);
  }

  *#told(): Generator<Change, void> {
    for (let next = this.#ready.next(); !next.done; next = this.#ready.next()) {
      yield next.value;
    }
  }

  /** Reads one call to its end. */
  async *#follow(): AsyncGenerator<Change, void> {
    const watched = this.#watched;
    const hangUp = new AbortController();
    const leave = () => hangUp.abort();
    for (const signal of this.#signals) {
      signal.addEventListener("abort", leave);
    }
    let dead = setTimeout(leave, watched.silence);
    try {
      for await (const message of this.#stub.watchStoreImageTasks(watched.request, {
        signal: hangUp.signal,
      })) {
        clearTimeout(dead);
        this.#ready = watched.received(message, performance.now())[Symbol.iterator]();
        yield* this.#told();
        if (message.event.case === "closing") {
          return;
        }
        dead = setTimeout(leave, watched.silence);
      }
    } catch (error) {
      if (!hangUp.signal.aborted) {
        throw error;
      }
    } finally {
      clearTimeout(dead);
      for (const signal of this.#signals) {
        signal.removeEventListener("abort", leave);
      }
    }
  }
}
