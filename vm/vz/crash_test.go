// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// TestNodeKilledAtEveryCall kills the node while the framework stands in each call of the
// seam. The next node finds machines that work or can be deleted, each id once; nothing
// stays; the snapshot from before is as good as ever.
func TestNodeKilledAtEveryCall(t *testing.T) {
	var cases waiting
	defer cases.run(t)
	for _, call := range simulator.Calls {
		if call == simulator.CallConnect || call == simulator.CallRequestStop {
			continue // a node's death only ends the stream, and a grace: no step of a record
		}
		for _, after := range []bool{false, true} {
			cases.add(fmt.Sprintf("%s/after=%v", call, after), func(t *testing.T) {
				killedAt(t, simulator.Fault{Call: call, Kind: simulator.FaultStall, After: after, Nth: 1})
			})
		}
	}
}

func killedAt(t *testing.T, fault simulator.Fault) {
	b := newBench(t)
	const before = "from before"
	good := b.snapshot(t, b.config, before)
	if err := b.driver.Close(); err != nil { // one node at a time
		t.Fatal(err)
	}
	cfg := b.config
	cfg.Saveable = true
	saved := filepath.Join(t.TempDir(), "saved")
	task := nodeTask{StateDir: b.stateDir, Config: cfg, Steps: []string{
		"create source", "pause source", "save source " + saved, "resume source",
		"restore restored " + good, "resume restored", "delete source", "stop restored",
	}}
	// The host is asked once by the node itself, before it does anything; the second time
	// is a shim's.
	if fault.Call == simulator.CallHost {
		fault.Nth = 2
	}
	b.change(t, func(h *simulator.Host) { h.Faults = []simulator.Fault{fault} })
	kill, err := launchNode(b.simulation, task, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer kill()
	eventually(t, patience, "the framework stands in "+string(fault.Call), func() error {
		for _, f := range b.host(t).Faults {
			if f.Hits > 0 {
				return nil
			}
		}
		return fmt.Errorf("not called yet")
	})
	kill()
	b.change(t, func(h *simulator.Host) { h.Faults = nil })

	b.open(t)
	ctx := bounded(t)
	ids, err := b.driver.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		m, err := b.driver.Load(ctx, id)
		if err != nil {
			t.Errorf("load %q: %v", id, err)
			continue
		}
		state, err := m.State(ctx)
		if err != nil {
			t.Errorf("state of %q: %v", id, err)
			continue
		}
		if state == vm.StateExited {
			continue
		}
		// What is said to live takes part in life.
		if err := m.Resume(ctx); err != nil {
			t.Errorf("resume %q: %v", id, err)
		} else if _, err := talk(ctx, m, "hello"); err != nil {
			t.Errorf("talk to %q: %v", id, err)
		}
	}
	b.sweep(t)
	if complete := func() bool { _, err := os.Stat(filepath.Join(saved, "vz.json")); return err == nil }(); complete {
		b.wantRestorable(t, saved, b.config, "")
	}
	b.wantRestorable(t, good, b.config, before)
	b.sweep(t)
}

// TestNodeKilledAtAnyTime kills the node at many moments of a busy life, and looks at
// what the next one finds.
func TestNodeKilledAtAnyTime(t *testing.T) {
	b := newBench(t)
	good := b.snapshot(t, b.config, "good")
	if err := b.driver.Close(); err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for round := range 12 {
		var steps []string
		for i := range 4 {
			id := fmt.Sprintf("m%d", i)
			steps = append(steps, "restore "+id+" "+good, "resume "+id, "pause "+id, "resume "+id)
			if i%2 == 1 {
				steps = append(steps, "delete "+id)
			}
		}
		kill, err := launchNode(b.simulation, nodeTask{StateDir: b.stateDir, Config: b.config, Steps: steps}, nil)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(round*round*3) * time.Millisecond) // the moment of death is the point
		kill()
		b.open(t)
		ctx := bounded(t)
		ids, err := b.driver.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			m, err := b.driver.Load(ctx, id)
			if err != nil {
				t.Fatalf("round %d: load %q: %v", round, id, err)
			}
			state, err := m.State(ctx)
			if err != nil {
				t.Fatalf("round %d: state of %q: %v", round, id, err)
			}
			found[string(state)]++
		}
		b.sweep(t)
		if err := b.driver.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("found %v", found)
	b.open(t)
	b.wantRestorable(t, good, b.config, "good")
	b.sweep(t)
}

// TestAdopted: a node that was killed between its steps leaves machines to the next one,
// with their memory and their streams.
func TestAdopted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	good := b.snapshot(t, b.config, "adopted")
	if err := b.driver.Close(); err != nil {
		t.Fatal(err)
	}
	kill, said := startNode(t, b.simulation, nodeTask{StateDir: b.stateDir, Config: b.config, Steps: []string{
		"restore running " + good, "resume running", "restore paused " + good, "create booted",
	}}, "")
	kill()
	for _, line := range said {
		if strings.HasPrefix(line, "failed") {
			t.Error(line)
		}
	}
	b.open(t)
	ctx := bounded(t)
	ids, err := b.driver.List(ctx)
	if err != nil || !slices.Equal(ids, []string{"booted", "paused", "running"}) {
		t.Fatalf("list is %q, %v", ids, err)
	}
	for id, want := range map[string]vm.State{"running": vm.StateRunning, "paused": vm.StatePaused, "booted": vm.StateRunning} {
		m, err := b.driver.Load(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if state, err := m.State(ctx); err != nil || state != want {
			t.Errorf("%s is %q, %v, want %q", id, state, err, want)
		}
		if err := m.Resume(ctx); err != nil {
			t.Error(err)
		}
		greeting, err := talk(ctx, m)
		if err != nil || id != "booted" && !strings.Contains(greeting, `"adopted"`) {
			t.Errorf("%s greets with %q, %v", id, greeting, err)
		}
	}
	b.sweep(t)
}
