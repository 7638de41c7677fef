package imagetasks

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

const (
	// Until the first message. Before it the gateway may still be finding out the targets.
	openingSilence = time.Minute
	// Heartbeats that may be missed before a connection counts as dead.
	missedHeartbeats = 3
	// After this a stream has gone well: an end then is no sign of more to come.
	steady = 10 * time.Second
	// Ended tasks that were removed and are remembered, so that an older state cannot bring them back.
	remembered = 4096
)

// watched is what a watch holds, and what it does next: messages and failures in, changes and pauses out,
// without input, output or clock. docs/watch.md draws it.
type watched struct {
	selector *pb.TaskSelector
	pauses   pauses
	token    string
	opened   time.Time // zero: no call runs
	silence  time.Duration

	tasks map[Place]*table
	// gone has ended tasks that are held no longer, oldest first in goneOrder.
	gone      map[string]*pb.StoreImageTaskResult
	goneOrder []string
	// The gateway's targets; those whose tasks are held in full, now and as of the token; those ever held.
	targets, covered, coveredThen, seen map[Place]bool
	stale                               map[Place]Stale
	// Of a group that has not ended, and of targets whose snapshot has not.
	group     []*pb.TaskChange
	snapshots map[Place]*table
}

func newWatched(selector *pb.TaskSelector) *watched {
	return &watched{
		selector: selector, pauses: newPauses(), silence: openingSilence,
		tasks: map[Place]*table{}, gone: map[string]*pb.StoreImageTaskResult{}, snapshots: map[Place]*table{},
		targets: map[Place]bool{}, covered: map[Place]bool{}, coveredThen: map[Place]bool{}, seen: map[Place]bool{},
		stale: map[Place]Stale{},
	}
}

// request is what the next call asks.
func (w *watched) request() *pb.WatchStoreImageTasksRequest {
	return &pb.WatchStoreImageTasksRequest{Selector: w.selector, ResumeToken: w.token}
}

// received takes a message and returns what it changes for the application.
func (w *watched) received(message *pb.WatchStoreImageTasksResponse, now time.Time) []Change {
	var changes []Change
	switch event := message.GetEvent().(type) {
	case *pb.WatchStoreImageTasksResponse_Started_:
		w.start(event.Started, now)
	case *pb.WatchStoreImageTasksResponse_Reset_:
		w.reset(places(event.Reset_.GetTargets()))
	case *pb.WatchStoreImageTasksResponse_Changes_:
		w.group = append(w.group, event.Changes.GetChanges()...)
		if event.Changes.GetContinued() {
			return nil
		}
		changes = w.endGroup(nil)
	case *pb.WatchStoreImageTasksResponse_SnapshotComplete_:
		changes = w.endGroup(places(event.SnapshotComplete.GetTargets()))
	case *pb.WatchStoreImageTasksResponse_TargetStatus_:
		w.note(event.TargetStatus)
	case *pb.WatchStoreImageTasksResponse_TargetsChanged_:
		w.follow(places(event.TargetsChanged.GetTargets()))
		changes = w.dropUnlisted()
	case *pb.WatchStoreImageTasksResponse_Heartbeat_:
		changes = w.dropUnlisted()
	}
	// Not within a group: what is before the token would be lost.
	if message.GetResumeToken() != "" && len(w.group) == 0 {
		w.token, w.coveredThen = message.GetResumeToken(), maps.Clone(w.covered)
	}
	return changes
}

// interrupted tells how long to pause after the call has ended, and fails if the error is not one that
// passes. A nil error: closed by the gateway, cut, or silent for too long.
func (w *watched) interrupted(err *Error, now time.Time) (time.Duration, error) {
	w.group = nil
	clear(w.snapshots)
	// A reset behind the token has not been: what was held is held, and the gateway repeats it if need be.
	w.covered = maps.Clone(w.coveredThen)
	if !w.opened.IsZero() && now.Sub(w.opened) >= steady {
		w.pauses.reset()
	}
	w.opened, w.silence = time.Time{}, openingSilence
	if err != nil && !err.isPassing() {
		refused := err.Code == codes.OutOfRange || err.Reason == "RESUME_TOKEN_INVALID"
		if w.token == "" || !refused {
			return 0, err
		}
		// Another gateway than the one that gave it: begin anew. What is held stays, to compare with.
		w.token = ""
	}
	return w.pauses.next(err), nil
}

func (w *watched) start(started *pb.WatchStoreImageTasksResponse_Started, now time.Time) {
	w.opened = now
	w.silence = openingSilence
	if heartbeat := started.GetHeartbeatInterval().AsDuration(); heartbeat > 0 {
		w.silence = missedHeartbeats * heartbeat
	}
	w.targets = map[Place]bool{}
	for _, place := range places(started.GetTargets()) {
		w.targets[place] = true
	}
	clear(w.stale) // told anew of those that still are
	if !started.GetResumed() {
		w.reset(nil)
	}
}

func (w *watched) follow(targets []Place) {
	for gone := range w.targets {
		if !slices.Contains(targets, gone) {
			for _, places := range []map[Place]bool{w.targets, w.covered, w.seen} {
				delete(places, gone) // should it come back, its tasks are no news
			}
			delete(w.snapshots, gone)
			delete(w.stale, gone)
		}
	}
	for _, place := range targets {
		w.targets[place] = true
	}
}

func (w *watched) reset(named []Place) {
	w.group = nil
	if len(named) == 0 {
		clear(w.covered)
		clear(w.snapshots)
	}
	for _, place := range named {
		delete(w.covered, place)
		delete(w.snapshots, place)
	}
}

// endGroup applies the group at once, and the snapshots that are complete with it.
func (w *watched) endGroup(completed []Place) []Change {
	var told []Change
	group := w.group
	w.group = nil
	for _, change := range group {
		task := change.GetTask()
		place := Place{task.GetAccount(), task.GetRegion()}
		switch {
		case w.covered[place] && !slices.Contains(completed, place):
			told = w.apply(told, place, change)
		case change.GetType() == pb.TaskChange_TYPE_REMOVED:
			tableOf(w.snapshots, place).remove(task.GetTaskId())
		default:
			tableOf(w.snapshots, place).put(task)
		}
	}
	slices.SortFunc(completed, comparePlaces)
	for _, place := range slices.Compact(completed) {
		told = w.replace(told, place, tableOf(w.snapshots, place))
		delete(w.snapshots, place)
		w.targets[place], w.covered[place], w.seen[place] = true, true, true
		delete(w.stale, Place{Account: place.Account}) // its account's Regions are known again
	}
	return told
}

func (w *watched) apply(told []Change, place Place, change *pb.TaskChange) []Change {
	if change.GetType() != pb.TaskChange_TYPE_REMOVED {
		return w.put(told, place, change.GetTask())
	}
	if change.GetRemovalReason() == pb.TaskChange_REMOVAL_REASON_ACCESS_ENDED {
		delete(w.seen, place) // should it come back, its tasks are no news
	}
	return w.remove(told, place, change.GetTask(), change.GetRemovalReason())
}

func (w *watched) replace(told []Change, place Place, snapshot *table) []Change {
	for _, task := range tableOf(w.tasks, place).all() {
		if snapshot.get(task.GetTaskId()) == nil {
			told = w.remove(told, place, task, pb.TaskChange_REMOVAL_REASON_UNSPECIFIED)
		}
	}
	for _, task := range snapshot.all() {
		held := tableOf(w.tasks, place).get(task.GetTaskId())
		// A gateway that has just begun has not seen how fast it goes: that is no change of the task.
		if held == nil || !isSame(held, task) {
			told = w.put(told, place, task)
		}
	}
	return told
}

func (w *watched) put(told []Change, place Place, task *pb.StoreImageTaskResult) []Change {
	held := tableOf(w.tasks, place).get(task.GetTaskId())
	known := held
	if known == nil {
		known = w.gone[task.GetTaskId()]
	}
	if known != nil && goesBack(known, task) {
		return told // a replica that has read EC2 less recently
	}
	if w.gone[task.GetTaskId()] != nil {
		delete(w.gone, task.GetTaskId())
		w.goneOrder = slices.DeleteFunc(w.goneOrder, func(id string) bool { return id == task.GetTaskId() })
	}
	tableOf(w.tasks, place).put(task)
	switch {
	case held == nil:
		return append(told, Change{Type: pb.TaskChange_TYPE_ADDED, Task: task, Before: known, First: !w.seen[place]})
	case !proto.Equal(held, task):
		return append(told, Change{Type: pb.TaskChange_TYPE_MODIFIED, Task: task, Before: held})
	}
	return told
}

func (w *watched) remove(told []Change, place Place, last *pb.StoreImageTaskResult, reason pb.TaskChange_RemovalReason) []Change {
	held := tableOf(w.tasks, place).remove(last.GetTaskId())
	if held == nil {
		return told
	}
	task := last
	// Of a task that may be seen no more the gateway tells no state.
	if reason == pb.TaskChange_REMOVAL_REASON_ACCESS_ENDED || goesBack(held, last) {
		task = held
	}
	if HasEnded(task) {
		w.remember(task)
	}
	return append(told, Change{Type: pb.TaskChange_TYPE_REMOVED, Task: task, Before: held, RemovalReason: reason})
}

func (w *watched) remember(task *pb.StoreImageTaskResult) {
	w.gone[task.GetTaskId()] = task
	w.goneOrder = append(w.goneOrder, task.GetTaskId())
	if len(w.goneOrder) > remembered {
		delete(w.gone, w.goneOrder[0])
		w.goneOrder = w.goneOrder[1:]
	}
}

func (w *watched) note(status *pb.WatchStoreImageTasksResponse_TargetStatus) {
	place := places([]*pb.Target{status.GetTarget()})[0]
	if status.GetStatus() == nil {
		delete(w.stale, place)
		return
	}
	stale := Stale{Error: FromStatus(status.GetStatus())}
	if status.GetReadTime() != nil {
		stale.ReadTime = status.GetReadTime().AsTime()
	}
	w.stale[place] = stale
}

// dropUnlisted drops what is held of targets that are not followed any more.
func (w *watched) dropUnlisted() []Change {
	var told []Change
	for _, place := range slices.SortedFunc(maps.Keys(w.tasks), comparePlaces) {
		_, unknown := w.stale[Place{Account: place.Account}]
		// Where Regions cannot be found out, nothing is known of them.
		if held := w.tasks[place].all(); len(held) > 0 && !w.targets[place] && !unknown {
			for _, task := range held {
				told = w.remove(told, place, task, pb.TaskChange_REMOVAL_REASON_ACCESS_ENDED)
			}
			delete(w.seen, place)
		}
	}
	return told
}

func places(targets []*pb.Target) []Place {
	found := make([]Place, len(targets))
	for i, target := range targets {
		found[i] = Place{target.GetAccount(), target.GetRegion()}
	}
	return found
}

func comparePlaces(a, b Place) int {
	return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Region, b.Region))
}
