// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

var ref = provider.ContainerRef{PodUID: "uid-1", Container: "main", ID: "main-0"}

// spool is a guest that has records and follows the protocol, but for the faults it
// is told.
type spool struct {
	agentv1connect.UnimplementedContainerServiceHandler

	mu      sync.Mutex
	records []*agentv1.OutputRecord // guarded by mu
	exited  bool                    // guarded by mu
	changed chan struct{}           // guarded by mu
	acked   uint64                  // guarded by mu
	reads   []uint64                // guarded by mu; after_seq of each ReadOutput
	breakAt uint64                  // guarded by mu; the second reader's stream breaks after this record, once
	failAck bool                    // guarded by mu
}

func newSpool() *spool { return &spool{changed: make(chan struct{})} }

func (s *spool) update(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *spool) print(lines ...string) {
	s.update(func() {
		for _, l := range lines {
			s.records = append(s.records, &agentv1.OutputRecord{Seq: uint64(len(s.records) + 1), TimeUnixNano: time.Now().UnixNano(),
				Stream: agentv1.OutputStream_OUTPUT_STREAM_STDOUT, Data: []byte(l)})
		}
	})
}

func (s *spool) ReadOutput(ctx context.Context, req *connect.Request[agentv1.ReadOutputRequest], stream *connect.ServerStream[agentv1.ReadOutputResponse]) error {
	next := req.Msg.GetAfterSeq()
	s.mu.Lock()
	s.reads = append(s.reads, next)
	reader := len(s.reads)
	s.mu.Unlock()
	if req.Msg.GetId() != ref.ID {
		return connect.NewError(connect.CodeNotFound, errors.New("no such container"))
	}
	for {
		s.mu.Lock()
		if next < s.acked {
			s.mu.Unlock()
			return connect.NewError(connect.CodeInternal, fmt.Errorf("asked for record %d, acknowledged up to %d", next+1, s.acked))
		}
		batch := s.records[min(int(next), len(s.records)):]
		exited, changed := s.exited, s.changed
		if reader != len(s.reads) {
			s.mu.Unlock()
			return connect.NewError(connect.CodeAborted, errors.New("another reader came"))
		}
		broken := reader == 2 && s.breakAt != 0 && next >= s.breakAt
		if broken {
			s.breakAt = 0
		}
		s.mu.Unlock()
		if broken {
			return connect.NewError(connect.CodeUnavailable, errors.New("broken"))
		}
		if len(batch) > 0 {
			batch = batch[:1]
			next++
			if err := stream.Send(&agentv1.ReadOutputResponse{Records: batch}); err != nil {
				return err
			}
			continue
		}
		if exited {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *spool) AckOutput(_ context.Context, req *connect.Request[agentv1.AckOutputRequest]) (*connect.Response[agentv1.AckOutputResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failAck {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("no"))
	}
	s.acked = max(s.acked, req.Msg.GetThroughSeq())
	close(s.changed)
	s.changed = make(chan struct{})
	return connect.NewResponse(&agentv1.AckOutputResponse{}), nil
}

// wait blocks until cond holds.
func (s *spool) wait(t *testing.T, cond func() bool) {
	t.Helper()
	for {
		s.mu.Lock()
		ok, changed := cond(), s.changed
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatal("the guest waited in vain")
		}
	}
}

func (s *spool) dialer(t *testing.T) provider.Dial {
	t.Helper()
	_, h := agentv1connect.NewContainerServiceHandler(s)
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return func(context.Context) (*provider.Guest, error) {
		return &provider.Guest{Containers: agentv1connect.NewContainerServiceClient(srv.Client(), srv.URL)}, nil
	}
}

func readAll(t *testing.T, s *podlog.Store) string {
	t.Helper()
	var out bytes.Buffer
	if err := s.Read(t.Context(), ref, podlog.ReadOptions{}, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestCopyToTheEnd(t *testing.T) {
	guest := newSpool()
	guest.print("a", "b", "c")
	guest.exited = true
	s := podlog.New(t.TempDir(), podlog.Options{})
	if err := s.Copy(t.Context(), ref, guest.dialer(t)); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, s); got != "a\nb\nc\n" || guest.acked != 3 {
		t.Fatalf("got %q, acknowledged %d", got, guest.acked)
	}
}

func TestCopyGoesOnWhereItEnded(t *testing.T) {
	guest := newSpool()
	guest.print("a", "b")
	dir := t.TempDir()
	dial := guest.dialer(t)

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- podlog.New(dir, podlog.Options{SyncInterval: time.Millisecond}).Copy(ctx, ref, dial)
	}()
	guest.wait(t, func() bool { return guest.acked == 2 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}

	guest.print("c", "d")
	guest.update(func() { guest.breakAt = 3 }) // and once more in the midst of it
	guest.update(func() { guest.exited = true })
	s := podlog.New(dir, podlog.Options{})
	if err := s.Copy(t.Context(), ref, dial); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, s); got != "a\nb\nc\nd\n" {
		t.Fatalf("got %q", got)
	}
	if got := fmt.Sprint(guest.reads); got != "[0 2 3]" {
		t.Fatalf("asked for what follows %s", got)
	}
}

func TestCopyFollowedByReader(t *testing.T) {
	guest := newSpool()
	guest.print("a")
	s := podlog.New(t.TempDir(), podlog.Options{SyncInterval: time.Millisecond})
	ended := make(chan error, 2)
	go func() { ended <- s.Copy(t.Context(), ref, guest.dialer(t)) }()
	guest.wait(t, func() bool { return guest.acked == 1 })
	if err := s.Copy(t.Context(), ref, guest.dialer(t)); err == nil {
		t.Fatal("two copies of one log at once")
	}
	var out bytes.Buffer
	go func() { ended <- s.Read(t.Context(), ref, podlog.ReadOptions{Follow: true}, &out) }()
	guest.print("b")
	guest.update(func() { guest.exited = true })
	for range 2 {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	if out.String() != "a\nb\n" {
		t.Fatalf("followed %q", out.String())
	}
}

func TestCopyIsDoneWithoutTheLastAck(t *testing.T) {
	guest := newSpool()
	guest.print("a")
	guest.exited, guest.failAck = true, true
	s := podlog.New(t.TempDir(), podlog.Options{SyncInterval: time.Hour})
	if err := s.Copy(t.Context(), ref, guest.dialer(t)); err != nil {
		t.Fatal(err)
	}
}

func TestCopyRefusesALyingGuest(t *testing.T) {
	guest := newSpool()
	guest.print("a", "b", "c\nforged", "d")
	s := podlog.New(t.TempDir(), podlog.Options{})
	if err := s.Copy(t.Context(), ref, guest.dialer(t)); !errors.Is(err, podlog.ErrGuestOutput) {
		t.Fatal(err)
	}
	if got := readAll(t, s); got != "a\nb\n" {
		t.Fatalf("got %q", got)
	}
}

func TestCopyOfUnknownContainer(t *testing.T) {
	other := ref
	other.ID = "other"
	s := podlog.New(t.TempDir(), podlog.Options{})
	if err := s.Copy(t.Context(), other, newSpool().dialer(t)); !errors.Is(err, provider.ErrNotFound) {
		t.Fatal(err)
	}
}

func TestCopyDialsAgain(t *testing.T) {
	guest := newSpool()
	guest.print("a")
	guest.exited = true
	working := guest.dialer(t)
	dials := 0
	dial := func(ctx context.Context) (*provider.Guest, error) {
		if dials++; dials < 3 {
			return nil, errors.New("not yet")
		}
		return working(ctx)
	}
	s := podlog.New(t.TempDir(), podlog.Options{})
	if err := s.Copy(t.Context(), ref, dial); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, s); got != "a\n" {
		t.Fatalf("got %q", got)
	}
}

// What a copy waits for is known while it waits, and not longer.
func TestCopyWaitsForRoom(t *testing.T) {
	guest := newSpool()
	guest.print("a")
	guest.exited = true
	working := guest.dialer(t)
	s := podlog.New(t.TempDir(), podlog.Options{})
	var seen []bool
	dial := func(ctx context.Context) (*provider.Guest, error) {
		switch seen = append(seen, s.NoRoom(ref)); len(seen) {
		case 1:
			return nil, fmt.Errorf("append to log: %w", &os.PathError{Op: "write", Path: "0.log", Err: syscall.ENOSPC})
		case 2:
			return nil, errors.New("connection lost")
		default:
			return working(ctx)
		}
	}
	if err := s.Copy(t.Context(), ref, dial); err != nil {
		t.Fatal(err)
	}
	if seen = append(seen, s.NoRoom(ref)); !slices.Equal(seen, []bool{false, true, false, false}) {
		t.Errorf("waits for room: %v", seen)
	}
}
