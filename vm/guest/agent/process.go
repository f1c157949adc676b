// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/envd/process"
)

const (
	// dataBytes is the data of one event.
	dataBytes = 32 << 10
	// execDrain is how long the output of a process may be silent, once the process
	// has ended, while another one still holds it open. Go's own os/exec calls it
	// WaitDelay.
	execDrain = time.Second
	// endKept is how long the end of a process is kept for a late Connect.
	endKept = 30 * time.Second
)

// execProcess is a process that was started by the process service. Its output goes
// to whoever listens, and none of it is kept: without a listener it is dropped, with
// slow ones the process waits.
type execProcess struct {
	pid       uint32
	tag       *string
	container string
	config    *process.ProcessConfig
	tty       bool
	run       Process

	input sync.Mutex // held while input is written, so that writes do not mix

	mu        sync.Mutex
	listeners map[*listener]struct{} // guarded by mu
	end       *process.ProcessEvent_EndEvent

	ended chan struct{} // closed when end is set and all output was given away
}

// listener is one Start or Connect call.
type listener struct {
	events chan *process.ProcessEvent // unbuffered: flow control reaches the process
	gone   chan struct{}              // closed by the call when it leaves
}

func newListener() *listener {
	return &listener{events: make(chan *process.ProcessEvent), gone: make(chan struct{})}
}

// listen adds a listener. All events are sent to it until its gone is closed.
func (p *execProcess) listen(l *listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners[l] = struct{}{}
}

func (p *execProcess) leave(l *listener) {
	close(l.gone)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.listeners, l)
}

// tell gives an event to every listener and waits until each took it or left.
func (p *execProcess) tell(e *process.ProcessEvent) {
	p.mu.Lock()
	to := make([]*listener, 0, len(p.listeners))
	for l := range p.listeners {
		to = append(to, l)
	}
	p.mu.Unlock()
	for _, l := range to {
		select {
		case l.events <- e:
		case <-l.gone:
		}
	}
}

// pump gives the output away until the process and its output have ended.
func (p *execProcess) pump() {
	activity := make(chan struct{}, 1)
	var telling atomic.Int32 // streams with output that a listener has yet to take
	var streams sync.WaitGroup
	stream := func(r io.Reader, wrap func([]byte) *process.ProcessEvent_DataEvent) {
		streams.Go(func() {
			for {
				// A listener may still encode the event: each has its own buffer.
				buf := make([]byte, dataBytes)
				n, err := r.Read(buf)
				if n > 0 {
					telling.Add(1)
					p.tell(&process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: wrap(buf[:n])}})
					select {
					case activity <- struct{}{}:
					default:
					}
					telling.Add(-1) // after the activity, so that one of the two is seen
				}
				if err != nil {
					return
				}
			}
		})
	}
	stdout := func(b []byte) *process.ProcessEvent_DataEvent {
		if p.tty {
			return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Pty{Pty: b}}
		}
		return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stdout{Stdout: b}}
	}
	stream(p.run.Stdout(), stdout)
	if r := p.run.Stderr(); r != nil {
		stream(r, func(b []byte) *process.ProcessEvent_DataEvent {
			return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stderr{Stderr: b}}
		})
	}
	drained := make(chan struct{})
	go func() { streams.Wait(); close(drained) }()

	exit := p.run.Wait()
	silence := time.NewTimer(execDrain)
	defer silence.Stop()
wait:
	for {
		select {
		case <-drained:
			break wait
		case <-activity:
			silence.Reset(execDrain)
		case <-silence.C:
			if telling.Load() > 0 || len(activity) > 0 {
				// Not the output is silent but a listener is slow: what follows is its as well.
				silence.Reset(execDrain)
				continue
			}
			// A process in the background holds the output: nobody waits for it.
			break wait
		}
	}
	p.run.Release()
	<-drained
	end := endOf(exit)
	p.mu.Lock()
	p.end = end
	p.mu.Unlock()
	close(p.ended)
}

// endOf is the end of a process in envd's words.
func endOf(e Exit) *process.ProcessEvent_EndEvent {
	end := &process.ProcessEvent_EndEvent{ExitCode: int32(e.Code), Exited: true, Status: fmt.Sprintf("exit status %d", e.Code)}
	if e.Signal != 0 {
		end.ExitCode, end.Exited, end.Status = -1, false, "signal: "+signalName(e.Signal)
	}
	if e.Code != 0 || e.Signal != 0 {
		end.Error = &end.Status
	}
	return end
}

// signalName names a signal as Go's syscall.Signal does on Linux, on any system.
func signalName(n int) string {
	names := map[int]string{
		1: "hangup", 2: "interrupt", 3: "quit", 4: "illegal instruction", 5: "trace/breakpoint trap", 6: "aborted",
		7: "bus error", 8: "floating point exception", 9: "killed", 10: "user defined signal 1", 11: "segmentation fault",
		12: "user defined signal 2", 13: "broken pipe", 14: "alarm clock", 15: "terminated",
	}
	if name, ok := names[n]; ok {
		return name
	}
	return fmt.Sprintf("signal %d", n)
}
