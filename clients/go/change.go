package imagetasks

import (
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

// Place is a target's account and Region; the Region of a whole account is empty.
type Place struct{ Account, Region string }

// Change is one task's change, as the application sees it.
type Change struct {
	// Type is TYPE_ADDED, TYPE_MODIFIED or TYPE_REMOVED.
	Type pb.TaskChange_Type
	// Task is the task now; when removed, its last known state.
	Task *pb.StoreImageTaskResult
	// Before is the task as the application knew it; nil if it did not.
	Before *pb.StoreImageTaskResult
	// RemovalReason is unspecified if the task had gone when the connection came back.
	RemovalReason pb.TaskChange_RemovalReason
	// First is true for what was there when the watch of its target began: no news.
	First bool
}

// HasEnded tells whether the task has ended and this is the news of it.
func (c Change) HasEnded() bool { return !c.First && HasEnded(c.Task) && !HasEnded(c.Before) }

// HasEnded tells whether the task's state is final.
func HasEnded(task *pb.StoreImageTaskResult) bool {
	state := task.GetStoreTaskState()
	return state == pb.StoreTaskState_STORE_TASK_STATE_COMPLETED || state == pb.StoreTaskState_STORE_TASK_STATE_FAILED
}

// Stale is why a target cannot be read now, and when it last could be; zero: never.
type Stale struct {
	Error    *Error
	ReadTime time.Time
}

// goesBack tells whether the task is an older state of a known one: its end is final, its percentage rises.
func goesBack(known, task *pb.StoreImageTaskResult) bool {
	if HasEnded(known) || HasEnded(task) {
		return !HasEnded(task)
	}
	if known.GetEc2StoreTaskState() != task.GetEc2StoreTaskState() || task.ProgressPercentage == nil {
		return false
	}
	return task.GetProgressPercentage() < known.GetProgressPercentage()
}

// isSame tells whether they differ in nothing but how the gateway saw them come along.
func isSame(one, other *pb.StoreImageTaskResult) bool {
	one, other = proto.CloneOf(one), proto.CloneOf(other)
	one.Pace, other.Pace = nil, nil
	return proto.Equal(one, other)
}
