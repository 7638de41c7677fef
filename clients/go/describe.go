package imagetasks

import (
	"context"
	"errors"
	"io"
	"iter"

	"google.golang.org/protobuf/proto"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

// Describe lists the tasks of all targets, newest first, page by page; each page is asked for when the one
// before has been used. Without a request it lists all. Targets that fail are in each page's target_outcomes. An error is the last value.
func (c *Client) Describe(ctx context.Context, request *pb.DescribeStoreImageTasksRequest) iter.Seq2[*pb.DescribeStoreImageTasksResponse, error] {
	return func(yield func(*pb.DescribeStoreImageTasksResponse, error) bool) {
		request := proto.CloneOf(request)
		if request == nil {
			request = &pb.DescribeStoreImageTasksRequest{}
		}
		for {
			page, err := c.page(ctx, request)
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(page, nil) || page.GetNextToken() == "" {
				return
			}
			request.NextToken = page.NextToken
		}
	}
}

// Tasks lists as Describe does, task by task.
func (c *Client) Tasks(ctx context.Context, request *pb.DescribeStoreImageTasksRequest) iter.Seq2[*pb.StoreImageTaskResult, error] {
	return func(yield func(*pb.StoreImageTaskResult, error) bool) {
		for page, err := range c.Describe(ctx, request) {
			if err != nil {
				yield(nil, err)
				return
			}
			for _, task := range page.GetStoreImageTaskResults() {
				if !yield(task, nil) {
					return
				}
			}
		}
	}
}

// Stream sends each page as its target answers, an outcome for each target, and a summary last. A failed
// target is an outcome, no error. Leaving the loop ends the call at the gateway.
func (c *Client) Stream(ctx context.Context, request *pb.StreamStoreImageTasksRequest) iter.Seq2[*pb.StreamStoreImageTasksResponse, error] {
	return func(yield func(*pb.StreamStoreImageTasksResponse, error) bool) {
		ctx, cancel := c.deadline(ctx)
		defer cancel()
		stream, err := c.Stub.StreamStoreImageTasks(ctx, request)
		for err == nil {
			var message *pb.StreamStoreImageTasksResponse
			if message, err = stream.Recv(); err == nil && !yield(message, nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(nil, failed(ctx, err))
		}
	}
}

func (c *Client) page(ctx context.Context, request *pb.DescribeStoreImageTasksRequest) (*pb.DescribeStoreImageTasksResponse, error) {
	ctx, cancel := c.deadline(ctx)
	defer cancel()
	page, err := c.Stub.DescribeStoreImageTasks(ctx, request)
	if err != nil {
		return nil, failed(ctx, err)
	}
	return page, nil
}
