// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChoose(t *testing.T) {
	const (
		plain    = "[sig-node] Pods should run [NodeConformance] [Conformance]"
		slow     = "[sig-node] Probes should wait [NodeConformance] [Slow]"
		serial   = "[sig-node] Taints should evict [Serial] [Disruptive]"
		hostPID  = "[sig-node] Security should see hostPID [NodeConformance]"
		elsehere = "[sig-apps] Job should run [NodeConformance]"
	)
	specs := []spec{{plain}, {slow}, {serial}, {hostPID}, {elsehere}}
	exclusions, err := parseExclusions([]byte("- {spec: hostPID, reason: no host}"))
	if err != nil {
		t.Fatal(err)
	}
	excluded := result{Name: hostPID, State: stateExcluded, Reason: "no host"}
	skip := func(name, tag string) result {
		return result{Name: name, State: stateSkipped, Reason: "[" + tag + "] is not run by default: --include " + tag}
	}
	for name, c := range map[string]struct {
		tag, focus, include string
		run                 []spec
		skipped             []result
	}{
		"default":            {defaultTag, "", "", []spec{{plain}}, []result{skip(slow, "Slow"), excluded}},
		"with slow ones":     {defaultTag, "", "Slow", []spec{{plain}, {slow}}, []result{excluded}},
		"one that matches":   {defaultTag, "Pods", "", []spec{{plain}}, nil},
		"one tag of two":     {"", "Taints", "Serial", nil, []result{skip(serial, "Disruptive")}},
		"both tags":          {"", "Taints", "Serial, Disruptive", []spec{{serial}}, nil},
		"another SIG's":      {"", "Job", "", nil, nil},
		"everything of ours": {"", "", "Slow,Serial,Disruptive", []spec{{plain}, {slow}, {serial}}, []result{excluded}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := newSelection("sig-node", c.tag, c.focus, c.include, exclusions)
			if err != nil {
				t.Fatal(err)
			}
			run, skipped := s.choose(specs)
			if d := cmp.Diff(c.run, run); d != "" {
				t.Errorf("to run (-want +got):\n%s", d)
			}
			if got := s.String(); !strings.Contains(got, c.focus) || !strings.Contains(got, c.tag) {
				t.Errorf("it calls itself %q", got)
			}
			if d := cmp.Diff(c.skipped, skipped); d != "" {
				t.Errorf("skipped (-want +got):\n%s", d)
			}
		})
	}
	if _, err := newSelection("sig-node", "", "[", "", nil); err == nil || !strings.Contains(err.Error(), "--focus") {
		t.Errorf("a focus that is no expression: %v", err)
	}
	if _, err := newSelection("sig-node", "", "", "Fast", nil); err == nil || !strings.Contains(err.Error(), "Fast") {
		t.Errorf("an unknown tag: %v", err)
	}
}

// What ginkgo is given matches the chosen specs and no others that begin as they do.
func TestPatterns(t *testing.T) {
	got := patterns([]spec{{"[sig-node] a (b) c"}})
	re := regexp.MustCompile(strings.Join(got, "|"))
	for text, want := range map[string]bool{
		"Suite [sig-node] a (b) c":      true,
		"Suite [sig-node] a (b) c more": false,
		"Suite s a b c":                 false,
	} {
		if re.MatchString(text) != want {
			t.Errorf("%q: match is not %v", text, want)
		}
	}
}

func TestFlags(t *testing.T) {
	t.Setenv("FOCUS", "Probing.*be$")
	o, err := parseFlags([]string{"--out", "x"}, io.Discard)
	if err != nil || o.focus != "Probing.*be$" || !filepath.IsAbs(o.out) || !filepath.IsAbs(o.exclusions) {
		t.Errorf("%+v, %v", o, err)
	}
	t.Setenv("FOCUS", "")
	if o, err := parseFlags(nil, io.Discard); err != nil || o.focus != "" || o.tag != defaultTag {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"word"}, {"--procs", "0"}, {"--timeout", "0s"}, {"--no-such-flag"}} {
		if _, err := parseFlags(args, io.Discard); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
