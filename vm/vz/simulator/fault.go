// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"fmt"
	"os"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// Call is a call of the seam, as faults name it.
type Call string

// The calls that faults can hit.
const (
	CallHost               Call = "Host"
	CallNew                Call = "New"
	CallSaveRestoreSupport Call = "SaveRestoreSupport"
	CallStart              Call = "Start"
	CallPause              Call = "Pause"
	CallResume             Call = "Resume"
	CallRequestStop        Call = "RequestStop"
	CallStop               Call = "Stop"
	CallSave               Call = "Save"
	CallRestore            Call = "Restore"
	CallConnect            Call = "Connect"
	CallClose              Call = "Close"
)

// Calls are all of them.
var Calls = []Call{CallHost, CallNew, CallSaveRestoreSupport, CallStart, CallPause, CallResume, CallRequestStop, CallStop, CallSave, CallRestore, CallConnect, CallClose}

// FaultKind is what a fault does to a call.
type FaultKind string

// Kinds of faults.
const (
	// FaultFail: the call returns an error.
	FaultFail FaultKind = "fail"
	// FaultStall: the call blocks.
	FaultStall FaultKind = "stall"
	// FaultCrash: the calling process ends, as by kill -9.
	FaultCrash FaultKind = "crash"
)

// Fault is put into Host.Faults and strikes one call. Calls are counted per fault, over
// all processes of the host, from the time that the fault is in host.json.
type Fault struct {
	Call Call `json:"call"`
	// Nth is which call is hit, from 1. 0: every one.
	Nth  int       `json:"nth,omitempty"`
	Kind FaultKind `json:"kind"`
	// After: the fault strikes when the call has had its effect, if it had one. Before
	// it, otherwise.
	After bool `json:"after,omitempty"`
	// Domain (empty: the framework's), Code and Description are FaultFail's error.
	Domain      string         `json:"domain,omitempty"`
	Code        framework.Code `json:"code,omitempty"`
	Description string         `json:"description,omitempty"`
	// Millis is how long FaultStall blocks. 0: until the process ends, or the fault is
	// taken out of host.json, which is there so that a test's own process can go on. The
	// call does its work then.
	Millis int `json:"millis,omitempty"`

	// Name tells equal faults apart. Empty: ChangeHost's caller does not care.
	Name string `json:"name,omitempty"`
	// Seen counts calls, Hits those that were struck. Kept by the simulator.
	Seen int `json:"seen,omitempty"`
	Hits int `json:"hits,omitempty"`
}

// stallPoll is how often a stalled call looks whether its fault was taken away.
const stallPoll = 5 * time.Millisecond

// enter counts a call and lets a fault strike before its effect. leave is called with
// what the call came to, and returns what the caller gets to see.
func (s *simulator) enter(call Call) (leave func(error) error, err error) {
	leave = func(err error) error { return err }
	f, err := s.struck(call)
	if err != nil || f == nil {
		return leave, err
	}
	if !f.After {
		return leave, s.strike(*f)
	}
	return func(err error) error {
		if ferr := s.strike(*f); ferr != nil {
			return ferr
		}
		return err
	}, nil
}

// struck counts the call and returns the fault that hits it, or nil.
func (s *simulator) struck(call Call) (*Fault, error) {
	h, err := ReadHost(s.dir)
	if err != nil {
		return nil, err
	}
	concerned := false
	for _, f := range h.Faults {
		concerned = concerned || f.Call == call
	}
	if !concerned {
		return nil, nil // without a write: most calls have no fault
	}
	var hit *Fault
	err = ChangeHost(s.dir, func(h *Host) {
		for i := range h.Faults {
			f := &h.Faults[i]
			if f.Call != call {
				continue
			}
			f.Seen++
			if hit == nil && (f.Nth == 0 || f.Nth == f.Seen) {
				f.Hits++
				c := *f
				hit = &c
			}
		}
	})
	return hit, err
}

func (s *simulator) strike(f Fault) error {
	switch f.Kind {
	case FaultFail:
		e := &framework.Error{Domain: f.Domain, Code: f.Code, Description: f.Description}
		if e.Domain == "" {
			e.Domain = framework.Domain
		}
		if e.Code == 0 {
			e.Code = framework.CodeInternal
		}
		if e.Description == "" {
			e.Description = fmt.Sprintf("Internal Virtualization error. (a fault of %s)", f.Call)
		}
		return e
	case FaultStall:
		s.stall(f)
		return nil
	case FaultCrash:
		// By signal, so that nothing is closed in order.
		if p, err := os.FindProcess(os.Getpid()); err == nil {
			_ = p.Kill()
		}
		select {}
	default:
		return fmt.Errorf("fault of %s: unknown kind %q", f.Call, f.Kind)
	}
}

func (s *simulator) stall(f Fault) {
	if f.Millis > 0 {
		<-time.After(time.Duration(f.Millis) * time.Millisecond)
		return
	}
	tick := time.NewTicker(stallPoll)
	defer tick.Stop()
	for range tick.C {
		h, err := ReadHost(s.dir)
		if err != nil {
			return // the host's directory is gone, and the test with it
		}
		there := false
		for _, g := range h.Faults {
			there = there || g.Call == f.Call && g.Nth == f.Nth && g.Kind == f.Kind && g.Name == f.Name
		}
		if !there {
			return
		}
	}
}
