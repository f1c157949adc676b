// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	apache, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files map[string][]byte
		found []string
		fault string
	}{
		"permissive":       {map[string][]byte{"LICENSE": apache, "NOTICE": []byte("This product includes software by somebody.")}, []string{"Apache-2.0"}, ""},
		"none":             {nil, nil, "no licence"},
		"a notice alone":   {map[string][]byte{"NOTICE": []byte("by somebody")}, nil, "no licence"},
		"one of their own": {map[string][]byte{"LICENSE": []byte("You may look at it on Sundays, and pay for the rest of the week.")}, nil, "no licence that is known"},
		"not agreed to":    {map[string][]byte{"COPYING": []byte("This program is free software: you can redistribute it and/or modify it under the terms of the GNU General Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any later version.")}, nil, "nobody has agreed"},
	} {
		found, faults := judge(c.files)
		if c.fault == "" {
			if !slices.Equal(found, c.found) || len(faults) > 0 {
				t.Errorf("%s: %v, %v", name, found, faults)
			}
			continue
		}
		if len(faults) != 1 || !strings.Contains(faults[0], c.fault) {
			t.Errorf("%s: %v", name, faults)
		}
	}
}
