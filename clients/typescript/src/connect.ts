import { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import type { ChannelOptions } from "@grpc/grpc-js";
import * as grpc from "@grpc/grpc-js";
import { Client } from "./client.js";
import { VERSION } from "./contract.js";
import { Stub } from "./stub.js";

// Every method is free of side effects, so UNAVAILABLE is tried again. RESOURCE_EXHAUSTED is not: it tells
// that EC2's allowance is spent.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "imagetasks.v1.StoreImageTaskService" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 3,
        retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"],
      },
    },
  ],
};

const DEFAULT_ENDPOINT = "127.0.0.1:50051";
const DEFAULT_TIMEOUT_MS = 60_000;
// Bytes. A page ends at 2 MiB; the answer to a wait has all its tasks in one message.
const MAX_MESSAGE = 64 * 1024 * 1024;

/** How the gateway is reached. */
export interface ConnectOptions {
  /**
   * "host:port" or "http://host:port" (plaintext), "https://host:port" (TLS) or "unix:path";
   * "ipv4:address:port,address:port" (plaintext) are several, which take turns. Else the environment's
   * IMAGETASKS_ENDPOINT, else 127.0.0.1:50051.
   */
  endpoint?: string | undefined;
  /** A bearer token, or what gives it anew for each call; over the network only with TLS. */
  token?: string | (() => string | Promise<string>) | undefined;
  /** PEM: whom to trust in place of the system's; certificate and key for mutual TLS. */
  tls?: { ca?: string | Buffer; cert?: string | Buffer; key?: string | Buffer } | undefined;
  /**
   * The deadline of each call that says no other; 0 is none, a minute the default. A listing has it for each
   * of its pages, a stream for the whole of it, a watch never.
   */
  timeoutMs?: number | undefined;
  /** gRPC's own; they override those chosen here. */
  channelOptions?: ChannelOptions | undefined;
}

/**
 * Makes a client of the gateway. Nothing is dialled before the first call.
 *
 * @throws Error if the options do not go together, or the endpoint is malformed.
 */
export function connect(options: ConnectOptions = {}): Client {
  const { target, tls, local } = parseEndpoint(options.endpoint);
  if (options.tls && !tls) {
    throw new Error("imagetasks: certificates need TLS: write the endpoint with https://");
  }
  if (options.token !== undefined && !tls && !local) {
    throw new Error("imagetasks: a token is not sent over the network in plaintext: write https://");
  }
  const { token } = options;
  const client = new grpc.Client(target, tls ? secure(options.tls) : grpc.credentials.createInsecure(), {
    "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
    "grpc.service_config_disable_resolution": 1,
    "grpc.primary_user_agent": `imagetasks-typescript/${VERSION}`,
    "grpc.max_receive_message_length": MAX_MESSAGE,
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    // A gateway that was replaced is found again within seconds, also after a long outage.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 10_000,
    "grpc.enable_http_proxy": local ? 0 : 1,
    ...options.channelOptions,
  });
  const stub = new Stub(client, typeof token === "string" ? () => token : token);
  return new Client(stub, options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
}

function secure({ ca, cert, key }: NonNullable<ConnectOptions["tls"]> = {}): grpc.ChannelCredentials {
  if (ca !== undefined) {
    try {
      new X509Certificate(ca);
    } catch (error) {
      throw new Error("imagetasks: the CA bundle has no certificate", { cause: error });
    }
  }
  return grpc.credentials.createSsl(buffer(ca), buffer(key), buffer(cert));
}

function buffer(pem: string | Buffer | undefined): Buffer | null {
  return pem === undefined ? null : Buffer.from(pem);
}

/** Where an endpoint leads: gRPC's name of it, and whether with TLS, and whether on this machine. */
export function parseEndpoint(given?: string): { target: string; tls: boolean; local: boolean } {
  const text = given || process.env.IMAGETASKS_ENDPOINT || DEFAULT_ENDPOINT;
  if (text.startsWith("unix:")) {
    return { target: text, tls: false, local: true };
  }
  if (/^ipv[46]:/.test(text)) {
    return { target: text, tls: false, local: severalAreLocal(text) };
  }
  const [, scheme = "", rest = ""] = /^(?:(.*?):\/\/)?(.*)$/s.exec(text) ?? [];
  const standard = { "": "50051", http: "80", https: "443" }[scheme];
  // As a scheme that the class does not know, for it would drop the standard ports of those it does.
  const url = URL.canParse(`grpc://${rest}`) ? new URL(`grpc://${rest}`) : undefined;
  if (
    !standard ||
    !url?.hostname ||
    url.pathname.replaceAll("/", "") ||
    url.search ||
    url.hash ||
    url.username
  ) {
    throw new Error(
      `imagetasks: endpoint ${JSON.stringify(text)}: use host:port, http://, https://, unix:, ipv4: or ipv6:`,
    );
  }
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1");
  return {
    target: `${url.hostname}:${url.port || standard}`,
    tls: scheme === "https",
    local: host === "localhost" || isLoopback(host),
  };
}

/** Whether all of a list, which gRPC has a resolver of, are on this machine. */
function severalAreLocal(text: string): boolean {
  const version = Number(text[3]);
  const form = version === 4 ? /^([^:]+):(\d+)$/ : /^\[(.+)\]:(\d+)$/;
  const hosts = text.slice("ipv4:".length).split(",");
  return hosts
    .map((each) => {
      const [, host = "", port = ""] = form.exec(each) ?? [];
      if (isIP(host) !== version || Number(port) > 65535) {
        throw new Error(
          `imagetasks: endpoint ${JSON.stringify(text)}: ${JSON.stringify(each)} is not address:port of ipv${version}`,
        );
      }
      return isLoopback(host);
    })
    .every(Boolean);
}

function isLoopback(host: string): boolean {
  return host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}
