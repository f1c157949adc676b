// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import "github.com/vk-firkin/vk-firkin/vm/vz/mac"

// Condition is a finding about a running Mac as a condition of its node.
type Condition struct {
	// Type is named for the problem.
	Type string
	// Problem, or Unknown.
	Problem, Unknown bool
	// Reason is CamelCase; Message says what was found and what to do.
	Reason, Message string
}

// conditions are the types, by the name of the check, with their reasons.
var conditions = map[string]struct{ kind, problem, well string }{
	"gui session":    {"firkin.dev/GUISessionMissing", "NoGUISession", "GUISessionPresent"},
	"login keychain": {"firkin.dev/KeychainLocked", "KeychainLocked", "KeychainUnlocked"},
	"screen":         {"firkin.dev/ScreenLocked", "ScreenLocked", "ScreenUnlocked"},
	"sleep":          {"firkin.dev/SleepEnabled", "MacSleeps", "MacStaysAwake"},
	"guests":         {"firkin.dev/UnknownVirtualMachines", "UnknownVirtualMachines", "AllKnown"},
}

// reasonUnknown is the reason of what could not be found out.
const reasonUnknown = "NotKnown"

// Conditions judges the state of a Mac as doctor does. user is whom the node runs as,
// others how many virtual machines run that are none of its machines.
func Conditions(s mac.State, user string, others int) []Condition {
	var list []Condition
	for _, c := range macStateChecks {
		j := c.judge(macState{State: s, user: user, others: others})
		t := conditions[c.name]
		condition := Condition{Type: t.kind, Reason: t.well, Message: j.found}
		switch {
		case j.unknown:
			condition.Unknown, condition.Reason = true, reasonUnknown
		case j.status != OK && !j.advice:
			condition.Problem, condition.Reason = true, t.problem
		}
		if j.remedy != "" {
			condition.Message += "; to do: " + j.remedy
		}
		list = append(list, condition)
	}
	return list
}
