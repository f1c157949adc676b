// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"sync"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// maxChanges states wait for a reader; then the oldest is left out.
const maxChanges = 16

// machine is one VZVirtualMachine.
type machine struct {
	sim   *simulator
	cfg   framework.Configuration
	shape shape
	files []held // disks in order, then the auxiliary storage

	// queue is the framework's serial queue: one call at a time, in turn. Close does not
	// wait for it, so that a stalled call can be got rid of.
	queue sync.Mutex

	changes chan framework.State

	mu    sync.Mutex
	state framework.State // guarded by mu
	// changed is closed at the next change of state.
	changed chan struct{} // guarded by mu
	begun   bool          // it was started or restored once; guarded by mu
	closed  bool          // guarded by mu
	run     *run          // guarded by mu; nil: no guest
}

// run is what a machine holds while a guest is in it.
type run struct {
	guest      guest
	slot       *claim // macOS guests only
	identifier *claim
}

func (r *run) release() {
	r.slot.release()
	r.identifier.release()
}

// newMachine validates cfg and opens its files.
func (s *simulator) newMachine(cfg framework.Configuration) (_ *machine, err error) {
	h, err := ReadHost(s.dir)
	if err != nil {
		return nil, err
	}
	for _, r := range configurationRules {
		if err := r.check(h, cfg); err != nil {
			return nil, err
		}
	}
	// The configuration is copied (header of initWithConfiguration).
	cfg.MachineIdentifier = slices.Clone(cfg.MachineIdentifier)
	if len(cfg.MachineIdentifier) == 0 {
		cfg.MachineIdentifier = Identifier()
	}
	cfg.HardwareModel = slices.Clone(cfg.HardwareModel)
	cfg.MAC = slices.Clone(cfg.MAC)
	cfg.Disks = slices.Clone(cfg.Disks)
	m := &machine{
		sim:     s,
		cfg:     cfg,
		changes: make(chan framework.State, maxChanges),
		changed: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			m.release()
		}
	}()
	for _, d := range cfg.Disks {
		f, err := s.openDisk(d)
		if err != nil {
			return nil, err
		}
		m.files = append(m.files, f)
	}
	if cfg.AuxiliaryStorage != "" {
		f, err := s.openAuxiliary(cfg.AuxiliaryStorage)
		if err != nil {
			return nil, err
		}
		m.files = append(m.files, f)
	}
	m.shape, err = shapeOf(s.engine.version(), cfg, m.files)
	return m, err
}

// release gives the machine's files back.
func (m *machine) release() {
	for _, f := range m.files {
		f.release()
	}
}

// State is part of framework.Machine.
func (m *machine) State() framework.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Changes is part of framework.Machine.
func (m *machine) Changes() <-chan framework.State { return m.changes }

// set enters a state. m.mu is held.
func (m *machine) set(s framework.State) {
	m.state = s
	close(m.changed)
	m.changed = make(chan struct{})
	for {
		select {
		case m.changes <- s:
			return
		default:
		}
		select {
		case <-m.changes:
		default:
		}
	}
}

// call runs one call of the seam on the machine's queue.
func (m *machine) call(name Call, do func() error) error {
	m.queue.Lock()
	defer m.queue.Unlock()
	leave, err := m.sim.enter(name)
	if err != nil {
		return err
	}
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed {
		err = errClosed()
	} else {
		err = do()
	}
	return leave(err)
}

func errClosed() error {
	return framework.NewError(framework.CodeInvalidVirtualMachineState, "Invalid virtual machine state. The machine is closed.")
}

// errTransition has the framework's text (VZError.h, code 4).
func errTransition(from, to framework.State) error {
	return framework.NewError(framework.CodeInvalidVirtualMachineStateTransition, "Invalid virtual machine state transition. Transition from state “%s” to state “%s” is invalid.", from, to)
}

// errStopped has the text that a call gets whose machine ends under it.
func errStopped() error {
	return framework.NewError(framework.CodeInternal, "Internal Virtualization error. The virtual machine stopped unexpectedly.")
}

// settle waits until a guest that is ending has ended: its run is taken away first and
// the state follows when all of it is gone. m.mu is held, and given up meanwhile.
func (m *machine) settle() {
	for m.run == nil && !m.closed && !slices.Contains([]framework.State{framework.StateStopped, framework.StateError, framework.StateStarting, framework.StateRestoring}, m.state) {
		changed := m.changed
		m.mu.Unlock()
		<-changed
		m.mu.Lock()
	}
}

// enterState goes over into the state on the way, from one of the legal ones.
func (m *machine) enterState(on framework.State, from ...framework.State) (*run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settle()
	if m.closed {
		return nil, errClosed()
	}
	if !slices.Contains(from, m.state) {
		return nil, errTransition(m.state, on)
	}
	m.set(on)
	return m.run, nil
}

// leaveState ends a call in the state to, or, when the guest ended meanwhile, with an
// error in the state that this has led to.
func (m *machine) leaveState(r *run, to framework.State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run != r {
		return errStopped()
	}
	m.set(to)
	return nil
}

// guestEnded is how a run ends that nobody asked to: the guest powers off (nil), or the
// hypervisor fails. Calls of it for a run that has ended do nothing.
func (m *machine) guestEnded(r *run, cause error) {
	to := framework.StateStopped // header: guestDidStopVirtualMachine
	if cause != nil {
		to = framework.StateError // header: virtualMachine:didStopWithError
	}
	if m.end(r, to) && cause != nil {
		m.sim.log.Warn("The hypervisor failed", "err", cause)
	}
}

// end ends a run, if it is still the machine's, and enters a state. All that the run
// held is free before the state is seen: whoever waits for it may use a disk or start
// another machine at once.
func (m *machine) end(r *run, to framework.State) bool {
	m.mu.Lock()
	if r == nil || m.run != r {
		m.mu.Unlock()
		return false
	}
	m.run = nil
	g := r.guest
	m.mu.Unlock()
	if g != nil {
		g.kill()
	}
	r.release()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		to = framework.StateStopped
	}
	m.set(to)
	return true
}

// SaveRestoreSupport is part of framework.Machine.
func (m *machine) SaveRestoreSupport() error {
	return m.call(CallSaveRestoreSupport, func() error {
		h, err := ReadHost(m.sim.dir)
		if err != nil {
			return err
		}
		return saveSupport(h, m.cfg)
	})
}

// Start is part of framework.Machine.
func (m *machine) Start() error { return m.call(CallStart, m.start) }

func (m *machine) start() error {
	// header of startWithCompletionHandler: a machine in state stopped or error.
	if _, err := m.enterState(framework.StateStarting, framework.StateStopped, framework.StateError); err != nil {
		return err
	}
	m.mu.Lock()
	m.begun = true
	m.mu.Unlock()
	err := m.bootable()
	if err == nil {
		err = m.hasKey()
	}
	if err == nil {
		err = m.begin(false, framework.StateRunning, func(ended func(error)) (guest, error) {
			return m.sim.engine.boot(m.cfg, ended)
		})
	}
	var ferr *framework.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ferr) && ferr.Code == framework.CodeVirtualMachineLimitExceeded:
		m.fall(framework.StateStopped)
		return err
	case errors.As(err, &ferr):
		m.fall(framework.StateError)
		return err
	default:
		// A machine that could not be started is in state error: unproven on hardware.
		m.fall(framework.StateError)
		return framework.NewError(framework.CodeInternal, "Internal Virtualization error. The virtual machine failed to start: %v.", err)
	}
}

// fall leaves a state on the way after a failure, unless the end of the guest or of the
// machine has done so.
func (m *machine) fall(to framework.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == framework.StateStarting || m.state == framework.StateRestoring {
		m.set(to)
	}
}

// begin makes the run of a machine that is starting or restoring, which ends in state
// to. alone: no other machine with its identifier may run.
func (m *machine) begin(alone bool, to framework.State, do func(ended func(error)) (guest, error)) error {
	if err := m.attached(); err != nil {
		return err
	}
	id, err := m.sim.claimIdentifier(m.cfg.MachineIdentifier, alone)
	if err != nil {
		return err
	}
	r := &run{identifier: id}
	if m.cfg.GuestOS == framework.MacOS {
		r.slot, err = m.sim.claimSlot()
		if errors.Is(err, errTaken) {
			// VZError.h, code 6; agoda-com/macOS-vz-kubelet, tart: two macOS guests at once,
			// over all processes, whatever makes them.
			err = framework.NewError(framework.CodeVirtualMachineLimitExceeded, "The maximum supported number of active virtual machines has been reached.")
		}
		if err != nil {
			r.release()
			return err
		}
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		r.release()
		return errClosed()
	}
	m.run = r
	m.mu.Unlock()
	g, err := do(func(cause error) { m.guestEnded(r, cause) })
	if err != nil {
		m.mu.Lock()
		if m.run == r {
			m.run = nil
			r.release()
		}
		m.mu.Unlock()
		return err
	}
	m.mu.Lock()
	if m.run != r {
		m.mu.Unlock()
		g.kill()
		return errStopped()
	}
	r.guest = g
	m.set(to)
	m.mu.Unlock()
	return nil
}

// attached: what the machine was given is still there. The framework does not keep its
// own descriptors of the network's socket (Code-Hex/vz #213), and a disk image that was
// replaced is another disk.
func (m *machine) attached() error {
	if err := datagramSocket(m.cfg.Network); err != nil {
		return invalid("The network attachment is invalid: %v.", err)
	}
	for i, d := range m.cfg.Disks {
		now, err := os.Stat(d.Path)
		if err != nil {
			return framework.NewError(framework.CodeInvalidDiskImage, "Invalid disk image. %v.", err)
		}
		was, err := m.files[i].file.Stat()
		if err != nil || !os.SameFile(now, was) || now.Size() != m.shape.Disks[i].Bytes {
			return framework.NewError(framework.CodeInvalidDiskImage, "Invalid disk image. %s was replaced or has another size.", d.Path)
		}
	}
	return nil
}

// bootable: VZLinuxBootLoader wants an uncompressed kernel on Apple silicon (its
// documentation). Start fails for others, with the error that says nothing.
func (m *machine) bootable() error {
	if m.cfg.Kernel == "" {
		return nil
	}
	f, err := os.Open(m.cfg.Kernel)
	if err != nil {
		return invalid("The boot loader is invalid: %v.", err)
	}
	defer f.Close()
	head := make([]byte, 8)
	n, _ := f.Read(head) // a short file is none of these
	head = head[:n]
	if bytes.HasPrefix(head, []byte{0x1f, 0x8b}) || len(head) == 8 && string(head[:2]) == "MZ" && string(head[4:8]) == "zimg" {
		return framework.NewError(framework.CodeInternal, "Internal Virtualization error. The virtual machine failed to start.")
	}
	return nil
}

// hasKey: a macOS guest is not even booted on a Mac where nobody is logged in: tuist
// #10670 never saves machines and got errHostKey; tart #1075, from macOS 15.2 on.
// Whether older versions do without: unproven on hardware.
func (m *machine) hasKey() error {
	if m.cfg.GuestOS != framework.MacOS {
		return nil
	}
	h, err := ReadHost(m.sim.dir)
	if err == nil && !h.GUISession {
		err = errHostKey()
	}
	return err
}

// Pause is part of framework.Machine.
func (m *machine) Pause() error {
	return m.call(CallPause, func() error {
		return m.step(framework.StatePausing, framework.StateRunning, framework.StatePaused, guest.pause)
	})
}

// Resume is part of framework.Machine.
func (m *machine) Resume() error {
	return m.call(CallResume, func() error {
		return m.step(framework.StateResuming, framework.StatePaused, framework.StateRunning, guest.resume)
	})
}

// step goes from one state to another, by way of on.
func (m *machine) step(on, from, to framework.State, do func(guest) error) error {
	r, err := m.enterState(on, from)
	if err != nil {
		return err
	}
	if err := do(r.guest); err != nil {
		if lerr := m.leaveState(r, from); lerr != nil {
			return lerr
		}
		return framework.NewError(framework.CodeInternal, "Internal Virtualization error. %v.", err)
	}
	return m.leaveState(r, to)
}

// RequestStop is part of framework.Machine.
func (m *machine) RequestStop() error {
	return m.call(CallRequestStop, func() error {
		m.mu.Lock()
		m.settle()
		state, r := m.state, m.run
		m.mu.Unlock()
		// canRequestStop in other states than running: unproven on hardware.
		if state != framework.StateRunning {
			return framework.NewError(framework.CodeInvalidVirtualMachineState, "Invalid virtual machine state. The guest cannot be asked to stop in state “%s”.", state)
		}
		if err := r.guest.powerButton(); err != nil {
			return framework.NewError(framework.CodeInternal, "Internal Virtualization error. %v.", err)
		}
		return nil
	})
}

// Stop is part of framework.Machine.
func (m *machine) Stop() error {
	return m.call(CallStop, func() error {
		// header of stopWithCompletionHandler: running or paused. Not from error (pomme: the
		// process had to be killed), not from stopped (code 4, many projects).
		r, err := m.enterState(framework.StateStopping, framework.StateRunning, framework.StatePaused)
		if err != nil {
			return err
		}
		if !m.end(r, framework.StateStopped) {
			// The guest was quicker, and the state is what it has made it.
			m.mu.Lock()
			m.settle()
			state := m.state
			m.mu.Unlock()
			return errTransition(state, framework.StateStopping)
		}
		return nil
	})
}

// Close is part of framework.Machine.
func (m *machine) Close() error {
	leave, err := m.sim.enter(CallClose)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.settle()
	first, r := !m.closed, m.run
	m.closed = true
	m.mu.Unlock()
	if first {
		if !m.end(r, framework.StateStopped) {
			m.mu.Lock()
			if m.state != framework.StateStopped {
				m.set(framework.StateStopped)
			}
			m.mu.Unlock()
		}
		m.release()
	}
	return leave(nil)
}
