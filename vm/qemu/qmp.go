// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

const (
	// maxQMPLine bounds one message of QEMU's: the console's 64 KiB, each byte
	// escaped to at most 6, is the largest there is. A QEMU that a guest took over
	// may send anything.
	maxQMPLine = 1 << 20
	// maxQMPEvents may wait for the watcher; it handles each in microseconds.
	// Further ones are dropped, and the watcher is told to ask for the state.
	maxQMPEvents = 64
	// qmpTimeout is for one command. The main loop answers in milliseconds, but an
	// emulated machine on a busy host may keep it from its lock for long.
	qmpTimeout = 20 * time.Second
)

// qmp is a connection to QEMU's control socket. Safe for concurrent use.
type qmp struct {
	conn *net.UnixConn

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan<- qmpReply
	err     error // why it ended

	events chan qmpEvent
	missed chan struct{} // holds a token when an event was dropped
	done   chan struct{} // closed once the reader has ended
}

type qmpReply struct {
	Return json.RawMessage
	Error  *qmpError
}

// qmpError is a command's failure as QEMU reports it.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return bounded(e.Desc) }

type qmpEvent struct {
	Name string
	Data json.RawMessage
}

type qmpMessage struct {
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// newQMP takes over conn, waits for the greeting and ends the negotiation. It
// blocks until QEMU's main loop runs.
func newQMP(ctx context.Context, conn *net.UnixConn) (*qmp, error) {
	q := &qmp{
		conn:    conn,
		waiting: map[uint64]chan<- qmpReply{},
		events:  make(chan qmpEvent, maxQMPEvents),
		missed:  make(chan struct{}, 1),
		done:    make(chan struct{}),
	}
	go q.read()
	// The greeting is a message without an id; the reply to this command comes
	// after it.
	if _, err := q.execute(ctx, "qmp_capabilities", nil); err != nil {
		q.Close()
		return nil, err
	}
	return q, nil
}

// read owns the receiving side until the connection ends.
func (q *qmp) read() {
	defer close(q.done)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(make([]byte, 4096), maxQMPLine)
	for lines.Scan() {
		var m qmpMessage
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			q.end(fmt.Errorf("decode a message of the hypervisor: %w", err))
			return
		}
		switch {
		case m.Event != "":
			select {
			case q.events <- qmpEvent{m.Event, m.Data}:
			default:
				select {
				case q.missed <- struct{}{}:
				default:
				}
			}
		case m.ID != nil:
			q.mu.Lock()
			reply := q.waiting[*m.ID]
			delete(q.waiting, *m.ID)
			q.mu.Unlock()
			if reply != nil {
				reply <- qmpReply{m.Return, m.Error}
			}
		}
	}
	err := lines.Err()
	if err == nil {
		err = errors.New("the hypervisor closed its control connection")
	}
	q.end(err)
}

func (q *qmp) end(err error) {
	_ = q.conn.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
	for id, reply := range q.waiting {
		close(reply)
		delete(q.waiting, id)
	}
}

// Close ends the connection and waits for the reader. The machine goes on.
func (q *qmp) Close() {
	_ = q.conn.Close()
	<-q.done
}

// execute runs one command; files are sent along with it. Errors: *qmpError when
// QEMU refused, ErrUnavailable when it did not answer.
func (q *qmp) execute(ctx context.Context, command string, arguments any, files ...*os.File) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	reply := make(chan qmpReply, 1)

	q.mu.Lock()
	if q.err != nil {
		err := q.err
		q.mu.Unlock()
		return nil, fmt.Errorf("%s: %w: %w", command, vm.ErrUnavailable, err)
	}
	q.next++
	id := q.next
	message, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		q.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	q.waiting[id] = reply
	// Under the lock, so that messages are not mixed. A command is far smaller than
	// the socket's buffer, so it blocks only while QEMU reads nothing at all.
	_ = q.conn.SetWriteDeadline(time.Now().Add(qmpTimeout))
	err = send(q.conn, append(message, '\n'), files)
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
	}()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", command, vm.ErrUnavailable, err)
	}

	select {
	case r, ok := <-reply:
		switch {
		case !ok:
			q.mu.Lock()
			defer q.mu.Unlock()
			return nil, fmt.Errorf("%s: %w: %w", command, vm.ErrUnavailable, q.err)
		case r.Error != nil:
			return nil, fmt.Errorf("%s: %w", command, r.Error)
		}
		return r.Return, nil
	case <-ctx.Done():
		err := context.Cause(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: no answer: %w", vm.ErrUnavailable, err)
		}
		return nil, fmt.Errorf("%s: %w", command, err)
	}
}

func send(conn *net.UnixConn, message []byte, files []*os.File) error {
	if len(files) == 0 {
		_, err := conn.Write(message)
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	_, _, err := conn.WriteMsgUnix(message, syscall.UnixRights(fds...), nil)
	return err
}

// Run states of QEMU that mean more to us than "does not run".
const (
	runRunning   = "running"
	runSuspended = "suspended"
	runPostSave  = "postmigrate"
	runShutdown  = "shutdown"
	runPanicked  = "guest-panicked"
	runInternal  = "internal-error"
)

// runState asks what the machine does, in QEMU's words.
func (q *qmp) runState(ctx context.Context) (string, error) {
	raw, err := q.execute(ctx, "query-status", nil)
	if err != nil {
		return "", err
	}
	var s struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("query-status: %w: %w", vm.ErrUnavailable, err)
	}
	return s.Status, nil
}

// console reads the ring without consuming it: QEMU's ringbuf-read consumes, so
// what is read must be kept by the caller.
func (q *qmp) console(ctx context.Context) ([]byte, error) {
	raw, err := q.execute(ctx, "ringbuf-read", map[string]any{"device": "console", "size": consoleBytes, "format": "utf8"})
	if err != nil {
		return nil, err
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("ringbuf-read: %w: %w", vm.ErrUnavailable, err)
	}
	return []byte(s), nil
}

// migration waits until the running migration, in either direction, has ended.
func (q *qmp) migration(ctx context.Context) error {
	for wait := 500 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		raw, err := q.execute(ctx, "query-migrate", nil)
		if err != nil {
			return err
		}
		var m struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("query-migrate: %w: %w", vm.ErrUnavailable, err)
		}
		switch m.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return &qmpError{Desc: "device state: " + m.Status + " " + m.Error}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}
