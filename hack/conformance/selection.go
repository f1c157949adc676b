// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// defaultTag is of the specs that every node has to pass.
const defaultTag = "NodeConformance"

// heavy are the tags of specs that are not run unless asked for: they take long, want the
// node for themselves, or break it.
var heavy = []string{"Slow", "Serial", "Disruptive"}

// selection chooses specs.
type selection struct {
	// sig is the group that wrote the specs, tag one that they carry, empty for any.
	sig, tag string
	focus    *regexp.Regexp
	// include are the heavy tags that are run.
	include    []string
	exclusions []exclusion
}

// newSelection checks what the user asked for.
func newSelection(sig, tag, focus, include string, exclusions []exclusion) (selection, error) {
	re, err := regexp.Compile(focus)
	if err != nil {
		return selection{}, fmt.Errorf("--focus: %w", err)
	}
	s := selection{sig: sig, tag: tag, focus: re, exclusions: exclusions}
	for tag := range strings.SplitSeq(include, ",") {
		switch tag = strings.TrimSpace(tag); {
		case tag == "":
		case slices.Contains(heavy, tag):
			s.include = append(s.include, tag)
		default:
			return selection{}, fmt.Errorf("--include: %q is none of %s", tag, strings.Join(heavy, ", "))
		}
	}
	return s, nil
}

// String says what is selected, for people.
func (s selection) String() string {
	text := "[" + s.sig + "] specs"
	if s.tag != "" {
		text = "[" + s.sig + "] [" + s.tag + "] specs"
	}
	if focus := s.focus.String(); focus != "" {
		text += " that match " + focus
	}
	return text
}

// choose splits the specs in the focus into those to run, and results for those that are not.
func (s selection) choose(specs []spec) (run []spec, skipped []result) {
	for _, sp := range specs {
		if !sp.has(s.sig) || s.tag != "" && !sp.has(s.tag) || !s.focus.MatchString(sp.Name) {
			continue
		}
		if reason, state := s.reason(sp); reason != "" {
			skipped = append(skipped, result{Name: sp.Name, State: state, Reason: reason})
			continue
		}
		run = append(run, sp)
	}
	return run, skipped
}

// reason tells why a spec is not run, or nothing.
func (s selection) reason(sp spec) (reason, state string) {
	for _, e := range s.exclusions {
		if e.re.MatchString(sp.Name) {
			return e.Reason, stateExcluded
		}
	}
	for _, tag := range heavy {
		if sp.has(tag) && !slices.Contains(s.include, tag) {
			return "[" + tag + "] is not run by default: --include " + tag, stateSkipped
		}
	}
	return "", ""
}

// patterns are regular expressions for ginkgo that match exactly the specs. Ginkgo puts
// the suite's description in front of a name, so they are bound to the end only.
func patterns(specs []spec) []string {
	all := make([]string, 0, len(specs))
	for _, s := range specs {
		all = append(all, regexp.QuoteMeta(s.Name)+"$")
	}
	return all
}
