// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"strings"
	"sync"
	"time"
)

// Tail keeps the end of what a process writes to its standard error. It is a pipe, so
// that a guest that makes a hypervisor complain cannot fill the disk; once this process is
// gone what is written is dropped.
type Tail struct {
	pipe *os.File
	mu   sync.Mutex
	text []byte
	done chan struct{}
}

// tailBytes is as much as an exit may tell (vm.Exit).
const tailBytes = 4 << 10

// Collect reads r until it ends or is closed.
func Collect(r *os.File) *Tail {
	t := &Tail{pipe: r, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		buffer := make([]byte, tailBytes)
		for {
			n, err := r.Read(buffer)
			t.mu.Lock()
			t.text = append(t.text, buffer[:n]...)
			if len(t.text) > tailBytes {
				t.text = append(t.text[:0], t.text[len(t.text)-tailBytes:]...)
			}
			t.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return t
}

// Done is closed when all is read: the process and its children have ended.
func (t *Tail) Done() <-chan struct{} { return t.done }

// Close ends the collecting and waits for it.
func (t *Tail) Close() {
	_ = t.pipe.Close()
	<-t.done
}

// Settle waits a moment for the last words of a process that is about to end.
func (t *Tail) Settle() {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-t.done:
	case <-timer.C:
	}
}

// String is what was written, on one line.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(strings.Join(strings.FieldsFunc(string(t.text), func(r rune) bool { return r == '\n' || r == '\r' }), "; "), "?")
}
