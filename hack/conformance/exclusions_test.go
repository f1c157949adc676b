// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"
)

func TestParseExclusions(t *testing.T) {
	for name, c := range map[string]struct{ yaml, want string }{
		"none":            {"[]", ""},
		"good":            {"- {spec: 'a b', reason: c}", ""},
		"no reason":       {"- {spec: a}", `exclusion "a" has no reason`},
		"a blank reason":  {"- {spec: a, reason: ' '}", `exclusion "a" has no reason`},
		"no spec":         {"- {reason: a}", "exclusion 1 names no spec"},
		"twice":           {"- {spec: a, reason: b}\n- {spec: a, reason: c}", `exclusion "a" is there twice`},
		"no expression":   {"- {spec: 'a[', reason: b}", `exclusion "a["`},
		"an unknown key":  {"- {spec: a, reasons: b}", "unknown field"},
		"not a list":      {"spec: a", "read the exclusions"},
		"several at once": {"- {spec: a}\n- {spec: b}", `exclusion "b" has no reason`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseExclusions([]byte(c.yaml))
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range got {
					if e.re == nil {
						t.Errorf("exclusion %q was not compiled", e.Spec)
					}
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// The list that is checked in is read and is short. That its entries match specs is checked
// when the tool runs: the specs are in the test binary.
func TestExclusionsOfTheRepository(t *testing.T) {
	content, err := os.ReadFile("exclusions.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseExclusions(content)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) > 15 {
		t.Errorf("%d exclusions: that is not a short list", len(all))
	}
}

func TestStale(t *testing.T) {
	list := func(yaml string) []exclusion {
		all, err := parseExclusions([]byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	specs := []spec{{"[sig-node] Pods should run"}, {"[sig-apps] Job should run"}}
	if err := stale(list("- {spec: 'Pods should r.n', reason: a}"), specs); err != nil {
		t.Error(err)
	}
	if err := stale(list("- {spec: Pods, reason: a}\n- {spec: 'Pods should walk', reason: a}"), specs); err == nil || !strings.Contains(err.Error(), "Pods should walk") {
		t.Errorf("got %v", err)
	}
}
