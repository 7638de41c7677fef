package imagetasks

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

const (
	// One call at most: what stands between may cut a longer one.
	waitSlice = 5 * time.Minute
	// What the gateway has to answer in, after the time it was told.
	waitGrace = 10 * time.Second
	// After this the gateway has waited: to ask again at once is no rush.
	waitLong = time.Second
)

type waiting struct {
	appearance bool
	patience   time.Duration
	limited    bool
}

// WaitOption changes what Wait waits for.
type WaitOption func(*waiting)

// ForAppearance waits for a task to appear while nothing matches, in place of the answer NOTHING_MATCHES.
func ForAppearance() WaitOption { return func(w *waiting) { w.appearance = true } }

// Patience is the time after which the answer is TIMEOUT; without it there is no limit but the context's.
func Patience(limit time.Duration) WaitOption {
	return func(w *waiting) { w.patience, w.limited = limit, true }
}

// Wait returns when every selected task has ended, or with the reason why it returns earlier. It asks again
// when the connection is lost or the gateway stops. Look at Done and at each task's state: a failed task has
// ended too. The error is an *Error, or the context's.
func (c *Client) Wait(ctx context.Context, selector *pb.TaskSelector, options ...WaitOption) (*pb.WaitStoreImageTasksResponse, error) {
	var w waiting
	for _, option := range options {
		option(&w)
	}
	ctx, leave := c.whileOpen(ctx)
	defer leave()
	until := time.Now().Add(w.patience)
	between := newPauses()
	for {
		slice := waitSlice
		if w.limited {
			slice = max(0, min(slice, time.Until(until)))
		}
		asked := time.Now()
		response, err := c.waitOnce(ctx, slice, &pb.WaitStoreImageTasksRequest{
			Selector: selector, WaitForAppearance: w.appearance, Timeout: durationpb.New(slice),
		})
		if ctx.Err() != nil && err != nil {
			return nil, over(ctx)
		}
		var pause time.Duration
		switch {
		case err != nil:
			failure := FromError(err)
			pause = between.next(failure)
			if !failure.isPassing() || (w.limited && time.Now().Add(pause).After(until)) {
				return nil, failure
			}
		case !asksAgain(response) || (w.limited && !time.Now().Before(until)):
			return response, nil
		case response.GetReason() == pb.WaitStoreImageTasksResponse_REASON_TIMEOUT && time.Since(asked) >= waitLong:
			between.reset()
		default:
			pause = between.next(nil)
			if w.limited && time.Now().Add(pause).After(until) {
				return response, nil
			}
		}
		if !sleep(ctx, pause) {
			return nil, over(ctx)
		}
	}
}

// over is why there is no more waiting: the client has been closed, or the caller's context is over.
func over(ctx context.Context) error {
	if context.Cause(ctx) == error(errClosed) {
		return errClosed
	}
	return ctx.Err()
}

func (c *Client) waitOnce(ctx context.Context, slice time.Duration, request *pb.WaitStoreImageTasksRequest) (*pb.WaitStoreImageTasksResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, slice+waitGrace)
	defer cancel()
	return c.Stub.WaitStoreImageTasks(ctx, request)
}

func asksAgain(response *pb.WaitStoreImageTasksResponse) bool {
	reason := response.GetReason()
	return reason == pb.WaitStoreImageTasksResponse_REASON_TIMEOUT || reason == pb.WaitStoreImageTasksResponse_REASON_DRAINING
}
