// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package simulator

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// qmp is a client of QEMU's control protocol. The kept Go libraries for it
// (digitalocean/go-qemu) do not pass descriptors along with a command, which is how a
// saved file gets to QEMU; vm/qemu's own client is that driver's, and drivers do not
// import each other.
type qmp struct {
	conn *net.UnixConn

	mu      sync.Mutex
	next    uint64                    // guarded by mu
	waiting map[uint64]chan qmpAnswer // guarded by mu; nil once the connection has ended

	// events get those that end a machine. Its reader is quick.
	events chan qmpEvent
	done   chan struct{} // closed when the connection has ended
}

type qmpAnswer struct {
	Return json.RawMessage
	Error  *qmpFailure
}

type qmpFailure struct {
	Desc string `json:"desc"`
}

type qmpEvent struct {
	Name string
	Data json.RawMessage
}

const (
	// qmpPatience is for one command: the main loop answers in milliseconds, but an
	// emulated machine on a busy host may keep it from its lock for long.
	qmpPatience = 30 * time.Second
	qmpMaxLine  = 1 << 20
)

var errQMPEnded = errors.New("the hypervisor's control connection has ended")

// newQMP takes over conn.
func newQMP(conn *net.UnixConn) (*qmp, error) {
	q := &qmp{conn: conn, waiting: map[uint64]chan qmpAnswer{}, events: make(chan qmpEvent, 64), done: make(chan struct{})}
	go q.read()
	if _, err := q.execute("qmp_capabilities", nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// read owns the receiving side until the connection ends.
func (q *qmp) read() {
	defer close(q.done)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(nil, qmpMaxLine)
	for lines.Scan() {
		var m struct {
			ID     *uint64         `json:"id"`
			Return json.RawMessage `json:"return"`
			Error  *qmpFailure     `json:"error"`
			Event  string          `json:"event"`
			Data   json.RawMessage `json:"data"`
		}
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			break
		}
		switch {
		case m.Event == "SHUTDOWN" || m.Event == "STOP":
			q.events <- qmpEvent{m.Event, m.Data}
		case m.ID != nil:
			q.mu.Lock()
			answer := q.waiting[*m.ID]
			delete(q.waiting, *m.ID)
			q.mu.Unlock()
			if answer != nil {
				answer <- qmpAnswer{m.Return, m.Error}
			}
		}
	}
	_ = q.conn.Close()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, answer := range q.waiting {
		close(answer)
	}
	q.waiting = nil
}

// close ends the connection. The reader ends by itself.
func (q *qmp) close() { _ = q.conn.Close() }

// execute runs one command, and sends files along with it.
func (q *qmp) execute(command string, arguments any, files ...*os.File) (json.RawMessage, error) {
	answer := make(chan qmpAnswer, 1)
	q.mu.Lock()
	if q.waiting == nil {
		q.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", command, errQMPEnded)
	}
	q.next++
	id := q.next
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err == nil {
		q.waiting[id] = answer
		// Under the lock, so that messages are not mixed.
		err = q.send(append(text, '\n'), files)
	}
	q.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	patience := time.NewTimer(qmpPatience)
	defer patience.Stop()
	select {
	case a, ok := <-answer:
		switch {
		case !ok:
			return nil, fmt.Errorf("%s: %w", command, errQMPEnded)
		case a.Error != nil:
			return nil, fmt.Errorf("%s: %s", command, a.Error.Desc)
		}
		return a.Return, nil
	case <-patience.C:
		return nil, fmt.Errorf("%s: no answer within %s", command, qmpPatience)
	}
}

func (q *qmp) send(text []byte, files []*os.File) error {
	if err := q.conn.SetWriteDeadline(time.Now().Add(qmpPatience)); err != nil {
		return err
	}
	if len(files) == 0 {
		_, err := q.conn.Write(text)
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	_, _, err := q.conn.WriteMsgUnix(text, syscall.UnixRights(fds...), nil)
	return err
}

// ask runs a command and decodes what it returns.
func (q *qmp) ask(command string, into any) error {
	raw, err := q.execute(command, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// migrate runs a migration to or from a file at its position, to its end.
func (q *qmp) migrate(command string, f *os.File) error {
	if _, err := q.execute("getfd", map[string]string{"fdname": "state"}, f); err != nil {
		return err
	}
	if _, err := q.execute(command, map[string]string{"uri": "fd:state"}); err != nil {
		return err
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		var m struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := q.ask("query-migrate", &m); err != nil {
			return err
		}
		switch m.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("%s %s: %s", command, m.Status, m.Error)
		}
	}
	return nil // unreachable: the ticker is stopped by this function only
}
