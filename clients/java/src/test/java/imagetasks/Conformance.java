package imagetasks;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.protobuf.Message;
import imagetasks.v1.StoreImageTaskServiceGrpc;
import imagetasks.v1.StoreImageTasks.DescribeStoreImageTasksRequest;
import imagetasks.v1.StoreImageTasks.ListTargetsRequest;
import imagetasks.v1.StoreImageTasks.StoreImageTaskResult;
import imagetasks.v1.StoreImageTasks.StreamStoreImageTasksRequest;
import imagetasks.v1.StoreImageTasks.TaskChange;
import imagetasks.v1.StoreImageTasks.WaitStoreImageTasksRequest;
import imagetasks.v1.StoreImageTasks.WatchStoreImageTasksRequest;
import io.grpc.Context;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/** Java's runner of the conformance suite; docs/adding-a-language.md has its protocol. */
final class Conformance {
  private static final Gson JSON = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);
  private static final ScheduledExecutorService TIMER = Executors.newScheduledThreadPool(1);

  private final Command command;
  private final AtomicReference<Metadata> initial = new AtomicReference<>();
  private final AtomicReference<Metadata> trailing = new AtomicReference<>();
  private int told;

  private record Command(
      String endpoint, String ca, String call, String request, String token, Double timeout,
      Map<String, String> metadata, int cancel_after, Double cancel_after_seconds) {}

  private static final class Left extends RuntimeException {
    private static final long serialVersionUID = 1L;
  }

  private Conformance(Command command) {
    this.command = command;
  }

  public static void main(String[] arguments) throws Exception {
    var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      new Conformance(JSON.fromJson(line, Command.class)).run();
    }
    TIMER.shutdownNow();
  }

  private void run() throws Exception {
    var channel = channel();
    var context = Context.current().withCancellation();
    if (command.cancel_after_seconds != null) {
      TIMER.schedule(() -> context.cancel(null), (long) (command.cancel_after_seconds * 1000), TimeUnit.MILLISECONDS);
    }
    Map<String, Object> last = new HashMap<>();
    try {
      context.run(() -> observe(channel));
      last.put("event", "end");
      last.put("metadata", received());
    } catch (Left left) {
      last.put("event", "cancelled");
    } catch (StatusRuntimeException error) {
      last = context.isCancelled() ? Map.of("event", "cancelled") : failure(Failure.of(error));
    } finally {
      context.cancel(null);
      channel.shutdown();
    }
    OUT.println(JSON.toJson(last));
  }

  private ManagedChannel channel() throws IOException {
    return Gateway.channel(command.endpoint, command.ca == null
        ? InsecureChannelCredentials.create()
        : TlsChannelCredentials.newBuilder().trustManager(new File(command.ca)).build());
  }

  private void observe(ManagedChannel channel) {
    var stub = StoreImageTaskServiceGrpc.newBlockingStub(channel).withInterceptors(
        MetadataUtils.newAttachHeadersInterceptor(headers()),
        MetadataUtils.newCaptureMetadataInterceptor(initial, trailing));
    if (command.token != null) {
      stub = stub.withInterceptors(Gateway.token(command.token));
    }
    var bare = command.timeout == null ? stub : stub.withDeadlineAfter((long) (command.timeout * 1000), TimeUnit.MILLISECONDS);
    byte[] raw = Base64.getDecoder().decode(command.request);
    try {
      switch (command.call) {
        case "describe" -> {
          var response = bare.describeStoreImageTasks(DescribeStoreImageTasksRequest.parseFrom(raw));
          tell(response, response.getStoreImageTaskResultsList());
        }
        case "targets" -> tell(bare.listTargets(ListTargetsRequest.parseFrom(raw)), List.of());
        case "raw_wait" -> {
          var response = bare.waitStoreImageTasks(WaitStoreImageTasksRequest.parseFrom(raw));
          tell(response, response.getStoreImageTaskResultsList());
        }
        case "raw_watch" -> bare.watchStoreImageTasks(WatchStoreImageTasksRequest.parseFrom(raw)).forEachRemaining(
            message -> tell(message, message.getChanges().getChangesList().stream().map(TaskChange::getTask).toList()));
        case "stream" -> bare.streamStoreImageTasks(StreamStoreImageTasksRequest.parseFrom(raw)).forEachRemaining(
            message -> tell(message, message.getPage().getStoreImageTaskResultsList()));
        case "list" -> {
          var request = DescribeStoreImageTasksRequest.parseFrom(raw).toBuilder();
          do {
            var each = command.timeout == null ? stub : stub.withDeadlineAfter((long) (command.timeout * 1000), TimeUnit.MILLISECONDS);
            var page = each.describeStoreImageTasks(request.build());
            tell(page, page.getStoreImageTaskResultsList());
            request.setNextToken(page.getNextToken());
          } while (!request.getNextToken().isEmpty());
        }
        default -> throw new IllegalArgumentException("no such call: " + command.call);
      }
    } catch (com.google.protobuf.InvalidProtocolBufferException error) {
      throw new IllegalArgumentException(error);
    }
  }

  private void tell(Message message, List<StoreImageTaskResult> tasks) {
    OUT.println(JSON.toJson(Map.of(
        "event", "message",
        "bytes", Base64.getEncoder().encodeToString(message.toByteArray()),
        "tasks", tasks.stream().map(Conformance::task).toList())));
    if (++told == command.cancel_after) {
      throw new Left();
    }
  }

  private static Map<String, Object> task(StoreImageTaskResult task) {
    Map<String, Object> said = new HashMap<>();
    said.put("task_id", task.getTaskId());
    said.put("ami_id", task.hasAmiId() ? task.getAmiId() : null);
    said.put("percentage", task.hasProgressPercentage() ? task.getProgressPercentage() : null);
    said.put("state", task.getStoreTaskStateValue());
    said.put("ec2_state", task.hasEc2StoreTaskState() ? task.getEc2StoreTaskState() : null);
    said.put("failure", task.hasStoreTaskFailureReason() ? task.getStoreTaskFailureReason() : null);
    return said;
  }

  private static Map<String, Object> failure(Failure failure) {
    Map<String, Object> said = new HashMap<>();
    said.put("event", "error");
    said.put("code", failure.code().name());
    said.put("message", failure.message());
    said.put("reason", failure.reason());
    said.put("account", failure.metadata().getOrDefault("account", ""));
    said.put("region", failure.metadata().getOrDefault("region", ""));
    said.put("aws_error_code", failure.metadata().getOrDefault("awsErrorCode", ""));
    said.put("aws_request_id", failure.metadata().getOrDefault("awsRequestId", ""));
    said.put("retry_delay", failure.retryDelay().map(delay -> delay.toMillis() / 1000.0).orElse(null));
    said.put("fields", failure.fields());
    said.put("target_failures", failure.targetFailures().stream().map(each -> Map.of(
        "account", each.getAccount(), "region", each.getRegion(),
        "code", each.getCode(), "reason", each.getReason())).toList());
    return said;
  }

  private static Metadata.Key<byte[]> binary(String key) {
    return Metadata.Key.of(key, Metadata.BINARY_BYTE_MARSHALLER);
  }

  private static Metadata.Key<String> text(String key) {
    return Metadata.Key.of(key, Metadata.ASCII_STRING_MARSHALLER);
  }

  private Metadata headers() {
    Metadata headers = new Metadata();
    (command.metadata == null ? Map.<String, String>of() : command.metadata).forEach((key, value) -> {
      if (key.endsWith("-bin")) {
        headers.put(binary(key), Base64.getDecoder().decode(value));
      } else {
        headers.put(text(key), value);
      }
    });
    return headers;
  }

  private Map<String, String> received() {
    Map<String, String> said = new HashMap<>();
    for (Metadata metadata : Arrays.asList(initial.get(), trailing.get())) {
      for (String key : metadata == null ? List.<String>of() : metadata.keys()) {
        if (key.startsWith("x-conformance-")) {
          said.put(key, key.endsWith("-bin")
              ? Base64.getEncoder().encodeToString(metadata.get(binary(key))) : metadata.get(text(key)));
        }
      }
    }
    return said;
  }
}
