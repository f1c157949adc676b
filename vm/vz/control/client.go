// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// callTimeout bounds requests whose work is small. A shim that does not answer so long
// is stuck.
const callTimeout = 30 * time.Second

// Client talks to the shim whose socket is in a directory. It is safe for concurrent use
// and holds connections only while they are used or idle; Close releases these.
//
// Errors have the kind that they had in the shim; vm.ErrUnavailable when it does not
// answer.
type Client struct {
	dir  string
	http *http.Client
}

// NewClient makes a client. Nothing is dialled yet.
func NewClient(dir string) *Client {
	c := &Client{dir: dir}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return machinedir.DialUnix(ctx, dir, Socket)
		},
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeadBytes,
		// A few calls at once at most, and thousands of machines.
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     5 * time.Second,
	}}
	return c
}

// Close releases idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Versions asks the shim what it speaks; the error is vm.ErrUnavailable if that is not
// this package's protocol.
func (c *Client) Versions(ctx context.Context) (Versions, error) {
	var v Versions
	if err := c.call(ctx, callTimeout, http.MethodGet, "/versions", nil, &v); err != nil {
		return v, err
	}
	if !slices.Contains(v.Protocols, Version) {
		return v, fmt.Errorf("%w: its shim (vk-firkin %s) speaks protocols %v, this program %d", vm.ErrUnavailable, v.Build, v.Protocols, Version)
	}
	return v, nil
}

// Start makes the machine. If ctx ends before, the shim ends the machine and itself.
func (c *Client) Start(ctx context.Context) (vm.State, error) {
	return c.state(ctx, 0, http.MethodPost, "/v1/start")
}

// State asks for the machine's state.
func (c *Client) State(ctx context.Context) (vm.State, error) {
	return c.state(ctx, callTimeout, http.MethodGet, "/v1/state")
}

func (c *Client) state(ctx context.Context, timeout time.Duration, method, path string) (vm.State, error) {
	var s State
	if err := c.call(ctx, timeout, method, path, nil, &s); err != nil {
		return "", err
	}
	switch s.State {
	case vm.StateRunning, vm.StatePaused, vm.StateExited:
		return s.State, nil
	}
	return "", fmt.Errorf("%w: its shim says it is %.40q", vm.ErrUnavailable, s.State)
}

// Pause stops the vCPUs.
func (c *Client) Pause(ctx context.Context) error {
	return c.call(ctx, callTimeout, http.MethodPost, "/v1/pause", nil, nil)
}

// Resume lets the vCPUs run.
func (c *Client) Resume(ctx context.Context) error {
	return c.call(ctx, callTimeout, http.MethodPost, "/v1/resume", nil, nil)
}

// Save saves the machine. A save cannot be cancelled: with ctx only the waiting ends.
func (c *Client) Save(ctx context.Context, dir string) ([]string, error) {
	var s SaveReply
	if err := c.call(ctx, 0, http.MethodPost, "/v1/save", SaveRequest{dir}, &s); err != nil {
		return nil, err
	}
	for _, name := range s.Files {
		if name != filepath.Base(name) || !filepath.IsLocal(name) {
			return nil, fmt.Errorf("%w: its shim says it has saved a file %.80q", vm.ErrUnavailable, name)
		}
	}
	return s.Files, nil
}

// Stop ends the machine and returns when it has ended.
func (c *Client) Stop(ctx context.Context, grace time.Duration) error {
	return c.call(ctx, grace+callTimeout, http.MethodPost, "/v1/stop", stopRequest(grace), nil)
}

// Dial opens a stream to a port of the guest. It succeeds although nothing listens there
// yet: the shim connects as soon as something does.
func (c *Client) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := machinedir.DialUnix(ctx, c.dir, Socket)
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	// The deadline, and a cancellation, end the exchange below.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	reader, err := upgrade(conn, port)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if Answered(err) {
			return nil, err
		}
		return nil, unavailable(ctx, err)
	}
	return &bufferedConn{Conn: conn, buffered: reader}, nil
}

// upgrade asks for a stream and reads the answer.
func upgrade(conn net.Conn, port uint32) (*bufio.Reader, error) {
	_, err := fmt.Fprintf(conn, "GET /v1/dial?port=%s HTTP/1.1\r\nHost: shim\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\n", strconv.FormatUint(uint64(port), 10), Protocol)
	if err != nil {
		return nil, err
	}
	// Whoever reads the stream reads conn after what was read too far.
	reader := bufio.NewReader(io.LimitReader(conn, maxHeadBytes+maxBodyBytes))
	resp, err := http.ReadResponse(reader, nil) //nolint:bodyclose // closing reads all there is to come; the connection is closed
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if got := resp.Header.Get("Upgrade"); got != Protocol {
			return nil, fmt.Errorf("its shim makes the connection a %.40q, want %s", got, Protocol)
		}
		return reader, nil
	}
	var e ErrorReply
	if err := decode(resp.Body, &e); err != nil {
		return nil, fmt.Errorf("status %s: %w", resp.Status, err)
	}
	return nil, decodeError(e)
}

// call makes a request. A timeout of 0 is none but ctx's.
func (c *Client) call(ctx context.Context, timeout time.Duration, method, path string, in, out any) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: its shim does not answer within %s", vm.ErrUnavailable, timeout))
		defer cancel()
	}
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://shim"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return unavailable(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var e ErrorReply
		if err := decode(resp.Body, &e); err != nil {
			return unavailable(ctx, fmt.Errorf("status %s: %w", resp.Status, err))
		}
		return decodeError(e)
	}
	if out == nil {
		out = &struct{}{}
	}
	if err := decode(resp.Body, out); err != nil {
		return unavailable(ctx, err)
	}
	return nil
}

// unavailable gives a failed exchange its kind; the end of the caller's ctx stays that.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); errors.Is(cause, vm.ErrUnavailable) {
			return cause
		}
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
}
