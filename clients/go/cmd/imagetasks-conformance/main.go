// The Go client's runner of the conformance suite; docs/adding-a-language.md has its protocol.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	imagetasks "github.com/imagetasks/imagetasks/clients/go"
	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

type command struct {
	Endpoint           string
	CA                 *string
	Certificate, Key   *string
	Call               string
	Request            []byte
	Token              *string
	Timeout            *float64
	Metadata           map[string]string
	CancelAfter        int     `json:"cancel_after"`
	CancelAfterSeconds float64 `json:"cancel_after_seconds"`
}

type observation map[string]any

// told writes an observation; it returns false when the runner is to leave.
type told func(observation) bool

func main() {
	lines := bufio.NewReader(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var c command
		if err := json.Unmarshal(line, &c); err != nil {
			panic(err)
		}
		c.run(func(o observation) { _ = out.Encode(o) })
	}
}

func (c command) run(tell func(observation)) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if c.CancelAfterSeconds > 0 {
		time.AfterFunc(seconds(c.CancelAfterSeconds), cancel)
	}
	client, err := c.connect()
	if err != nil {
		panic(err)
	}
	defer client.Close()
	count, left := 0, false
	last, err := c.observe(ctx, client, func(o observation) bool {
		tell(o)
		count++
		left = count == c.CancelAfter
		return !left
	})
	if last == nil {
		last = observation{}
	}
	var failure *imagetasks.Error
	switch {
	case left || ctx.Err() != nil:
		last["event"] = "cancelled"
	case err == nil:
		last["event"] = "end"
	case errors.As(err, &failure):
		maps.Copy(last, errorTold(failure))
	default:
		panic(err)
	}
	tell(last)
}

func (c command) connect() (*imagetasks.Client, error) {
	endpoint, options := "http://"+c.Endpoint, []imagetasks.Option{}
	if c.CA != nil {
		pem, err := os.ReadFile(*c.CA)
		if err != nil {
			return nil, err
		}
		endpoint, options = "https://"+c.Endpoint, append(options, imagetasks.WithCABundle(pem))
	}
	if c.Certificate != nil {
		pair, err := tls.LoadX509KeyPair(*c.Certificate, *c.Key)
		if err != nil {
			return nil, err
		}
		options = append(options, imagetasks.WithClientCertificate(pair))
	}
	if c.Token != nil {
		options = append(options, imagetasks.WithToken(*c.Token))
	}
	if c.Timeout != nil {
		options = append(options, imagetasks.WithTimeout(seconds(*c.Timeout)))
	}
	return imagetasks.Connect(endpoint, options...)
}

func (c command) observe(ctx context.Context, client *imagetasks.Client, tell told) (observation, error) {
	switch c.Call {
	case "list":
		request := parsed(c, &pb.DescribeStoreImageTasksRequest{})
		for page, err := range client.Describe(ctx, request) {
			if err != nil {
				return nil, err
			}
			if !tell(messageTold(page, page.GetStoreImageTaskResults())) {
				break
			}
		}
	case "stream":
		request := parsed(c, &pb.StreamStoreImageTasksRequest{})
		for message, err := range client.Stream(ctx, request) {
			if err != nil {
				return nil, err
			}
			if !tell(messageTold(message, message.GetPage().GetStoreImageTaskResults())) {
				break
			}
		}
	case "watch":
		return watch(ctx, client.Watch(parsed(c, &pb.WatchStoreImageTasksRequest{}).GetSelector()), tell)
	case "wait":
		request := parsed(c, &pb.WaitStoreImageTasksRequest{})
		var options []imagetasks.WaitOption
		if request.GetWaitForAppearance() {
			options = append(options, imagetasks.ForAppearance())
		}
		if c.Timeout != nil {
			options = append(options, imagetasks.Patience(seconds(*c.Timeout)))
		}
		response, err := client.Wait(ctx, request.GetSelector(), options...)
		if err != nil {
			return nil, err
		}
		tell(messageTold(response, response.GetStoreImageTaskResults()))
	default:
		return c.bare(ctx, client, tell)
	}
	return nil, nil
}

func watch(ctx context.Context, watch *imagetasks.Watch, tell told) (observation, error) {
	var failure error
	for change, err := range watch.Changes(ctx) {
		if err != nil {
			failure = err
		} else if !tell(changeTold(change)) {
			break
		}
	}
	held := slices.SortedFunc(maps.Values(watch.Tasks()), func(a, b *pb.StoreImageTaskResult) int {
		return cmp.Compare(a.GetTaskId(), b.GetTaskId())
	})
	stale := []string{}
	for place := range watch.Stale() {
		stale = append(stale, place.Account+"/"+place.Region)
	}
	slices.Sort(stale)
	return observation{"held": tasksTold(held), "stale": stale}, failure
}

func (c command) bare(ctx context.Context, client *imagetasks.Client, tell told) (observation, error) {
	for key, value := range c.Metadata {
		if strings.HasSuffix(key, "-bin") {
			raw, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				return nil, err
			}
			value = string(raw)
		}
		ctx = metadata.AppendToOutgoingContext(ctx, key, value)
	}
	if c.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, seconds(*c.Timeout))
		defer cancel()
	}
	var header, trailer metadata.MD
	options := []grpc.CallOption{grpc.Header(&header), grpc.Trailer(&trailer)}
	var err error
	switch c.Call {
	case "describe":
		var response *pb.DescribeStoreImageTasksResponse
		if response, err = client.Stub.DescribeStoreImageTasks(ctx, parsed(c, &pb.DescribeStoreImageTasksRequest{}), options...); err == nil {
			tell(messageTold(response, response.GetStoreImageTaskResults()))
		}
	case "targets":
		var response *pb.ListTargetsResponse
		if response, err = client.Stub.ListTargets(ctx, parsed(c, &pb.ListTargetsRequest{}), options...); err == nil {
			tell(messageTold(response, nil))
		}
	case "raw_wait":
		var response *pb.WaitStoreImageTasksResponse
		if response, err = client.Stub.WaitStoreImageTasks(ctx, parsed(c, &pb.WaitStoreImageTasksRequest{}), options...); err == nil {
			tell(messageTold(response, response.GetStoreImageTaskResults()))
		}
	case "raw_watch":
		err = rawWatch(ctx, client, parsed(c, &pb.WatchStoreImageTasksRequest{}), tell)
	default:
		err = fmt.Errorf("no such call: %s", c.Call)
	}
	if err != nil {
		return nil, imagetasks.FromError(err)
	}
	return observation{"metadata": metadataTold(metadata.Join(header, trailer))}, nil
}

func rawWatch(ctx context.Context, client *imagetasks.Client, request *pb.WatchStoreImageTasksRequest, tell told) error {
	stream, err := client.Stub.WatchStoreImageTasks(ctx, request)
	for err == nil {
		var message *pb.WatchStoreImageTasksResponse
		if message, err = stream.Recv(); err == nil {
			var tasks []*pb.StoreImageTaskResult
			for _, change := range message.GetChanges().GetChanges() {
				tasks = append(tasks, change.GetTask())
			}
			if !tell(messageTold(message, tasks)) {
				return nil
			}
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func parsed[M proto.Message](c command, into M) M {
	if err := proto.Unmarshal(c.Request, into); err != nil {
		panic(err)
	}
	return into
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
