// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// exitOnly is a machine that is no more than a directory.
func exitOnly(t *testing.T) *machine {
	t.Helper()
	d := &Driver{log: slog.New(slog.DiscardHandler), machines: machinedir.NewRegistry[*machine](t.TempDir())}
	m := newMachine(d, layout.Record{ID: "a"})
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return m
}

// However many write down at once how a machine has ended, its shim among them, there is
// one end, and everybody is told that one.
func TestRecordExitOnce(t *testing.T) {
	for range 20 {
		m := exitOnly(t)
		const writers = 8
		begin, told := make(chan struct{}), make(chan vm.Exit, writers)
		for i := range writers {
			go func() {
				<-begin
				if i%2 == 0 {
					told <- m.recordedExit(fmt.Sprintf("died %d", i))
				} else {
					told <- m.recordExit(vm.Exit{Reason: vm.ExitStopped, Time: time.Unix(int64(i), 0).UTC(), Detail: fmt.Sprint("killed ", i)})
				}
			}()
		}
		close(begin)
		first := <-told
		for range writers - 1 {
			if got := <-told; got != first {
				t.Errorf("one is told %+v, another %+v", first, got)
			}
		}
		if got, ok := m.knownExit(); !ok || got != first {
			t.Errorf("%+v is written down, want %+v", got, first)
		}
	}
}

// What is no exit is replaced, so that the exit is the same for whoever opens the driver
// later.
func TestRecordExitReplacesGarbage(t *testing.T) {
	for _, text := range []string{"", "{", "{}", `{"detail":"no reason"}`} {
		m := exitOnly(t)
		if err := os.WriteFile(filepath.Join(m.dir, layout.ExitFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		first := m.recordedExit("it died")
		if first.Reason != vm.ExitCrashed || first.Detail != "it died" {
			t.Errorf("%q: exit is %+v", text, first)
		}
		if again := m.recordedExit("later"); again != first {
			t.Errorf("%q: exit is %+v, and was %+v", text, again, first)
		}
	}
}

// The shim's word stands.
func TestRecordExitKeepsShims(t *testing.T) {
	m := exitOnly(t)
	want := vm.Exit{Reason: vm.ExitGuest, Time: time.Unix(1, 0).UTC(), Detail: "the guest powered off"}
	if err := machinedir.WriteJSONOnce(m.driver.machines.FS, m.dir, layout.ExitFile, want); err != nil {
		t.Fatal(err)
	}
	if got := m.recordExit(vm.Exit{Reason: vm.ExitStopped}); got != want {
		t.Errorf("told %+v, want %+v", got, want)
	}
}

// An exit is the same for whoever waited and for whoever opens the driver later, also when
// its detail is long and not text.
func TestRecordedExitStays(t *testing.T) {
	for _, died := range []string{"x" + strings.Repeat("ü", maxDetailBytes), "its shim died: \xff\xfe", strings.Repeat("\xff", 2*maxDetailBytes)} {
		m := exitOnly(t)
		first := m.recordedExit(died)
		if again, ok := m.knownExit(); !ok || again != first || len(first.Detail) > maxDetailBytes {
			t.Errorf("%.20q: a detail of %d bytes, later of %d", died, len(first.Detail), len(again.Detail))
		}
	}
}

// A shim whose socket has fallen silent is about to end, which takes it a moment: its
// machine has exited, and is not one that cannot be asked. One that stays silent is.
func TestEndsSoon(t *testing.T) {
	for after, want := range map[time.Duration]vm.State{2 * time.Second: vm.StateExited, time.Hour: ""} {
		synctest.Test(t, func(t *testing.T) {
			m := exitOnly(t)
			defer m.driver.machines.Close()
			timer := time.AfterFunc(after, func() { close(m.exited) })
			defer timer.Stop()
			state, err := m.State(t.Context())
			if state != want || (want == "") != errors.Is(err, vm.ErrUnavailable) {
				t.Errorf("its shim ends after %s: state is %q, %v, want %q", after, state, err, want)
			}
		})
	}
}
