// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package podlog_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

// pipes is a listener whose connections are in memory: they can be in a bubble.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (l *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	host, inside := net.Pipe()
	select {
	case l.conns <- inside:
		return host, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// mortalAcks are a guest's acknowledgements, of which one finds the host dead: before the
// guest has heard of it, or after.
type mortalAcks struct {
	*spool
	die  context.CancelFunc // of the host
	at   int                // 0: never
	late bool
	n    int // guarded by spool.mu
}

func (a *mortalAcks) AckOutput(ctx context.Context, req *connect.Request[agentv1.AckOutputRequest]) (*connect.Response[agentv1.AckOutputResponse], error) {
	a.mu.Lock()
	a.n++
	now := a.n == a.at
	a.mu.Unlock()
	if now && !a.late {
		a.die()
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the host is dead"))
	}
	res, err := a.spool.AckOutput(ctx, req)
	if now {
		a.die()
	}
	return res, err
}

// copying is a container that writes lines while a host copies them, dies, and another host
// goes on. The guest refuses to give what was acknowledged.
type copying struct {
	guest *spool
	acks  *mortalAcks
	dial  provider.Dial
	dir   string
	want  string
}

func newCopying(t *testing.T, dir string) *copying {
	c := &copying{guest: newSpool(), dir: dir}
	if err := os.Mkdir(filepath.Join(dir, string(ref.PodUID)), 0o700); err != nil { // with the pod's record
		t.Fatal(err)
	}
	c.acks = &mortalAcks{spool: c.guest}
	_, h := agentv1connect.NewContainerServiceHandler(c.acks)
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	transport := &http.Transport{DialContext: l.dial}
	t.Cleanup(func() {
		close(l.closed)
		_ = server.Close()
		transport.CloseIdleConnections()
		<-ended
	})
	client := agentv1connect.NewContainerServiceClient(&http.Client{Transport: transport}, "http://guest")
	c.dial = func(context.Context) (*provider.Guest, error) { return &provider.Guest{Containers: client}, nil }
	var all strings.Builder
	for i := range 16 {
		fmt.Fprintf(&all, "line %d\n", i)
	}
	c.want = all.String()
	go func() {
		for line := range strings.Lines(c.want) {
			c.guest.print(strings.TrimSpace(line))
			time.Sleep(20 * time.Millisecond)
		}
		c.guest.update(func() { c.guest.exited = true })
	}()
	return c
}

// host copies until all is on disk, or it dies.
func (c *copying) host(ctx context.Context, disk *durabletest.FS) (*podlog.Store, error) {
	s := podlog.New(c.dir, podlog.Options{FS: disk, MaxFileBytes: 300, MaxFiles: 100, SyncInterval: 30 * time.Millisecond})
	err := s.Copy(ctx, ref, c.dial)
	return s, err
}

// another host goes on, and has all of it once.
func (c *copying) another(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := c.host(ctx, durabletest.New(t, durable.Host, c.dir, durabletest.Fault{}))
	if err != nil {
		t.Fatalf("the next host cannot go on: %v", err)
	}
	if got := readAll(t, s); got != c.want {
		t.Errorf("the log is\n%s", got)
	}
	c.guest.mu.Lock()
	defer c.guest.mu.Unlock()
	if c.guest.acked != 16 {
		t.Errorf("acknowledged up to %d", c.guest.acked)
	}
}

// TestCopyAtEveryFault: a host that copies a container's output fails, is full for a while,
// dies or loses its power at each change to its disk. No line is lost, none is there twice,
// and what the guest was told to forget is on disk whatever the disk forgets.
func TestCopyAtEveryFault(t *testing.T) {
	for _, mode := range []durabletest.Mode{durabletest.EIO, durabletest.Full, durabletest.Crash, durabletest.CrashLosingNames, durabletest.CrashLosingAll} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			operations := 0
			for n, reached := 1, true; reached && !t.Failed(); n++ {
				synctest.Test(t, func(t *testing.T) {
					c := newCopying(t, t.TempDir())
					disk := durabletest.New(t, durable.Host, c.dir, durabletest.Fault{At: n, Mode: mode})
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
					defer cancel()
					go func() {
						select {
						case <-disk.Died():
							cancel()
						case <-ctx.Done():
						}
					}()
					go func() {
						for !disk.Reached() {
							select {
							case <-time.After(10 * time.Millisecond):
							case <-ctx.Done():
								return
							}
						}
						select {
						case <-time.After(30 * time.Second):
							disk.Heal()
						case <-ctx.Done():
						}
					}()
					_, err := c.host(ctx, disk)
					if !disk.Dead() && err != nil {
						t.Errorf("it does not go on: %v", err)
					}
					cancel()
					if reached = disk.Reached(); !reached {
						operations = n - 1
					}
					disk.Restart(t)
					c.another(t)
					if t.Failed() {
						t.Logf("with %q after %q", disk.At(), disk.Ops())
					}
				})
			}
			if operations < 40 && !t.Failed() {
				t.Errorf("%d operations prove little", operations)
			}
		})
	}
}

// TestCopyAtEveryAcknowledgement: a host dies at each acknowledgement, before the guest has
// heard of it or after.
func TestCopyAtEveryAcknowledgement(t *testing.T) {
	for _, late := range []bool{false, true} {
		acks := 0
		for n := 0; n <= acks; n++ {
			synctest.Test(t, func(t *testing.T) {
				c := newCopying(t, t.TempDir())
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c.acks.die, c.acks.at, c.acks.late = cancel, n, late
				if _, err := c.host(ctx, durabletest.New(t, durable.Host, c.dir, durabletest.Fault{})); err != nil && ctx.Err() == nil {
					t.Errorf("it ends with %v", err)
				}
				if n == 0 {
					acks = c.acks.n
				}
				c.another(t)
				if t.Failed() {
					t.Logf("at acknowledgement %d of %d", n, acks)
				}
			})
		}
		if acks < 5 {
			t.Errorf("%d acknowledgements prove little", acks)
		}
	}
}
