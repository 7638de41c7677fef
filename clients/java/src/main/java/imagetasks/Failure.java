package imagetasks;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import imagetasks.v1.StoreImageTasks.TargetFailures;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * What a call failed with.
 *
 * @param code gRPC's
 * @param message the text for people
 * @param reason a name of ErrorReason without its prefix; empty if the error is not the gateway's
 * @param metadata of the error: account, region, awsErrorCode, awsRequestId, where they apply
 * @param retryDelay how long to wait before asking again, if the gateway said
 * @param fields those of the request at fault
 * @param targetFailures of each target, if all of several failed
 */
public record Failure(
    Status.Code code,
    String message,
    String reason,
    Map<String, String> metadata,
    Optional<Duration> retryDelay,
    List<String> fields,
    List<TargetFailures.Failure> targetFailures) {
  private static final String DOMAIN = "imagetasks";

  /** The failure that an exception of a stub stands for. */
  public static Failure of(Throwable thrown) {
    Status status = Status.fromThrowable(thrown);
    String message = status.getDescription() == null ? "" : status.getDescription();
    String reason = "";
    Map<String, String> metadata = Map.of();
    Optional<Duration> delay = Optional.empty();
    List<String> fields = List.of();
    List<TargetFailures.Failure> failures = List.of();
    for (Any detail : details(thrown)) {
      try {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          if (info.getDomain().equals(DOMAIN)) {
            reason = info.getReason();
            metadata = info.getMetadataMap();
          }
        } else if (detail.is(RetryInfo.class)) {
          var said = detail.unpack(RetryInfo.class).getRetryDelay();
          delay = Optional.of(Duration.ofSeconds(said.getSeconds(), said.getNanos()));
        } else if (detail.is(BadRequest.class)) {
          var violations = detail.unpack(BadRequest.class).getFieldViolationsList();
          fields = violations.stream().map(BadRequest.FieldViolation::getField).toList();
        } else if (detail.is(TargetFailures.class)) {
          failures = detail.unpack(TargetFailures.class).getFailuresList();
        }
      } catch (InvalidProtocolBufferException damaged) {
        continue;
      }
    }
    return new Failure(status.getCode(), message, reason, metadata, delay, fields, failures);
  }

  /** The reason, or the code, and the text. */
  @Override
  public String toString() {
    return (reason.isEmpty() ? code.name() : reason) + ": " + message;
  }

  private static List<Any> details(Throwable thrown) {
    try {
      com.google.rpc.Status said = StatusProto.fromThrowable(thrown);
      return said == null ? List.of() : said.getDetailsList();
    } catch (IllegalArgumentException damaged) {
      return List.of();
    }
  }
}
