// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
)

// LogReader reads the logs of containers. *podlog.Store implements it.
type LogReader interface {
	Read(ctx context.Context, c provider.ContainerRef, opts podlog.ReadOptions, w io.Writer) error
	Exists(c provider.ContainerRef) bool
}

// Options of a Server. Containers, Logs, Access and Certificates are required.
type Options struct {
	Containers provider.Containers
	Logs       LogReader
	// Access decides about every request.
	Access Access
	// Certificates are what TLS is served with.
	Certificates *Certificates
	// Metrics is what /metrics shows; nil means no such route.
	Metrics prometheus.Gatherer
	// Stats measures the node and its pods for /stats/summary and /metrics/resource, and
	// tells how many pods could not be; nil means no such routes.
	Stats func(ctx context.Context) (summary *statsv1alpha1.Summary, missing int, err error)
	// Healthy is asked for /healthz; nil means always healthy.
	Healthy func(ctx context.Context) error
	// StreamIdleTimeout ends an exec in which nothing was sent either way for so long;
	// 0 means the kubelet's 4 h.
	StreamIdleTimeout time.Duration
	// StreamCreationTimeout ends an exec whose client did not open all of its streams;
	// 0 means the kubelet's 30 s.
	StreamCreationTimeout time.Duration
	// Observe is told how long commands took to start and to say something; nil means
	// nobody is. It must not block.
	Observe func(sample provider.Sample, took time.Duration)
	// Logger; nil means silence.
	Logger *slog.Logger
}

const (
	// headerTimeout and idleTimeout bound connections that send nothing. There is no
	// write timeout: logs are followed and commands run for hours.
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// shutdownTimeout is how long Serve waits for requests that were told to end.
	shutdownTimeout = 5 * time.Second
)

// Server serves the kubelet API.
type Server struct {
	opts     Options
	handler  http.Handler
	sessions sync.WaitGroup // of hijacked connections, which net/http does not wait for
}

// New makes a server. It listens only in Serve.
func New(opts Options) (*Server, error) {
	if opts.Containers == nil || opts.Logs == nil || opts.Access == nil || opts.Certificates == nil {
		return nil, errors.New("kubelet API: Containers, Logs, Access and Certificates are required")
	}
	if opts.StreamIdleTimeout == 0 {
		opts.StreamIdleTimeout = 4 * time.Hour
	}
	if opts.StreamCreationTimeout == 0 {
		opts.StreamCreationTimeout = 30 * time.Second
	}
	if opts.Observe == nil {
		opts.Observe = func(provider.Sample, time.Duration) {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: opts}
	s.handler = withAccess(opts.Access, opts.Logger, s.routes())
	return s, nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	for _, slash := range []string{"", "/{$}"} {
		mux.HandleFunc("GET /pods"+slash, s.pods(func(*corev1.Pod) bool { return true }))
		mux.HandleFunc("GET /runningpods"+slash, s.pods(func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }))
	}
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	// Clients of SPDY post; a WebSocket handshake is a GET.
	for _, method := range []string{"GET", "POST"} {
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", s.exec)
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{uid}/{container}", s.exec)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", s.attach)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{uid}/{container}", s.attach)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", s.portForward)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}/{uid}", s.portForward)
	}
	if s.opts.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(s.opts.Metrics, promhttp.HandlerOpts{}))
	}
	// It has no counts of probes, and is there for those who scrape it of every node.
	mux.HandleFunc("GET /metrics/probes", func(http.ResponseWriter, *http.Request) {})
	if s.opts.Stats != nil {
		mux.HandleFunc("GET /stats/summary", s.stats)
		mux.HandleFunc("GET /stats/summary/{$}", s.stats)
		mux.HandleFunc("GET /metrics/resource", s.resourceMetrics)
	}
	return mux
}

// Handler is the API behind its access control. Client certificates are taken from
// the request's TLS state.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve serves HTTPS on lis, which it closes, until ctx ends; then it ends all
// requests and returns nil when the last one is gone. It must be called once only.
func (s *Server) Serve(ctx context.Context, lis net.Listener) error {
	// Requests end with this context, also those whose connections were hijacked.
	base, endRequests := context.WithCancelCause(context.WithoutCancel(ctx))
	srv := &http.Server{
		Handler:           s.handler,
		TLSConfig:         s.opts.Certificates.config(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelDebug), // handshakes of scanners
	}
	watchCtx, stopWatching := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	watchers.Go(func() { s.opts.Certificates.watch(watchCtx) })
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(lis, "", "") }()

	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		endRequests(errors.New("the node is shutting down"))
		timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		if srv.Shutdown(timeout) != nil {
			_ = srv.Close()
		}
		cancel()
		err = <-served
	}
	endRequests(err)
	stopWatching()
	watchers.Wait()
	s.sessions.Wait()
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve kubelet API: %w", err)
	}
	return nil
}

func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	if s.opts.Healthy != nil {
		if err := s.opts.Healthy(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	fmt.Fprint(w, "ok")
}

func (s *Server) pods(wanted func(*corev1.Pod) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{}}
		for _, p := range s.opts.Containers.Pods() {
			if wanted(p) {
				list.Items = append(list.Items, *p)
			}
		}
		s.writeJSON(w, list)
	}
}

func (s *Server) stats(w http.ResponseWriter, r *http.Request) {
	summary, _, err := s.opts.Stats(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.writeJSON(w, summary)
}

func (s *Server) writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(data); err != nil {
		s.opts.Logger.Debug("Client went away", "error", err)
	}
}
