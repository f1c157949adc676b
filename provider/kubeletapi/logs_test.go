// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
)

func TestContainerLogs(t *testing.T) {
	s := newServer(t)
	api := s.config(t, "api", "")
	ref := func(attempt int) provider.ContainerRef {
		return provider.ContainerRef{PodUID: "u", Container: "c", Attempt: attempt, ID: fmt.Sprintf("c-%d", attempt)}
	}
	previous := ref(0)
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	s.node.targets = map[string]provider.Target{
		"ns/running/c":   {ContainerRef: ref(1), State: running, Previous: &previous},
		"ns/first/c":     {ContainerRef: ref(0), State: running},
		"ns/creating/c":  {ContainerRef: ref(9), State: waiting("ContainerCreating")},
		"ns/pulling/c":   {ContainerRef: ref(9), State: waiting("ImagePullBackOff")},
		"ns/crashloop/c": {ContainerRef: ref(9), State: waiting("CrashLoopBackOff"), Previous: &previous},
		"ns/gone/c":      {ContainerRef: ref(9), State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}},
	}
	s.node.logs = map[provider.ContainerRef]bool{ref(0): true, ref(1): true}
	s.node.read = func(_ context.Context, c provider.ContainerRef, opts podlog.ReadOptions, w io.Writer) error {
		fmt.Fprintf(w, "%s tail=%v limit=%v", c.ID, deref(opts.Tail), deref(opts.LimitBytes))
		fmt.Fprintf(w, " follow=%v timestamps=%v since=%v stream=%q", opts.Follow, opts.Timestamps, !opts.Since.IsZero(), opts.Stream)
		return nil
	}
	for name, c := range map[string]struct {
		path string
		code int
		want string
	}{
		"all":         {"running/c", 200, `c-1 tail=-1 limit=-1 follow=false timestamps=false since=false stream=""`},
		"options":     {"running/c?tailLines=0&limitBytes=5&follow=true&timestamps=true&sinceSeconds=60", 200, `c-1 tail=0 limit=5 follow=true timestamps=true since=true stream=""`},
		"one stream":  {"running/c?stream=Stderr", 200, `c-1 tail=-1 limit=-1 follow=false timestamps=false since=false stream="stderr"`},
		"since time":  {"running/c?sinceTime=2026-01-02T03:04:05Z", 200, `c-1 tail=-1 limit=-1 follow=false timestamps=false since=true stream=""`},
		"previous":    {"running/c?previous=true", 200, `c-0 tail=-1 limit=-1 follow=false timestamps=false since=false stream=""`},
		"no previous": {"first/c?previous=true", 400, `previous terminated container "c" in pod "first" not found`},
		"creating":    {"creating/c", 400, `container "c" in pod "creating" is waiting to start: ContainerCreating`},
		"pulling":     {"pulling/c", 400, `container "c" in pod "pulling" is waiting to start: trying and failing to pull image`},
		"between":     {"crashloop/c", 200, `c-0 tail=-1 limit=-1 follow=false timestamps=false since=false stream=""`},
		"gone":        {"gone/c", 400, `container "c" in pod "gone" is terminated`},
		"older tail":  {"running/c?tail=7", 200, `c-1 tail=7 limit=-1 follow=false timestamps=false since=false stream=""`},
		"tail of all": {"running/c?tail=all", 200, `c-1 tail=-1 limit=-1 follow=false timestamps=false since=false stream=""`},
		"no number":   {"running/c?tailLines=x", 400, `invalid tailLines "x": unable to decode query: strconv.ParseInt: parsing "x": invalid syntax`},
		"no bytes":    {"running/c?limitBytes=0", 422, `invalid limitBytes "0": must be at least 1`},
		"tail of one": {"running/c?tailLines=1&stream=Stdout", 422, "tailLines cannot be combined with a single stream"},
		"what stream": {"running/c?stream=Stdin", 422, `invalid stream "Stdin"`},
		"not false":   {"running/c?timestamps=yes&follow=False", 200, `c-1 tail=-1 limit=-1 follow=false timestamps=true since=false stream=""`},
		"two sinces":  {"running/c?sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z", 422, "at most one of sinceTime and sinceSeconds may be specified"},
	} {
		t.Run(name, func(t *testing.T) {
			code, body := s.get(t, api, "/containerLogs/ns/"+c.path)
			if code != c.code || body != c.want {
				t.Errorf("got %d %s\nwant %d %s", code, body, c.code, c.want)
			}
		})
	}
}

func deref(n *int64) int64 {
	if n == nil {
		return -1
	}
	return *n
}

// TestLogBreaksOff: a log that cannot be read to its end must not look complete, and
// a client that goes away ends the reading.
func TestLogBreaksOff(t *testing.T) {
	s := newServer(t)
	ref := provider.ContainerRef{PodUID: "u", Container: "c"}
	s.node.targets["ns/p/c"] = provider.Target{ContainerRef: ref, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	s.node.logs[ref] = true
	ended := make(chan error, 1)
	s.node.read = func(ctx context.Context, _ provider.ContainerRef, opts podlog.ReadOptions, w io.Writer) error {
		fmt.Fprint(w, "some")
		if !opts.Follow {
			return errors.New("disk error")
		}
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	client, err := rest.HTTPClientFor(s.config(t, "api", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	resp, err := client.Get(s.url + "/containerLogs/ns/p/c")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err == nil || !bytes.Equal(body, []byte("some")) {
		t.Fatalf("got %q, %v", body, err)
	}
	resp, err = client.Get(s.url + "/containerLogs/ns/p/c?follow=1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the log is still read")
	}
}
