// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// The framework fails, stalls or takes a shim down in each call that a warm pool lives by,
// once: the pod that meets it runs all the same, the pool is full again, and what it says
// stands ready is checked out.
func TestVZPoolFaults(t *testing.T) {
	ns := poolNamespace(t)
	m := startSimulatedMac(t, ns, "vz-faults")
	apply(t, templateManifest(ns, "ready", simpleSetup))
	apply(t, poolManifest(ns, "pool", "ready", 2, m.selector()))
	waitPool(t, ns, "pool", "is full", full(2))
	whole, _ := m.snapshots()
	for i, f := range []simulator.Fault{
		{Call: simulator.CallResume, Kind: simulator.FaultFail, Code: framework.CodeInternal},
		{Call: simulator.CallResume, Kind: simulator.FaultStall},
		{Call: simulator.CallResume, Kind: simulator.FaultCrash},
		{Call: simulator.CallResume, Kind: simulator.FaultCrash, After: true},
		{Call: simulator.CallRestore, Kind: simulator.FaultCrash},
		{Call: simulator.CallRestore, Kind: simulator.FaultCrash, After: true},
		{Call: simulator.CallNew, Kind: simulator.FaultFail, Code: framework.CodeInternal},
		{Call: simulator.CallPause, Kind: simulator.FaultFail, Code: framework.CodeInternal},
		{Call: simulator.CallPause, Kind: simulator.FaultCrash, After: true},
		{Call: simulator.CallConnect, Kind: simulator.FaultCrash},
	} {
		f.Nth = 1
		name := fmt.Sprintf("fault-%d", i)
		t.Logf("%s: %s of %s, after its effect %v", name, f.Kind, f.Call, f.After)
		m.change(t, func(h *simulator.Host) { h.Faults = []simulator.Fault{f} })
		// Its checkout resumes an entry; the refill restores, resumes, connects and pauses one.
		apply(t, templatePod(ns, name, "ready", m.selector()))
		waitRunning(t, ns, name)
		waitLogs(t, ns, name, "prepared\n")
		eventually(t, waitBuild, "the fault strikes", func() error {
			h, err := simulator.ReadHost(m.host)
			if err == nil && h.Faults[0].Hits == 0 {
				err = fmt.Errorf("%s was called %d times", f.Call, h.Faults[0].Seen)
			}
			return err
		})
		m.change(t, func(h *simulator.Host) { h.Faults = nil })
		waitEntries(t, m.Node, 2)
		warm := checkouts(t, m.Node, "warm")
		after := fmt.Sprintf("after-%d", i)
		apply(t, templatePod(ns, after, "ready", m.selector()))
		waitRunning(t, ns, after)
		if got := checkouts(t, m.Node, "warm"); got != warm+1 {
			t.Errorf("%s of %s: what stood ready afterwards was not checked out", f.Kind, f.Call)
		}
		kubectl(t, "delete", "pod", name, after, "-n", ns, "--grace-period=1", "--timeout=60s")
		waitEntries(t, m.Node, 2)
	}
	if now, aside := m.snapshots(); len(aside) != 0 || len(now) != len(whole) {
		t.Errorf("snapshots are %q, put aside %q; before %q", now, aside, whole)
	}
}
