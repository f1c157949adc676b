// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/vk-firkin/vk-firkin/provider/kubeletapi"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func containerState(t *testing.T, c *guest.Client) agentv1.ContainerState {
	t.Helper()
	list, err := c.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
	if err != nil || len(list.Msg.GetContainers()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	return list.Msg.GetContainers()[0].GetState()
}

// TestAttach: two clients see the container's output; the one whose input is the last
// ends it; both learn of its end.
func TestAttach(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			s := newServer(t)
			s.node.spec = corev1.PodSpec{Containers: []corev1.Container{{Name: "c", StdinOnce: true}}}
			s.runPod(t, "do", "cat", "warn bye")
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			type client struct {
				out, errOut *lines
				done        chan error
			}
			attach := func(stdin io.Reader) client {
				c := client{out: &lines{ch: make(chan string, 10)}, errOut: &lines{ch: make(chan string, 10)}, done: make(chan error, 1)}
				e := s.streamer(t, transport, "/attach/ns/p/c", corev1.PodExecOptions{Stdin: stdin != nil, Stdout: true, Stderr: true})
				go func() {
					c.done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: c.out, Stderr: c.errOut})
				}()
				return c
			}
			in, typed := io.Pipe()
			writer := attach(in)
			typed.Write([]byte("first\n"))
			if got := writer.out.next(t); got != "first" {
				t.Errorf("got %q", got)
			}
			onlooker := attach(nil)
			seen := make(chan struct{})
			go func() { // until the onlooker is attached nobody knows that it is
				for {
					select {
					case <-seen:
						typed.Close()
						return
					case <-time.After(50 * time.Millisecond):
						typed.Write([]byte("again\n"))
					}
				}
			}()
			if got := onlooker.out.next(t); got != "again" {
				t.Errorf("got %q", got)
			}
			go func() { // what is written besides
				for range onlooker.out.ch {
				}
			}()
			go func() {
				for range writer.out.ch {
				}
			}()
			close(seen)
			for name, c := range map[string]client{"writer": writer, "onlooker": onlooker} {
				if err := <-c.done; err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if got := c.errOut.next(t); got != "bye" {
					t.Errorf("%s: got %q", name, got)
				}
			}
		})
	}
}

// TestAttachDisconnect: a client that goes away leaves the container alone.
func TestAttachDisconnect(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			s := newServer(t)
			c := s.runPod(t, "cat")
			for range 3 {
				ctx, cancel := context.WithCancel(t.Context())
				in, typed := io.Pipe()
				out := &lines{ch: make(chan string, 10)}
				done := make(chan error, 1)
				e := s.streamer(t, transport, "/attach/ns/p/c", corev1.PodExecOptions{Stdin: true, Stdout: true})
				go func() {
					done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out})
				}()
				typed.Write([]byte("here\n"))
				out.next(t)
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("%v", err)
				}
				typed.Close()
			}
			if got := containerState(t, c); got != agentv1.ContainerState_CONTAINER_STATE_RUNNING {
				t.Errorf("the container is %v", got)
			}
		})
	}
}

// TestAttachFails: why is told in the error stream.
func TestAttachFails(t *testing.T) {
	for _, transport := range transports {
		s := newServer(t)
		c := s.runPod(t, "hang")
		if _, err := c.Containers.SignalContainer(t.Context(), connect.NewRequest(&agentv1.SignalContainerRequest{Id: "c-0", Signal: 9})); err != nil {
			t.Fatal(err)
		}
		await(t, "the container's end", func() bool { return containerState(t, c) == agentv1.ContainerState_CONTAINER_STATE_EXITED })
		e := s.streamer(t, transport, "/attach/ns/p/c", corev1.PodExecOptions{Stdout: true})
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
		if err == nil || !strings.Contains(err.Error(), `error attaching to container: container "c-0" is not running`) {
			t.Errorf("%s: %v", transport, err)
		}
	}
}

// TestIdleTimeout: a client and a container that have nothing to say are parted, and
// what is said keeps them together. The time to create streams has no part in it.
func TestIdleTimeout(t *testing.T) {
	for _, transport := range transports {
		for _, path := range []string{"/attach/ns/p/c", "/exec/ns/p/c"} {
			t.Run(transport+path, func(t *testing.T) {
				t.Parallel()
				s := newServer(t, func(o *kubeletapi.Options) {
					o.StreamIdleTimeout, o.StreamCreationTimeout = 500*time.Millisecond, time.Hour
				})
				s.runPod(t)
				began := time.Now()
				e := s.streamer(t, transport, path, corev1.PodExecOptions{Command: []string{"tick", "10", "100ms"}, Stdout: true})
				if path != "/exec/ns/p/c" {
					e = s.streamer(t, transport, path, corev1.PodExecOptions{Stdout: true})
				}
				err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
				took := time.Since(began)
				if path == "/exec/ns/p/c" {
					if err != nil || took < time.Second {
						t.Errorf("a command that says something ended after %v: %v", took, err)
					}
				} else if took < 400*time.Millisecond || took > 20*time.Second {
					t.Errorf("the silent connection ended after %v: %v", took, err)
				}
			})
		}
	}
}
