package imagetasks

import (
	"cmp"
	"maps"
	"slices"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

// table holds one target's tasks by id, in the order in which they came.
type table struct {
	entries map[string]entry
	next    int
}

type entry struct {
	order int
	task  *pb.StoreImageTaskResult
}

func tableOf(tables map[Place]*table, place Place) *table {
	if tables[place] == nil {
		tables[place] = &table{entries: map[string]entry{}}
	}
	return tables[place]
}

func (t *table) get(id string) *pb.StoreImageTaskResult { return t.entries[id].task }

func (t *table) put(task *pb.StoreImageTaskResult) {
	order := t.next
	if known, ok := t.entries[task.GetTaskId()]; ok {
		order = known.order
	}
	t.next++
	t.entries[task.GetTaskId()] = entry{order, task}
}

func (t *table) remove(id string) *pb.StoreImageTaskResult {
	task := t.entries[id].task
	delete(t.entries, id)
	return task
}

func (t *table) all() []*pb.StoreImageTaskResult {
	sorted := slices.SortedFunc(maps.Values(t.entries), func(a, b entry) int { return cmp.Compare(a.order, b.order) })
	tasks := make([]*pb.StoreImageTaskResult, len(sorted))
	for i, each := range sorted {
		tasks[i] = each.task
	}
	return tasks
}
