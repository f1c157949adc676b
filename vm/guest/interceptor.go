// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
)

// maxErrorBytes bounds the text of an error that came from a guest.
const maxErrorBytes = 4 << 10

// endGrace is how long a call whose context has ended may take to return.
const endGrace = time.Second

// hostile is the interceptor that stands between the callers and the guest: it
// bounds the time of unary calls and turns what is not an answer into
// vm.ErrUnavailable.
type hostile struct {
	conn        *watchedConn
	callTimeout time.Duration
}

func (h *hostile) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		call := ctx
		if _, ok := ctx.Deadline(); !ok && h.callTimeout > 0 {
			var cancel context.CancelFunc
			call, cancel = context.WithTimeout(ctx, h.callTimeout)
			defer cancel()
		}
		defer h.guard(call)()
		resp, err := next(call, req)
		if err != nil {
			return nil, h.explain(ctx, req.Spec(), err)
		}
		return resp, nil
	}
}

// guard gives the connection up when a call has not returned although its context
// ended: HTTP/2 then waits for a guest that reads nothing. The function that it returns
// says that the call has returned.
func (h *hostile) guard(ctx context.Context) (returned func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		grace := time.NewTimer(endGrace)
		defer grace.Stop()
		select {
		case <-done:
		case <-grace.C:
			_ = h.conn.Close()
		}
	})
	return func() {
		stop()
		close(done)
	}
}

func (h *hostile) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return &hostileStream{StreamingClientConn: next(ctx, spec), ctx: ctx, h: h}
	}
}

func (h *hostile) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// hostileStream explains the errors of one stream.
type hostileStream struct {
	connect.StreamingClientConn
	ctx context.Context //nolint:containedctx // the stream is the call, this is its context
	h   *hostile
}

func (s *hostileStream) Send(m any) error {
	defer s.h.guard(s.ctx)()
	return s.h.explain(s.ctx, s.Spec(), s.StreamingClientConn.Send(m))
}

func (s *hostileStream) Receive(m any) error {
	defer s.h.guard(s.ctx)()
	return s.h.explain(s.ctx, s.Spec(), s.StreamingClientConn.Receive(m))
}

// explain decides what an error of a call means. ctx is the caller's.
func (h *hostile) explain(ctx context.Context, spec connect.Spec, err error) error {
	if err == nil || errors.Is(err, io.EOF) && !isConnectError(err) {
		return err
	}
	err = fmt.Errorf("call guest %s: %w", spec.Procedure, bounded(err))
	// What the caller ended says nothing about the guest. A unary call that the
	// guest did not answer in the caller's time does.
	cause := ctx.Err()
	if _, timed := ctx.Deadline(); timed && cause == nil && connect.CodeOf(err) == connect.CodeDeadlineExceeded {
		cause = context.DeadlineExceeded // the agent's clock was first
	}
	if errors.Is(cause, context.Canceled) || cause != nil && spec.StreamType != connect.StreamTypeUnary {
		if !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return err
	}
	select {
	case <-h.conn.done:
		return fmt.Errorf("%w: connection lost (%w): %w", vm.ErrUnavailable, h.conn.cause, err)
	default:
	}
	code := connect.CodeOf(err)
	if connect.IsWireError(err) && code != connect.CodeUnavailable && code != connect.CodeDeadlineExceeded {
		return err // the agent's own answer
	}
	return fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
}

func isConnectError(err error) bool {
	var ce *connect.Error
	return errors.As(err, &ce)
}

// bounded limits the text that a guest put into an error, and keeps its code.
func bounded(err error) error {
	var ce *connect.Error
	if !connect.IsWireError(err) || !errors.As(err, &ce) {
		return err
	}
	if text := printable(ce.Message(), maxErrorBytes); text != ce.Message() || len(ce.Details()) > 0 {
		return connect.NewWireError(ce.Code(), errors.New(text))
	}
	return err
}

// printable makes text of a guest safe to log: valid, on one line, at most max bytes.
func printable(s string, max int) string {
	cut := len(s) > max
	if cut {
		s = s[:max]
	}
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if cut {
		s += "..."
	}
	return s
}
