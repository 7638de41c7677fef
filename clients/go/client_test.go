package imagetasks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

type fake struct {
	pb.UnimplementedStoreImageTaskServiceServer
	calls atomic.Int32
	asked atomic.Int32
	left  chan struct{}
	pages int
	wait  func(context.Context)
	watch func(call int, request *pb.WatchStoreImageTasksRequest, stream grpc.ServerStreamingServer[pb.WatchStoreImageTasksResponse]) error
}

func (f *fake) ListTargets(context.Context, *pb.ListTargetsRequest) (*pb.ListTargetsResponse, error) {
	f.asked.Add(1)
	return &pb.ListTargetsResponse{}, nil
}

func (f *fake) DescribeStoreImageTasks(_ context.Context, request *pb.DescribeStoreImageTasksRequest) (*pb.DescribeStoreImageTasksResponse, error) {
	if page := len(request.GetNextToken()) + 1; page < f.pages {
		next := strings.Repeat("i", page)
		return &pb.DescribeStoreImageTasksResponse{NextToken: &next}, nil
	}
	return &pb.DescribeStoreImageTasksResponse{}, nil
}

func (f *fake) WaitStoreImageTasks(ctx context.Context, _ *pb.WaitStoreImageTasksRequest) (*pb.WaitStoreImageTasksResponse, error) {
	f.wait(ctx)
	return nil, ctx.Err()
}

func (f *fake) WatchStoreImageTasks(request *pb.WatchStoreImageTasksRequest, stream grpc.ServerStreamingServer[pb.WatchStoreImageTasksResponse]) error {
	err := f.watch(int(f.calls.Add(1)), request, stream)
	if stream.Context().Err() != nil {
		f.left <- struct{}{}
	}
	return err
}

// wellness is the gateway's health. gRPC's own server of it is in a package that brings the client's half too:
// then nobody would notice that connect.go does not.
type wellness struct {
	healthpb.UnimplementedHealthServer
	mu      sync.Mutex
	isIll   bool
	changed chan struct{}
}

func (w *wellness) serving(is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isIll = !is
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *wellness) Watch(_ *healthpb.HealthCheckRequest, stream grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	for {
		w.mu.Lock()
		said, changed := healthpb.HealthCheckResponse_SERVING, w.changed
		if w.isIll {
			said = healthpb.HealthCheckResponse_NOT_SERVING
		}
		w.mu.Unlock()
		if err := stream.Send(&healthpb.HealthCheckResponse{Status: said}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func serve(t *testing.T, f *fake) (*Client, *wellness) {
	t.Helper()
	address, well := start(t, f)
	return connect(t, address), well
}

func start(t *testing.T, f *fake) (string, *wellness) {
	t.Helper()
	f.left = make(chan struct{}, 10)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, well := grpc.NewServer(), &wellness{changed: make(chan struct{})}
	pb.RegisterStoreImageTaskServiceServer(server, f)
	healthpb.RegisterHealthServer(server, well)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String(), well
}

func connect(t *testing.T, endpoint string, options ...Option) *Client {
	t.Helper()
	client, err := Connect(endpoint, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func task(id string, percentage int32) *pb.StoreImageTaskResult {
	return &pb.StoreImageTaskResult{TaskId: id, Account: "prod", Region: "eu-west-1", ProgressPercentage: &percentage}
}

func ended(id string) *pb.StoreImageTaskResult {
	done := task(id, 100)
	done.StoreTaskState = pb.StoreTaskState_STORE_TASK_STATE_COMPLETED
	return done
}

func started() *pb.WatchStoreImageTasksResponse {
	return &pb.WatchStoreImageTasksResponse{Event: &pb.WatchStoreImageTasksResponse_Started_{
		Started: &pb.WatchStoreImageTasksResponse_Started{HeartbeatInterval: durationpb.New(10 * time.Second)},
	}}
}

func changes(token string, tasks ...*pb.StoreImageTaskResult) *pb.WatchStoreImageTasksResponse {
	group := &pb.WatchStoreImageTasksResponse_Changes{Continued: token == ""}
	for _, each := range tasks {
		group.Changes = append(group.Changes, &pb.TaskChange{Type: pb.TaskChange_TYPE_MODIFIED, Task: each})
	}
	message := &pb.WatchStoreImageTasksResponse{Event: &pb.WatchStoreImageTasksResponse_Changes_{Changes: group}}
	if token != "" {
		message.ResumeToken = &token
	}
	return message
}

func complete(token string) *pb.WatchStoreImageTasksResponse {
	return &pb.WatchStoreImageTasksResponse{ResumeToken: &token, Event: &pb.WatchStoreImageTasksResponse_SnapshotComplete_{
		SnapshotComplete: &pb.WatchStoreImageTasksResponse_SnapshotComplete{
			Targets: []*pb.Target{{Account: "prod", Region: "eu-west-1"}},
		},
	}}
}

func send(stream grpc.ServerStreamingServer[pb.WatchStoreImageTasksResponse], messages ...*pb.WatchStoreImageTasksResponse) {
	for _, message := range messages {
		_ = stream.Send(message)
	}
}

func TestEndpoints(t *testing.T) {
	for text, want := range map[string]endpoint{
		"127.0.0.1:5":        {"127.0.0.1:5", false, true},
		"localhost":          {"localhost:50051", false, true},
		"http://gateway":     {"gateway:80", false, false},
		"https://gateway":    {"gateway:443", true, false},
		"https://[::1]:9443": {"[::1]:9443", true, true},
		"unix:/run/gateway":  {"unix:/run/gateway", false, true},

		"ipv4:127.0.0.1:5,127.0.0.2:6": {"ipv4:127.0.0.1:5,127.0.0.2:6", false, true},
		"ipv4:127.0.0.1:5,192.0.2.1:5": {"ipv4:127.0.0.1:5,192.0.2.1:5", false, false},
		"ipv6:[::1]:5":                 {"ipv6:[::1]:5", false, true},
	} {
		if got, err := parseEndpoint(text); err != nil || got != want {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"ftp://gateway", "https://", "gateway:x", "http://gateway/path", "http://me@gateway",
		"ipv4:", "ipv4:127.0.0.1", "ipv4:127.0.0.1:7,", "ipv4:gateway:7", "ipv4:[::1]:7", "ipv6:127.0.0.1:7",
	} {
		if got, err := parseEndpoint(text); err == nil {
			t.Errorf("%s is %v", text, got)
		}
	}
	t.Setenv(endpointVariable, "https://elsewhere:1")
	if got, _ := parseEndpoint(""); got.target != "elsewhere:1" {
		t.Errorf("the environment is %v", got)
	}
}

func TestSecretsStayOffPlaintext(t *testing.T) {
	if _, err := Connect("gateway:50051", WithToken("secret")); err == nil {
		t.Error("a token would cross the network in plaintext")
	}
	if _, err := Connect("127.0.0.1:50051", WithCABundle([]byte("pem"))); err == nil {
		t.Error("certificates without TLS")
	}
	if _, err := Connect("https://gateway", WithCABundle([]byte("no pem"))); err == nil {
		t.Error("a bundle without a certificate")
	}
}

func TestAGatewayThatIsNotServingIsLeftAlone(t *testing.T) {
	client, well := serve(t, &fake{})
	well.serving(false)
	_, err := client.Stub.ListTargets(t.Context(), &pb.ListTargetsRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Fatalf("it was asked: %v", err)
	}
	well.serving(true)
	if _, err := client.Stub.ListTargets(t.Context(), &pb.ListTargetsRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
}

func TestSeveralGatewaysTakeTurnsButForThoseThatAreNotServing(t *testing.T) {
	a, b := &fake{}, &fake{}
	first, _ := start(t, a)
	second, well := start(t, b)
	well.serving(false)
	client := connect(t, "ipv4:"+first+","+second)
	ask := func() {
		if _, err := client.Stub.ListTargets(t.Context(), &pb.ListTargetsRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		ask()
	}
	if a.asked.Load() != 10 || b.asked.Load() != 0 {
		t.Fatalf("they were asked %d and %d times", a.asked.Load(), b.asked.Load())
	}
	well.serving(true)
	for deadline := time.Now().Add(10 * time.Second); b.asked.Load() == 0; ask() {
		if time.Now().After(deadline) {
			t.Fatal("who serves again is not asked")
		}
	}
	before := a.asked.Load()
	ask()
	ask()
	if a.asked.Load() != before+1 {
		t.Error("they do not take turns")
	}
}

func TestPausesDoubleUpToALimit(t *testing.T) {
	for _, random := range []float64{0, 1} {
		p := pauses{random: func() float64 { return random }}
		for _, most := range []time.Duration{500, 1000, 2000, 4000, 8000, 16000, 30000, 30000} {
			want := time.Duration(float64(most*time.Millisecond) * (1 + random) / 2)
			if got := p.next(nil); got != want {
				t.Errorf("%v in place of %v", got, want)
			}
		}
		p.reset()
		delay := time.Minute
		if got := p.next(&Error{RetryDelay: &delay}); got < delay || got > delay+firstPause {
			t.Errorf("%v after being told a minute", got)
		}
	}
}

func TestOnlyASteadyStreamStartsThePausesAgain(t *testing.T) {
	now := time.Unix(1000, 0)
	for lasted, failures := range map[time.Duration]int{steady - 1: 4, steady: 1} {
		w := newWatched(nil)
		w.pauses.failures = 3
		w.received(started(), now)
		if _, err := w.interrupted(nil, now.Add(lasted)); err != nil || w.pauses.failures != failures {
			t.Errorf("%d failures after %v", w.pauses.failures, lasted)
		}
	}
}

func TestItRemembersSoManyEndedTasksAndNoMore(t *testing.T) {
	w := newWatched(nil)
	w.received(started(), time.Unix(0, 0))
	w.received(complete("0"), time.Unix(0, 0))
	for number := range remembered + 10 {
		gone := changes("1", ended(fmt.Sprint(number)))
		w.received(gone, time.Unix(0, 0))
		gone.GetChanges().GetChanges()[0].Type = pb.TaskChange_TYPE_REMOVED
		w.received(gone, time.Unix(0, 0))
	}
	if len(w.gone) != remembered || len(w.goneOrder) != remembered || w.gone["9"] != nil || w.gone["10"] == nil {
		t.Errorf("%d tasks, %d in order", len(w.gone), len(w.goneOrder))
	}
	// One that comes back and goes again is remembered once.
	for range 3 {
		back := changes("1", ended("10"))
		w.received(back, time.Unix(0, 0))
		back.GetChanges().GetChanges()[0].Type = pb.TaskChange_TYPE_REMOVED
		w.received(back, time.Unix(0, 0))
	}
	if len(w.gone) != len(w.goneOrder) {
		t.Errorf("%d tasks, %d in order", len(w.gone), len(w.goneOrder))
	}
}

func TestALoopThatIsLeftGoesOnWhereItWas(t *testing.T) {
	tokens := make(chan string, 2)
	client, _ := serve(t, &fake{watch: func(call int, request *pb.WatchStoreImageTasksRequest, stream grpc.ServerStreamingServer[pb.WatchStoreImageTasksResponse]) error {
		tokens <- request.GetResumeToken()
		if call == 1 {
			send(stream, started(), changes("", task("a", 1), task("b", 2), task("c", 3)), complete("one"))
		} else {
			again := started()
			again.GetStarted().Resumed = true
			send(stream, again, changes("two", task("a", 50)))
		}
		<-stream.Context().Done()
		return nil
	}})
	watch := client.Watch(nil)
	var seen []string
	for len(seen) < 4 {
		for change, err := range watch.Changes(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, change.Task.GetTaskId())
			if len(seen) != 2 {
				break
			}
		}
	}
	if fmt.Sprint(seen) != "[a b c a]" || len(watch.Tasks()) != 3 {
		t.Errorf("%v, and holds %d", seen, len(watch.Tasks()))
	}
	if first, second := <-tokens, <-tokens; first != "" || second != "one" {
		t.Errorf("sent %q, then %q", first, second)
	}
}

func TestLeavingAWatchEndsItQuietlyAndAtTheGateway(t *testing.T) {
	f := &fake{watch: func(_ int, _ *pb.WatchStoreImageTasksRequest, stream grpc.ServerStreamingServer[pb.WatchStoreImageTasksResponse]) error {
		send(stream, started(), changes("", task("a", 1)), complete("one"))
		<-stream.Context().Done()
		return nil
	}}
	client, _ := serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := client.Watch(nil)
	for change, err := range watch.Changes(ctx) {
		if err != nil {
			t.Errorf("%v after %v", err, change)
		}
		if !watch.CaughtUp() {
			t.Error("it has heard of every target")
		}
		cancel()
	}
	<-f.left
	if watch.CaughtUp() || watch.LastError() != nil {
		t.Error("it is not connected, by its own doing")
	}
}

func TestClosingEndsWatchesAndWaits(t *testing.T) {
	arrived := make(chan struct{})
	f := &fake{watch: func(_ int, _ *pb.WatchStoreImageTasksRequest, stream grpc.ServerStreamingServer[pb.WatchStoreImageTasksResponse]) error {
		arrived <- struct{}{}
		<-stream.Context().Done()
		return nil
	}}
	f.wait = func(ctx context.Context) { arrived <- struct{}{}; <-ctx.Done() }
	client, _ := serve(t, f)
	watched, waited := make(chan error), make(chan error)
	go func() {
		var last error
		for _, err := range client.Watch(nil).Changes(context.Background()) {
			last = err
		}
		watched <- last
	}()
	go func() {
		_, err := client.Wait(context.Background(), nil)
		waited <- err
	}()
	<-arrived
	<-arrived
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-watched; err != nil {
		t.Errorf("the watch ended with %v", err)
	}
	if err := <-waited; status.Code(err) != codes.Canceled {
		t.Errorf("the wait ended with %v", err)
	}
	for range client.Watch(nil).Changes(context.Background()) {
		t.Error("a closed client tells changes")
	}
	if _, err := client.Wait(context.Background(), nil); status.Code(err) != codes.Canceled {
		t.Errorf("a wait of a closed client ended with %v", err)
	}
}

func TestATokenThatCannotBeHadIsRaised(t *testing.T) {
	address, _ := start(t, &fake{})
	client := connect(t, address, WithTokenSource(func(context.Context) (string, error) { return "", errors.New("no key") }))
	for _, err := range client.Watch(nil).Changes(t.Context()) {
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "no key") {
			t.Error(err)
		}
	}
	for _, err := range client.Tasks(t.Context(), nil) {
		if status.Code(err) != codes.Unauthenticated {
			t.Error(err)
		}
	}
	if _, err := client.Wait(t.Context(), nil); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}

func TestNoRequestListsAllPages(t *testing.T) {
	client, _ := serve(t, &fake{pages: 3})
	pages := 0
	for _, err := range client.Describe(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		pages++
	}
	if pages != 3 {
		t.Errorf("%d pages", pages)
	}
}

func TestAnErrorTellsThatTheContextHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	client, _ := serve(t, &fake{})
	for _, err := range client.Tasks(ctx, nil) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	for _, err := range client.Stream(ctx, nil) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	if err := FromError(status.Error(codes.Canceled, "the gateway's")); errors.Is(err, context.Canceled) {
		t.Error("the caller has ended nothing")
	}
}

func TestAWatchMayBeLookedAtWhileItRuns(t *testing.T) {
	client, _ := serve(t, &fake{watch: func(_ int, _ *pb.WatchStoreImageTasksRequest, stream grpc.ServerStreamingServer[pb.WatchStoreImageTasksResponse]) error {
		send(stream, started(), complete("one"))
		for number := range int32(200) {
			send(stream, changes("more", task("a", number)))
		}
		return status.Error(codes.NotFound, "the end")
	}})
	watch := client.Watch(nil)
	over := make(chan error)
	go func() {
		var last error
		for _, err := range watch.Changes(t.Context()) {
			last = err
		}
		over <- last
	}()
	for {
		select {
		case err := <-over:
			var failure *Error
			if !errors.As(err, &failure) || failure.Code != codes.NotFound || watch.Tasks()["a"].GetProgressPercentage() != 199 {
				t.Errorf("ended with %v", err)
			}
			return
		default:
			_, _, _, _ = watch.Tasks(), watch.Stale(), watch.CaughtUp(), watch.LastError()
		}
	}
}

func TestAnErrorIsKnownToGRPC(t *testing.T) {
	err := fmt.Errorf("around: %w", FromError(status.Error(codes.ResourceExhausted, "spent")))
	if status.Code(err) != codes.ResourceExhausted {
		t.Error(status.Code(err))
	}
	if got := FromError(errors.New("no status")); got.Code != codes.Unknown || got.Error() != "Unknown: no status" {
		t.Error(got)
	}
}

func TestAnErrorSaysWhatIsWrongWhenThereIsNoGateway(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := listener.Addr().String()
	_ = listener.Close()
	for _, err := range connect(t, nobody).Tasks(t.Context(), nil) {
		if said := fmt.Sprint(err); !strings.HasPrefix(said, "Unavailable: ") || !strings.Contains(said, nobody) {
			t.Error(said)
		}
	}
}
