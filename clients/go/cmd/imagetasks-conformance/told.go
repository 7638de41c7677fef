package main

import (
	"encoding/base64"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	imagetasks "github.com/imagetasks/imagetasks/clients/go"
	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

func messageTold(message proto.Message, tasks []*pb.StoreImageTaskResult) observation {
	raw, err := proto.Marshal(message)
	if err != nil {
		panic(err)
	}
	return observation{"event": "message", "bytes": raw, "tasks": tasksTold(tasks)}
}

func tasksTold(tasks []*pb.StoreImageTaskResult) []observation {
	said := []observation{}
	for _, task := range tasks {
		said = append(said, taskTold(task))
	}
	return said
}

func taskTold(task *pb.StoreImageTaskResult) observation {
	return observation{
		"task_id": task.GetTaskId(), "ami_id": task.AmiId, "percentage": task.ProgressPercentage,
		"state": int32(task.GetStoreTaskState()), "ec2_state": task.Ec2StoreTaskState,
		"failure": task.StoreTaskFailureReason,
	}
}

func changeTold(change imagetasks.Change) observation {
	var before any
	if change.Before != nil {
		before = taskTold(change.Before)
	}
	return observation{
		"event": "change", "type": strings.TrimPrefix(change.Type.String(), "TYPE_"),
		"task": taskTold(change.Task), "before": before, "first": change.First, "ended": change.HasEnded(),
		"removal_reason": strings.TrimPrefix(change.RemovalReason.String(), "REMOVAL_REASON_"),
	}
}

func errorTold(failure *imagetasks.Error) observation {
	var delay *float64
	if failure.RetryDelay != nil {
		s := failure.RetryDelay.Seconds()
		delay = &s
	}
	failures := []observation{}
	for _, each := range failure.TargetFailures {
		failures = append(failures, observation{
			"account": each.GetAccount(), "region": each.GetRegion(), "code": each.GetCode(), "reason": each.GetReason(),
		})
	}
	return observation{
		"event": "error", "code": codeNames[failure.Code], "message": failure.Message, "reason": failure.Reason,
		"account": failure.Account, "region": failure.Region, "aws_error_code": failure.AWSErrorCode,
		"aws_request_id": failure.AWSRequestID, "retry_delay": delay, "fields": append([]string{}, failure.Fields...),
		"target_failures": failures,
	}
}

func metadataTold(received metadata.MD) map[string]string {
	said := map[string]string{}
	for key, values := range received {
		if !strings.HasPrefix(key, "x-conformance-") {
			continue
		}
		said[key] = values[len(values)-1]
		if strings.HasSuffix(key, "-bin") {
			said[key] = base64.StdEncoding.EncodeToString([]byte(said[key]))
		}
	}
	return said
}

var codeNames = map[codes.Code]string{
	codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN", codes.InvalidArgument: "INVALID_ARGUMENT",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
	codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED", codes.OutOfRange: "OUT_OF_RANGE",
	codes.Unimplemented: "UNIMPLEMENTED", codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
	codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
}
