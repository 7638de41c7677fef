package imagetasks_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"

	imagetasks "github.com/imagetasks/imagetasks/clients/go"
	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

// Example is the program of README.md; the gateway here is one that knows a single task.
func Example() {
	endpoint := gateway()
	client, err := imagetasks.Connect(endpoint)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	for task, err := range client.Tasks(ctx, &pb.DescribeStoreImageTasksRequest{}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(task.GetAccount(), task.GetRegion(), task.GetAmiId(), task.GetProgressPercentage())
	}
	// Output: prod eu-central-1 ami-0000000000000000a 45
}

// TestREADME holds the program of README.md to Example, which is compiled and run.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(readme), "```go\n")
	program, _, _ := strings.Cut(after, "```")
	for line := range strings.Lines(strings.ReplaceAll(program, `"127.0.0.1:50051"`, "endpoint")) {
		if !strings.Contains(string(example), strings.TrimSpace(line)) {
			t.Errorf("nobody runs this line: %s", line)
		}
	}
	if program == "" {
		t.Error("there is no program")
	}
}

type single struct {
	pb.UnimplementedStoreImageTaskServiceServer
}

func (single) DescribeStoreImageTasks(context.Context, *pb.DescribeStoreImageTasksRequest) (*pb.DescribeStoreImageTasksResponse, error) {
	ami, percentage := "ami-0000000000000000a", int32(45)
	return &pb.DescribeStoreImageTasksResponse{StoreImageTaskResults: []*pb.StoreImageTaskResult{
		{AmiId: &ami, ProgressPercentage: &percentage, Account: "prod", Region: "eu-central-1"},
	}}, nil
}

func gateway() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterStoreImageTaskServiceServer(server, single{})
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String()
}
