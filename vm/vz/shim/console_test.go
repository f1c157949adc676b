// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// consoleText is what lies on disk of a console, the older file first.
func consoleText(t *testing.T, dir string) string {
	t.Helper()
	var all []byte
	for _, name := range []string{layout.ConsoleBefore, layout.ConsoleFile} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if len(text) > consoleBytes {
			t.Errorf("%s has %d bytes, want %d at most", name, len(text), consoleBytes)
		}
		all = append(all, text...)
	}
	return string(all)
}

func openConsole(t *testing.T) (*console, string) {
	t.Helper()
	dir := t.TempDir()
	c, err := newConsole(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c, dir
}

// What a guest says just before its end is kept.
func TestConsoleKeepsLastWords(t *testing.T) {
	for range 20 {
		c, dir := openConsole(t)
		want := strings.Repeat("last words\n", 3000) // what a pipe holds at once
		if _, err := c.out.WriteString(want); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if got := consoleText(t, dir); got != want {
			t.Fatalf("kept %d bytes of %d", len(got), len(want))
		}
	}
}

// However much a guest writes, two files have the end of it.
func TestConsoleIsBounded(t *testing.T) {
	c, dir := openConsole(t)
	var want bytes.Buffer
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	for i := range 100 {
		chunk[0] = byte('A' + i%26)
		want.Write(chunk)
		if _, err := c.out.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	got := consoleText(t, dir)
	if len(got) < consoleBytes || !strings.HasSuffix(want.String(), got) {
		t.Errorf("kept %d bytes, want the end of what was written, %d at least", len(got), consoleBytes)
	}
}

// A guest that never stops writing does not keep its machine from ending, and the writing
// end that the framework still has breaks.
func TestConsoleCloseWhileFlooded(t *testing.T) {
	c, dir := openConsole(t)
	fd, err := syscall.Dup(int(c.out.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fd), "the framework's end")
	defer theirs.Close()
	broken := make(chan error, 1)
	flows := make(chan struct{})
	go func() {
		chunk := bytes.Repeat([]byte("flood\n"), 1000)
		for i := 0; ; i++ {
			if _, err := theirs.Write(chunk); err != nil {
				broken <- err
				return
			}
			if i == 100 {
				close(flows)
			}
		}
	}()
	<-flows
	c.Close()
	if err := <-broken; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the writer got %v, want EPIPE", err)
	}
	if c.Panic() != "" {
		t.Errorf("a panic is seen: %q", c.Panic())
	}
	consoleText(t, dir)
}

// A writing end that stays open and says nothing does not, either.
func TestConsoleCloseWhileHeld(t *testing.T) {
	c, _ := openConsole(t)
	fd, err := syscall.Dup(int(c.out.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fd), "the framework's end")
	defer theirs.Close()
	c.Close()
	if _, err := theirs.WriteString("late"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the writer got %v, want EPIPE", err)
	}
}

// A directory that takes no files costs the console only.
func TestConsoleWithoutFiles(t *testing.T) {
	c, dir := openConsole(t)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := c.out.WriteString(strings.Repeat("x", 10_000) + panicMarker + ": x\n"); err != nil {
		t.Fatal(err)
	}
	<-c.Panicked()
	c.Close()
}

// The announcement of a panic is found wherever reads cut it.
func TestConsoleFindsPanic(t *testing.T) {
	line := panicMarker + ": Attempted to kill init!"
	text := strings.Repeat("x", 3*markBytes) + "\n" + line + "\n"
	begin := strings.Index(text, line)
	for cut := begin - 1; cut <= begin+len(panicMarker)+1; cut++ {
		c := &console{panicked: make(chan struct{})}
		c.look([]byte(text[:cut]))
		select {
		case <-c.Panicked():
			if cut < begin+len(panicMarker) {
				t.Errorf("cut at %d: found before it is there", cut-begin)
			}
		default:
		}
		c.look([]byte(text[cut:]))
		select {
		case <-c.Panicked():
		default:
			t.Errorf("cut at %d: not found", cut-begin)
		}
		if !strings.HasPrefix(c.Panic(), panicMarker) {
			t.Errorf("cut at %d: panic is %q", cut-begin, c.Panic())
		}
	}
	// Byte by byte, and announced twice.
	c := &console{panicked: make(chan struct{})}
	for i := range text {
		c.look([]byte(text[i : i+1]))
	}
	c.look([]byte(text))
	if !strings.HasPrefix(c.Panic(), panicMarker) {
		t.Errorf("byte by byte: panic is %q", c.Panic())
	}
	if len(c.recent) > markBytes {
		t.Errorf("%d bytes are remembered, want %d at most", len(c.recent), markBytes)
	}
}
