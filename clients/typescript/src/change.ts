import { clone, createRegistry, equals } from "@bufbuild/protobuf";
import type { ImageTasksError } from "./errors.js";
import type { StoreImageTaskResult } from "./gen/imagetasks/v1/store_image_tasks_pb.js";
import {
  TaskChange_RemovalReason as RemovalReason,
  StoreImageTaskResultSchema,
  StoreTaskState,
  type TaskChange_Type as Type,
} from "./gen/imagetasks/v1/store_image_tasks_pb.js";

const NO_EXTENSIONS = createRegistry();

/** One task's change, as the application sees it. */
export interface Change {
  /** ADDED, MODIFIED or REMOVED. */
  readonly type: Type;
  /** The task now; when removed, its last known state. */
  readonly task: StoreImageTaskResult;
  /** The task as the application knew it; undefined if it did not. */
  readonly before: StoreImageTaskResult | undefined;
  /** UNSPECIFIED if the task had gone when the connection came back. */
  readonly removalReason: RemovalReason;
  /** True for what was there when the watch of its target began: no news. */
  readonly isFirst: boolean;
  /** Whether the task has ended and this is the news of it. */
  readonly hasEnded: boolean;
}

/** Why a target cannot be read now, and when it last could be; undefined: never. */
export interface Stale {
  readonly account: string;
  /** Empty: the whole account. */
  readonly region: string;
  readonly error: ImageTasksError;
  readonly readTime: Date | undefined;
}

/** Whether the task's state is final. */
export function hasEnded(task: StoreImageTaskResult | undefined): boolean {
  return task?.storeTaskState === StoreTaskState.COMPLETED || task?.storeTaskState === StoreTaskState.FAILED;
}

/** A change, with whether it is the news of an end. */
export function told(
  type: Type,
  task: StoreImageTaskResult,
  before: StoreImageTaskResult | undefined,
  { isFirst = false, removalReason = RemovalReason.UNSPECIFIED } = {},
): Change {
  const isNews = !isFirst && hasEnded(task) && !hasEnded(before);
  return { type, task, before, removalReason, isFirst, hasEnded: isNews };
}

/** Whether the task is an older state of a known one: its end is final, its percentage rises. */
export function goesBack(known: StoreImageTaskResult, task: StoreImageTaskResult): boolean {
  if (hasEnded(known) || hasEnded(task)) {
    return !hasEnded(task);
  }
  if (
    (known.ec2StoreTaskState ?? "") !== (task.ec2StoreTaskState ?? "") ||
    task.progressPercentage === undefined
  ) {
    return false;
  }
  return task.progressPercentage < (known.progressPercentage ?? 0);
}

/** Whether they differ in nothing, also not in what is of a later version. */
export function isSame(one: StoreImageTaskResult, other: StoreImageTaskResult): boolean {
  return equals(StoreImageTaskResultSchema, one, other, { unknown: true, registry: NO_EXTENSIONS });
}

/** Whether they differ in nothing but how the gateway saw them come along. */
export function isSameButForPace(one: StoreImageTaskResult, other: StoreImageTaskResult): boolean {
  return isSame(withoutPace(one), withoutPace(other));
}

function withoutPace(task: StoreImageTaskResult): StoreImageTaskResult {
  if (!task.pace) {
    return task;
  }
  const copy = clone(StoreImageTaskResultSchema, task);
  delete copy.pace;
  return copy;
}
