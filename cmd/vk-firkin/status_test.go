// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// goldenText compares what is shown with a golden file.
func goldenText(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -update writes it):\n%s", name, diff)
	}
}

var statusTime = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// busyReport is a node with something of everything, some of it hostile.
func busyReport() status.Report {
	ago := func(d time.Duration) time.Time { return statusTime.Add(-d) }
	r := reportOf(warmpool.Status{
		Account: warmpool.Account{
			Capacity:  warmpool.Budget{MilliCPU: 8000, MemoryBytes: 15 << 30, DiskBytes: 200 << 30, Slots: 2},
			Active:    warmpool.Budget{MilliCPU: 1250, MemoryBytes: 2 << 30, DiskBytes: 3 << 30},
			Warm:      warmpool.Budget{MemoryBytes: 512 << 20, DiskBytes: 2 << 30},
			Available: warmpool.Budget{MilliCPU: 6750, MemoryBytes: 12<<30 + 512<<20, DiskBytes: 195 << 30, Slots: 2},
			Machines: []warmpool.Entry{
				{Machine: "pod-7c1f", PodUID: "uid-1", State: warmpool.StateActive, Budget: warmpool.Budget{MilliCPU: 250, MemoryBytes: 1 << 30}, Since: ago(3 * time.Hour)},
				{Machine: "warm-22", PodUID: "uid-2", State: warmpool.StateActive, Pool: "team/python", Template: "team/python", Budget: warmpool.Budget{MilliCPU: 1000, MemoryBytes: 1 << 30}, Since: ago(40 * time.Second)},
				{Machine: "warm-23", State: warmpool.StateWarm, Warm: true, Pool: "team/python", Template: "team/python", Budget: warmpool.Budget{MemoryBytes: 256 << 20}, Since: ago(10 * time.Minute)},
				{Machine: "warm-24", State: warmpool.StateRestoring, Warm: true, Pool: "team/python", Template: "team/python", Budget: warmpool.Budget{MemoryBytes: 256 << 20}, Since: ago(time.Second)},
				{Machine: "pod-lost", State: warmpool.StateQuarantined, Budget: warmpool.Budget{MemoryBytes: 256 << 20}, Since: ago(72 * time.Hour)},
			},
		},
		Pools: []warmpool.PoolStatus{
			{Pool: "team/python", Template: "team/python", Desired: 3, Ready: 1, Restoring: 1, Active: 1, UnmetSince: ago(40 * time.Second)},
			{Pool: "team/node", Template: "team/node", Desired: 2, Skip: warmpool.SkipSnapshotNotReady, Message: "its snapshot has failed", UnmetSince: ago(2 * time.Hour)},
		},
		Templates: []warmpool.TemplateStatus{
			{Namespace: "team", Name: "python", Revision: "a1b2", Phase: warmpool.TemplateReady},
			{Namespace: "team", Name: "node", Revision: "c3d4", Phase: warmpool.TemplateFailed, Step: "setup[1]", Message: "npm ci: exit code 1\n\x1b[2Jowned"},
		},
		Quarantined: []warmpool.Quarantined{{Machine: "pod-lost", Reason: "it runs, and no record speaks of it"}},
	}, map[string]string{"uid-1": "default/web", "uid-2": "team/job-1"})
	r.Time, r.StateDir, r.CacheDir = statusTime, "/home/ci/.firkin/state", "/home/ci/.firkin/cache"
	r.Node = &status.Node{Name: "mac-1", Version: "v0.4.0", PID: 4711, Began: ago(26 * time.Hour), Server: "https://10.0.0.1:6443", Driver: "vz", Arch: "arm64", GuestKit: "0123456789abcdef0123",
		WeakenedBy: []string{"--insecure-registry", "--no-taint"}}
	r.Conditions = []status.Condition{{Type: "Ready", OK: true}, {Type: "DiskPressure", Message: "8 GiB are free, 10 GiB must be"}, {Type: "MemoryPressure", OK: true, Message: "fine"}}
	r.Refusals = []status.Refusal{
		{Pod: "team/big", PodUID: "u", Reason: "Oversized", Message: "the pod wants 64 GiB of memory, this node has 15 GiB in all", First: ago(time.Minute), Last: ago(time.Minute), Count: 1},
		{Pod: "team/late", PodUID: "v", Reason: "QueueFull", Message: "64 pods wait already", First: ago(time.Hour), Last: ago(5 * time.Second), Count: 12},
	}
	return r
}

func TestRenderStatus(t *testing.T) {
	r := busyReport()
	goldenText(t, "status-busy.txt", renderStatus(r, screen{}))
	goldenText(t, "status-narrow.txt", renderStatus(r, screen{columns: 80, lines: 24}))
	idle := reportOf(warmpool.Status{}, nil)
	idle.Time, idle.StateDir, idle.CacheDir, idle.Node = r.Time, r.StateDir, r.CacheDir, r.Node
	idle.Conditions = []status.Condition{{Type: "Ready", Message: "list machines: boom"}}
	goldenText(t, "status-idle.txt", renderStatus(idle, screen{}))
	// Whatever somebody writes into it, a terminal is not told what to do, and it stays a screen.
	for range 1000 {
		r.Machines = append(r.Machines, r.Machines[0])
		r.Refusals = append(r.Refusals, status.Refusal{Pod: "a/b", Message: "\x1b]0;title\a\r\n\u202e\t" + strings.Repeat("x", 500), Count: 1})
	}
	text := renderStatus(r, screen{columns: 100, lines: 50})
	if strings.ContainsAny(text, "\x1b\a\r\u202e") {
		t.Error("it has what a terminal obeys")
	}
	lines := strings.Split(text, "\n")
	if len(lines) > 50 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if len([]rune(line)) > 100 {
			t.Errorf("a line of %d: %s", len([]rune(line)), line)
		}
	}
	if all := renderStatus(r, screen{}); strings.Count(all, "\n") > 100 {
		t.Errorf("%d lines without a terminal", strings.Count(all, "\n"))
	}
}

// runStatus runs the command on a state folder.
func runStatus(ctx context.Context, root string, args ...string) (string, error) {
	cmd := newRootCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append([]string{"status", "--state-dir", root, "--cache-dir", filepath.Join(root, "cache")}, args...))
	err := cmd.ExecuteContext(ctx)
	return out.String(), err
}

// serveAs lets a node answer in a state folder.
func serveAs(t *testing.T, root string, controls map[string]http.HandlerFunc) {
	t.Helper()
	listener, err := listenControl(root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- answer(ctx, listener, controls) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// The command shows what the running node answers.
func TestStatusAsksTheNode(t *testing.T) {
	root, r := t.TempDir(), busyReport()
	serveAs(t, root, map[string]http.HandlerFunc{"GET " + controlStatus: func(w http.ResponseWriter, _ *http.Request) { reply(w, r) }})
	out, err := runStatus(t.Context(), root)
	if err != nil || !strings.HasPrefix(out, "Node mac-1 runs") {
		t.Errorf("%v:\n%s", err, out)
	}
	out, err = runStatus(t.Context(), root, "-o", "json")
	var got status.Report
	if err != nil || json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.Conditions = []status.Condition{{Type: "Ready", Message: "no disk"}}
	var exit exitError
	if out, err := runStatus(t.Context(), root); !errors.As(err, &exit) || exit != 1 || !strings.Contains(out, "NOT READY: no disk") {
		t.Errorf("not ready: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"-o", "xml"}, {"--interval", "1ms"}} {
		if _, err := runStatus(t.Context(), root, args...); err == nil || !strings.Contains(err.Error(), "want") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// It goes on to show it until it is interrupted.
func TestStatusWatch(t *testing.T) {
	root, asked := t.TempDir(), 0
	ctx, cancel := context.WithCancel(t.Context())
	serveAs(t, root, map[string]http.HandlerFunc{"GET " + controlStatus: func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 3 {
			cancel()
		}
		reply(w, busyReport())
	}})
	out, err := runStatus(ctx, root, "--watch", "--interval", "100ms", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 2 {
		t.Errorf("%d documents: %s", len(lines), out)
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("no document: %s", line)
		}
	}
}

// Without a node it says so, what to do, and what the records say.
func TestStatusWithoutANode(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	root := filepath.Join(t.TempDir(), "state")
	var exit exitError
	out, err := runStatus(t.Context(), root)
	if !errors.As(err, &exit) || !strings.Contains(out, "No node ever ran") || !strings.Contains(out, "--state-dir") || !strings.Contains(out, "No machines.") {
		t.Errorf("%v:\n%s", err, out)
	}
	put := func(path, content string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("machines/pod-1/console", "")
	put("machines/warm-1/console", "")
	put("machines/lost/console", "")
	put("warm/warm-1.json", `{"kind":"warm-machine","version":1,"machine":"warm-1","pool":"team/python","namespace":"team","name":"python","created":"2026-03-04T05:00:00Z","warm":{"memoryBytes":268435456}}`)
	put("warm/broken.json", `{"machine":`)
	put("pods/uid-1/pod.json", `{"pod":{"metadata":{"namespace":"default","name":"web","uid":"uid-1"}},"startTime":"2026-03-04T04:06:07Z","machine":{"id":"pod-1","budget":{"milliCPU":250,"memoryBytes":1073741824}}}`)
	put("quarantine/lost.json", `{"machine":"lost","reason":"no record speaks of it"}`)
	r := recordsReport(directories{StateDir: root, CacheDir: root}, statusTime)
	r.Problem, r.Remedy = absence(directories{StateDir: root}, errNoNode, "systemctl --user start vk-firkin", "journalctl --user -u vk-firkin -n 50")
	r.StateDir = "/home/ci/.firkin/state"
	goldenText(t, "status-records.txt", renderStatus(r, screen{}))
	out, err = runStatus(t.Context(), root, "-o", "json")
	var got status.Report
	if !errors.As(err, &exit) || json.Unmarshal([]byte(out), &got) != nil || got.Running || got.Problem == "" || len(got.Machines) != 3 {
		t.Errorf("%v:\n%s", err, out)
	}
	// Somebody has the directory and does not answer.
	lock, err := durable.LockDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if problem, remedy := absence(directories{StateDir: root}, errNoNode, "", ""); !strings.Contains(problem, fmt.Sprintf("process %d has", os.Getpid())) || remedy == "" {
		t.Errorf("%s; %s", problem, remedy)
	}
	put(".lock", "no number")
	if problem, remedy := absence(directories{StateDir: root}, errNoNode, "", ""); !strings.HasPrefix(problem, "No node runs") || !strings.Contains(remedy, "vk-firkin install") {
		t.Errorf("%s; %s", problem, remedy)
	}
	if problem, _ := absence(directories{StateDir: root}, errors.New("boom"), "", ""); !strings.Contains(problem, "boom") {
		t.Errorf("%s", problem)
	}
}
