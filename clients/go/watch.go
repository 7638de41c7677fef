package imagetasks

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"sync"
	"time"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

// Watch holds the selected tasks and tells every change; Client.Watch makes one.
type Watch struct {
	client *Client
	pause  time.Duration
	ready  []Change

	mu        sync.Mutex // of what follows: Tasks and Stale may be called while it is iterated
	watched   *watched
	lastError *Error
}

// Watch follows the selected tasks: a snapshot, then every change. Nothing is asked before Changes.
func (c *Client) Watch(selector *pb.TaskSelector) *Watch {
	return &Watch{client: c, watched: newWatched(selector)}
}

// Changes tells every change until the context ends, the client is closed or the loop is left; a later Changes
// goes on from there. One loop at a time.
//
// It keeps itself alive: when the connection is lost, the gateway restarts or falls silent, it goes on where
// it was, and tells only what has changed meanwhile. An error is the last value, and one that trying again
// cannot mend: a malformed selector, an unknown account, no permission.
func (w *Watch) Changes(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		ctx, leave := w.client.whileOpen(ctx)
		defer leave()
		for {
			for len(w.ready) > 0 {
				change := w.ready[0]
				w.ready = w.ready[1:]
				if !yield(change, nil) {
					return
				}
			}
			if !sleep(ctx, w.pause) {
				return
			}
			left, failure := w.follow(ctx, yield)
			if ctx.Err() != nil {
				failure = nil // the application's own doing
			}
			w.mu.Lock()
			pause, err := w.watched.interrupted(failure, time.Now())
			w.lastError = failure
			w.mu.Unlock()
			w.pause = pause
			if left || ctx.Err() != nil {
				w.pause = 0 // not the gateway's fault
				return
			}
			if err != nil {
				yield(Change{}, err)
				return
			}
		}
	}
}

// Tasks are those held, by task_id: what all changes so far amount to. A group of changes is applied at once,
// before its first is told.
func (w *Watch) Tasks() map[string]*pb.StoreImageTaskResult {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := map[string]*pb.StoreImageTaskResult{}
	for _, of := range w.watched.tasks {
		for id, each := range of.entries {
			held[id] = each.task
		}
	}
	return held
}

// Stale are the targets that cannot be read now.
func (w *Watch) Stale() map[Place]Stale {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.watched.stale)
}

// CaughtUp tells whether it is connected and has heard of every target.
func (w *Watch) CaughtUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for place := range w.watched.targets {
		if !w.watched.covered[place] {
			return false
		}
	}
	return !w.watched.opened.IsZero()
}

// LastError is what the newest interruption was for; nil: the gateway closed the stream, or fell silent.
func (w *Watch) LastError() *Error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lastError
}

// follow reads one call to its end: true if the loop was left, and the error that the call ended with.
func (w *Watch) follow(ctx context.Context, yield func(Change, error) bool) (bool, *Error) {
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	w.mu.Lock()
	request, silence := w.watched.request(), w.watched.silence
	w.mu.Unlock()
	dead := time.AfterFunc(silence, hangUp)
	defer dead.Stop()
	stream, err := w.client.Stub.WatchStoreImageTasks(ctx, request)
	for err == nil {
		var message *pb.WatchStoreImageTasksResponse
		dead.Reset(silence)
		if message, err = stream.Recv(); err != nil {
			break
		}
		dead.Stop()
		w.mu.Lock()
		w.ready = w.watched.received(message, time.Now())
		silence = w.watched.silence
		w.mu.Unlock()
		for len(w.ready) > 0 {
			change := w.ready[0]
			w.ready = w.ready[1:]
			if !yield(change, nil) {
				return true, nil
			}
		}
		if message.GetClosing() != nil {
			return false, nil
		}
	}
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return false, nil
	}
	return false, FromError(err)
}
