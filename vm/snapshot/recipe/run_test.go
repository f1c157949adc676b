// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
)

func boot(t *testing.T) (*guesttest.Agent, *guest.Client) {
	t.Helper()
	a := guesttest.New(guesttest.Options{})
	t.Cleanup(func() { _ = a.Close() })
	c, err := a.Dial(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return a, c
}

func cmd(args ...string) recipe.Command { return recipe.Command{Args: args} }

func containers(t *testing.T, c *guest.Client) []string {
	t.Helper()
	list, err := c.Containers.ListContainers(t.Context(), connect.NewRequest(&agentv1.ListContainersRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, st := range list.Msg.GetContainers() {
		ids = append(ids, st.GetId())
	}
	return ids
}

// TestRun: what is written is below later containers, Start's program still runs, and the
// steps come in order.
func TestRun(t *testing.T) {
	a, c := boot(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ready" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	var steps []string
	r := recipe.Recipe{
		Env:       []string{"B=recipe", "C=d"},
		Setup:     []recipe.Command{cmd("write", "/data/one", "hello"), cmd("do", "cat /data/one", "write /data/two world")},
		WarmCache: []recipe.Command{cmd("cat", "/data/two"), cmd("spam", "300000")},
		Start:     &recipe.Command{Args: []string{"do", "env", "hang"}},
		Readiness: &recipe.Readiness{HTTP: &recipe.HTTP{Port: server.Listener.Addr().(*net.TCPAddr).Port, Path: "/ready"}},
	}
	err := recipe.Run(t.Context(), c, r, recipe.Options{
		Image:  recipe.Image{Env: []string{"A=image", "B=image"}},
		OnStep: func(s recipe.Step, i int) { steps = append(steps, string(s)+string(rune('0'+i))) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"Setup0", "Setup1", "WarmCache0", "WarmCache1", "Start0", "Readiness0"}, steps); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"template.start"}, containers(t, c)); diff != "" {
		t.Errorf("containers: %s", diff)
	}
	stream, err := c.Containers.ReadOutput(t.Context(), connect.NewRequest(&agentv1.ReadOutputRequest{Id: "template.start", Follow: true}))
	if err != nil {
		t.Fatalf("output of start: %v", err)
	}
	var env []string
	for len(env) < 3 && stream.Receive() { // it may not have been written yet
		for _, rec := range stream.Msg().GetRecords() {
			env = append(env, string(rec.GetData()))
		}
	}
	_ = stream.Close()
	if diff := cmp.Diff([]string{"A=image", "B=recipe", "C=d"}, env); diff != "" {
		t.Errorf("environment: %s", diff)
	}
	if _, err := c.Agent.Seal(t.Context(), connect.NewRequest(&agentv1.SealRequest{Key: make([]byte, 32), KeepCaches: true})); err != nil {
		t.Error(err)
	}

	// A pod in a machine restored from it.
	clone := a.Clone(guesttest.Options{})
	defer func() { _ = clone.Close() }()
	pod, err := clone.Dial(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pod.Close() }()
	for range 2 {
		if err := recipe.Rehearse(t.Context(), pod, recipe.Options{}, true); err != nil {
			t.Fatal(err)
		}
	}
	if got := containers(t, pod); len(got) != 0 {
		t.Errorf("the rehearsal left %v", got)
	}
	if _, err := pod.Containers.SetupPod(t.Context(), connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "pod"})); err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Containers.CreateContainer(t.Context(), connect.NewRequest(&agentv1.CreateContainerRequest{
		Id: "main", Args: []string{"cat", "/data/two"}, LowerLayers: []string{recipe.Layer},
	})); err != nil {
		t.Fatal(err)
	}
}

// TestRunWithoutCommands: the layer exists all the same, so that pods need not know.
func TestRunWithoutCommands(t *testing.T) {
	_, c := boot(t)
	if err := recipe.Run(t.Context(), c, recipe.Recipe{}, recipe.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := recipe.Rehearse(t.Context(), c, recipe.Options{}, true); err != nil {
		t.Error(err)
	}
	if got := containers(t, c); len(got) != 0 {
		t.Errorf("it left %v", got)
	}
}

// TestRehearseBase: a machine without a template.
func TestRehearseBase(t *testing.T) {
	_, c := boot(t)
	if err := recipe.Rehearse(t.Context(), c, recipe.Options{}, true); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("with a layer that is not there: %v", err)
	}
	if err := recipe.Rehearse(t.Context(), c, recipe.Options{}, false); err != nil {
		t.Error(err)
	}
	if err := recipe.Rehearse(t.Context(), c, recipe.Options{Slot: 100}, false); err == nil {
		t.Error("a slot that is not there is no error")
	}
}

func TestReadiness(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	hang := &recipe.Command{Args: []string{"hang"}}
	for name, r := range map[string]recipe.Recipe{
		"tcp":           {Readiness: &recipe.Readiness{TCP: &recipe.TCP{Port: port}}},
		"exec":          {Setup: []recipe.Command{cmd("write", "/a", "b")}, Readiness: &recipe.Readiness{Exec: &recipe.Command{Args: []string{"cat", "/a"}}}},
		"exec in start": {Start: hang, Readiness: &recipe.Readiness{Exec: &recipe.Command{Args: []string{"echo"}}}},
	} {
		_, c := boot(t)
		if err := recipe.Run(t.Context(), c, r, recipe.Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRunFails(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := closed.Addr().(*net.TCPAddr).Port
	_ = closed.Close()
	soon := func(r recipe.Readiness) *recipe.Readiness {
		r.Timeout, r.Period = 300*time.Millisecond, 10*time.Millisecond
		return &r
	}
	// A check that has to be answered before the time is over: on a busy host that takes a while.
	answered := func(r recipe.Readiness) *recipe.Readiness {
		r.Timeout = 3 * time.Second
		return &r
	}
	hang := recipe.Command{Args: []string{"hang"}}
	checkout := &recipe.Checkout{Repository: "https://u:secret@git.example.com/r", Ref: "main", Directory: "/src"}
	for _, test := range []struct {
		name    string
		recipe  recipe.Recipe
		step    recipe.Step
		index   int
		message string
		output  string
	}{
		{"exit", recipe.Recipe{Setup: []recipe.Command{cmd("echo"), cmd("do", "echo out", "warn err", "exit 3")}}, recipe.StepSetup, 1, `command "do echo out warn err exit 3" ended with exit code 3`, "out"},
		{"exit, both streams", recipe.Recipe{Setup: []recipe.Command{cmd("echo"), cmd("do", "echo out", "warn err", "exit 3")}}, recipe.StepSetup, 1, "ended with exit code 3", "err"}, // in no order
		{"warm", recipe.Recipe{WarmCache: []recipe.Command{cmd("exit", "1")}}, recipe.StepWarmCache, 0, "exit code 1", ""},
		{"no program", recipe.Recipe{Setup: []recipe.Command{cmd("nothing")}}, recipe.StepSetup, 0, "cannot be executed: exec: \"nothing\"", ""},
		{"oom", recipe.Recipe{Setup: []recipe.Command{cmd("oom")}}, recipe.StepSetup, 0, "want of memory", ""},
		{"full disk", recipe.Recipe{Setup: []recipe.Command{cmd("full")}}, recipe.StepSetup, 0, "no space is left on the machine's disk", "No space left"},
		{"hang", recipe.Recipe{Setup: []recipe.Command{cmd("do", "echo before", "hang")}, Timeout: 300 * time.Millisecond}, recipe.StepSetup, 0, "did not end: the build's timeout of 300ms is over", "before"},
		{"start ends", recipe.Recipe{Start: &recipe.Command{Args: []string{"do", "warn no config", "exit 2"}}}, recipe.StepStart, 0, "ended with exit code 2, and must keep running", "no config"},
		{"start ends well", recipe.Recipe{Start: &recipe.Command{Args: []string{"echo"}}}, recipe.StepStart, 0, "ended with exit code 0, and must keep running", ""},
		{"start without program", recipe.Recipe{Start: &recipe.Command{Args: []string{"nothing"}}}, recipe.StepStart, 0, "cannot be executed", ""},
		{"start ends while waited for", recipe.Recipe{Start: &recipe.Command{Args: []string{"do", "sleep 0.1", "exit 4"}}, Readiness: &recipe.Readiness{TCP: &recipe.TCP{Port: port}}}, recipe.StepStart, 0, "exit code 4", ""},
		{"tcp", recipe.Recipe{Start: &recipe.Command{Args: []string{"do", "echo hello", "hang"}}, Readiness: soon(recipe.Readiness{TCP: &recipe.TCP{Port: port}})}, recipe.StepReadiness, 0, "not ready within 300ms, the last check says: dial tcp", "hello"},
		{"http", recipe.Recipe{Readiness: soon(recipe.Readiness{HTTP: &recipe.HTTP{Port: port}})}, recipe.StepReadiness, 0, "refused", ""},
		{"exec", recipe.Recipe{Readiness: answered(recipe.Readiness{Exec: &recipe.Command{Args: []string{"do", "warn not yet", "exit 1"}}})}, recipe.StepReadiness, 0, "exit code 1", "not yet"},
		{"exec in start", recipe.Recipe{Start: &hang, Readiness: answered(recipe.Readiness{Exec: &recipe.Command{Args: []string{"do", "warn not yet", "exit 1"}}})}, recipe.StepReadiness, 0, "exit code 1", "not yet"},
		{"exec without program", recipe.Recipe{Start: &hang, Readiness: soon(recipe.Readiness{Exec: &recipe.Command{Args: []string{"nothing"}}})}, recipe.StepReadiness, 0, "cannot be executed", ""},
		{"hanging check", recipe.Recipe{Start: &hang, Readiness: soon(recipe.Readiness{Exec: &hang})}, recipe.StepReadiness, 0, "not answered in time", ""},
		{"git is missing", recipe.Recipe{Checkout: checkout}, recipe.StepCheckout, 0, "checkout of https://u:xxxxx@git.example.com/r at main cannot be executed", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, c := boot(t)
			err := recipe.Run(t.Context(), c, test.recipe, recipe.Options{})
			var step *recipe.StepError
			if !errors.As(err, &step) {
				t.Fatalf("%v", err)
			}
			if step.Step != test.step || step.Index != test.index || !strings.Contains(step.Message, test.message) || !strings.Contains(step.Output, test.output) ||
				strings.Contains(step.Message, "\n") || step.Unwrap() == nil {
				t.Errorf("%s %d\n%s\noutput %q", step.Step, step.Index, step.Message, step.Output)
			}
		})
	}
}

// TestRunMachineDies: the cause is told, not what broke by it.
func TestRunMachineDies(t *testing.T) {
	a, c := boot(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("machine ended: crashed")
	err := recipe.Run(ctx, c, recipe.Recipe{Setup: []recipe.Command{cmd("hang")}}, recipe.Options{OnStep: func(recipe.Step, int) {
		time.AfterFunc(100*time.Millisecond, a.Die)
		time.AfterFunc(200*time.Millisecond, func() { cancel(gone) })
	}})
	var step *recipe.StepError
	if !errors.As(err, &step) || !errors.Is(err, gone) || !strings.Contains(step.Message, gone.Error()) || step.Step != recipe.StepSetup {
		t.Errorf("%v", err)
	}
}

func TestRunRefusesBadRecipes(t *testing.T) {
	_, c := boot(t)
	if err := recipe.Run(t.Context(), c, recipe.Recipe{Setup: []recipe.Command{{}}}, recipe.Options{}); !errors.Is(err, recipe.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if got := containers(t, c); slices.ContainsFunc(got, func(string) bool { return true }) {
		t.Errorf("it left %v", got)
	}
}
