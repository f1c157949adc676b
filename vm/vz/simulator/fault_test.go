// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package simulator_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// useAll makes each call of the seam once on a machine, in an order that is legal, and
// goes on when one fails. It returns what each came to.
func useAll(t *testing.T, f framework.Framework) map[simulator.Call]error {
	t.Helper()
	errs := map[simulator.Call]error{}
	cfg := linux(t)
	saved := filepath.Join(t.TempDir(), "saved")
	_, errs[simulator.CallHost] = f.Host()
	m, err := f.New(cfg)
	if errs[simulator.CallNew] = err; err != nil {
		return errs
	}
	errs[simulator.CallSaveRestoreSupport] = m.SaveRestoreSupport()
	errs[simulator.CallStart] = m.Start()
	conn, err := m.Connect(vm.AgentPort)
	if errs[simulator.CallConnect] = err; err == nil {
		conn.Close()
	}
	errs[simulator.CallPause] = m.Pause()
	errs[simulator.CallSave] = m.Save(saved)
	errs[simulator.CallResume] = m.Resume()
	errs[simulator.CallStop] = m.Stop()
	errs[simulator.CallClose] = m.Close()
	if errs[simulator.CallClose] != nil {
		must(t, m.Close())
	}
	other := linux(t)
	r := newMachine(t, f, other)
	errs[simulator.CallRestore] = r.Restore(savedBeside(t, f, other))
	must(t, r.Close())
	p := newMachine(t, f, linux(t))
	must(t, p.Start())
	errs[simulator.CallRequestStop] = p.RequestStop()
	return errs
}

// savedBeside saves a machine of the identifier, with disks of its own.
func savedBeside(t *testing.T, f framework.Framework, cfg framework.Configuration) string {
	t.Helper()
	disks := slices.Clone(cfg.Disks)
	cfg.Disks = disks
	for i, d := range disks {
		info, err := os.Stat(d.Path)
		must(t, err)
		disks[i].Path = write(t, "disk", make([]byte, info.Size()))
	}
	return savedMachine(t, f, cfg)
}

// TestFaultsOfEveryCall: each call can be made to fail, before and after its effect.
func TestFaultsOfEveryCall(t *testing.T) {
	t.Parallel()
	for _, call := range simulator.Calls {
		for _, after := range []bool{false, true} {
			dir := t.TempDir()
			f := open(t, dir, simulator.NoGuest(simulator.Script{}))
			change(t, dir, func(h *simulator.Host) {
				h.Faults = []simulator.Fault{{Call: call, Nth: 1, Kind: simulator.FaultFail, After: after, Code: 77, Description: "injected"}}
			})
			err := useAll(t, f)[call]
			if code(err) != 77 || !strings.Contains(err.Error(), "injected") {
				t.Errorf("%s, after %v: %v, want code 77", call, after, err)
			}
			h, err := simulator.ReadHost(dir)
			must(t, err)
			if h.Faults[0].Hits != 1 || h.Faults[0].Seen < 1 {
				t.Errorf("%s, after %v: fault is %+v, want one hit", call, after, h.Faults[0])
			}
		}
	}
	if len(simulator.Calls) != 12 {
		t.Errorf("%d calls", len(simulator.Calls))
	}
}

// TestFaultCounts: the nth call over all machines and openings of a host, or all.
func TestFaultCounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	engine := simulator.NoGuest(simulator.Script{})
	change(t, dir, func(h *simulator.Host) {
		h.Faults = []simulator.Fault{
			{Call: simulator.CallHost, Nth: 2, Kind: simulator.FaultFail, Code: framework.CodeNetworkError},
			{Call: simulator.CallHost, Nth: 3, Kind: simulator.FaultFail, Domain: "NSPOSIXErrorDomain", Code: 28},
		}
	})
	var got []error
	for range 4 {
		_, err := open(t, dir, engine).Host()
		got = append(got, err)
	}
	var posix *framework.Error
	if got[0] != nil || code(got[1]) != framework.CodeNetworkError || !errors.As(got[2], &posix) || posix.Domain != "NSPOSIXErrorDomain" || got[3] != nil {
		t.Errorf("got %v", got)
	}
	change(t, dir, func(h *simulator.Host) {
		h.Faults = []simulator.Fault{{Call: simulator.CallHost, Kind: simulator.FaultFail}}
	})
	for range 3 {
		if _, err := open(t, dir, engine).Host(); code(err) != framework.CodeInternal {
			t.Errorf("%v, want code 1 each time", err)
		}
	}
	change(t, dir, func(h *simulator.Host) { h.Faults[0].Kind = "no such kind" })
	if _, err := open(t, dir, engine).Host(); err == nil {
		t.Error("a fault of an unknown kind does nothing: a test with it would pass")
	}
}

// TestFaultBeforeAndAfter: what the call has done when it fails.
func TestFaultBeforeAndAfter(t *testing.T) {
	t.Parallel()
	for after, want := range map[bool]framework.State{false: framework.StateStopped, true: framework.StateRunning} {
		dir := t.TempDir()
		f := open(t, dir, simulator.NoGuest(simulator.Script{}))
		change(t, dir, func(h *simulator.Host) {
			h.Faults = []simulator.Fault{{Call: simulator.CallStart, Nth: 1, Kind: simulator.FaultFail, After: after}}
		})
		m := newMachine(t, f, linux(t))
		if err := m.Start(); err == nil {
			t.Error("it did not fail")
		}
		wantState(t, m, want)
	}
	// A New that fails after its effect leaves nothing taken: nobody could close it.
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	change(t, dir, func(h *simulator.Host) {
		h.Faults = []simulator.Fault{{Call: simulator.CallNew, Nth: 1, Kind: simulator.FaultFail, After: true}}
	})
	cfg := linux(t)
	if _, err := f.New(cfg); err == nil {
		t.Error("it did not fail")
	}
	newMachine(t, f, cfg)
}

// TestStall: a stalled call holds up the others of its machine, but not Close, and goes
// on when its fault is taken away.
func TestStall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	m := newMachine(t, f, linux(t))
	must(t, m.Start())
	stall := func() {
		change(t, dir, func(h *simulator.Host) {
			h.Faults = []simulator.Fault{{Call: simulator.CallPause, Nth: 1, Kind: simulator.FaultStall}}
		})
	}
	stall()
	paused, resumed := make(chan error, 1), make(chan error, 1)
	go func() { paused <- m.Pause() }()
	waitHost(t, dir, func(h simulator.Host) bool { return h.Faults[0].Hits == 1 })
	go func() { resumed <- m.Resume() }()
	// Connect is not one of them.
	dial(t, m)
	select {
	case err := <-paused:
		t.Fatalf("pause: %v", err)
	case err := <-resumed:
		t.Fatalf("resume overtook a stalled pause: %v", err)
	default:
	}
	change(t, dir, func(h *simulator.Host) { h.Faults = nil })
	must(t, <-paused)
	must(t, <-resumed)
	wantState(t, m, framework.StateRunning)

	stall()
	go func() { paused <- m.Pause() }()
	waitHost(t, dir, func(h simulator.Host) bool { return h.Faults[0].Hits == 1 })
	must(t, m.Close())
	wantState(t, m, framework.StateStopped)
	change(t, dir, func(h *simulator.Host) { h.Faults = nil })
	if err := <-paused; code(err) != framework.CodeInvalidVirtualMachineState {
		t.Errorf("pause of a closed machine: %v, want code 3", err)
	}

	// For some time only.
	change(t, dir, func(h *simulator.Host) {
		h.Faults = []simulator.Fault{{Call: simulator.CallHost, Kind: simulator.FaultStall, Millis: 30}}
	})
	begin := time.Now()
	_, err := f.Host()
	must(t, err)
	if took := time.Since(begin); took < 30*time.Millisecond {
		t.Errorf("it took %s, want 30ms at least", took)
	}
}

// waitHost waits for what another goroutine or process does to the host.
func waitHost(t testing.TB, dir string, until func(simulator.Host) bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		h, err := simulator.ReadHost(dir)
		must(t, err)
		if until(h) {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("host is %+v after a minute", h)
		}
	}
}

// hostEnv makes the test binary another process of the simulated Mac in that directory.
const (
	hostEnv = "FIRKIN_TEST_HOST"
	doEnv   = "FIRKIN_TEST_DO"
)

// another starts another process that does what TestAnotherProcess calls do, and
// returns once it says so.
func another(t *testing.T, dir, do string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestAnotherProcess$")
	cmd.Env = append(os.Environ(), hostEnv+"="+dir, doEnv+"="+do, "TMPDIR="+t.TempDir()) // it cleans nothing up
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	said := make([]byte, 5)
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "ready" {
		rest, _ := io.ReadAll(out)
		t.Fatalf("the other process: %v: %s%s", err, said, rest)
	}
	return cmd
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
}

// TestAnotherProcess is no test, but what another process does.
func TestAnotherProcess(t *testing.T) {
	dir := os.Getenv(hostEnv)
	if dir == "" {
		t.Skip("it is the other process of another test")
	}
	f := open(t, dir, simulator.NoGuest(simulator.Script{}))
	ready := func() { _, _ = os.Stdout.WriteString("ready") }
	switch do, arg, _ := strings.Cut(os.Getenv(doEnv), " "); do {
	case "macos":
		must(t, newMachine(t, f, macOS(t)).Start())
	case "linux":
		cfg := linux(t)
		cfg.Disks[1].Path = arg
		cfg.MachineIdentifier = []byte(text(arg + ".identifier"))
		must(t, newMachine(t, f, cfg).Start())
	case "all": // until a fault ends it
		ready()
		useAll(t, f)
		os.Exit(3)
	case "count":
		ready()
		for range 100 {
			must(t, simulator.ChangeHost(dir, func(h *simulator.Host) { h.Boots++ }))
		}
		os.Exit(0)
	}
	ready()
	// Not for ever: a program that waits for nothing is ended by the runtime, and what it
	// holds with it.
	<-time.After(time.Hour)
}

func text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestCrashOfEveryCall: each call can end its process, before and after its effect.
func TestCrashOfEveryCall(t *testing.T) {
	t.Parallel()
	for _, call := range simulator.Calls {
		for _, after := range []bool{false, true} {
			dir := t.TempDir()
			change(t, dir, func(h *simulator.Host) {
				h.Faults = []simulator.Fault{{Call: call, Nth: 1, Kind: simulator.FaultCrash, After: after}}
			})
			cmd := another(t, dir, "all")
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Errorf("%s, after %v: the process ended with %v, want its end by kill", call, after, err)
			}
		}
	}
}
