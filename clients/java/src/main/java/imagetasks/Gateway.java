package imagetasks;

import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptor;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.stub.MetadataUtils;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/** How to reach a gateway. */
public final class Gateway {
  /** Every method is free of side effects. RESOURCE_EXHAUSTED is not tried again: EC2's allowance is spent. */
  private static final Map<String, Object> SERVICE_CONFIG =
      Map.of(
          "methodConfig",
          List.of(
              Map.of(
                  "name",
                  List.of(Map.of("service", "imagetasks.v1.StoreImageTaskService")),
                  "retryPolicy",
                  Map.of(
                      "maxAttempts", 4.0,
                      "initialBackoff", "0.1s",
                      "maxBackoff", "1s",
                      "backoffMultiplier", 3.0,
                      "retryableStatusCodes", List.of("UNAVAILABLE", "CANCELLED")))));

  /** Bytes. */
  private static final int MAX_MESSAGE = 64 << 20;

  private Gateway() {}

  /** A channel to "host:port" with the retries, keepalive and limits that the gateway is made for. */
  public static ManagedChannel channel(String endpoint, ChannelCredentials credentials) {
    return Grpc.newChannelBuilder(endpoint, credentials)
        .userAgent("imagetasks-java/" + Contract.VERSION)
        .maxInboundMessageSize(MAX_MESSAGE)
        .keepAliveTime(30, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS)
        .defaultServiceConfig(SERVICE_CONFIG)
        .enableRetry()
        .build();
  }

  /** Sends a bearer token with each call; over the network only with TLS. */
  public static ClientInterceptor token(String token) {
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    return MetadataUtils.newAttachHeadersInterceptor(headers);
  }
}
