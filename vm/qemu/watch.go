// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

const (
	// reconnectFirst and reconnectMax bound the pause between attempts to reach the
	// control socket of a process that lives.
	reconnectFirst = 20 * time.Millisecond
	reconnectMax   = time.Second
	// lastWords is how long the console may take to be read once a guest has ended.
	lastWords = 5 * time.Second
)

// watch owns the machine's control connection and its process handle from the time
// that the machine is known until it has ended or the driver is closed. q is the
// connection that start has made, nil for a machine found on disk.
func (m *machine) watch(q *qmp) {
	gone := make(chan struct{})
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if m.process.Wait() {
			close(gone)
		}
	}()
	m.serve(q, gone)
	select {
	case <-gone:
		m.finish()
	default:
	}
	m.process.Close()
	<-closed
	if m.stderr != nil {
		m.stderr.Close()
	}
}

// serve keeps a control connection and listens to it until the process has ended
// or the driver is closed.
func (m *machine) serve(q *qmp, gone <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-gone:
		case <-m.driver.machines.Closing():
		case <-ctx.Done():
		}
		cancel()
	}()
	wait := reconnectFirst
	for {
		if q == nil {
			q = m.connect(ctx)
		}
		if q != nil {
			wait = reconnectFirst
			m.setMonitor(q)
			m.listen(ctx, q)
			m.setMonitor(nil)
			q.Close()
			q = nil
		}
		timer := time.NewTimer(wait)
		wait = min(2*wait, reconnectMax)
		select {
		case <-gone:
			timer.Stop()
			return
		case <-m.driver.machines.Closing():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// connect makes one attempt. nil: it did not work.
func (m *machine) connect(ctx context.Context) *qmp {
	ctx, cancel := context.WithTimeout(ctx, qmpTimeout)
	defer cancel()
	conn, err := machinedir.DialUnix(ctx, m.dir, qmpSocket)
	if err != nil {
		return nil
	}
	q, err := newQMP(ctx, conn)
	if err != nil {
		return nil
	}
	return q
}

func (m *machine) setMonitor(q *qmp) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.qmp = q
	if q != nil {
		close(m.online)
	} else {
		m.online = make(chan struct{})
	}
}

// listen handles events until the connection ends. It begins by asking: the guest
// may have ended while nobody was connected.
func (m *machine) listen(ctx context.Context, q *qmp) {
	look := func() {
		if run, err := q.runState(ctx); err == nil && stateOf(run) == vm.StateExited {
			m.guestEnded(ctx, q, run, "")
		}
	}
	look()
	for {
		select {
		case e := <-q.events:
			switch e.Name {
			case "SHUTDOWN":
				var data struct {
					Guest  bool   `json:"guest"`
					Reason string `json:"reason"`
				}
				_ = json.Unmarshal(e.Data, &data) // an event we cannot read is still an end
				m.guestEnded(ctx, q, runShutdown, data.Reason)
			case "GUEST_PANICKED":
				m.guestEnded(ctx, q, runPanicked, "")
			case "STOP":
				look()
			}
		case <-q.missed:
			look()
		case <-q.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// guestEnded records the end of a guest whose QEMU stands still, and ends QEMU.
func (m *machine) guestEnded(ctx context.Context, q *qmp, run, reason string) {
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	console, err := m.keepConsole(ctx, q)
	if err != nil {
		m.driver.log.Warn("Cannot keep the console of an ended machine", "machine", m.id, "err", err)
	}
	m.mu.Lock()
	stopping := m.record.Stopping
	m.mu.Unlock()
	exit := guestExit(run, reason, stopping, string(console))
	exit.Time = time.Now().UTC()
	if err := m.decide(exit); err != nil {
		m.driver.log.Error("Cannot end the hypervisor of an ended machine", "machine", m.id, "err", err)
	}
}

// guestExit tells how a guest ended from QEMU's run state, the reason of its
// SHUTDOWN event (empty when it was missed), whether Stop had asked for it, and
// the console.
func guestExit(run, reason string, stopping bool, console string) vm.Exit {
	// A kernel without the panic device reboots instead, after saying so.
	panicked := run == runPanicked || reason != "guest-shutdown" && strings.Contains(console, "Kernel panic - not syncing")
	switch {
	case run == runInternal:
		return vm.Exit{Reason: vm.ExitCrashed, Detail: "the hypervisor reported an internal error"}
	case panicked:
		detail := "the guest's kernel panicked"
		if i := strings.LastIndex(console, "Kernel panic - not syncing"); i >= 0 {
			line, _, _ := strings.Cut(console[i:], "\n")
			detail += ": " + strings.TrimSpace(line)
		}
		return vm.Exit{Reason: vm.ExitCrashed, Detail: bounded(detail)}
	case stopping:
		return vm.Exit{Reason: vm.ExitStopped, Detail: "the guest powered off when asked"}
	case reason == "guest-reset":
		return vm.Exit{Reason: vm.ExitGuest, Detail: "the guest rebooted"}
	default:
		return vm.Exit{Reason: vm.ExitGuest, Detail: "the guest powered off"}
	}
}

// finish publishes the exit of a machine whose process has ended.
func (m *machine) finish() {
	status, child := m.process.Reap()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ending {
		if !child {
			status = "the hypervisor's process has ended"
		}
		if m.stderr != nil {
			<-m.stderr.Done() // at its end: the process held the only writing end
			if text := m.stderr.String(); text != "" {
				status += ": " + text
			}
		}
		m.exit = vm.Exit{Reason: vm.ExitCrashed, Time: time.Now().UTC(), Detail: bounded(status)}
		if err := machinedir.NoteJSON(m.driver.machines.FS, m.dir, exitFile, m.exit); err != nil {
			m.driver.log.Warn("Cannot record the exit of the machine", "machine", m.id, "err", err)
		}
	}
	close(m.exited)
}
