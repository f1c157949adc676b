// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func (s *stillSystem) MountImage(context.Context, int) (string, error) { return s.dir, nil }

// slowRuntime creates a container when it is let, and tells how often it was asked.
type slowRuntime struct {
	Runtime
	asked int
	let   chan error
}

func (r *slowRuntime) Create(context.Context, ContainerSpec) (Container, error) {
	r.asked++
	return nil, <-r.let
}

// TestCreateTwice: a host died while it had a container created, and the next one asks for
// it again: it gets what the first would have got, and the container is made once.
func TestCreateTwice(t *testing.T) {
	made := &StartError{Err: errors.New("no such program")} // which is a container, ended at its start
	failed := errors.New("no cgroup")
	for name, tt := range map[string]struct {
		result error
		code   connect.Code // of both
		third  connect.Code // of who asks later
	}{
		"it is made": {made, 0, connect.CodeAlreadyExists},
		"it fails":   {failed, connect.CodeInternal, connect.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runtime := &slowRuntime{let: make(chan error)}
				s, err := NewServer(Options{System: &stillSystem{dir: t.TempDir()}, Runtime: runtime, Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				cs := s.containers
				cs.pod = &Pod{}
				request := func() *connect.Request[agentv1.CreateContainerRequest] {
					return connect.NewRequest(&agentv1.CreateContainerRequest{Id: "c-0", Args: []string{"x"}})
				}
				answers := make(chan error, 2)
				ask := func(ctx context.Context) {
					_, err := cs.CreateContainer(ctx, request())
					answers <- err
				}
				first, die := context.WithCancel(t.Context())
				go ask(first)
				synctest.Wait()
				die()
				go ask(t.Context())
				impatient, cancel := context.WithCancel(t.Context())
				go func() { cancel() }()
				if _, err := cs.CreateContainer(impatient, request()); !errors.Is(err, context.Canceled) {
					t.Errorf("who does not wait gets %v", err)
				}
				synctest.Wait()
				if len(answers) != 0 {
					t.Fatalf("answered before it was made: %v", <-answers)
				}
				runtime.let <- tt.result
				for range 2 {
					if err := <-answers; (err == nil) != (tt.code == 0) || err != nil && connect.CodeOf(err) != tt.code {
						t.Errorf("%v, want code %v", err, tt.code)
					}
				}
				if runtime.asked != 1 {
					t.Errorf("it was made %d times", runtime.asked)
				}
				go func() {
					select {
					case runtime.let <- tt.result:
					case <-t.Context().Done():
					}
				}()
				if _, err := cs.CreateContainer(t.Context(), request()); connect.CodeOf(err) != tt.third {
					t.Errorf("later: %v, want %v", err, tt.third)
				}
			})
		})
	}
}
