package imagetasks

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

const domain = "imagetasks"

// Error is what a call failed with. errors.As finds it; status.FromError and status.Code know it too.
type Error struct {
	// Code is gRPC's.
	Code codes.Code
	// Message is the text for people.
	Message string
	// Reason is a name of ErrorReason without its prefix, as "AWS_THROTTLED"; empty if the error did not come
	// from the gateway, as when no connection could be made.
	Reason string
	// Account and Region are those at fault, else empty.
	Account, Region string
	// AWSErrorCode is AWS's own, as "RequestLimitExceeded", else empty; AWSRequestID names the request.
	AWSErrorCode, AWSRequestID string
	// RetryDelay is how long to wait before asking again; nil if the gateway did not say.
	RetryDelay *time.Duration
	// Fields are those of the request at fault.
	Fields []string
	// TargetFailures is set if all of several targets failed.
	TargetFailures []*pb.TargetFailures_Failure

	status *status.Status
	// Of the caller's context, if that is what has ended the call.
	cause error
}

// errClosed is what a call fails with whose client has been closed.
var errClosed = FromError(status.Error(codes.Canceled, "the client is closed"))

// Error is the reason, or the code, and the text.
func (e *Error) Error() string {
	if e.Reason == "" {
		return e.Code.String() + ": " + e.Message
	}
	return e.Reason + ": " + e.Message
}

// Unwrap is context.Canceled or context.DeadlineExceeded if that has ended the call, not the gateway's word.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus is the status with all its details.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// FromError is the error that a failed call of the Stub stands for.
func FromError(err error) *Error {
	var said interface{ GRPCStatus() *status.Status }
	if errors.As(err, &said) {
		// Not status.Convert: it would put the words of what is around it, as of spent retries, before the text.
		return fromStatus(said.GRPCStatus())
	}
	return fromStatus(status.Convert(err))
}

// failed is the error of a call whose context may be what has ended it.
func failed(ctx context.Context, err error) *Error {
	failure := FromError(err)
	failure.cause = ctx.Err()
	return failure
}

// FromStatus is the error that the status of a TargetOutcome or of a TargetState stands for.
func FromStatus(said *statuspb.Status) *Error { return fromStatus(status.FromProto(said)) }

func fromStatus(said *status.Status) *Error {
	e := &Error{Code: said.Code(), Message: said.Message(), status: said}
	for _, packed := range said.Proto().GetDetails() {
		detail, err := packed.UnmarshalNew()
		if err != nil {
			continue // of a later version, or damaged
		}
		e.take(detail)
	}
	return e
}

func (e *Error) take(detail proto.Message) {
	switch detail := detail.(type) {
	case *errdetails.ErrorInfo:
		if detail.GetDomain() != domain {
			return
		}
		e.Reason = detail.GetReason()
		e.Account, e.Region = detail.GetMetadata()["account"], detail.GetMetadata()["region"]
		e.AWSErrorCode, e.AWSRequestID = detail.GetMetadata()["awsErrorCode"], detail.GetMetadata()["awsRequestId"]
	case *errdetails.RetryInfo:
		delay := detail.GetRetryDelay().AsDuration()
		e.RetryDelay = &delay
	case *errdetails.BadRequest:
		for _, violation := range detail.GetFieldViolations() {
			e.Fields = append(e.Fields, violation.GetField())
		}
	case *pb.TargetFailures:
		e.TargetFailures = detail.GetFailures()
	}
}

// isPassing tells whether the same call may succeed a while later, with nothing changed by anybody.
func (e *Error) isPassing() bool {
	switch e.Code {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.Aborted:
		return true
	case codes.ResourceExhausted:
		// Without a reason it is this side's own limit on a message, which the next one exceeds too.
		return e.Reason != ""
	case codes.Internal, codes.Unknown:
		// A proxy has cut the call; the gateway, with a reason, means a fault that stays.
		return e.Reason == ""
	default:
		return false
	}
}
