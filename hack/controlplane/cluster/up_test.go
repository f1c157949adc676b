// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeBinary is a shell script in place of the multi-call binary: it sees its name in $0.
func fakeBinary(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fake")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func neverReady(t *testing.T) func(Ready) error {
	return func(Ready) error { t.Error("reported ready"); return nil }
}

func TestUpNamesTheComponentThatDied(t *testing.T) {
	l := testLayout(t)
	err := Up(t.Context(), Options{
		Dir: string(l), Timeout: time.Minute,
		Executable: fakeBinary(t, `echo "no space left, says ${0##*/}"; exit 3`),
	}, neverReady(t))
	if err == nil || !strings.Contains(err.Error(), "etcd died (exit status 3)") || !strings.Contains(err.Error(), "no space left, says etcd") {
		t.Errorf("err = %v, want the component, its exit and the end of its log", err)
	}
}

func TestUpReportsABinaryThatCannotRun(t *testing.T) {
	err := Up(t.Context(), Options{Dir: string(testLayout(t)), Timeout: time.Minute, Executable: "/nonexistent"}, neverReady(t))
	if err == nil || !strings.Contains(err.Error(), "start etcd") || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("err = %v", err)
	}
}

func TestUpGivesUpAndStopsWhatRuns(t *testing.T) {
	l := testLayout(t)
	err := Up(t.Context(), Options{
		Dir: string(l), Timeout: time.Nanosecond, Executable: fakeBinary(t, `exec cat`),
	}, neverReady(t))
	if err == nil || !strings.Contains(err.Error(), "not ready within") || !strings.Contains(err.Error(), "etcd.sock") {
		t.Errorf("err = %v, want the time and what was waited for", err)
	}
}

func TestOneUpAtATime(t *testing.T) {
	l := testLayout(t)
	unlock, err := lock(l)
	if err != nil {
		t.Fatal(err)
	}
	err = Up(t.Context(), Options{Dir: string(l), Timeout: time.Minute, Executable: "/nonexistent"}, neverReady(t))
	if err == nil || !strings.Contains(err.Error(), "already runs") {
		t.Errorf("second on one directory: %v", err)
	}
	unlock()
	unlock, err = lock(l)
	if err != nil {
		t.Errorf("after the first was gone: %v", err)
	} else {
		unlock()
	}
}

func TestCancelledBeforeReadyReturnsTheCause(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("stopped by a test")
	cancel(cause)
	err := Up(ctx, Options{Dir: string(testLayout(t)), Timeout: time.Minute, Executable: fakeBinary(t, `exec cat`)}, neverReady(t))
	if !errors.Is(err, cause) {
		t.Errorf("err = %v, want %v", err, cause)
	}
}

// syncBuffer is written by the logger while the test reads.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder // guarded by mu
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestStopKillsWhatDoesNotStop(t *testing.T) {
	l := testLayout(t)
	// The trap is in place once the log has a line. cat reads the lifeline, which stays open.
	if err := os.Symlink(fakeBinary(t, `trap "" TERM; echo ready; cat`), l.Bin("stubborn")); err != nil {
		t.Fatal(err)
	}
	s := newSpawner()
	defer s.close()
	c, err := startChild(s, l, component{name: "stubborn", grace: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(t.Context(), "the trap", func() error {
		if data, _ := os.ReadFile(l.Log("stubborn")); len(data) == 0 {
			return errors.New("not yet")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	c.stop(slog.New(slog.NewTextHandler(&log, nil)))
	if c.err == nil || c.err.Error() != "signal: killed" {
		t.Errorf("ended with %v, want it killed", c.err)
	}
	if !strings.Contains(log.String(), "did not stop in time") {
		t.Errorf("log %q does not say so", log.String())
	}
}

func TestTail(t *testing.T) {
	long := strings.Repeat("x", 40<<10)
	for name, tc := range map[string]struct{ content, want string }{
		"empty":         {"", "  (empty)"},
		"few lines":     {"a\nb\n", "  a\n  b"},
		"many lines":    {"a\nb\nc\nd\n", "  b\n  c\n  d"},
		"no newline":    {"a\nb", "  a\n  b"},
		"one long line": {long, "  " + long[:16<<10]},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := tail(path, 3); got != tc.want {
				t.Errorf("tail = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestWriteFileReplacesAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"one", "two", "two"} {
		if err := writeFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(path); string(got) != content {
			t.Errorf("holds %q, want %q", got, content)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files left, want 1", len(entries))
	}
}
