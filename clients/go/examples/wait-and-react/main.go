// Command wait-and-react waits for store tasks to end, then reacts to each: it runs a command, or calls a
// hook.
//
//	wait-and-react -exec 'echo "$IMAGETASKS_AMI_ID: $IMAGETASKS_STATE"' ami-0123456789abcdef0
//	wait-and-react -hook http://127.0.0.1:8080/stored
//
// With image ids it waits until all their tasks have ended and exits with 0 if none failed, else with 1.
// Without, it is a service: it follows all tasks and reacts to each that ends, until it is interrupted. A
// restart of the gateway, or a lost connection, neither loses an end nor tells one twice.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	imagetasks "github.com/imagetasks/imagetasks/clients/go"
	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

// A hook that does not answer must not keep the next one waiting for ever.
const hookTimeout = 10 * time.Second

type reaction struct{ exec, hook string }

func main() {
	log.SetFlags(0)
	endpoint := flag.String("endpoint", "", "host:port, https://host:port or unix:path; else IMAGETASKS_ENDPOINT")
	region := flag.String("region", "", "only tasks of this Region")
	patience := flag.Duration("timeout", 0, "with image ids: give up after this time; 0 never does")
	var react reaction
	flag.StringVar(&react.exec, "exec", "", "shell command to run; the task is in IMAGETASKS_AMI_ID, _STATE, _ACCOUNT, _REGION, _BUCKET, _KEY, _PERCENTAGE, _FAILURE")
	flag.StringVar(&react.hook, "hook", "", "URL to POST the task to, as JSON")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client, err := imagetasks.Connect(*endpoint)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	selector := &pb.TaskSelector{ImageIds: flag.Args()}
	if *region != "" {
		selector.Regions = []string{*region}
	}
	if flag.NArg() > 0 {
		err = wait(ctx, client, selector, *patience, react)
	} else {
		err = follow(ctx, client, selector, react)
	}
	if err != nil {
		log.Fatalf("wait-and-react: %v", err)
	}
}

func wait(ctx context.Context, client *imagetasks.Client, selector *pb.TaskSelector, patience time.Duration, react reaction) error {
	options := []imagetasks.WaitOption{imagetasks.ForAppearance()}
	if patience > 0 {
		options = append(options, imagetasks.Patience(patience))
	}
	response, err := client.Wait(ctx, selector, options...)
	if err != nil {
		return err
	}
	if !response.GetDone() {
		return fmt.Errorf("not all have ended: %s", strings.TrimPrefix(response.GetReason().String(), "REASON_"))
	}
	var failed error
	for _, task := range response.GetStoreImageTaskResults() {
		if err := react.to(ctx, task); err != nil {
			failed = errors.Join(failed, err)
		}
		if task.GetStoreTaskState() == pb.StoreTaskState_STORE_TASK_STATE_FAILED {
			failed = errors.Join(failed, fmt.Errorf("%s failed: %s", task.GetAmiId(), task.GetStoreTaskFailureReason()))
		}
	}
	return failed
}

func follow(ctx context.Context, client *imagetasks.Client, selector *pb.TaskSelector, react reaction) error {
	for change, err := range client.Watch(selector).Changes(ctx) {
		if err != nil {
			return err
		}
		if !change.HasEnded() {
			continue
		}
		// One that fails is no reason to miss the next.
		if err := react.to(ctx, change.Task); err != nil {
			log.Print(err)
		}
	}
	return nil
}

func (r reaction) to(ctx context.Context, task *pb.StoreImageTaskResult) error {
	log.Printf("%s in %s %s: %s", task.GetAmiId(), task.GetAccount(), task.GetRegion(), task.GetEc2StoreTaskState())
	if r.exec != "" {
		if err := r.run(ctx, task); err != nil {
			return fmt.Errorf("the command for %s: %w", task.GetAmiId(), err)
		}
	}
	if r.hook != "" {
		if err := r.post(ctx, task); err != nil {
			return fmt.Errorf("the hook for %s: %w", task.GetAmiId(), err)
		}
	}
	return nil
}

func (r reaction) run(ctx context.Context, task *pb.StoreImageTaskResult) error {
	command := exec.CommandContext(ctx, "sh", "-c", r.exec)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.Env = append(os.Environ(),
		"IMAGETASKS_AMI_ID="+task.GetAmiId(),
		"IMAGETASKS_STATE="+task.GetEc2StoreTaskState(),
		"IMAGETASKS_ACCOUNT="+task.GetAccount(),
		"IMAGETASKS_REGION="+task.GetRegion(),
		"IMAGETASKS_BUCKET="+task.GetBucket(),
		"IMAGETASKS_KEY="+task.GetS3ObjectKey(),
		"IMAGETASKS_PERCENTAGE="+percentage(task),
		"IMAGETASKS_FAILURE="+task.GetStoreTaskFailureReason(),
	)
	return command.Run()
}

func (r reaction) post(ctx context.Context, task *pb.StoreImageTaskResult) error {
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	body, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(task)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.hook, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("%s answers %s", r.hook, response.Status)
	}
	return nil
}

// percentage is empty where EC2 sent none, which is not 0.
func percentage(task *pb.StoreImageTaskResult) string {
	if task.ProgressPercentage == nil {
		return ""
	}
	return strconv.Itoa(int(task.GetProgressPercentage()))
}
