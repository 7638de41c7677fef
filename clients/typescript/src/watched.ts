import { create } from "@bufbuild/protobuf";
import { durationMs, timestampDate } from "@bufbuild/protobuf/wkt";
import type { Change, Stale } from "./change.js";
import { goesBack, hasEnded, isSame, isSameButForPace, told } from "./change.js";
import type { ImageTasksError } from "./errors.js";
import { Code, fromStatus } from "./errors.js";
import type {
  StoreImageTaskResult,
  Target,
  TaskChange,
  TaskSelector,
  WatchStoreImageTasksRequest,
  WatchStoreImageTasksResponse,
  WatchStoreImageTasksResponse_Started,
  WatchStoreImageTasksResponse_TargetStatus,
} from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import {
  TaskChange_RemovalReason as RemovalReason,
  TaskChange_Type as Type,
  WatchStoreImageTasksRequestSchema,
} from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import { Pauses } from "./pauses.js";

// Until the first message. Before it the gateway may still be finding out the targets.
const OPENING_SILENCE_MS = 60_000;
// Heartbeats that may be missed before a connection counts as dead.
const MISSED_HEARTBEATS = 3;
// After this a stream has gone well: an end then is no sign of more to come.
export const STEADY_MS = 10_000;
// Ended tasks that were removed and are remembered, so that an older state cannot bring them back.
export const REMEMBERED = 4096;

// A target, "account/region"; that of a whole account is "account/".
type Place = string;
// One target's tasks by id, in the order in which they came.
type Table = Map<string, StoreImageTaskResult>;

/**
 * What a watch holds, and what it does next: messages and failures in, changes and pauses out, without input,
 * output or clock. Times are milliseconds of a clock that only goes forward. docs/watch.md draws it.
 */
export class Watched {
  readonly stale = new Map<Place, Stale>();
  readonly gone: Table = new Map();
  readonly pauses = new Pauses();
  /** Milliseconds without a message after which the connection is dead. */
  silence = OPENING_SILENCE_MS;
  readonly #selector: TaskSelector;
  #token = "";
  #opened: number | undefined;
  readonly #tables = new Map<Place, Table>();
  // The gateway's targets; those whose tasks are held in full, now and as of the token; those ever held.
  #targets = new Set<Place>();
  #covered = new Set<Place>();
  #coveredThen = new Set<Place>();
  readonly #seen = new Set<Place>();
  // Of a group that has not ended, and of targets whose snapshot has not.
  #group: TaskChange[] = [];
  readonly #snapshots = new Map<Place, Table>();

  constructor(selector: TaskSelector) {
    this.#selector = selector;
  }

  /** What the next call asks. */
  get request(): WatchStoreImageTasksRequest {
    return create(WatchStoreImageTasksRequestSchema, { selector: this.#selector, resumeToken: this.#token });
  }

  get tasks(): Table {
    return new Map([...this.#tables.values()].flatMap((table) => [...table]));
  }

  get isCaughtUp(): boolean {
    return this.#opened !== undefined && [...this.#targets].every((place) => this.#covered.has(place));
  }

  /** Takes a message and returns what it changes for the application. */
  received({ event, resumeToken }: WatchStoreImageTasksResponse, now: number): Change[] {
    let changes: Change[] = [];
    switch (event.case) {
      case "started":
        this.#start(event.value, now);
        break;
      case "reset":
        this.#reset(event.value.targets);
        break;
      case "changes":
        for (const change of event.value.changes) {
          this.#group.push(change);
        }
        if (event.value.continued) {
          return [];
        }
        changes = [...this.#endGroup([])];
        break;
      case "snapshotComplete":
        changes = [...this.#endGroup(event.value.targets)];
        break;
      case "targetStatus":
        this.#note(event.value);
        break;
      case "targetsChanged":
        this.#follow(new Set(event.value.targets.map(placeOf)));
        changes = [...this.#dropUnlisted()];
        break;
      case "heartbeat":
        changes = [...this.#dropUnlisted()];
        break;
    }
    // Not within a group: what is before the token would be lost.
    if (resumeToken && this.#group.length === 0) {
      this.#token = resumeToken;
      this.#coveredThen = new Set(this.#covered);
    }
    return changes;
  }

  /**
   * Tells how many milliseconds to pause after the call has ended.
   *
   * @param error How; undefined: closed by the gateway, cut, or silent for too long.
   * @throws The error, if it is not one that passes.
   */
  interrupted(error: ImageTasksError | undefined, now: number): number {
    this.#group = [];
    this.#snapshots.clear();
    // A reset behind the token has not been: what was held is held, and the gateway repeats it if need be.
    this.#covered = new Set(this.#coveredThen);
    if (this.#opened !== undefined && now - this.#opened >= STEADY_MS) {
      this.pauses.reset();
    }
    this.#opened = undefined;
    this.silence = OPENING_SILENCE_MS;
    if (error && !error.isPassing) {
      const isRefused = error.code === Code.OUT_OF_RANGE || error.reason === "RESUME_TOKEN_INVALID";
      if (!this.#token || !isRefused) {
        throw error;
      }
      // Another gateway than the one that gave it: begin anew. What is held stays, to compare with.
      this.#token = "";
    }
    return this.pauses.next(error);
  }

  #start(started: WatchStoreImageTasksResponse_Started, now: number): void {
    this.#opened = now;
    const heartbeat = started.heartbeatInterval ? durationMs(started.heartbeatInterval) : 0;
    this.silence = heartbeat > 0 ? MISSED_HEARTBEATS * heartbeat : OPENING_SILENCE_MS;
    this.#targets = new Set(started.targets.map(placeOf));
    this.stale.clear(); // told anew of those that still are
    if (!started.resumed) {
      this.#reset([]);
    }
  }

  #follow(targets: Set<Place>): void {
    for (const gone of this.#targets) {
      if (!targets.has(gone)) {
        this.#covered.delete(gone);
        this.#snapshots.delete(gone);
        this.stale.delete(gone);
        this.#seen.delete(gone); // should it come back, its tasks are no news
      }
    }
    this.#targets = targets;
  }

  #reset(targets: readonly Target[]): void {
    this.#group = [];
    if (targets.length === 0) {
      this.#covered.clear();
      this.#snapshots.clear();
    }
    for (const place of targets.map(placeOf)) {
      this.#covered.delete(place);
      this.#snapshots.delete(place);
    }
  }

  /** Applies the group at once, and the snapshots that are complete with it. */
  *#endGroup(targets: readonly Target[]): Generator<Change, void> {
    const group = this.#group;
    this.#group = [];
    const completed = new Map(targets.map((target) => [placeOf(target), target.account]));
    for (const change of group) {
      if (!change.task) {
        continue; // of a later version
      }
      const place = placeOf(change.task);
      if (this.#covered.has(place) && !completed.has(place)) {
        yield* this.#apply(place, change, change.task);
      } else if (change.type === Type.REMOVED) {
        tableOf(this.#snapshots, place).delete(change.task.taskId);
      } else {
        tableOf(this.#snapshots, place).set(change.task.taskId, change.task);
      }
    }
    for (const [place, account] of [...completed].sort()) {
      yield* this.#replace(place, tableOf(this.#snapshots, place));
      this.#snapshots.delete(place);
      this.#targets.add(place);
      this.#covered.add(place);
      this.#seen.add(place);
      this.stale.delete(`${account}/`); // its account's Regions are known again
    }
  }

  *#apply(place: Place, change: TaskChange, task: StoreImageTaskResult): Generator<Change, void> {
    if (change.type !== Type.REMOVED) {
      yield* this.#put(place, task);
      return;
    }
    if (change.removalReason === RemovalReason.ACCESS_ENDED) {
      this.#seen.delete(place); // should it come back, its tasks are no news
    }
    yield* this.#remove(place, task, change.removalReason);
  }

  *#replace(place: Place, snapshot: Table): Generator<Change, void> {
    const table = tableOf(this.#tables, place);
    for (const task of [...table.values()]) {
      if (!snapshot.has(task.taskId)) {
        yield* this.#remove(place, task, RemovalReason.UNSPECIFIED);
      }
    }
    for (const task of snapshot.values()) {
      const held = table.get(task.taskId);
      // A gateway that has just begun has not seen how fast it goes: that is no change of the task.
      if (!held || !isSameButForPace(held, task)) {
        yield* this.#put(place, task);
      }
    }
  }

  *#put(place: Place, task: StoreImageTaskResult): Generator<Change, void> {
    const table = tableOf(this.#tables, place);
    const held = table.get(task.taskId);
    const known = held ?? this.gone.get(task.taskId);
    if (known && goesBack(known, task)) {
      return; // a replica that has read EC2 less recently
    }
    this.gone.delete(task.taskId);
    table.set(task.taskId, task);
    if (!held) {
      yield told(Type.ADDED, task, known, { isFirst: !this.#seen.has(place) });
    } else if (!isSame(held, task)) {
      yield told(Type.MODIFIED, task, held);
    }
  }

  *#remove(place: Place, last: StoreImageTaskResult, removalReason: RemovalReason): Generator<Change, void> {
    const table = tableOf(this.#tables, place);
    const held = table.get(last.taskId);
    if (!held) {
      return;
    }
    table.delete(last.taskId);
    // Of a task that may be seen no more the gateway tells no state.
    const isUntold = removalReason === RemovalReason.ACCESS_ENDED;
    const task = isUntold || goesBack(held, last) ? held : last;
    if (hasEnded(task)) {
      this.gone.set(task.taskId, task);
      const [oldest] = this.gone.keys();
      if (this.gone.size > REMEMBERED && oldest !== undefined) {
        this.gone.delete(oldest);
      }
    }
    yield told(Type.REMOVED, task, held, { removalReason });
  }

  #note({ target, status, readTime }: WatchStoreImageTasksResponse_TargetStatus): void {
    const { account = "", region = "" } = target ?? {};
    const place = placeOf({ account, region });
    if (status) {
      const error = fromStatus(status);
      this.stale.set(place, { account, region, error, readTime: readTime && timestampDate(readTime) });
    } else {
      this.stale.delete(place);
    }
  }

  /** Drops what is held of targets that are not followed any more. */
  *#dropUnlisted(): Generator<Change, void> {
    for (const [place, table] of this.#tables) {
      const [first] = table.values();
      // Where Regions cannot be found out, nothing is known of them.
      if (first && !this.#targets.has(place) && !this.stale.has(`${first.account}/`)) {
        for (const task of [...table.values()]) {
          yield* this.#remove(place, task, RemovalReason.ACCESS_ENDED);
        }
        this.#seen.delete(place);
      }
    }
  }
}

function placeOf({ account, region }: { account: string; region: string }): Place {
  return `${account}/${region}`;
}

function tableOf(tables: Map<Place, Table>, place: Place): Table {
  let table = tables.get(place);
  if (!table) {
    table = new Map();
    tables.set(place, table);
  }
  return table;
}
