// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// endedProcess has ended, and its output is still to be read, one byte at a time.
type endedProcess struct {
	Process

	mu     sync.Mutex
	output []byte
}

func (p *endedProcess) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.output) == 0 {
		return 0, io.EOF
	}
	b[0], p.output = p.output[0], p.output[1:]
	return 1, nil
}

func (p *endedProcess) Stdout() io.Reader { return p }
func (p *endedProcess) Stderr() io.Reader { return nil }
func (p *endedProcess) Wait() Exit        { return Exit{} }

// Release loses what was not read, as closing a pipe does.
func (p *endedProcess) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.output = nil
}

// TestSlowListener gets all output of a process that ended long before.
func TestSlowListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newListener()
		p := &execProcess{run: &endedProcess{output: []byte("abc")}, listeners: map[*listener]struct{}{l: {}}, ended: make(chan struct{})}
		go p.pump()
		var got []byte
		for ended := false; !ended; {
			time.Sleep(10 * execDrain)
			select {
			case e := <-l.events:
				got = append(got, e.GetData().GetStdout()...)
			case <-p.ended:
				ended = true
			}
		}
		if string(got) != "abc" {
			t.Errorf("output is %q, want %q", got, "abc")
		}
	})
}
