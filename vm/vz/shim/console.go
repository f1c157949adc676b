// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// consoleBytes is what vm.Consoler promises, and what each of a console's two files has
// at most.
const consoleBytes = 64 << 10

// markBytes is how much of the console is looked at together for a panic, which may come
// in pieces: the marker and the line after it.
const markBytes = 1 << 10

// console keeps the end of what a guest writes to its console, in two files that take
// turns: a guest cannot fill the disk.
type console struct {
	dir string
	// in and out are the framework's ends. They are there for every machine: one that is
	// restored must have what the saved one had (talosbox's restores failed over it).
	in, out *os.File
	read    *os.File
	done    chan struct{}

	panicked chan struct{}

	mu     sync.Mutex
	recent []byte // guarded by mu; the last markBytes
	panic  string // guarded by mu; the marker and what followed it
}

func newConsole(dir string) (*console, error) {
	in, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	read, out, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	c := &console{dir: dir, in: in, out: out, read: read, done: make(chan struct{}), panicked: make(chan struct{})}
	go c.copy()
	return c, nil
}

// Panicked is closed when the kernel has announced its end.
func (c *console) Panicked() <-chan struct{} { return c.panicked }

// Panic is what it said. Empty: it did not.
func (c *console) Panic() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.panic
}

// lastWords is how long the end of a console is waited for: the framework may have the
// writing end still, and a guest may write as fast as it is read.
const lastWords = 100 * time.Millisecond

// Close ends the console. What was written before is kept: it may say why the machine has
// ended.
func (c *console) Close() {
	_ = c.out.Close()
	_ = c.in.Close()
	if err := c.read.SetReadDeadline(time.Now().Add(lastWords)); err == nil {
		<-c.done
	}
	_ = c.read.Close()
	<-c.done
}

// copy reads the console until it is closed.
func (c *console) copy() {
	defer close(c.done)
	var file *os.File
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	size := int64(0)
	buffer := make([]byte, 4<<10)
	for {
		n, err := c.read.Read(buffer)
		if n > 0 {
			c.look(buffer[:n])
			if file == nil || size+int64(n) > consoleBytes {
				file, size = c.turn(file), 0
			}
			if file != nil {
				w, _ := file.Write(buffer[:n]) // a full disk costs the console, not the machine
				size += int64(w)
			}
		}
		if err != nil {
			return
		}
	}
}

// turn begins a new file and keeps the one before. nil: the disk does not let it.
func (c *console) turn(full *os.File) *os.File {
	path := filepath.Join(c.dir, layout.ConsoleFile)
	if full != nil {
		full.Close()
		_ = os.Rename(path, filepath.Join(c.dir, layout.ConsoleBefore))
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil
	}
	return f
}

// look finds the announcement of a panic.
func (c *console) look(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recent = append(c.recent, b...)
	i := bytes.Index(c.recent, []byte(panicMarker))
	if i >= 0 && c.panic == "" {
		// The rest of the line may be missing still; the reason is worth no waiting.
		c.panic = string(c.recent[i:min(len(c.recent), i+markBytes)])
		close(c.panicked)
	}
	if len(c.recent) > markBytes {
		c.recent = append(c.recent[:0], c.recent[len(c.recent)-markBytes:]...)
	}
}
