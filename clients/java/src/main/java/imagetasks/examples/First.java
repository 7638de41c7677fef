package imagetasks.examples;

import imagetasks.Failure;
import imagetasks.Gateway;
import imagetasks.v1.StoreImageTaskServiceGrpc;
import imagetasks.v1.StoreImageTasks.DescribeStoreImageTasksRequest;
import io.grpc.InsecureChannelCredentials;
import io.grpc.StatusRuntimeException;

/** The program of README.md. */
final class First {
  private First() {}

  public static void main(String[] arguments) {
    String endpoint = arguments[0];
    var request = DescribeStoreImageTasksRequest.getDefaultInstance();

    var channel = Gateway.channel(endpoint, InsecureChannelCredentials.create());
    var gateway = StoreImageTaskServiceGrpc.newBlockingStub(channel);
    try {
      for (var task : gateway.describeStoreImageTasks(request).getStoreImageTaskResultsList()) {
        System.out.println(task.getAccount() + " " + task.getRegion() + " " + task.getAmiId() + " " + task.getProgressPercentage());
      }
    } catch (StatusRuntimeException error) {
      System.err.println(Failure.of(error));
    }

    channel.shutdownNow();
  }
}
