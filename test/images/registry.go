// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Action is what a registry does to one request instead of answering it well. The
// zero value answers well.
type Action struct {
	// Status answers with this code at once.
	Status int
	// Hang never answers: until the client goes away or the registry closes.
	Hang bool
	// StallAfter sends that many bytes of the body, at least one, and then hangs. 0: does not.
	StallAfter int64
	// TruncateAfter sends that many bytes, at least one, and breaks the connection. 0: does not.
	TruncateAfter int64
	// Corrupt flips a bit in the middle of the body.
	Corrupt bool
	// Delay before the answer.
	Delay time.Duration
	// BytesPerSecond of the body. 0: as fast as it goes.
	BytesPerSecond int64
}

// RegistryOptions of a registry.
type RegistryOptions struct {
	// Addr to listen on, loopback only. Default 127.0.0.1:0.
	Addr string
	// User and Password are asked for by basic authentication when User is set.
	User, Password string
}

// Registry is an in-process registry in plain HTTP.
type Registry struct {
	opts   RegistryOptions
	inner  http.Handler
	server *http.Server
	addr   string
	closed chan struct{}
	done   chan struct{}
	once   sync.Once

	mu       sync.Mutex
	fault    func(*http.Request) Action
	requests []string
}

// StartRegistry serves until Close.
func StartRegistry(opts RegistryOptions) (*Registry, error) {
	if opts.Addr == "" {
		opts.Addr = "127.0.0.1:0"
	}
	host, _, err := net.SplitHostPort(opts.Addr)
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("start registry: %q is not a loopback address", opts.Addr)
	}
	l, err := net.Listen("tcp", opts.Addr)
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	r := &Registry{
		opts: opts, addr: l.Addr().String(),
		inner:  registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		closed: make(chan struct{}), done: make(chan struct{}),
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() {
		defer close(r.done)
		_ = r.server.Serve(l)
	}()
	return r, nil
}

// Addr is "host:port", the first part of references.
func (r *Registry) Addr() string { return r.addr }

// Close stops serving and breaks what hangs. It is idempotent.
func (r *Registry) Close() error {
	r.once.Do(func() { close(r.closed) })
	err := r.server.Close()
	<-r.done
	return err
}

// SetFault decides on each request from now on; nil answers all well.
func (r *Registry) SetFault(f func(*http.Request) Action) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

// OnBlobs applies an action to the reading of blobs, configurations included.
func OnBlobs(a Action) func(*http.Request) Action {
	return func(req *http.Request) Action {
		if IsBlob(req.URL.Path) {
			return a
		}
		return Action{}
	}
}

// OnAll applies an action to every request.
func OnAll(a Action) func(*http.Request) Action {
	return func(*http.Request) Action { return a }
}

// IsBlob reports whether a path asks for a blob.
func IsBlob(path string) bool { return strings.Contains(path, "/blobs/") }

// IsManifest reports whether a path asks for a manifest.
func IsManifest(path string) bool { return strings.Contains(path, "/manifests/") }

// Count is how many requests there were whose "METHOD path" contains all parts.
// Pushes are not counted.
func (r *Registry) Count(parts ...string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
next:
	for _, req := range r.requests {
		for _, p := range parts {
			if !strings.Contains(req, p) {
				continue next
			}
		}
		n++
	}
	return n
}

// Push stores an image under name ("busybox:1") and returns the reference to pull
// it by. Faults and authentication do not apply.
func (r *Registry) Push(repo string, img v1.Image) (string, error) {
	ref, err := name.ParseReference(r.addr+"/"+repo, name.Insecure)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", repo, err)
	}
	if err := remote.Write(ref, img, remote.WithTransport(direct{r.inner})); err != nil {
		return "", fmt.Errorf("push %s: %w", repo, err)
	}
	return r.addr + "/" + repo, nil
}

// PushIndex is Push for an index.
func (r *Registry) PushIndex(repo string, index v1.ImageIndex) (string, error) {
	ref, err := name.ParseReference(r.addr+"/"+repo, name.Insecure)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", repo, err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithTransport(direct{r.inner})); err != nil {
		return "", fmt.Errorf("push %s: %w", repo, err)
	}
	return r.addr + "/" + repo, nil
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	fault := r.fault
	r.mu.Unlock()
	var a Action
	if fault != nil {
		a = fault(req)
	}
	if a.Delay > 0 {
		r.wait(req.Context(), a.Delay)
	}
	if a.Hang {
		r.wait(req.Context(), -1)
		panic(http.ErrAbortHandler)
	}
	if a.Status != 0 {
		http.Error(w, http.StatusText(a.Status), a.Status)
		return
	}
	if r.opts.User != "" {
		if u, p, ok := req.BasicAuth(); !ok || u != r.opts.User || p != r.opts.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
			return
		}
	}
	if a == (Action{}) || req.Method != http.MethodGet {
		r.inner.ServeHTTP(w, req)
		return
	}
	rec := &recorder{header: http.Header{}, status: http.StatusOK}
	r.inner.ServeHTTP(rec, req)
	r.misbehave(req.Context(), w, rec, a)
}

func (r *Registry) misbehave(ctx context.Context, w http.ResponseWriter, rec *recorder, a Action) {
	b := rec.body.Bytes()
	if a.Corrupt && len(b) > 0 {
		b[len(b)/2] ^= 1
	}
	for k, v := range rec.header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(rec.status)
	cut := max(a.StallAfter, a.TruncateAfter)
	if cut > 0 && cut < int64(len(b)) {
		b = b[:cut]
	} else {
		cut = 0
	}
	for len(b) > 0 {
		n := len(b)
		if a.BytesPerSecond > 0 {
			n = min(n, int(max(a.BytesPerSecond/20, 1)))
		}
		if _, err := w.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
		if a.BytesPerSecond > 0 {
			_ = http.NewResponseController(w).Flush()
			r.wait(ctx, time.Second/20)
		}
	}
	if cut == 0 {
		return
	}
	_ = http.NewResponseController(w).Flush()
	if a.StallAfter > 0 {
		r.wait(ctx, -1)
	}
	panic(http.ErrAbortHandler)
}

// wait for d, or for ever when d is negative; less when the client or the
// registry goes away.
func (r *Registry) wait(ctx context.Context, d time.Duration) {
	var timer <-chan time.Time
	if d >= 0 {
		timer = time.After(d)
	}
	select {
	case <-timer:
	case <-ctx.Done():
	case <-r.closed:
	}
}

// direct is a round tripper into a handler, without a network in between.
type direct struct{ h http.Handler }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "http" {
		return nil, errors.New("plain HTTP only")
	}
	in := req.Clone(req.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.RequestURI = in.URL.RequestURI()
	rec := &recorder{header: http.Header{}, status: http.StatusOK}
	d.h.ServeHTTP(rec, in)
	return &http.Response{
		Status: http.StatusText(rec.status), StatusCode: rec.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: rec.header, Body: io.NopCloser(&rec.body), ContentLength: int64(rec.body.Len()), Request: req,
	}, nil
}

// recorder keeps a handler's answer.
type recorder struct {
	header http.Header
	status int
	wrote  bool
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if !r.wrote {
		r.status, r.wrote = status, true
	}
}

func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.body.Write(b)
}
