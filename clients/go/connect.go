package imagetasks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it gRPC does not check the gateway's health
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	pb "github.com/imagetasks/imagetasks/clients/go/imagetasksv1"
)

// Every method is free of side effects, so UNAVAILABLE is tried again, and CANCELLED, with which a server's gRPC
// refuses when too many calls wait. RESOURCE_EXHAUSTED is not: it tells that EC2's allowance is spent. gRPC asks
// for the health of a gateway only if it chooses among several.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": ""},
  "methodConfig": [{
    "name": [{"service": "imagetasks.v1.StoreImageTaskService"}],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.1s",
      "maxBackoff": "1s",
      "backoffMultiplier": 3,
      "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
    }
  }]
}`

const (
	defaultEndpoint  = "127.0.0.1:50051"
	endpointVariable = "IMAGETASKS_ENDPOINT"
	defaultTimeout   = time.Minute
	// Bytes. A page ends at 2 MiB; the answer to a wait has all its tasks in one message.
	maxMessage = 64 << 20
)

// Client asks one gateway. Any number of goroutines may use it at once.
type Client struct {
	// Stub makes bare calls, for what has no method here.
	Stub    pb.StoreImageTaskServiceClient
	conn    *grpc.ClientConn
	timeout time.Duration
	// Ends with Close.
	open  context.Context
	close context.CancelFunc
}

type settings struct {
	token   func(context.Context) (string, error)
	ca      []byte
	pair    []tls.Certificate
	timeout time.Duration
	dial    []grpc.DialOption
}

// Option changes how Connect reaches the gateway.
type Option func(*settings)

// WithToken sends a bearer token with each call; over the network only with TLS.
func WithToken(token string) Option {
	return WithTokenSource(func(context.Context) (string, error) { return token, nil })
}

// WithTokenSource asks for the bearer token anew for each call. A call for which it fails is UNAUTHENTICATED.
func WithTokenSource(source func(context.Context) (string, error)) Option {
	return func(s *settings) { s.token = source }
}

// WithCABundle trusts these certificates, in PEM, in place of the system's.
func WithCABundle(pem []byte) Option { return func(s *settings) { s.ca = pem } }

// WithClientCertificate is for mutual TLS.
func WithClientCertificate(pair tls.Certificate) Option {
	return func(s *settings) { s.pair = []tls.Certificate{pair} }
}

// WithTimeout is the deadline of each call whose context has none sooner; 0 is no deadline, a minute the
// default. A listing has it for each of its pages, a stream for the whole of it, a watch never.
func WithTimeout(timeout time.Duration) Option { return func(s *settings) { s.timeout = timeout } }

// WithDialOptions adds gRPC options; they override those chosen here.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// Connect makes a client of the gateway at "host:port" or "http://host:port" (plaintext),
// "https://host:port" (TLS) or "unix:path"; "ipv4:address:port,address:port" (plaintext) are several, which
// take turns. Empty is the environment's IMAGETASKS_ENDPOINT, else 127.0.0.1:50051. Nothing is dialled before
// the first call.
func Connect(endpoint string, options ...Option) (*Client, error) {
	s := settings{timeout: defaultTimeout}
	for _, option := range options {
		option(&s)
	}
	where, err := parseEndpoint(endpoint)
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	switch {
	case where.tls:
		config := &tls.Config{Certificates: s.pair, MinVersion: tls.VersionTLS12}
		if s.ca != nil {
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(s.ca) {
				return nil, errors.New("imagetasks: the CA bundle has no certificate")
			}
		}
		transport = credentials.NewTLS(config)
	case s.ca != nil || s.pair != nil:
		return nil, errors.New("imagetasks: certificates need TLS: write the endpoint with https://")
	case s.token != nil && !where.local:
		return nil, errors.New("imagetasks: a token is not sent over the network in plaintext: write https://")
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithUserAgent("imagetasks-go/" + Version),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// A gateway that was replaced is found again within seconds, also after a long outage.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 10 * time.Second},
			MinConnectTimeout: 20 * time.Second,
		}),
	}
	if where.local {
		dial = append(dial, grpc.WithNoProxy())
	}
	if scheme, addresses, found := list(where.target); found {
		// gRPC for Go has no resolver of such lists.
		several := manual.NewBuilderWithScheme(scheme)
		several.InitialState(resolver.State{Endpoints: endpoints(addresses)})
		dial = append(dial, grpc.WithResolvers(several))
	}
	if s.token != nil {
		// Not with the connection: its health check would fail for want of a token, and no call would know why.
		dial = append(dial, grpc.WithDefaultCallOptions(grpc.PerRPCCredentials(bearer{s.token, where.tls})))
	}
	conn, err := grpc.NewClient(where.target, append(dial, s.dial...)...)
	if err != nil {
		return nil, fmt.Errorf("imagetasks: %w", err)
	}
	open, closes := context.WithCancel(context.Background())
	return &Client{pb.NewStoreImageTaskServiceClient(conn), conn, s.timeout, open, closes}, nil
}

// Close ends the connection; calls that still run are cancelled, and watches end.
func (c *Client) Close() error {
	c.close()
	return c.conn.Close()
}

// whileOpen is a context that ends with the client too.
func (c *Client) whileOpen(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.open, func() { cancel(errClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

func (c *Client) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.timeout)
}

type endpoint struct {
	target     string
	tls, local bool
}

func parseEndpoint(text string) (endpoint, error) {
	if text == "" {
		text = os.Getenv(endpointVariable)
	}
	if text == "" {
		text = defaultEndpoint
	}
	if strings.HasPrefix(text, "unix:") {
		return endpoint{target: text, local: true}, nil
	}
	if scheme, addresses, found := list(text); found {
		return several(text, scheme, addresses)
	}
	whole := text
	if !strings.Contains(text, "://") {
		whole = "//" + text
	}
	parsed, err := url.Parse(whole)
	if err != nil {
		return endpoint{}, fmt.Errorf("imagetasks: endpoint %q is malformed: %w", text, err)
	}
	port, known := map[string]string{"": "50051", "http": "80", "https": "443"}[parsed.Scheme]
	if !known || parsed.Hostname() == "" || strings.Trim(parsed.Path, "/") != "" || parsed.RawQuery != "" || parsed.User != nil {
		return endpoint{}, fmt.Errorf("imagetasks: endpoint %q: use host:port, http://, https://, unix:, ipv4: or ipv6:", text)
	}
	if parsed.Port() != "" {
		port = parsed.Port()
	}
	address := net.ParseIP(parsed.Hostname())
	return endpoint{
		target: net.JoinHostPort(parsed.Hostname(), port),
		tls:    parsed.Scheme == "https",
		local:  parsed.Hostname() == "localhost" || (address != nil && address.IsLoopback()),
	}, nil
}

// list parts an endpoint that is a list of addresses.
func list(endpoint string) (scheme string, addresses []string, found bool) {
	scheme, rest, _ := strings.Cut(endpoint, ":")
	return scheme, strings.Split(rest, ","), scheme == "ipv4" || scheme == "ipv6"
}

func several(text, scheme string, addresses []string) (endpoint, error) {
	local := true
	for _, each := range addresses {
		address, err := netip.ParseAddrPort(each)
		if err != nil || address.Addr().Is4() != (scheme == "ipv4") {
			return endpoint{}, fmt.Errorf("imagetasks: endpoint %q: %q is not address:port of %s", text, each, scheme)
		}
		local = local && address.Addr().IsLoopback()
	}
	return endpoint{target: text, local: local}, nil
}

func endpoints(addresses []string) []resolver.Endpoint {
	var all []resolver.Endpoint
	for _, each := range addresses {
		all = append(all, resolver.Endpoint{Addresses: []resolver.Address{{Addr: each}}})
	}
	return all
}

type bearer struct {
	source func(context.Context) (string, error)
	tls    bool
}

func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := b.source(ctx)
	switch {
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	case err != nil:
		return nil, status.Errorf(codes.Unauthenticated, "imagetasks: there is no token: %v", err)
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.tls }
