// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Timeouts bound what a registry may do to a pull. A zero field takes its default.
type Timeouts struct {
	// Connect bounds name lookup and TCP connection. 15 s.
	Connect time.Duration
	// TLS bounds the TLS handshake. 10 s.
	TLS time.Duration
	// Header bounds the wait for the head of an answer. 30 s: a registry that
	// fetches from another one takes its time.
	Header time.Duration
	// Stall bounds the time without a single byte of a body. 30 s.
	Stall time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Connect, 15*time.Second)
	set(&t.TLS, 10*time.Second)
	set(&t.Header, 30*time.Second)
	set(&t.Stall, 30*time.Second)
	return t
}

// retryAttempts and retryDelay: a registry's hiccup is tried over after half a
// second and again after a second and a half; longer outages are the caller's to back off from.
const (
	retryAttempts = 3
	retryDelay    = 500 * time.Millisecond
)

// guard is the round tripper between us and every registry: plain HTTP only where
// it was allowed, hiccups tried again, stalled and oversized bodies cut.
type guard struct {
	inner      *http.Transport
	insecure   map[string]bool
	stall      time.Duration
	retryDelay time.Duration
}

func newGuard(t Timeouts, insecure map[string]bool) *guard {
	return &guard{
		inner: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: t.Connect, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConns:          16,
			MaxIdleConnsPerHost:   4,
			IdleConnTimeout:       30 * time.Second,
			TLSHandshakeTimeout:   t.TLS,
			ResponseHeaderTimeout: t.Header,
			// A layer must arrive as it is: its digest is over the compressed bytes.
			DisableCompression: true,
		},
		insecure:   insecure,
		stall:      t.Stall,
		retryDelay: retryDelay,
	}
}

// bodyWatch sets the bound for the bodies of the answers to requests under a
// context, and tells whether the last body ended by itself. Without one the bound
// is maxManifestBytes.
type bodyWatch struct {
	limit int64
	ended bool
}

type bodyWatchKey struct{}

func (w *bodyWatch) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, bodyWatchKey{}, w)
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.insecure[req.URL.Host] {
		return nil, fmt.Errorf("refuse %s to %s: not among the insecure registries", req.URL.Scheme, req.URL.Host)
	}
	for attempt := 1; ; attempt++ {
		resp, err := g.once(req)
		again := attempt < retryAttempts && req.Body == nil && (err == nil && transientStatus(resp.StatusCode) || err != nil && transientError(err))
		if !again {
			return resp, err
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		delay := g.retryDelay
		for range attempt - 1 {
			delay *= 3
		}
		select {
		case <-time.After(delay):
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	}
}

func transientStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// transientError: the connection broke. A timeout is not tried over, it has taken
// long enough.
func transientError(err error) bool {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return false
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func (g *guard) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := g.inner.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	watch, ok := req.Context().Value(bodyWatchKey{}).(*bodyWatch)
	if !ok {
		watch = &bodyWatch{limit: maxManifestBytes}
	}
	watch.ended = false
	b := &body{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, watch: watch, left: watch.limit, stall: g.stall, host: req.URL.Host}
	b.timer = time.AfterFunc(g.stall, func() {
		cancel(fmt.Errorf("%w: %s sent nothing for %s", ErrUnavailable, req.URL.Host, g.stall))
	})
	b.timer.Stop()
	resp.Body = b
	return resp, nil
}

// body cuts an answer that stalls or exceeds its limit.
type body struct {
	io.ReadCloser
	ctx    context.Context //nolint:containedctx // of this answer only; ends with the body
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
	watch  *bodyWatch
	left   int64
	host   string
}

func (b *body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	// One byte more than allowed tells an answer that ends there from one that goes on.
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	b.timer.Reset(b.stall)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	b.left -= int64(n)
	if b.left < 0 {
		return 0, corrupt("%s sent more than allowed", b.host)
	}
	switch {
	case errors.Is(err, io.EOF):
		b.watch.ended = true
	case err != nil && b.ctx.Err() != nil:
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
