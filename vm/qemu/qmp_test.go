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
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// hypervisor plays QEMU: it greets and lets answer write what follows a command.
func hypervisor(t testing.TB, answer func(conn net.Conn, id uint64, command string)) *net.UnixConn {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "q"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintln(conn, `{"QMP": {"version": {}, "capabilities": []}}`)
		for in := bufio.NewScanner(conn); in.Scan(); {
			var m struct {
				Execute string
				ID      uint64
			}
			if json.Unmarshal(in.Bytes(), &m) != nil {
				return
			}
			answer(conn, m.ID, m.Execute)
		}
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		_ = l.Close()
		<-done
	})
	return conn.(*net.UnixConn)
}

// agreeable answers every command with an empty object.
func agreeable(conn net.Conn, id uint64, _ string) {
	fmt.Fprintf(conn, `{"return": {}, "id": %d}`+"\n", id)
}

func TestQMP(t *testing.T) {
	q, err := newQMP(t.Context(), hypervisor(t, func(conn net.Conn, id uint64, command string) {
		switch command {
		case "query-status":
			fmt.Fprintln(conn, `{"event": "STOP", "data": {}}`)
			fmt.Fprintf(conn, `{"return": {"status": "running"}, "id": %d}`+"\n", id)
		case "cont":
			fmt.Fprintf(conn, `{"error": {"class": "GenericError", "desc": "no"}, "id": %d}`+"\n", id)
		case "stop":
			fmt.Fprintf(conn, `{"return": {}, "id": %d}`+"\n", id+1000) // of nobody
		default:
			agreeable(conn, id, command)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if run, err := q.runState(t.Context()); err != nil || run != runRunning {
		t.Errorf("run state is %q, %v", run, err)
	}
	if e := <-q.events; e.Name != "STOP" {
		t.Errorf("event is %q", e.Name)
	}
	var refusal *qmpError
	if _, err := q.execute(t.Context(), "cont", nil); !errors.As(err, &refusal) || refusal.Desc != "no" {
		t.Errorf("error is %v, want the refusal", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := q.execute(ctx, "stop", nil); !errors.Is(err, vm.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error without an answer is %v", err)
	}
	if _, err := q.execute(t.Context(), "other", nil); err != nil {
		t.Errorf("after a command without an answer: %v", err)
	}
}

// TestQMPHostile: whatever a QEMU that a guest took over sends, the connection ends
// with ErrUnavailable and nothing else does.
func TestQMPHostile(t *testing.T) {
	for name, message := range map[string]string{
		"not JSON":        "garbage\n",
		"endless line":    strings.Repeat("x", maxQMPLine+2),
		"wrong types":     `{"id": "seven", "return": 1}` + "\n",
		"nothing, closed": "",
	} {
		t.Run(name, func(t *testing.T) {
			q, err := newQMP(t.Context(), hypervisor(t, func(conn net.Conn, id uint64, command string) {
				if command == "qmp_capabilities" {
					agreeable(conn, id, command)
					return
				}
				_, _ = conn.Write([]byte(message))
				_ = conn.Close()
			}))
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			for range 2 { // the second finds the connection gone
				if _, err := q.execute(t.Context(), "query-status", nil); !errors.Is(err, vm.ErrUnavailable) {
					t.Errorf("error is %v, want ErrUnavailable", err)
				}
			}
		})
	}
}

func TestQMPFloodOfEvents(t *testing.T) {
	q, err := newQMP(t.Context(), hypervisor(t, func(conn net.Conn, id uint64, command string) {
		for range 10 * maxQMPEvents {
			fmt.Fprintln(conn, `{"event": "NOISE"}`)
		}
		agreeable(conn, id, command)
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if len(q.events) > maxQMPEvents {
		t.Errorf("%d events are kept", len(q.events))
	}
}

// FuzzQMP feeds the reader with what a hostile QEMU sends.
func FuzzQMP(f *testing.F) {
	f.Add([]byte(`{"return": {}, "id": 1}` + "\n"))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\n"))
	f.Add([]byte(`{"error": {"class": 1}, "id": 1}` + "\n\n[]"))
	f.Fuzz(func(t *testing.T, message []byte) {
		conn := hypervisor(t, func(conn net.Conn, _ uint64, _ string) {
			_, _ = conn.Write(message)
			_ = conn.Close()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		q, err := newQMP(ctx, conn)
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal("it hangs")
			}
			return
		}
		_, _ = q.runState(ctx)
		q.Close()
	})
}
