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
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/garbage"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

func runGC(t *testing.T, root string, args ...string) (string, error) {
	t.Helper()
	cmd := newGCCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(append([]string{"--state-dir", root, "--cache-dir", filepath.Join(root, "cache")}, args...))
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// Without a running node the command does it all by what is on the disk.
func TestGCWithoutANode(t *testing.T) {
	h := newSnapshotHost(t, true)
	old := time.Now().Add(-time.Hour)
	put := func(path string) {
		path = filepath.Join(h.root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(`{"machine":"m1"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		for p := path; p != h.root; p = filepath.Dir(p) {
			if err := os.Chtimes(p, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("machines/m1/scratch")
	put("machines/lost/scratch")
	put("pods/uid/logs/0.log")
	put("warm/m1.json")
	put("warm/.tmp-lost")
	exists := func(path string) bool {
		_, err := os.Lstat(filepath.Join(h.root, path))
		return err == nil
	}

	// A node that holds the store and does not answer: nothing is taken from under it.
	lock, err := durable.LockDir(h.root)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := runGC(t, h.root, "--grace", "0s"); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("beside a node that does not answer: %q, %v", out, err)
	}
	out, err := runGC(t, h.root, "--grace", "0s", "--dry-run", "-o", "json")
	var report garbage.Report
	if err != nil || json.Unmarshal([]byte(out), &report) != nil || !report.DryRun || report.Node || len(report.Decisions) == 0 {
		t.Errorf("dry run beside it: %q, %v", out, err)
	}
	if out, err := runGC(t, h.root, "--dry-run"); err != nil || strings.Contains(out, "No node runs") || !strings.Contains(out, "No node answers here") {
		t.Errorf("dry run beside it: %q, %v", out, err)
	}
	if err := errors.Join(lock.Close(), h.store.Close()); err != nil {
		t.Fatal(err)
	}
	// A socket that a dead node has left is no node.
	listener, err := listenControl(h.root)
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	out, err = runGC(t, h.root, "--grace", "0s")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for path, want := range map[string]bool{
		"machines/m1": true, "machines/lost": false, "pods/uid": false, "warm/m1.json": true, "warm/.tmp-lost": false, "snapshots/" + h.key: true,
	} {
		if exists(path) != want {
			t.Errorf("%s exists: %v, want %v\n%s", path, !want, want, out)
		}
	}
	if !strings.Contains(out, "removed 3") || !strings.Contains(out, "No node answers here") {
		t.Errorf("gc says %s", out)
	}
	// The machine goes, and with it what it kept.
	for _, path := range []string{"machines/m1", "warm/m1.json"} {
		if err := os.RemoveAll(filepath.Join(h.root, path)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := runGC(t, h.root, "--grace", "0s"); err != nil || exists("snapshots/"+h.key) {
		t.Errorf("without its machine the snapshot stays: %v: %s", err, out)
	}
	if out, err := runGC(t, filepath.Join(h.root, "nothing")); err != nil || exists("nothing") {
		t.Errorf("where nothing is: %v: %s", err, out)
	}
	for _, args := range [][]string{{"--grace", "-1s"}, {"-o", "xml"}, {"more"}} {
		if out, err := runGC(t, h.root, args...); err == nil {
			t.Errorf("%v: accepted: %s", args, out)
		}
	}
}

// A running node does it, and its report is the command's.
func TestGCAsksTheNode(t *testing.T) {
	root := t.TempDir()
	if _, err := askNode(t.Context(), root, garbage.Options{}, patience{time.Minute, time.Minute}); !errors.Is(err, errNoNode) {
		t.Errorf("without a node: %v", err)
	}
	var asked garbage.Options
	answer, fault := garbage.Report{Node: true, Decisions: []garbage.Decision{{Kind: garbage.KindImage, Name: "busybox", Bytes: 5 << 20, Remove: true, Reason: "unused"}}}, error(nil)
	for range 2 { // the second takes the place of a socket that was left
		listener, err := listenControl(root)
		if err != nil {
			t.Fatal(err)
		}
		server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			serveGC(w, r, func(_ context.Context, o garbage.Options) (garbage.Report, error) {
				asked = o
				return answer, fault
			})
		})}}
		server.Start()
		t.Cleanup(server.Close)
	}
	out, err := runGC(t, root, "--grace", "3m", "--dry-run")
	if err != nil || !strings.Contains(out, "busybox") || strings.Contains(out, "No node") || asked.Grace != 3*time.Minute || !asked.DryRun {
		t.Errorf("%q, %v, asked %+v", out, err, asked)
	}
	fault = errors.New("boom")
	if _, err := runGC(t, root); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("a failure: %v", err)
	}
	answer.Faults = []string{"cannot remove"}
	if out, err := runGC(t, root); err == nil || !strings.Contains(err.Error(), "cannot remove") || !strings.Contains(out, "busybox") {
		t.Errorf("a fault: %q, %v", out, err)
	}
	for _, body := range []string{"", "{", `{"grace":-1}`, `{"need":1}`, `{"other":1}`, `{"grace":` + strings.Repeat(" ", maxControlRequest) + `1}`} {
		w := httptest.NewRecorder()
		serveGC(w, httptest.NewRequest(http.MethodPost, controlGC, strings.NewReader(body)), func(context.Context, garbage.Options) (garbage.Report, error) {
			t.Errorf("%.20q was taken", body)
			return garbage.Report{}, nil
		})
		if w.Code != http.StatusBadRequest {
			t.Errorf("%.20q: %d", body, w.Code)
		}
	}
}

// A node that is there and does not answer keeps nobody waiting, and its process is named.
func TestGCBesideAHungNode(t *testing.T) {
	root := t.TempDir()
	lock, err := durable.LockDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	listener, err := listenControl(root) // the kernel takes connections, nobody serves them
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, err = askNode(t.Context(), root, garbage.Options{}, patience{time.Millisecond, time.Hour})
	if want := fmt.Sprintf("kill -9 %d", os.Getpid()); err == nil || errors.Is(err, errNoNode) || !strings.Contains(err.Error(), want) {
		t.Errorf("it says %v, want %q in it", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := askNode(ctx, root, garbage.Options{}, patience{time.Hour, time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	// One that answers and takes too long.
	release := make(chan struct{})
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == controlGC {
			<-release
		}
	})}}
	server.Start()
	defer server.Close()
	defer close(release)
	if _, err := askNode(t.Context(), root, garbage.Options{}, patience{time.Hour, 200 * time.Millisecond}); err == nil || !strings.Contains(err.Error(), "--timeout") {
		t.Errorf("it says %v", err)
	}
}

// What of an answer could be understood is shown, and that it was not all is an error.
func TestGCOfAnotherVersion(t *testing.T) {
	root := t.TempDir()
	listener, err := listenControl(root)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"node":true,"decisions":[{"kind":"image","name":"busybox","bytes":"many"}]}`))
	})}}
	server.Start()
	t.Cleanup(server.Close)
	if out, err := runGC(t, root); err == nil || !strings.Contains(err.Error(), "understand") || !strings.Contains(out, "busybox") {
		t.Errorf("%q, %v", out, err)
	}
}

// The socket is nobody else's, also in a folder that is open to others, and the node does
// not go on with its end while a command's collection is under way.
func TestControlSocket(t *testing.T) {
	root := t.TempDir()
	if err := os.Chmod(root, 0o777); err != nil { //nolint:gosec // such a folder is the case
		t.Fatal(err)
	}
	listener, err := listenControl(root)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(root, controlSocket))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	begun, finish, answered := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		collect := func(ctx context.Context, _ garbage.Options) (garbage.Report, error) {
			close(begun)
			<-ctx.Done()
			<-finish // a removal that cannot be interrupted
			return garbage.Report{Node: true}, nil
		}
		answered <- answer(ctx, listener, map[string]http.HandlerFunc{"POST " + controlGC: func(w http.ResponseWriter, r *http.Request) { serveGC(w, r, collect) }})
	}()
	asked := make(chan error, 1)
	go func() {
		_, err := askNode(t.Context(), root, garbage.Options{}, patience{time.Minute, time.Minute})
		asked <- err
	}()
	<-begun
	cancel()
	select {
	case err := <-answered:
		t.Fatalf("the node went on while a collection was under way: %v", err)
	case err := <-asked:
		t.Fatalf("the command was cut off: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if err := errors.Join(<-asked, <-answered); err != nil {
		t.Error(err)
	}
}
