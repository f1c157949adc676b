// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Machine is what a shim answers for. Methods are called concurrently; a cancelled ctx
// means that nobody waits any more.
type Machine interface {
	Start(ctx context.Context) (vm.State, error)
	State(ctx context.Context) (vm.State, error)
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Save(ctx context.Context, dir string) ([]string, error)
	Stop(ctx context.Context, grace time.Duration) error
	// Dial carries a stream between the connection and a port of the guest until either
	// ends, and closes it.
	Dial(ctx context.Context, port uint32, conn net.Conn)
}

// NewServer makes the server of a machine. The caller serves a listener with it and shuts
// it down; streams to the guest are ended by the machine.
func NewServer(m Machine, build string) *http.Server {
	h := handler{machine: m}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /versions", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, Versions{Protocols: []int{Version}, Build: build, PID: os.Getpid()}, nil)
	})
	mux.HandleFunc("POST /v1/start", h.start)
	mux.HandleFunc("GET /v1/state", h.state)
	mux.HandleFunc("POST /v1/pause", func(w http.ResponseWriter, r *http.Request) { reply(w, struct{}{}, m.Pause(r.Context())) })
	mux.HandleFunc("POST /v1/resume", func(w http.ResponseWriter, r *http.Request) { reply(w, struct{}{}, m.Resume(r.Context())) })
	mux.HandleFunc("POST /v1/save", h.save)
	mux.HandleFunc("POST /v1/stop", h.stop)
	mux.HandleFunc("GET /v1/dial", h.dial)
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
}

type handler struct{ machine Machine }

func (h handler) start(w http.ResponseWriter, r *http.Request) {
	state, err := h.machine.Start(r.Context())
	reply(w, State{state}, err)
}

func (h handler) state(w http.ResponseWriter, r *http.Request) {
	state, err := h.machine.State(r.Context())
	reply(w, State{state}, err)
}

func (h handler) save(w http.ResponseWriter, r *http.Request) {
	var req SaveRequest
	if err := decode(r.Body, &req); err != nil {
		reply(w, nil, fmt.Errorf("%w: %w", vm.ErrInvalidConfig, err))
		return
	}
	files, err := h.machine.Save(r.Context(), req.Dir)
	reply(w, SaveReply{files}, err)
}

func (h handler) stop(w http.ResponseWriter, r *http.Request) {
	var req StopRequest
	if err := decode(r.Body, &req); err != nil {
		reply(w, nil, fmt.Errorf("%w: %w", vm.ErrInvalidConfig, err))
		return
	}
	reply(w, struct{}{}, h.machine.Stop(r.Context(), req.Grace()))
}

func (h handler) dial(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 32)
	if err != nil {
		reply(w, nil, fmt.Errorf("%w: port: %w", vm.ErrInvalidConfig, err))
		return
	}
	state, err := h.machine.State(r.Context())
	if err == nil && state == vm.StateExited {
		err = fmt.Errorf("%w: it has exited", vm.ErrInvalidState)
	}
	if err != nil {
		reply(w, nil, err)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		reply(w, nil, err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\n", Protocol); err != nil {
		_ = conn.Close()
		return
	}
	// The request's context ends with this function, the stream with the machine.
	h.machine.Dial(context.WithoutCancel(r.Context()), uint32(port), &bufferedConn{Conn: conn, buffered: buffered.Reader})
}

// bufferedConn gives back what was read too far.
type bufferedConn struct {
	net.Conn
	buffered *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) {
	if c.buffered != nil && c.buffered.Buffered() > 0 {
		return c.buffered.Read(b)
	}
	return c.Conn.Read(b)
}

// reply answers with v, or with err.
func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status, e := encodeError(err)
		w.WriteHeader(status)
		v = e
	}
	_ = json.NewEncoder(w).Encode(v) // whoever asked has gone
}

// decode reads one bounded JSON value.
func decode(r io.Reader, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxBodyBytes+1))
	if err != nil {
		return err
	}
	if len(data) > maxBodyBytes {
		return errors.New("too long")
	}
	return json.Unmarshal(data, v)
}
