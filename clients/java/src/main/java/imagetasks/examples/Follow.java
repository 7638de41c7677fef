package imagetasks.examples;

import imagetasks.Failure;
import imagetasks.Gateway;
import imagetasks.v1.StoreImageTaskServiceGrpc;
import imagetasks.v1.StoreImageTaskServiceGrpc.StoreImageTaskServiceBlockingStub;
import imagetasks.v1.StoreImageTasks.DescribeStoreImageTasksRequest;
import imagetasks.v1.StoreImageTasks.StoreImageTaskResult;
import imagetasks.v1.StoreImageTasks.TaskSelector;
import imagetasks.v1.StoreImageTasks.WatchStoreImageTasksRequest;
import io.grpc.InsecureChannelCredentials;
import io.grpc.StatusRuntimeException;
import java.util.concurrent.TimeUnit;

/**
 * Lists all tasks, page by page, then prints what changes: {@code Follow host:port [region]}.
 *
 * <p>The watch ends when the gateway closes it or the connection is lost; docs/watch.md says how to go on.
 */
final class Follow {
  private Follow() {}

  public static void main(String[] arguments) {
    var channel = Gateway.channel(arguments[0], InsecureChannelCredentials.create());
    var gateway = StoreImageTaskServiceGrpc.newBlockingStub(channel);
    var selector = TaskSelector.newBuilder();
    if (arguments.length > 1) {
      selector.addRegions(arguments[1]);
    }
    try {
      list(gateway, selector.build());
      watch(gateway, selector.build());
    } catch (StatusRuntimeException error) {
      Failure failure = Failure.of(error);
      System.err.println("follow: " + failure);
      failure.retryDelay().ifPresent(delay -> System.err.println("follow: ask again in " + delay));
      System.exit(1);
    } finally {
      channel.shutdownNow();
    }
  }

  private static void list(StoreImageTaskServiceBlockingStub gateway, TaskSelector selector) {
    var request = DescribeStoreImageTasksRequest.newBuilder().addAllRegions(selector.getRegionsList());
    do {
      var page = gateway.withDeadlineAfter(60, TimeUnit.SECONDS).describeStoreImageTasks(request.build());
      page.getStoreImageTaskResultsList().forEach(task -> print("LISTED", task));
      request.setNextToken(page.getNextToken());
    } while (!request.getNextToken().isEmpty());
  }

  private static void watch(StoreImageTaskServiceBlockingStub gateway, TaskSelector selector) {
    var request = WatchStoreImageTasksRequest.newBuilder().setSelector(selector).build();
    gateway.watchStoreImageTasks(request).forEachRemaining(message -> {
      message.getChanges().getChangesList().forEach(change ->
          print(change.getType().name().substring("TYPE_".length()), change.getTask()));
    });
  }

  private static void print(String what, StoreImageTaskResult task) {
    System.out.println(what + " " + task.getAccount() + " " + task.getRegion() + " " + task.getAmiId() + " "
        + task.getEc2StoreTaskState() + " " + task.getProgressPercentage());
  }
}
